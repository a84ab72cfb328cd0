"""Reading a shard's log from any place on: what counts there, by the same rules as everybody else, in bounded steps.

What counts at an offset depends on everything before it. So a reading begins where that is known: at a place that was read
before (`Places`), at a snapshot, or at the start of the log.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from rekindle.actors import Hosted, load_snapshot
from rekindle.actors.replay import Replay, check_claim_was_read
from rekindle.events import Commit, Entry, EventLog, Fold, Partition, SnapshotStore, decode

PLACES_MAX: Final = 10_000
"""Offsets at which a reading may begin that are kept, the latest used; some hundred bytes each."""

RECORDS_MAX: Final = 50_000
"""Records that one reading takes: less than a second. The next one goes on where it ended."""


class Found(NamedTuple):
    """A commit that counts. head: what the rules know behind it, without sessions."""

    offset: int
    commit: Commit
    head: list[Any]


class Places:
    """Where readings of any shard may begin, from those before."""

    def __init__(self, places_max: int = PLACES_MAX) -> None:
        self._max = places_max
        self._heads: OrderedDict[tuple[str, int, int], list[Any]] = OrderedDict()

    def keep(self, topic: str, shard: int, found: Found) -> None:
        """Remember the place behind a commit."""
        self._heads[topic, shard, found.offset] = found.head
        if len(self._heads) > self._max:
            self._heads.popitem(last=False)

    def behind(self, topic: str, shard: int, offset: int) -> Fold | None:
        """What the rules know behind the commit at this offset, if it is known."""
        head = self._heads.get((topic, shard, offset))
        if head is None:
            return None
        self._heads.move_to_end((topic, shard, offset))
        return Fold.load([*head, []])


class Sieve:
    """Keeps what counts, in order. wanted: which commits are of interest."""

    def __init__(self, partition: Partition, wanted: Callable[[Commit], bool]) -> None:
        self.partition = partition
        self.fold = Fold()
        self.found: deque[Found] = deque()
        self.records = 0
        self._wanted = wanted

    def feed(self, entries: Iterable[Entry]) -> None:
        """See `Folding`. Raises `LogTruncated`: see `check_claim_was_read`."""
        fold = self.fold
        for entry in entries:
            record = decode(entry.value)
            self.records += 1
            if fold.feed(entry.offset, record):
                assert isinstance(record, Commit), f"no commit counts: {record!r}"
                if self._wanted(record):
                    self.found.append(Found(entry.offset, record, fold.dump()[:-1]))
            else:
                check_claim_was_read(self.partition, fold, record)
        # Nobody asks here whether a command was run; with its sessions every head would be copied with all of them.
        fold.sessions.clear()


class Reading:
    """A place in a shard's log, and what counts from there on."""

    def __init__(
        self, hosted: Hosted, shard: int, log: EventLog, say: Callable[[str], None], wanted: Callable[[Commit], bool]
    ) -> None:
        self.partition = hosted.partition(shard)
        self.sieve = Sieve(self.partition, wanted)
        self.start = 0
        self._hosted = hosted
        self._log = log
        self._say = say
        self.replay = Replay(self.partition, log, self.sieve, self._on_strangers)

    @property
    def offset(self) -> int:
        """Where it is."""
        return self.sieve.fold.offset

    async def begin(self, after: int, places: Places | None, store: SnapshotStore | None) -> None:
        """Go to the last place at or before offset `after` + 1 that one can begin at; to the first, if there is none."""
        known = None if places is None else places.behind(self.partition.topic, self.partition.index, after)
        if known is not None:
            self.sieve.fold = known
            return
        self.start = (await self._log.bounds(self.partition)).start
        if store is None:
            return
        at_most = after
        if self.start > max(after, 0):  # it was trimmed: what is before the oldest snapshot nobody knows any more
            at_most = min((p.offset for p in await store.pointers(self.partition)), default=after)
        loaded = await load_snapshot(store, self.partition, self._hosted.kind, self._say, at_most)
        if loaded is not None:
            self.sieve.fold, _, _, self.replay.mark = loaded

    async def read(self, end: int, enough: Callable[[], bool], records_max: int = RECORDS_MAX) -> bool:
        """Read on to offset `end`, until it is enough, or until that were too many; whether it came to the end."""
        if self.offset >= end and self.replay.mark is None:
            return True
        async with self.replay.reader() as reader:
            while self.offset < end or self.replay.mark is not None:
                if enough() or self.sieve.records >= records_max:
                    return False
                await self.replay.next(reader, end)
        return True

    @asynccontextmanager
    async def following(self) -> AsyncGenerator[Callable[[], Any]]:
        """Stay at the end: a function that waits for what comes next, and feeds it."""
        async with self._log.follow(self.partition, self.replay.offset) as reader:
            yield lambda: self.replay.next(reader)

    def _on_strangers(self, count: int, where: str) -> None:
        self._say(f"{self.partition}: {count} records {where} are not ours, they count for nothing")
