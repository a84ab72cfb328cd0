"""An observer from outside: what the control log says, and what instances report to their controllers.

Nothing of the system is touched for it. The control log is read as anybody may read it, record by record; instances are
greeted as a second controller that never orders anything, and so hears what the first one hears.

Invariants:
- Times are milliseconds of this machine's wall clock, which everything on it shares: of records, when they were made; of
  reports, when they came.
- An assignment is known by its number, so what was decided, reported and answered belongs together without guessing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from bench.pressure import clock_ms
from rekindle.actors import Closed, ConnectFailed, Connection, Replica, Took, WebsocketWire
from rekindle.actors.frames import CONTROLLER, FOLLOWED, HELLO, LOST, POSITIONS, PROTOCOL, SERVING, frame, parse
from rekindle.events import Commit, Entry, EventLog, SnapshotStore, decode
from rekindle.supervisors import Control, control_log
from rekindle.supervisors.control import KEY
from rekindle.supervisors.decided import Owned

FOLLOW_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Move:
    """A shard was assigned. is_planned: its owner until then was not known to be dead."""

    at_ms: int
    shard: int
    number: int
    was: str | None
    to: str | None
    is_planned: bool


@dataclass(frozen=True, slots=True)
class Takeover:
    """An instance has reported that it serves a shard."""

    at_ms: float
    took: Took

    @property
    def claimed_ms(self) -> float:
        """When its claim was in the log."""
        return self.at_ms - self.took.replayed_ms + self.took.claimed_ms


class Chronicle(Replica):
    """The control log, with the time of each assignment and of each change of the leader."""

    def __init__(self, app: str, service: str, log: EventLog, store: SnapshotStore | None, say: Callable[[str], None]):
        super().__init__(control_log(app), 0, log, store, say)
        self.service = service
        self.moves: list[Move] = []
        self.leads: list[tuple[int, str]] = []
        self._numbers: dict[int, Owned] = {}

    @property
    def control(self) -> Control:
        """What is decided."""
        found = self.entity(KEY) or Control.describe().new(KEY)
        assert isinstance(found, Control), f"the control log holds a {type(found).__name__}"
        return found

    @property
    def shards(self) -> list[Owned]:
        """Who owns the service's shards."""
        return self.control.services.get(self.service, [])

    async def run(self) -> None:
        """Read it, and read on."""
        await self.load()
        await self.read()
        async with self.log.follow(self.partition, self.replay.offset) as reader:
            while True:
                await self.replay.next(reader)

    def feed(self, entries: Iterable[Entry]) -> None:
        """Record by record, with its time."""
        for entry in entries:
            super().feed((entry,))
            record = decode(entry.value)
            if isinstance(record, Commit):
                self._note(record.time)

    def _note(self, at_ms: int) -> None:
        control = self.control
        if control.leader and (not self.leads or self.leads[-1][1] != control.leader):
            self.leads.append((at_ms, control.leader))
        for shard, owned in enumerate(self.shards):
            known = self._numbers.get(shard)
            if known is None or known.number != owned.number:
                was = None if known is None else known.incarnation
                self.moves.append(Move(at_ms, shard, owned.number, was, owned.incarnation, was in control.instances))
                self._numbers[shard] = owned.model_copy()


class Reports:
    """What the instances that the chronicle knows report. serving: under which number; following: who has caught up."""

    def __init__(self, chronicle: Chronicle) -> None:
        self.chronicle = chronicle
        self.takeovers: dict[tuple[int, int], Takeover] = {}
        self.serving: dict[tuple[str, int], int] = {}
        self.following: dict[tuple[str, int], bool] = {}
        self._heard: dict[str, asyncio.Task[None]] = {}

    async def run(self, look_s: float = 0.05) -> None:
        """Listen to every instance there is."""
        try:
            while True:
                known = dict(self.chronicle.control.instances)
                for name in known.keys() - self._heard.keys():
                    self._heard[name] = asyncio.create_task(self._hear(name, known[name].address))
                for name in self._heard.keys() - known.keys():
                    self._forget(name)
                await asyncio.sleep(look_s)
        finally:
            for name in tuple(self._heard):
                self._forget(name)

    def _forget(self, name: str) -> None:
        self._heard.pop(name).cancel()
        for known in (self.serving, self.following):
            for place in [place for place in known if place[0] == name]:
                del known[place]

    async def _hear(self, name: str, address: str) -> None:
        with suppress(Closed, ConnectFailed):
            connection = await WebsocketWire().connect(address)
            try:
                await connection.send(frame(HELLO, PROTOCOL, None, CONTROLLER))
                await self._listen(name, connection)
            finally:
                await connection.close()

    async def _listen(self, name: str, connection: Connection) -> None:
        while True:
            match parse(await connection.receive()):
                case [kind, shard, number, _, took] if kind == SERVING:
                    self.takeovers[shard, number] = Takeover(clock_ms(), Took(*took))
                    self.serving[name, shard] = number
                case [kind, shard, *_] if kind == LOST:
                    self.serving.pop((name, shard), None)
                case [kind, positions, *_] if kind == POSITIONS:
                    self.serving.update({(name, shard): number for shard, number, _ in positions})
                case [kind, follows] if kind == FOLLOWED:
                    self.following.update({(name, shard): caught_up for shard, _, caught_up in follows})
                case _:
                    pass
