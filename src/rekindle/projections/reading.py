"""One shard's log on its way into a read model, and the positions that are kept with it. Pure, but for `confirm`.

A position is what the rules know at an offset (`events.rules.Fold`), without the sessions: those decide what a command is
answered, never which commits count. So a projector that starts again folds on from where its tables are, not from 0.

Invariants:
- What counts is decided by `Fold.feed` and nowhere here. Void commits never become facts.
- The position behind a fact covers that fact and everything before it, and nothing after it.
- `digest` is of the record before `offset`: a log that has another record there is another log.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, NamedTuple, cast

from rekindle.actors import Hosted
from rekindle.actors.replay import LOG_AWAY_MAX_S, READ_WAIT_S, check_claim_was_read
from rekindle.events import SESSION_TTL_MS, Bounds, Commit, Entry, EventLog, Fold, LogUnavailable, Partition, decode
from rekindle.events.records import build
from rekindle.projections.errors import HistoryGone, PositionNotConfirmed

DIGEST_BYTES: Final = 8
"""Two different records of one offset share a digest once in 10^19."""


class Position(NamedTuple):
    """How far a shard is read.

    offset: the next record. term, sequence, assignment, incarnation, time: as the fold has them there. digest: of the
    record before it, in hex; empty at the start.
    """

    offset: int = 0
    term: int = -1
    sequence: int = 0
    assignment: int = -1
    incarnation: str = ""
    time: int = 0
    digest: str = ""

    def fold(self) -> Fold:
        """The rules, from here on."""
        known = [self.offset, self.term, self.assignment, self.incarnation, self.sequence, self.time]
        return Fold.load([*known, SESSION_TTL_MS, []])


START: Final = Position()


class Fact(NamedTuple):
    """A commit with events that counts. assignment, incarnation: of the claim in force."""

    offset: int
    commit: Commit
    value: bytes
    assignment: int
    incarnation: str

    @property
    def behind(self) -> Position:
        """The position when this is the last record that was taken."""
        commit = self.commit
        return Position(
            self.offset + 1,
            commit.term,
            commit.sequence,
            self.assignment,
            self.incarnation,
            commit.time,
            digest(self.value),
        )


def digest(value: bytes | None) -> str:
    """What a record is recognised by."""
    return blake2b(value or b"", digest_size=DIGEST_BYTES).hexdigest()


class Reading:
    """A shard as it is read: folds what comes, keeps the facts until they are taken.

    taken: the position that the tables have, or will have when the batch that is under way is committed. end: of the log,
    as far as it is known.
    """

    def __init__(self, hosted: Hosted, shard: int, position: Position = START) -> None:
        self.hosted = hosted
        self.shard = shard
        self.partition = hosted.partition(shard)
        self.fold = position.fold()
        self.taken = position
        self.end = position.offset
        self.facts: deque[Fact] = deque()
        self.waiting = 0
        self._last: bytes | None = None
        self._digest = position.digest
        self._spoiled = False

    @property
    def service(self) -> str:
        """Whose shard it is."""
        return self.hosted.name

    def feed(self, entries: Iterable[Entry]) -> None:
        """Take what comes next. Raises what `Fold.feed` raises, and `LogTruncated`; then nothing is read any more, and what
        is taken ends before the record that nobody could make sense of."""
        fold, counts, facts = self.fold, self.fold.feed, self.facts
        value = self._last
        try:
            for entry in entries:
                value = entry.value
                record = decode(value)
                if counts(entry.offset, record):
                    commit = cast("Commit", record)
                    if commit.events:
                        facts.append(build(Fact, (entry.offset, record, value, fold.assignment, fold.incarnation)))
                        self.waiting += len(commit.events)
                else:
                    check_claim_was_read(self.partition, fold, record)
        except BaseException:
            self._spoiled = True
            raise
        self._last, self._digest = value, ""
        # Nobody asks a projection whether a command was run; with its sessions it would keep a client's every open reply.
        fold.sessions.clear()
        self.end = max(self.end, fold.offset)

    @property
    def position(self) -> Position:
        """Behind the last record that was fed."""
        fold = self.fold
        if not self._digest and fold.offset:
            self._digest = digest(self._last)
        return Position(
            fold.offset, fold.term, fold.sequence, fold.assignment, fold.incarnation, fold.time, self._digest
        )

    def take(self, events: int) -> Share:
        """The next facts, of about so many events, and where the shard stands with them; when that is all there is, void
        records and barriers behind them are passed, too."""
        before, taken = self.taken, list[Fact]()
        while self.facts and events > 0:
            fact = self.facts.popleft()
            taken.append(fact)
            events -= len(fact.commit.events)
            self.waiting -= len(fact.commit.events)
        if not (self.facts or self._spoiled):
            self.taken = self.position
        elif taken:
            self.taken = taken[-1].behind
        return Share(self.hosted, self.shard, before, taken, self.taken)

    def put_back(self, facts: list[Fact], position: Position) -> None:
        """Facts that were taken and not applied, and the position before the first of them."""
        self.facts.extendleft(reversed(facts))
        self.waiting += sum(len(fact.commit.events) for fact in facts)
        self.taken = position


class Share(NamedTuple):
    """A shard's part of a batch: from one position to another, and what counts in between."""

    hosted: Hosted
    shard: int
    before: Position
    facts: list[Fact]
    after: Position

    def cut(self, count: int) -> Share:
        """Only its first facts."""
        if count >= len(self.facts):
            return self
        facts = self.facts[:count]
        return self._replace(facts=facts, after=facts[-1].behind if facts else self.before)


def contradiction(position: Position, bounds: Bounds) -> tuple[int, str] | None:
    """What the bounds of a log say against a position: a number, and in words. None: nothing."""
    if bounds.end < position.offset:
        return bounds.end, f"the log ends at {bounds.end}: it was truncated or recreated"
    if bounds.start > position.offset:
        return (
            bounds.start,
            f"the log begins at {bounds.start}: {bounds.start - position.offset} records were trimmed unread",
        )
    return None


async def confirm(projection: str, log: EventLog, partition: Partition, position: Position) -> Bounds:
    """The bounds of the log, which holds the record that the position was reached with.

    Raises `PositionNotConfirmed`, `HistoryGone`, `LogUnavailable`.
    """
    bounds = await log.bounds(partition)
    if position.offset == 0 and bounds.start > 0:
        raise HistoryGone(projection, str(partition), bounds.start)
    if found := contradiction(position, bounds):
        raise PositionNotConfirmed(projection, str(partition), position.offset, *found)
    if bounds.start < position.offset:
        last = await _record_at(log, partition, position.offset - 1)
        if last.offset != position.offset - 1 or digest(last.value) != position.digest:
            why = f"the record at {last.offset} is not the one that was read: the log was truncated or recreated, and has grown again"
            raise PositionNotConfirmed(projection, str(partition), position.offset, last.offset, why)
    return bounds


async def _record_at(log: EventLog, partition: Partition, offset: int) -> Entry:
    until = asyncio.get_running_loop().time() + LOG_AWAY_MAX_S
    async with log.reader(partition, offset) as reader:
        while not (entries := await reader.next(READ_WAIT_S)):
            if asyncio.get_running_loop().time() > until:
                raise LogUnavailable(f"{partition}: offset {offset} is in the log and cannot be read")
    return entries[0]
