"""The simulated log: in memory, shared by all owners of one deterministic event loop, with seeded faults.

Everything that happens to an append is drawn from one random generator when it is sent, and happens by the loop's own
timers, so a seed replays the same history byte for byte. There are no threads and no real time in here.

- An append is on its way once it is sent: the crash of its owner does not recall it.
- What may go wrong, and how often, is data (`LogFaults`); `SimulatedLog.took` counts what did take effect.
- Records are never compacted: a log may always be late with that.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

from rekindle.events.checks import check_append, check_partition, check_position, check_topic, check_trim, missing
from rekindle.events.errors import AppendUnknown, LogUnavailable
from rekindle.events.followers import Followers, FollowingReader
from rekindle.events.log import Bounds, Keyed, Partition, Stored, Topic

READ_ENTRIES_MAX: Final = 64
"""At most this many entries come from one `next`; how many, is drawn, so that readers meet every way to cut a log."""

REFUSED_AFTER_S: Final = 0.01
"""How long it takes to find that the log is away; never nothing, or a caller that retries would stop virtual time."""

UNKNOWN_OFFSET: Final = -1


@dataclass(frozen=True, slots=True)
class LogFaults:
    """What goes wrong. Names without a unit are probabilities (of an append, where nothing else is said).

    append_s, ack_s, read_s: ordinary times, drawn from 0 to this.
    timeout_s: how long a caller waits for an answer before it raises `AppendUnknown`.
    slow_append, slow_ack: that way takes up to `slow_s` more; more than `timeout_s` makes it a doubt, too.
    lost_append: it never arrives. lost_ack: it is in the log, the answer never arrives.
    duplicate: it is in the log twice, the second time up to `late_s` later; either copy may be the one that is answered.
    straggler: it arrives up to `late_s` after its caller has given up.
    no_offset: it is answered with -1.
    unavailable: that a call, of any kind, finds the log away, which then lasts up to `unavailable_s`.
    """

    append_s: float = 0.0005
    ack_s: float = 0.0005
    read_s: float = 0.0005
    timeout_s: float = 1.0
    slow_append: float = 0.0
    slow_ack: float = 0.0
    slow_s: float = 0.5
    lost_append: float = 0.0
    lost_ack: float = 0.0
    duplicate: float = 0.0
    straggler: float = 0.0
    late_s: float = 5.0
    no_offset: float = 0.0
    unavailable: float = 0.0
    unavailable_s: float = 1.0


class _Copy(NamedTuple):
    """One arrival of an append: when it lands, after how long it is answered (None: never), and how."""

    land_s: float
    ack_s: float | None
    fault: str = ""
    offset_known: bool = True


class _Shelf:
    """The records of one partition; no holes, so `records[i]` has the offset `start + i`."""

    def __init__(self) -> None:
        self.start = 0
        self.records: list[Stored] = []

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.start, self.start + len(self.records))

    def put(self, records: Sequence[Keyed]) -> int:
        first = self.bounds.end
        self.records.extend(Stored(first + index, key, value) for index, (key, value) in enumerate(records))
        return first

    def read(self, offset: int, count: int) -> list[Stored]:
        return self.records[offset - self.start : offset - self.start + count]

    def trim(self, before: int) -> None:
        if before > self.start:
            del self.records[: before - self.start]
            self.start = before


class SimulatedLog:
    """An `EventLog` in memory. Owners that are to meet each other share one object."""

    def __init__(self, random: Random, faults: LogFaults | None = None) -> None:
        self.faults = faults or LogFaults()
        self.took: Counter[str] = Counter()
        """How often each fault took effect, by its name in `LogFaults`."""
        self._random = random
        self._topics: dict[str, Topic] = {}
        self._shelves: dict[Partition, _Shelf] = {}
        self._followers = Followers()
        self._away_until = 0.0

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to disconnect from: other owners go on with the same object."""

    async def create(self, topic: Topic) -> None:
        """See `EventLog`."""
        await self._reach()
        if topic.name in self._topics:
            check_topic(topic, self._topics[topic.name])
        else:
            self._topics[topic.name] = topic
            self.recreate(topic.name)

    async def check(self, topic: Topic) -> None:
        """See `EventLog`."""
        await self._reach()
        check_topic(topic, self._topic(topic.name))

    async def bounds(self, partition: Partition) -> Bounds:
        """See `EventLog`."""
        await self._reach()
        return self._shelf(partition).bounds

    async def trim(self, partition: Partition, before: int) -> None:
        """See `EventLog`."""
        await self._reach()
        shelf = self._shelf(partition)
        check_trim(partition, before, shelf.bounds)
        shelf.trim(before)

    @asynccontextmanager
    async def reader(self, partition: Partition, offset: int) -> AsyncGenerator[FollowingReader]:
        """See `EventLog`."""
        check_position(partition, offset, await self.bounds(partition))
        yield FollowingReader(self._followers, partition, offset, self._look)

    def follow(self, partition: Partition, offset: int) -> AbstractAsyncContextManager[FollowingReader]:
        """See `EventLog`."""
        return self.reader(partition, offset)

    async def append(self, partition: Partition, records: Sequence[Keyed]) -> int:
        """See `EventLog`."""
        check_append(self._topic(partition.topic), partition, records)
        await self._reach()
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._send(partition, tuple(records), answer)
        try:
            async with asyncio.timeout(self.faults.timeout_s):
                return await answer
        except TimeoutError:
            raise AppendUnknown(f"no answer for an append to {partition} in {self.faults.timeout_s} s") from None

    # --- what becomes of an append ---

    def _send(self, partition: Partition, records: Sequence[Keyed], answer: asyncio.Future[int]) -> None:
        loop = asyncio.get_running_loop()
        for copy in self._draw_copies():
            loop.call_later(copy.land_s, self._land, partition, records, answer, copy)

    def _draw_copies(self) -> list[_Copy]:
        faults = self.faults
        plain = _Copy(self._way("slow_append", faults.append_s), self._way("slow_ack", faults.ack_s))
        match self._draw_fate("lost_append", "lost_ack", "straggler", "duplicate", "no_offset"):
            case "lost_append":
                self.took["lost_append"] += 1
                return []
            case "lost_ack":
                return [plain._replace(ack_s=None, fault="lost_ack")]
            case "straggler":
                return [plain._replace(land_s=faults.timeout_s + self._draw(faults.late_s), fault="straggler")]
            case "duplicate":
                return self._twice(plain)
            case "no_offset":
                return [plain._replace(offset_known=False, fault="no_offset")]
            case _:
                return [plain]

    def _twice(self, first: _Copy) -> list[_Copy]:
        second = first._replace(land_s=first.land_s + self._draw(self.faults.late_s), fault="duplicate")
        if self._random.random() < 0.5:
            return [first, second._replace(ack_s=None)]
        return [first._replace(ack_s=None), second]

    def _draw_fate(self, *fates: str) -> str:
        """At most one of the faults, each with its probability."""
        drawn = self._random.random()
        for fate in fates:
            drawn -= getattr(self.faults, fate)
            if drawn < 0:
                return fate
        return ""

    def _way(self, fault: str, usual_s: float) -> float:
        slow = self._random.random() < getattr(self.faults, fault)
        self.took[fault] += slow
        return self._draw(usual_s) + (self._draw(self.faults.slow_s) if slow else 0.0)

    def _draw(self, most_s: float) -> float:
        return self._random.random() * most_s

    def _land(self, partition: Partition, records: Sequence[Keyed], answer: asyncio.Future[int], copy: _Copy) -> None:
        first = self._shelves[partition].put(records)
        self._followers.wake(partition)
        if copy.fault:
            self.took[copy.fault] += 1
        if copy.ack_s is not None:
            said = first if copy.offset_known else UNKNOWN_OFFSET
            asyncio.get_running_loop().call_later(copy.ack_s, _answer, answer, said)

    # --- reading ---

    async def _look(self, partition: Partition, offset: int) -> list[Stored]:
        await self._reach()
        await asyncio.sleep(self._draw(self.faults.read_s))
        shelf = self._shelf(partition)
        check_position(partition, offset, shelf.bounds)
        return shelf.read(offset, self._random.randint(1, READ_ENTRIES_MAX))

    async def _reach(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._away_until and self._random.random() < self.faults.unavailable:
            self.go_away(self._draw(self.faults.unavailable_s))
        if now < self._away_until:
            self.took["unavailable"] += 1
            await asyncio.sleep(REFUSED_AFTER_S)
            raise LogUnavailable("the simulated log is away")

    def _topic(self, name: str) -> Topic:
        try:
            return self._topics[name]
        except KeyError:
            raise missing(name) from None

    def _shelf(self, partition: Partition) -> _Shelf:
        check_partition(self._topic(partition.topic), partition)
        return self._shelves[partition]

    # --- for tests and judges ---

    def records(self, partition: Partition) -> list[Stored]:
        """Everything that is in the partition now, as it lies there: no delay, no fault."""
        return list(self._shelf(partition).records)

    def truncate(self, partition: Partition, end: int) -> None:
        """Lose the records from offset `end` on."""
        shelf = self._shelf(partition)
        del shelf.records[max(0, end - shelf.start) :]
        self._followers.wake(partition)

    def recreate(self, name: str) -> None:
        """The topic is deleted and made again: empty, offsets from 0. What is on its way arrives in the new one."""
        for index in range(self._topic(name).partitions):
            self._shelves[Partition(name, index)] = _Shelf()
        self._followers.wake_all()

    def go_away(self, for_s: float) -> None:
        """Be unavailable for a while. What is on its way still arrives."""
        self._away_until = asyncio.get_running_loop().time() + for_s


def _answer(answer: asyncio.Future[int], offset: int) -> None:
    # The caller may have given up or crashed meanwhile.
    if not answer.done():
        answer.set_result(offset)
