"""Owners that are stopped, replaced, and wake up: on a real Kafka, in real processes.

Goal: rule 5. Whoever takes an owner for dead may be wrong about it: that costs a move, and never data. Nothing that was
acknowledged is lost or there twice, and an owner that was replaced acknowledges nothing from then on, writes only
records that are void, and gives its shard up by itself.

Method: owners get SIGSTOP while commands are in flight and SIGCONT before, while or after the next one claims; some
are replaced by one that is stopped itself before it serves. The real controller would kill them, so a script hands the
shards on, in the controller's own frames. To every instance a witness keeps a connection that asks it, and nobody
else, for its shards, also when they are known to be served elsewhere. The judge reads the log.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Any, Final

from rekindle import Client
from rekindle.actors import Closed, Connection, Floor, Hosted, Route, Table, WebsocketWire
from rekindle.actors.frames import ANSWER, ASSIGN, CALL, CLIENT, CONTROLLER, HELLO, LOST, PROTOCOL, SERVING, TABLE, frame, parse
from rekindle.actors.outcomes import MOVED, OK
from rekindle.events import session_name, shard_of, unpack
from rekindle.supervisors import ProcessCluster, Spawned
from rekindle.supervisors.hosting import now_ms
from rekindle.up import create_topics
from tests.support.judge import End, History, Operation, Owner
from tests.support.running import KEYS, ask_all, launch_of, load, running, verdict_of
from tests.support.service import LEDGER_SHARDS, app_of
from tests.support.watch import Watch

INSTANCES: Final = 4
ROUNDS: Final = 24
OWNERS_MIN: Final = 20
STEP_MAX_S: Final = 60.0
"""For one step of a run, on a machine that has other things to do."""

CONTROL_TERM: Final = 1
FREEZES: Final = 3


class Wakes(Enum):
    """When a stopped owner goes on."""

    BEFORE = "before the next one is told to claim"
    WHILE = "while the next one claims"
    AFTER = "after the next one serves"
    LAST = "after the next but one serves: the next one was stopped too"


@dataclass(eq=False)
class Puppet:
    """An instance on the script's strings: what it said about its shards, by assignment."""

    name: str
    address: str
    strings: Connection
    serving: set[tuple[int, int]] = field(default_factory=set)
    lost: dict[tuple[int, int], str] = field(default_factory=dict)


class Script:
    """A controller that does what the test wants: it hands shards on, with ever higher numbers, and kills nobody."""

    def __init__(self, hosted: Hosted) -> None:
        self.hosted = hosted
        self.watch = Watch()
        self.puppets: list[Puppet] = []
        self.owners: dict[int, tuple[Puppet, int]] = {}
        self._floors: dict[int, Floor] = {}
        self._number = 0
        self._version = 0

    async def adopt(self, spawned: Spawned) -> Puppet:
        """Take an instance on."""
        puppet = Puppet(spawned.incarnation, spawned.address, await _greeted(spawned.address, CONTROLLER))
        self.puppets.append(puppet)
        return puppet

    async def listen(self, puppet: Puppet) -> None:
        """Hear what it says, until its connection is gone."""
        with suppress(Closed):
            while True:
                match parse(await puppet.strings.receive()):
                    case [kind, shard, number, position] if kind == SERVING:
                        puppet.serving.add((shard, number))
                        self._learn(shard, position)
                    case [kind, shard, number, reason, _, position, _] if kind == LOST:
                        puppet.lost[shard, number] = reason
                        self._learn(shard, position)
                    case _:
                        continue
                self.watch.changed()

    def _learn(self, shard: int, position: Sequence[int]) -> None:
        self._floors[shard] = max(self._floors.get(shard, Floor()), Floor(*position), key=lambda floor: floor.sequence)

    def shards_of(self, puppet: Puppet) -> list[int]:
        """What it was given last."""
        return [shard for shard, (owner, _) in self.owners.items() if owner is puppet]

    async def assign(self, shards: Sequence[int], to: Puppet) -> None:
        """Give it the shards, and tell everybody."""
        orders: list[Any] = []
        for shard in shards:
            self._number += 1
            self.owners[shard] = (to, self._number)
            orders.append([shard, self._number, self._floors.get(shard, Floor()), False, []])
        await to.strings.send(frame(ASSIGN, CONTROL_TERM, orders))
        self._version += 1
        routes: list[Route | None] = [
            Route(self.owners[shard][0].address, self.owners[shard][1]) if shard in self.owners else None
            for shard in range(self.hosted.shards)
        ]
        table = frame(TABLE, *Table((CONTROL_TERM, self._version), {self.hosted.name: routes}).dump())
        for puppet in self.puppets:
            await puppet.strings.send(table)

    async def wait_served(self, shards: Sequence[int]) -> None:
        """Until their owners say that they serve them."""
        wanted = [(shard, *self.owners[shard]) for shard in shards]
        await self.watch.until(
            f"shards {shards} are served",
            lambda: all((shard, number) in puppet.serving for shard, puppet, number in wanted),
            STEP_MAX_S,
        )

    async def wait_lost(self, puppet: Puppet, owned: Sequence[tuple[int, int]]) -> None:
        """Until it has given these up by itself."""
        what = f"{puppet.name} gives up {owned}"
        await self.watch.until(what, lambda: all(assignment in puppet.lost for assignment in owned), STEP_MAX_S)


@dataclass(slots=True)
class Asked:
    """What a witness asked. late: another instance was serving the shard already. outcome: the answer, if any came."""

    operation: Operation
    late: bool
    outcome: list[Any] | None = None


class Witness:
    """A caller of one instance that never looks elsewhere, and believes what it is told."""

    def __init__(self, puppet: Puppet, connection: Connection, history: History, service: str) -> None:
        self.name = puppet.name
        self.asked: dict[int, Asked] = {}
        self.watch = Watch()
        self._connection = connection
        self._history = history
        self._service = service
        self._sessions: dict[int, bytes] = {}
        self._numbers: Counter[int] = Counter()

    async def listen(self) -> None:
        """Take its answers, until its connection is gone."""
        with suppress(Closed):
            while True:
                fields = parse(await self._connection.receive())
                if fields[0] == ANSWER:
                    for call, payload in fields[1]:
                        self._on_answer(self.asked[call], unpack(payload))
                    self.watch.changed()

    def _on_answer(self, asked: Asked, outcome: list[Any]) -> None:
        asked.outcome = outcome
        if outcome[0] == OK:
            self._history.end(asked.operation, End.OK, outcome[1])

    async def append(self, shard: int, key: str, *, late: bool) -> None:
        """Send a command."""
        self._numbers[shard] += 1
        op = f"{self.name}.{shard}.{self._numbers[shard]}"
        operation = self._history.begin(f"{self._service}/{key}", f"append {op}", 1)
        await self._send(shard, Asked(operation, late), [self._numbers[shard], key, "append", [op], {}, None])

    async def count(self, shard: int, key: str, *, late: bool) -> None:
        """Send a query."""
        await self._send(shard, Asked(self._history.begin(f"{self._service}/{key}"), late), [0, key, "count", [], {}, None])

    async def _send(self, shard: int, asked: Asked, call: list[Any]) -> None:
        number = len(self.asked) + 1
        self.asked[number] = asked
        session = self._sessions.setdefault(shard, session_name(now_ms(), self.name[-8:].encode()))
        await self._connection.send(frame(CALL, [[shard, session if call[0] else b"", 1 if call[0] else 0, False, [[number, *call]]]]))

    async def wait_answered(self) -> None:
        """Until everything that was asked has an answer."""
        what = f"{self.name} answers"
        await self.watch.until(what, lambda: all(asked.outcome for asked in self.asked.values()), STEP_MAX_S)
