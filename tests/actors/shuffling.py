"""The simulated world of `rekindle.chaos` with a controller that never leaves a shard where it is.

Everything is as there, faults, clients, the judge, but for who decides: a `Mover` has every instance follow some of the
shards, moves them about by chance, to warm ones and to cold ones, hands on what was lost, and hears of deaths late.
It keeps nothing but numbers that grow, so what it decides is often wrong: owners and followers have to be safe whatever
they are told.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from random import Random
from typing import Any, Final

from rekindle.actors import Closed, ConnectFailed, Connection, Floor, Host, Instance, Route, Table
from rekindle.actors.frames import (
    ASSIGN,
    CONTROLLER,
    FOLLOW,
    FOLLOWED,
    HELLO,
    LOST,
    POSITIONS,
    PROTOCOL,
    RELEASE,
    SERVING,
    TABLE,
    frame,
    parse,
)
from rekindle.chaos import Process, Report, World
from rekindle.chaos.workload import Workload
from rekindle.chaos.world import INSTANCES, SHARDS
from rekindle.events import RekindleError
from rekindle.supervisors import Spawned

TICK_S: Final = 0.1
MOVES: Final = 0.15
"""That a tick moves a shard."""

LISTS: Final = 0.05
"""That a tick gives an instance another list of what to follow."""

FOLLOWED_EACH: Final = 0.9
"""That a shard is in such a list."""

WARM: Final = 0.8
"""That a shard is moved to a warm instance if there is one."""

SUSPECT: Final = 0.1
"""That an assignment says that somebody died of the shard's replay."""

SILENT_S: Final = 2.5
"""Who has said nothing for so long is taken for dead, and killed only perhaps."""

TERM: Final = 1


class Seat:
    """An instance as the mover sees it."""

    def __init__(self, spawned: Spawned, connection: Connection, now: float) -> None:
        self.name = spawned.incarnation
        self.address = spawned.address
        self.connection = connection
        self.heard_at = now
        self.warm: set[int] = set()


class Mover:
    """Decides where shards are."""

    def __init__(self, world: ShufflingWorld, host: Host, random: Random) -> None:
        self.world = world
        self.host = host
        self.random = random
        self.seats: dict[str, Seat] = {}
        self.owners: list[tuple[str, int] | None] = [None] * SHARDS
        self.floors: dict[int, Floor] = {}
        self.orphans: set[int] = set(range(SHARDS))
        self.count = 0
        self.version = 0
        self.starting = 0

    async def addresses(self) -> Sequence[str]:
        """Where clients may ask."""
        return [seat.address for seat in self.seats.values()]

    async def run(self) -> None:
        """Go on for ever."""
        while True:
            await asyncio.sleep(TICK_S)
            while len(self.seats) + self.starting < INSTANCES:
                self.starting += 1
                self.host.spawn(self._start())
            self._forget_the_silent()
            if self.seats:
                self._move()
                self._follow()

    # --- instances ----------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self.count += 1
        name, node = f"ledger-{self.count}", self.random.choice(list(self.world.cluster.up.values()))
        seat: Seat | None = None
        try:
            spawned = await self.world.cluster.spawn("ledger", name, node)
            connection = await self.host.wire.connect(spawned.address)
            await connection.send(frame(HELLO, PROTOCOL, self.host.token, CONTROLLER))
            await connection.receive()
            seat = self.seats[name] = Seat(spawned, connection, self.world.loop.time())
            await self._send(seat, self._table())
            await self._send(seat, self._to_follow(seat, range(SHARDS)))
        except RekindleError:
            await self.world.cluster.kill(name)
        finally:
            self.starting -= 1
        if seat is not None:
            await self._listen(seat)

    async def _listen(self, seat: Seat) -> None:
        with suppress(Closed, ConnectFailed):
            while True:
                fields = parse(await seat.connection.receive())
                seat.heard_at = self.world.loop.time()
                self._hear(seat, fields)
        self._bury(seat)
        await self.world.cluster.kill(seat.name)

    def _hear(self, seat: Seat, fields: list[Any]) -> None:
        match fields:
            case [kind, shard, number, position, *_] if kind == SERVING:
                self._learn(shard, position)
                self._release_others(shard, number)
            case [kind, shard, number, _, _, position, seen] if kind == LOST:
                seat.warm.discard(shard)
                self._learn(shard, position)
                self.count = max(self.count, seen)
                if self.owners[shard] == (seat.name, number):
                    self.orphans.add(shard)
            case [kind, positions, _, _] if kind == POSITIONS:
                for shard, _, position in positions:
                    self._learn(shard, position)
            case [kind, followed] if kind == FOLLOWED:
                for shard, position, caught_up in followed:
                    self._learn(shard, position)
                    if caught_up:
                        seat.warm.add(shard)
            case _:
                pass

    def _learn(self, shard: int, position: list[int]) -> None:
        self.floors[shard] = max(self.floors.get(shard, Floor()), Floor(*position), key=lambda floor: floor.sequence)

    def _forget_the_silent(self) -> None:
        now = self.world.loop.time()
        for seat in [seat for seat in self.seats.values() if now - seat.heard_at > SILENT_S]:
            self._bury(seat)
            if self.random.random() < 0.5:
                self.host.spawn(self.world.cluster.kill(seat.name))

    def _bury(self, seat: Seat) -> None:
        if self.seats.pop(seat.name, None) is not None:
            self.orphans |= {shard for shard, owner in enumerate(self.owners) if owner and owner[0] == seat.name}

    # --- shards -------------------------------------------------------------------------------------------------

    def _move(self) -> None:
        moved = set(self.orphans)
        if self.random.random() < MOVES:
            moved.add(self.random.randrange(SHARDS))
        self.orphans.clear()
        for shard in sorted(moved):
            warm = [seat for seat in self.seats.values() if shard in seat.warm]
            seat = self.random.choice(warm if warm and self.random.random() < WARM else list(self.seats.values()))
            self.count += 1
            self.owners[shard] = (seat.name, self.count)
            self.world.moves["warm" if shard in seat.warm else "cold"] += 1
            seat.warm.discard(shard)
            suspect = self.random.random() < SUSPECT
            order: list[Any] = [shard, self.count, self.floors.get(shard, Floor()), suspect, []]
            self._later(seat, frame(ASSIGN, TERM, [order]))
        if moved:
            for seat in self.seats.values():
                self._later(seat, self._table())

    def _release_others(self, shard: int, number: int) -> None:
        owner = self.owners[shard]
        for seat in self.seats.values():
            if owner is not None and seat.name != owner[0]:
                self._later(seat, frame(RELEASE, TERM, [[shard, number - 1]]))

    def _follow(self) -> None:
        for seat in self.seats.values():
            if self.random.random() < LISTS:
                shards = [shard for shard in range(SHARDS) if self.random.random() < FOLLOWED_EACH]
                self._later(seat, self._to_follow(seat, shards))

    def _to_follow(self, seat: Seat, shards: Sequence[int]) -> bytes:
        seat.warm &= set(shards)
        return frame(FOLLOW, TERM, [[shard, self.floors.get(shard, Floor())] for shard in shards])

    def _table(self) -> bytes:
        self.version += 1
        routes = [
            Route(self.seats[owner[0]].address, owner[1]) if owner and owner[0] in self.seats else None
            for owner in self.owners
        ]
        return frame(TABLE, *Table((TERM, self.version), {"ledger": routes}).dump())

    def _later(self, seat: Seat, data: bytes) -> None:
        self.host.spawn(self._send(seat, data))

    async def _send(self, seat: Seat, data: bytes) -> None:
        with suppress(Closed):
            await seat.connection.send(data)


class ShufflingWorld(World):
    """See the head. moves: how many shards were moved to one that was warm, or cold. counters: of all instances."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.moves: Counter[str] = Counter()
        self.instances: list[Instance] = []
        process = Process(self.loop, "mover", "mover")
        self.mover = Mover(self, self.host(process), self.random("mover"))
        self._process = process

    @property
    def inherited(self) -> int:
        """How many owners have begun with what a follower had."""
        return sum(instance.around.counters.get("inherited", 0) for instance in self.instances)

    def start_controllers(self) -> None:
        """The mover leads, always."""
        self._process.start(self.mover.run())

    async def _launch(self, service: str, incarnation: str, process: Process) -> tuple[str, str]:
        instance = Instance(self.hosted, incarnation, self.host(process))
        self.instances.append(instance)
        return await instance.start(f"{process.host}:0")

    def _client(self, name: str) -> Workload:
        workload = super()._client(name)
        workload.client.seeds = self.mover.addresses
        return workload


def shuffle(seed: int) -> tuple[Report, ShufflingWorld]:
    """One run."""
    world = ShufflingWorld(seed)
    try:
        return world.run(), world
    finally:
        world.loop.close()
