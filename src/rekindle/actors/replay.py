"""A shard's log on its way into whoever folds it: an owner that takes over or reads a gap, a follower, a replica.

Invariants:
- What is behind the snapshot is fed once, in order, a slice at a time: the loop turns in between.
- A snapshot stands on its mark, and a shard passes its floor: a log in which one of them is not as it was is another log.
- What is not ours is said; what is ours and cannot be right ends the reading.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple, Protocol

from rekindle.actors.entities import Captured
from rekindle.actors.entity import EntityType
from rekindle.events import (
    Commit,
    Entry,
    EventLog,
    Fold,
    LogDamaged,
    LogTruncated,
    LogUnavailable,
    Partition,
    Reader,
    Record,
    SnapshotError,
    SnapshotStore,
    decode,
    unpack,
)
from rekindle.events.records import SNAPSHOTTED
from rekindle.events.snapshots import newest_whole

READ_WAIT_S: Final = 0.5
"""How long one look at the end of a log takes, if nothing comes."""

REPLAY_SLICE: Final = 500
"""Records replayed before the loop gets its turn: a few milliseconds."""

LOG_AWAY_MAX_S: Final = 60.0
"""How long one who has to read or append goes on trying to reach the log, before it gives up."""

RETRY_FIRST_S: Final = 0.02
RETRY_MAX_S: Final = 1.0
"""Pauses between two attempts to reach the log: the first, and what doubling them ends at."""


class Floor(NamedTuple):
    """The highest position that is known of a shard. Whoever finds less stops: the log was truncated or recreated."""

    term: int = -1
    offset: int = -1
    sequence: int = 0


class Mark(NamedTuple):
    """The record that a snapshot stands on."""

    offset: int
    sequence: int


NO_FLOOR: Final = Floor()


class Folding(Protocol):
    """Who folds a shard's log."""

    @property
    def fold(self) -> Fold: ...

    def feed(self, entries: Iterable[Entry], /) -> None: ...


class Replay:
    """One shard's log for one who folds it.

    mark: of the snapshot that was begun with, until it was found in the log. on_strangers: is told how many records
    were not ours, and where.
    """

    def __init__(
        self,
        partition: Partition,
        log: EventLog,
        folding: Folding,
        on_strangers: Callable[[int, str], None],
        floor: Floor = NO_FLOOR,
    ) -> None:
        self.partition = partition
        self.log = log
        self.folding = folding
        self.on_strangers = on_strangers
        self.floor = floor
        self.mark: Mark | None = None

    @property
    def offset(self) -> int:
        """Where the log is to be read on."""
        return self.folding.fold.offset if self.mark is None else self.mark.offset

    def reader(self) -> AbstractAsyncContextManager[Reader]:
        """Open the log to read on."""
        return self.log.reader(self.partition, self.offset)

    async def next(self, reader: Reader, end: int | None = None) -> bool:
        """Feed what comes next, but nothing from offset `end` on. False: nothing came for `READ_WAIT_S`.

        Raises `LogUnavailable`, `LogTruncated`, `LogDamaged`, `NewerRecord`.
        """
        entries = await reader.next(READ_WAIT_S)
        if not entries:
            return False
        if self.mark is not None:
            entries, self.mark = past_mark(self.partition, self.mark, entries), None
        if end is not None:
            entries = _below(entries, end)
        for start in range(0, len(entries), REPLAY_SLICE):
            self._pass_floor(entries[start : start + REPLAY_SLICE])
            await asyncio.sleep(0)
        return True

    def _pass_floor(self, entries: Sequence[Entry]) -> None:
        """Feed a slice; at the floor, see that the log is still the one that is known."""
        floor, fold = self.floor, self.folding.fold
        if fold.offset <= floor.offset <= entries[-1].offset:
            below = bisect_left(entries, floor.offset, key=lambda entry: entry.offset)
            self._feed(entries[:below])
            if (fold.term, fold.sequence) != (floor.term, floor.sequence):
                found = f"term {fold.term} sequence {fold.sequence}"
                where = f"{self.partition} (was {found} at offset {floor.offset})"
                raise LogTruncated(where, floor.sequence, fold.sequence)
            entries = entries[below:]
        self._feed(entries)

    def _feed(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        fold = self.folding.fold
        strangers = fold.strangers
        try:
            self.folding.feed(entries)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            where = f"{self.partition}: the record of ours at offset {fold.offset - 1}"
            raise LogDamaged(f"{where} is not what any owner writes: {error!r}") from error
        if fold.strangers > strangers:
            self.on_strangers(fold.strangers - strangers, f"from offset {entries[0].offset} to {entries[-1].offset}")

    async def is_trimmed(self) -> bool:
        """Whether the log begins behind where it is to be read on. With retention that is nothing strange: there are
        snapshots from which to begin anew; so it is taken for that while nobody can tell."""
        try:
            return (await self.log.bounds(self.partition)).start > self.offset
        except LogUnavailable:
            return True

    def check_floor(self) -> None:
        """At the end: raises `LogTruncated` if it came before the floor."""
        floor, fold = self.floor, self.folding.fold
        if fold.offset < floor.offset or fold.sequence < floor.sequence:
            raise LogTruncated(str(self.partition), floor.offset, fold.offset)


def check_claim_was_read(partition: Partition, fold: Fold, record: Record) -> None:
    """For whoever only reads, of a record that does not count. Raises `LogTruncated` if it is a commit under a claim that was
    not read: then the log was cut behind this reader's back, and has grown again. To one who begins anew it would look sound."""
    if isinstance(record, Commit) and record.term > fold.term:
        raise LogTruncated(f"{partition} (the claim at offset {record.term} was never read)", record.term, fold.term)


def _below(entries: Sequence[Entry], end: int) -> Sequence[Entry]:
    if not entries or entries[-1].offset < end:
        return entries
    return [entry for entry in entries if entry.offset < end]


async def load_snapshot(
    store: SnapshotStore,
    partition: Partition,
    kind: EntityType,
    say: Callable[[str], None],
    at_most: int | None = None,
) -> tuple[Fold, Captured, int, Mark] | None:
    """The newest snapshot that is whole and fits: what the rules know, all entities, its size, and its mark in the log,
    which the reader has to find there (`past_mark`). None: replay everything."""
    try:
        pointer, segments, errors = await newest_whole(store, partition, at_most)
    except SnapshotError as error:
        say(f"{partition}: snapshots cannot be read, full replay: {error}")
        return None
    for damage in errors:
        say(f"{partition}: a snapshot is not usable, trying the one before: {damage}")
    if pointer is None:
        return None
    if unpack(segments["kind"]) != kind.fingerprint:
        say(
            f"{partition}: the snapshot at offset {pointer.offset} has other fields than {kind.name} has now, full replay"
        )
        return None
    captured = Captured(unpack(segments["entities"]), unpack(segments["quarantined"]))
    return Fold.load(unpack(segments["fold"])), captured, pointer.size, Mark(pointer.offset, pointer.sequence)


def past_mark(partition: Partition, mark: Mark, entries: Sequence[Entry]) -> Sequence[Entry]:
    """The entries behind the record that a snapshot stands on, which must be the first of them: else it is another log.

    Raises `LogTruncated`.
    """
    first = entries[0]
    record = decode(first.value)
    found = isinstance(record, Commit) and record.kind == SNAPSHOTTED and record.sequence == mark.sequence
    if not (found and first.offset == mark.offset):
        where = f"{partition} (the record of its snapshot is not at offset {mark.offset})"
        raise LogTruncated(where, mark.offset, first.offset)
    return entries[1:]
