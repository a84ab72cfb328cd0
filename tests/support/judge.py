"""An independent judge of a run: its own history of what was asked and answered, its own reading of the log.

    history = History()
    await history.tell("ledger/alice", "append op-7", 1, ledger.append("op-7"))     # a command
    await history.ask("ledger/alice", ledger.count())                               # a query
    verdict = judge(history, {"ledger": await raw_log(url, "app.ledger", 8)})
    assert not verdict.faults

From Rekindle it takes the two errors by which a caller learns that a call had no effect, and nothing else: it decodes
the records by itself and has its own version of the two rules, so a bug in either is not shared.

Every entity that it judges is one number: a command that takes effect adds its amount and answers the new number, a
query or a refusal answers the number as it is. The log gives the effects of a key in one order. The run was clean if

- what was acknowledged is in the log exactly once, what was refused or failed is not, what is unknown at most once;
- nothing else is in the log, and no command of a session counts twice in it;
- the log's order explains every answer: an effect answers the sum up to itself, and whatever was answered before an
  operation began comes before it (so the history is linearizable, in this known order).
"""

from __future__ import annotations

import asyncio
import sqlite3
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush
from itertools import accumulate
from math import inf
from typing import Any, Final, NamedTuple

import msgpack
from aiokafka import AIOKafkaConsumer, TopicPartition

from rekindle import CallError, Rejected
from tests.support.watch import Watch

Raw = tuple[int, bytes]
"""A record as it lies in the log: offset and value."""

READ_MAX_S: Final = 60.0
FAULTS_SHOWN: Final = 10
_CLAIM, _COMMAND = 1, 2
_OFFSET_BITS: Final = 40


# --- the history ----------------------------------------------------------------------------------------------------


class End(Enum):
    """What became of an operation, as its caller knows it."""

    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(slots=True, eq=False)
class Operation:
    """One call. effect: the name of what it does to its key, never used twice there; empty for a query.

    invoked, returned: ticks of the history. seen: the number that it was answered with.
    """

    key: str
    effect: str
    amount: int
    invoked: float
    returned: float = inf
    end: End = End.UNKNOWN
    seen: int | None = None


class History:
    """What was asked and answered, in one order; everything that happens to it happens in one event loop."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.acknowledged = 0
        self._ticks = 0
        self._answered = Watch()

    def begin(self, key: str, effect: str = "", amount: int = 0) -> Operation:
        """A call goes out. Until it is ended nobody knows what became of it."""
        operation = Operation(key, effect, amount, self._tick())
        self.operations.append(operation)
        return operation

    def end(self, operation: Operation, end: End, seen: int | None = None) -> None:
        """Its answer came. One whose outcome is unknown stays open: it may take effect at any later time."""
        operation.end, operation.seen = end, seen
        if end is not End.UNKNOWN:
            operation.returned = self._tick()
        if end is End.OK:
            self.acknowledged += 1
            self._answered.changed()

    async def tell(self, key: str, effect: str, amount: int, call: Awaitable[int]) -> End:
        """Await a command."""
        return await self._await(self.begin(key, effect, amount), call)

    async def ask(self, key: str, call: Awaitable[int]) -> End:
        """Await a query."""
        return await self._await(self.begin(key), call)

    async def _await(self, operation: Operation, call: Awaitable[int]) -> End:
        try:
            self.end(operation, End.OK, await call)
        except Rejected as refusal:
            self.end(operation, End.REFUSED, vars(refusal)["left"])
        except CallError as error:
            self.end(operation, End.FAILED if error.definite else End.UNKNOWN)
        return operation.end

    async def wait_acknowledged(self, more: int, within_s: float) -> None:
        """Until so many more calls were answered with a value."""
        target = self.acknowledged + more
        await self._answered.until(f"{more} more calls are answered", lambda: self.acknowledged >= target, within_s)

    def _tick(self) -> int:
        self._ticks += 1
        return self._ticks


# --- the log, read by the two rules -----------------------------------------------------------------------------------


class Owner(NamedTuple):
    """Who claimed: the instance and the number of its assignment."""

    incarnation: str
    number: int


class Effect(NamedTuple):
    """An event that counts, as its key's history names it."""

    offset: int
    name: str
    amount: int


_EFFECTS: Final[Mapping[str, Callable[[Mapping[str, Any]], tuple[str, int]]]] = {
    "Appended": lambda data: (f"append {data['op']}", 1),
    "Received": lambda data: (f"receive {data['qty']}", int(data["qty"])),
    "Reserved": lambda data: (f"reserve {data['order']}", -int(data["qty"])),
}
"""The events of `tests.support.service`."""


class Reading:
    """One partition from its first record on: what counts by the two rules, and what does not.

    figures: claims, and the same owner's second ones (`doubts`); void records: `duplicates` of what is there already,
    `stragglers` of an owner's own earlier term, and `late` ones of owners that were fenced, by owner too; `void claims` are
    among them.
    """

    def __init__(self, where: str, records: Iterable[Raw]) -> None:
        self.where = where
        self.effects: dict[str, list[Effect]] = {}
        self.figures: Counter[str] = Counter()
        self.late: Counter[Owner] = Counter()
        self.faults: list[str] = []
        self._term, self._sequence, self._time = -1, 0, 0
        self._owners: dict[int, Owner] = {-1: Owner("", -1)}
        self._commands: set[tuple[bytes, int]] = set()
        for place, (offset, value) in enumerate(records):
            if offset != place:
                self._fault(offset, f"{offset - place} records are not there any more")
            head, events = msgpack.unpackb(value, strict_map_key=False)
            if head[2] == _CLAIM:
                self._on_claim(offset, Owner(head[4], head[3]))
            else:
                self._on_commit(offset, head, events)

    def _on_claim(self, offset: int, owner: Owner) -> None:
        in_force = self._owners[self._term]
        self.figures["claims"] += 1
        if owner.number > in_force.number or owner == in_force:
            self.figures["doubts"] += owner == in_force
            self._term = offset
            self._owners[offset] = owner
        else:
            self.figures["void claims"] += 1
            self._on_late(owner)

    def _on_commit(self, offset: int, head: list[Any], events: list[Any]) -> None:
        _, _, kind, term, sequence, time, session, number, _, entity, *_ = head
        if term == self._term and sequence == self._sequence + 1:
            self._check(offset, time, (session, number) if kind == _COMMAND else None)
            self._sequence, self._time = sequence, time
            for name, _, data in events:
                self.effects.setdefault(entity, []).append(Effect(offset, *_EFFECTS[name](data)))
        elif term == self._term and sequence <= self._sequence:
            self.figures["duplicates"] += 1
        elif term == self._term or term not in self._owners:
            self._fault(offset, f"sequence {sequence} of term {term} after {self._sequence} of term {self._term}")
        elif self._owners[term] == self._owners[self._term]:
            self.figures["stragglers"] += 1
        else:
            self._on_late(self._owners[term])

    def _check(self, offset: int, time: int, command: tuple[bytes, int] | None) -> None:
        if time < self._time:
            self._fault(offset, f"time {time} after {self._time}")
        if command in self._commands:
            self._fault(offset, f"command {command} counts for the second time")
        if command is not None:
            self._commands.add(command)

    def _on_late(self, owner: Owner) -> None:
        self.figures["late"] += 1
        self.late[owner] += 1

    def _fault(self, offset: int, text: str) -> None:
        self.faults.append(f"{self.where} at offset {offset}: {text}")


# --- the verdict ------------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """faults: what must not be, in words. figures: how much there was of what. late: void records by fenced owner."""

    faults: list[str] = field(default_factory=list[str])
    figures: Counter[str] = field(default_factory=Counter[str])
    late: Counter[Owner] = field(default_factory=Counter[Owner])

    def __str__(self) -> str:
        head = f"{len(self.faults)} faults; {', '.join(f'{n} {what}' for what, n in sorted(self.figures.items()) if n)}"
        return "\n  ".join([head, *self.faults[:FAULTS_SHOWN]])


def judge(history: History, logs: Mapping[str, Sequence[Sequence[Raw]]]) -> Verdict:
    """The verdict on a history, by the logs of the services: for each the records of all its partitions."""
    verdict = Verdict()
    effects: dict[str, list[Effect]] = {}
    for service, partitions in logs.items():
        for index, records in enumerate(partitions):
            reading = Reading(f"{service}/{index}", records)
            verdict.faults += reading.faults
            verdict.figures += reading.figures
            verdict.late += reading.late
            for entity, its_effects in reading.effects.items():
                _add(effects, f"{service}/{entity}", its_effects, verdict.faults)
    asked: dict[str, list[Operation]] = {key: [] for key in effects}
    for operation in history.operations:
        asked.setdefault(operation.key, []).append(operation)
        verdict.figures[operation.end.value] += 1
    for key, operations in asked.items():
        judged = _Key(operations, effects.get(key, []))
        verdict.faults += [f"{key}: {fault}" for fault in judged.faults()]
        verdict.figures["unknown and in the log"] += judged.took_effect_unknown()
    return verdict


def _add(effects: dict[str, list[Effect]], key: str, more: list[Effect], faults: list[str]) -> None:
    if key in effects:
        faults.append(f"{key} is in two partitions")
    effects.setdefault(key, []).extend(more)


class _Key:
    """One key: its operations, and its effects in the order of the log. `sums[n]` is its number after `n` of them."""

    def __init__(self, operations: list[Operation], effects: list[Effect]) -> None:
        self.commands = {operation.effect: operation for operation in operations if operation.effect}
        self.reads = [o for o in operations if o.end is End.REFUSED or (o.end is End.OK and not o.effect)]
        self.effects = effects
        self.sums = list(accumulate((effect.amount for effect in effects), initial=0))
        self.places = {effect.name: place for place, effect in enumerate(effects, start=1)}
        present = [(self.places[name], command) for name, command in self.commands.items() if name in self.places]
        self._answered = _running([(-inf, 0), *((command.returned, place) for place, command in present)], max)
        self._asked = _running([(inf, len(effects) + 1), *((c.invoked, place) for place, c in present)], min)
        self.repeated = len(self.commands) < sum(bool(operation.effect) for operation in operations)

    def faults(self) -> list[str]:
        """Everything that must not be."""
        names = ["two commands have one name: this history cannot be judged"] if self.repeated else []
        return names + self._counts() + self._answers() + self._order() + self._reads()

    def took_effect_unknown(self) -> int:
        """How many took effect without their caller's knowing."""
        return sum(self.commands[name].end is End.UNKNOWN for name in self.places if name in self.commands)

    def _counts(self) -> list[str]:
        """Every effect as often as its caller was told."""
        found = Counter(effect.name for effect in self.effects)
        allowed = {End.OK: (1, 1), End.REFUSED: (0, 0), End.FAILED: (0, 0), End.UNKNOWN: (0, 1)}
        faults = [f"{name!r} is in the log, and nobody asked for it" for name in found if name not in self.commands]
        for name, operation in self.commands.items():
            least, most = allowed[operation.end]
            if not least <= found[name] <= most:
                faults.append(f"{name!r} is {operation.end.value}, and {found[name]} times in the log")
        return faults

    def _answers(self) -> list[str]:
        """An effect that was acknowledged was answered with the number that it made."""
        return [
            f"{name!r} was answered {operation.seen}, it made {self.sums[self.places[name]]}"
            for name, operation in self.commands.items()
            if operation.end is End.OK and name in self.places and operation.seen != self.sums[self.places[name]]
        ]

    def _order(self) -> list[str]:
        """No effect stands behind one that was asked for only after it had been answered."""
        present = [self.commands[effect.name] for effect in self.effects if effect.name in self.commands]
        newest = accumulate(present, _asked_for_last)
        return [
            f"{later.effect!r} was answered before {before.effect!r} was asked for, and stands behind it"
            for before, later in zip(newest, present, strict=True)
            if later.returned < before.invoked
        ]

    def _reads(self) -> list[str]:
        """Every read finds a place, as early as it can: then those after it have all the room that there is."""
        faults: list[str] = []
        answered: list[tuple[float, int]] = []
        behind = 0
        for read in sorted(self.reads, key=lambda o: o.invoked):
            while answered and answered[0][0] < read.invoked:
                behind = max(behind, heappop(answered)[1])
            first, last = max(behind, self._first(read)), self._last(read)
            place = next((n for n in range(first, last + 1) if self._explains(read, n)), None)
            if place is None:
                faults.append(f"{read} was answered when the number was one of {self.sums[first : last + 1]}")
            else:
                heappush(answered, (read.returned, place))
        return faults

    def _first(self, read: Operation) -> int:
        """Behind every effect that was answered before this began."""
        return self._answered[bisect_left(self._answered, (read.invoked, 0)) - 1][1]

    def _last(self, read: Operation) -> int:
        """Before every effect that was asked for after this was answered."""
        return self._asked[bisect_right(self._asked, (read.returned, len(self.effects)))][1] - 1

    def _explains(self, read: Operation, place: int) -> bool:
        """A refusal must have been right, too."""
        return read.seen == self.sums[place] and (read.end is End.OK or self.sums[place] + read.amount < 0)


def _asked_for_last(one: Operation, other: Operation) -> Operation:
    return max(one, other, key=lambda operation: operation.invoked)


def _running(places: list[tuple[float, int]], best: Callable[[int, int], int]) -> list[tuple[float, int]]:
    """By tick, ascending: the highest place of all up to it (max), or the lowest of all from it on (min)."""
    ordered = sorted(places, reverse=best is min)
    kept = list(accumulate(ordered, lambda before, now: (now[0], best(before[1], now[1]))))
    return sorted(kept)


# --- the raw log ------------------------------------------------------------------------------------------------------


async def raw_log(url: str, topic: str, partitions: int) -> list[list[Raw]]:
    """All records of a topic, partition by partition, as they lie in Kafka or in the embedded log's file."""
    if url.startswith("kafka://"):
        bootstrap = url.removeprefix("kafka://").partition("?")[0]
        async with asyncio.timeout(READ_MAX_S):
            return [await _kafka_records(bootstrap, topic, index) for index in range(partitions)]
    return [_sqlite_records(url, topic, index) for index in range(partitions)]


async def _kafka_records(bootstrap: str, topic: str, index: int) -> list[Raw]:
    records: list[Raw] = []
    place = TopicPartition(topic, index)
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False) as consumer:
        consumer.assign([place])
        await consumer.seek_to_beginning(place)
        end = (await consumer.end_offsets([place]))[place]
        while not records or records[-1][0] < end - 1:
            if end == 0:
                break
            found = await consumer.getmany(place, timeout_ms=1_000)
            records += [(entry.offset, entry.value) for entry in found.get(place, ())]
    return records


def _sqlite_records(path: str, topic: str, index: int) -> list[Raw]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        slots = connection.execute("SELECT slot FROM partitions WHERE topic = ? AND number = ?", (topic, index))
        zero = slots.fetchone()[0] << _OFFSET_BITS
        bounds = (zero, zero + (1 << _OFFSET_BITS))
        rows = connection.execute("SELECT id, value FROM records WHERE id >= ? AND id < ? ORDER BY id", bounds)
        return [(place - zero, value) for place, value in rows]
    finally:
        connection.close()
