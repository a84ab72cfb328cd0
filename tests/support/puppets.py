"""Instances on strings: a controller that does what a test wants, and witnesses who ask one instance and nobody else.

Both speak the frames of `rekindle.actors.frames` as the real controller and the real client do. But the script hands a
shard on whenever it is told to, and kills nobody; and a witness stays with its instance, whoever owns the shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from rekindle.actors import Closed, Connection, Floor, Hosted, Route, Table, WebsocketWire
from rekindle.actors.frames import (
    ANSWER,
    ASSIGN,
    CALL,
    CONTROLLER,
    FOLLOW,
    FOLLOWED,
    HELLO,
    LOST,
    PROTOCOL,
    RELEASE,
    SERVING,
    TABLE,
    WELCOME,
    frame,
    parse,
)
from rekindle.actors.outcomes import MOVED, OK
from rekindle.events import session_name, unpack
from rekindle.supervisors import Spawned
from rekindle.supervisors.hosting import now_ms
from tests.support.judge import End, History, Operation
from tests.support.watch import Watch

STEP_MAX_S: Final = 60.0
"""For one step of a run, on a machine that has other things to do."""

_TERM: Final = 1


class Owning(NamedTuple):
    """A shard under an assignment."""

    shard: int
    number: int


@dataclass(eq=False)
class Puppet:
    """An instance, and what it said of its assignments. warm: what it follows and has caught up with."""

    name: str
    address: str
    strings: Connection
    serving: set[Owning] = field(default_factory=set[Owning])
    lost: dict[Owning, str] = field(default_factory=dict[Owning, str])
    warm: set[int] = field(default_factory=set[int])


class Script:
    """The controller. Every assignment has a number of its own."""

    def __init__(self, hosted: Hosted) -> None:
        self.hosted = hosted
        self.puppets: list[Puppet] = []
        self.owners: dict[int, tuple[Puppet, int]] = {}
        self._watch = Watch()
        self._floors: dict[int, Floor] = {}
        self._numbers = 0
        self._version = 0

    async def adopt(self, spawned: Spawned) -> Puppet:
        """Take an instance on."""
        puppet = Puppet(spawned.incarnation, spawned.address, await greeted(spawned.address, CONTROLLER))
        self.puppets.append(puppet)
        return puppet

    async def listen(self, puppet: Puppet) -> None:
        """Hear what it says, until its connection is gone."""
        with suppress(Closed):
            while True:
                match parse(await puppet.strings.receive()):
                    case [kind, shard, number, position] if kind == SERVING:
                        puppet.serving.add(Owning(shard, number))
                        self._learn(shard, Floor(*position))
                    case [kind, shard, number, reason, _, position, _] if kind == LOST:
                        puppet.lost[Owning(shard, number)] = reason
                        puppet.warm.discard(shard)  # it begins to follow anew
                        self._learn(shard, Floor(*position))
                    case [kind, followed] if kind == FOLLOWED:
                        for shard, position, caught_up in followed:
                            if caught_up:
                                puppet.warm.add(shard)
                            self._learn(shard, Floor(*position))
                    case _:
                        pass

    def _learn(self, shard: int, position: Floor) -> None:
        self._floors[shard] = max(self._floors.get(shard, Floor()), position, key=lambda floor: floor.sequence)
        self._watch.changed()

    def owned_by(self, puppet: Puppet) -> list[Owning]:
        """What it was given last, whether it has it or not."""
        return [Owning(shard, number) for shard, (owner, number) in self.owners.items() if owner is puppet]

    async def assign(self, shards: Sequence[int], to: Puppet) -> None:
        """Give it the shards, and tell everybody."""
        orders: list[Any] = []
        for shard in shards:
            self._numbers += 1
            self.owners[shard] = (to, self._numbers)
            to.warm.discard(shard)
            orders.append([shard, self._numbers, self._floors.get(shard, Floor()), False, []])
        await to.strings.send(frame(ASSIGN, _TERM, orders))
        table = self._next_table()
        for puppet in self.puppets:
            await puppet.strings.send(table)

    async def release(self, puppet: Puppet) -> None:
        """Have it give up what it still takes for its own and somebody else was given since."""
        newest = {shard: number for shard, (_, number) in self.owners.items()}
        old = [owning for owning in puppet.serving - puppet.lost.keys() if owning.number < newest[owning.shard]]
        await puppet.strings.send(frame(RELEASE, _TERM, old))

    async def follow(self, puppet: Puppet, shards: Sequence[int]) -> None:
        """Have it follow these shards, as far as it does not own them, and no others."""
        followed = [[shard, self._floors.get(shard, Floor())] for shard in shards]
        await puppet.strings.send(frame(FOLLOW, _TERM, followed))

    def _next_table(self) -> bytes:
        self._version += 1
        routes: list[Route | None] = [None] * self.hosted.shards
        for shard, (owner, number) in self.owners.items():
            routes[shard] = Route(owner.address, number)
        return frame(TABLE, *Table((_TERM, self._version), {self.hosted.name: routes}).dump())

    async def wait_served(self, shards: Sequence[int]) -> None:
        """Until the owners of these shards say that they serve them."""
        wanted = [(puppet, Owning(shard, number)) for shard in shards for puppet, number in (self.owners[shard],)]
        what = f"shards {shards} are served"
        await self._watch.until(what, lambda: all(owning in puppet.serving for puppet, owning in wanted), STEP_MAX_S)

    async def wait_lost(self, puppet: Puppet, owned: Sequence[Owning]) -> None:
        """Until it has given all of these up, without having been told."""
        what = f"{puppet.name} gives up {owned}"
        await self._watch.until(what, lambda: all(owning in puppet.lost for owning in owned), STEP_MAX_S)

    async def wait_warm(self, puppet: Puppet, shards: Sequence[int]) -> None:
        """Until it follows all of these and has caught up with them since it has lost them."""
        owned = [owning for owning in puppet.serving if owning.shard in shards]
        what = f"{puppet.name} has caught up with {shards}"
        await self._watch.until(
            what,
            lambda: puppet.warm.issuperset(shards) and all(owning in puppet.lost for owning in owned),
            STEP_MAX_S,
        )


@dataclass(slots=True)
class Asked:
    """What a witness asked. late: when the shard was known to be served by another. outcome: once it is there."""

    operation: Operation
    late: bool
    outcome: list[Any] | None = None


class Witness:
    """A caller of one instance that believes what it is told."""

    def __init__(self, name: str, connection: Connection, history: History, hosted: Hosted) -> None:
        self.name = name
        self.asked: list[Asked] = []
        self._watch = Watch()
        self._connection = connection
        self._history = history
        self._hosted = hosted
        self._session = session_name(now_ms(), name[-8:].encode())
        self._numbers: Counter[int] = Counter()

    async def listen(self) -> None:
        """Take its answers, until its connection is gone."""
        with suppress(Closed):
            while True:
                fields = parse(await self._connection.receive())
                if fields[0] == ANSWER:
                    for call, payload in fields[1]:
                        self._on_answer(call, unpack(payload))

    def _on_answer(self, call: int, outcome: list[Any]) -> None:
        asked = self.asked[call]
        asked.outcome = outcome
        if outcome[0] == OK:
            self._history.end(asked.operation, End.OK, outcome[1])
        self._watch.changed()

    async def ask(self, shard: int, key: str, *, late: bool) -> None:
        """Send a command and a query."""
        self._numbers[shard] += 1
        number, key_of_all = self._numbers[shard], f"{self._hosted.name}/{key}"
        op = f"{self.name}.{shard}.{number}"
        await self._send(
            shard, Asked(self._history.begin(key_of_all, f"append {op}", 1), late), number, key, "append", [op]
        )
        await self._send(shard, Asked(self._history.begin(key_of_all), late), 0, key, "count", [])

    async def _send(self, shard: int, asked: Asked, number: int, key: str, handler: str, args: list[Any]) -> None:
        call: list[Any] = [len(self.asked), number, key, handler, args, {}, None]
        self.asked.append(asked)
        session = (self._session, 1) if number else (b"", 0)
        await self._connection.send(frame(CALL, [[shard, *session, False, [call]]]))

    async def wait_answered(self) -> None:
        """Until everything has its answer."""
        what = f"{self.name} answers everything"
        await self._watch.until(what, lambda: all(asked.outcome for asked in self.asked), STEP_MAX_S)

    def believed_late(self) -> list[Asked]:
        """What it was answered, although another instance served the shard when it asked."""
        return [asked for asked in self.asked if asked.late and asked.outcome and asked.outcome[0] != MOVED]


async def greeted(address: str, role: str) -> Connection:
    """A connection to an instance that has taken us for what we say that we are."""
    connection = await WebsocketWire().connect(address)
    await connection.send(frame(HELLO, PROTOCOL, None, role))
    fields = parse(await connection.receive())
    assert fields[0] == WELCOME, f"{address} answered a greeting with {fields}"
    return connection
