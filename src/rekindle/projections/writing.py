"""One batch in one transaction: rows and positions, or neither.

    lock the projection's row, say how it goes         others of this projection wait from here on
    compare and set the positions of all shards        one is not where it was: fenced, nothing happens
    load the rows that the batch will want             one query for a few hundred
    handlers
    write what has changed, park what is poison
    commit

What may go wrong, and what it becomes:
- a handler raises: the events before it are applied; it is poison (`PoisonEvent`), or is parked
- the database refuses the data: half of the batch is tried, and so on, until one commit is to blame: poison, too
- the database is away: the same batch is tried again, later, by who called; if the transaction is there after all, the
  positions say so, and the batch counts as done
- it takes too long: what is done so far is committed, the rest is handed back

Everything here blocks, in the database's thread.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from rekindle.actors import Hosted
from rekindle.events import Event, NewerRecord, RekindleError, Undecodable, pack
from rekindle.events.records import RawEvent, build
from rekindle.projections import books
from rekindle.projections.books import Progress
from rekindle.projections.database import Database
from rekindle.projections.declaring import PARK, At, Declared
from rekindle.projections.errors import DataRefused, PoisonEvent, ProjectionFenced, one_line
from rekindle.projections.reading import Position, Share
from rekindle.projections.rows import Rows, Shape

BATCH_EVENTS_MAX: Final = 2_000
"""Events of one transaction. Above it nothing is won, and a rollback costs more."""

BATCH_MAX_S: Final = 0.5
"""How long the handlers of one transaction may take; then it ends with what is done."""

_LOOKS: Final = 64
"""Events between two looks at the clock."""


@dataclass(frozen=True)
class Bound:
    """A projection and the services that it reads."""

    declared: Declared
    services: Sequence[Hosted]

    @property
    def name(self) -> str:
        """The projection's."""
        return self.declared.name

    def shards(self) -> Iterator[tuple[Hosted, int]]:
        """All that is to be read."""
        for hosted in self.services:
            for shard in range(hosted.shards):
                yield hosted, shard


class Swapped(RekindleError):
    """The tables were swapped for rebuilt ones: go on from the positions that came with them."""


class Unapplied(Exception):
    """Why a batch was not applied by `Writer.apply_in`: nothing that a caller of `write` ever sees."""


class Poisoned(Unapplied):
    """A step that failed, while its transaction is open."""

    def __init__(self, step: Step, error: BaseException) -> None:
        super().__init__(str(error))
        self.step = step
        self.error = error


class NotThere(Unapplied):
    """A position was not where its projector had left it; all that are stored."""

    def __init__(self, found: dict[tuple[str, int], Position]) -> None:
        super().__init__()
        self.found = found


class Step(NamedTuple):
    """One event on its way to its handler. event: None if it could not be decoded; then `error` says why."""

    share: int
    fact: int
    raw: RawEvent
    event: Event | None
    at: At
    error: Exception | None = None


@dataclass
class Writer:
    """Writes one projection's batches.

    name: under which it is kept; its own, or that of a successor being built. generation: of the tables that it writes.
    events_max: how many events its next batch should have.
    """

    database: Database
    bound: Bound
    name: str
    shape: str
    shapes: Sequence[Shape]
    generation: int
    now_ms: Callable[[], int]
    clock: Callable[[], float] = time.monotonic
    events_max: int = BATCH_EVENTS_MAX

    def __post_init__(self) -> None:
        takes = self.bound.declared.takes
        self._wanted = {
            hosted.name: frozenset(event.event_name for event in takes.get(hosted.kind.cls, ()))
            for hosted in self.bound.services
        }
        self._known = {hosted.name: frozenset(hosted.kind.events.names) for hosted in self.bound.services}

    def write(self, shares: Sequence[Share], progress: Progress, *, in_doubt: bool = False) -> list[Share]:
        """Apply a batch; what was done of it, as shares.

        in_doubt: it was tried before, and may be there. Raises `PoisonEvent`, `ProjectionFenced`, `Swapped`,
        `DatabaseAway`, `DatabaseRefused`, `NewerRecord`.
        """
        with_facts = sum(len(share.facts) for share in shares)
        try:
            done = self._try(shares, progress, in_doubt)
        except DataRefused as error:
            if with_facts == 0:
                raise
            if with_facts == 1:
                return self._blame(shares, progress, in_doubt, error)
            self.events_max = max(1, with_facts // 2)
            return self.write(first_of(shares, self.events_max), progress, in_doubt=in_doubt)
        self.events_max = min(2 * self.events_max, BATCH_EVENTS_MAX)
        return done

    def _try(self, shares: Sequence[Share], progress: Progress, in_doubt: bool) -> list[Share]:
        try:
            return self._apply(shares, progress, in_doubt=in_doubt)
        except Poisoned as poison:
            if self.bound.declared.on_poison is PARK:
                return self._apply(shares, progress, in_doubt=in_doubt, park=True)
            return self._stop_before(poison, shares, progress, in_doubt)

    def _stop_before(
        self, poison: Poisoned, shares: Sequence[Share], progress: Progress, in_doubt: bool
    ) -> list[Share]:
        """Apply what is before a poisonous event, then raise it."""
        step = poison.step
        if good := sum(len(share.facts) for share in shares[: step.share]) + step.fact:
            self._try(first_of(shares, good), progress, in_doubt)
        raise _poison_event(self.bound.name, step, one_line(poison.error)) from poison.error

    def _blame(self, shares: Sequence[Share], progress: Progress, in_doubt: bool, error: DataRefused) -> list[Share]:
        """The one commit of this batch is what the database does not take."""
        step = next(iter(self.steps(shares)), None)
        if step is None:
            raise error
        if self.bound.declared.on_poison is not PARK:
            raise _poison_event(self.bound.name, step, one_line(error)) from error
        return self._apply(shares, progress, in_doubt=in_doubt, park=True, blamed=error)

    # --- the transaction ---

    def _apply(
        self,
        shares: Sequence[Share],
        progress: Progress,
        *,
        in_doubt: bool,
        park: bool = False,
        blamed: Exception | None = None,
    ) -> list[Share]:
        steps = self.steps(shares)
        try:
            with self.database.transaction() as connection:
                return self.apply_in(connection, shares, steps, progress, park=park, blamed=blamed)
        except NotThere as error:
            return self._not_there(shares, error.found, in_doubt)

    def apply_in(
        self,
        connection: Connection,
        shares: Sequence[Share],
        steps: Sequence[Step],
        progress: Progress,
        *,
        park: bool = False,
        blamed: Exception | None = None,
    ) -> list[Share]:
        """Apply a batch in a transaction that somebody else commits; what was done of it.

        park: put aside what fails, rather than fail. blamed: put all of it aside, because of that.
        """
        if not books.lock(connection, self.name, self.bound.declared.version, self.shape, progress, len(steps)):
            raise ProjectionFenced(self.bound.name, self._replaced(connection))
        if not books.move(connection, self.name, shares):
            raise NotThere(books.positions(connection, self.name))
        if blamed is not None:
            books.park(connection, self.name, [self._parked(step, blamed) for step in steps])
            return list(shares)
        parked: list[dict[str, Any]] = []
        rows = Rows(connection, self.shapes)
        self._load(rows, steps)
        done = self._handle(rows, steps, parked if park else None)
        self._flush(rows)
        books.park(connection, self.name, parked)
        return self._cut(connection, shares, steps, done)

    def _replaced(self, connection: Connection) -> str:
        found = books.standing(connection, self.name)
        if found is None:
            return f"it is not in {self.database} any more"
        return f"its tables are of version {found.version} now, this build makes version {self.bound.declared.version}"

    def _not_there(
        self, shares: Sequence[Share], stored: dict[tuple[str, int], Position], in_doubt: bool
    ) -> list[Share]:
        """A position is not where this projector left it."""
        found = [stored.get((share.hosted.name, share.shard)) for share in shares]
        if in_doubt and (done := adopted(shares, found)) is not None:
            return done
        with self.database.transaction() as connection:
            known = books.standing(connection, self.name)
        if known is not None and known.generation != self.generation:
            raise Swapped(f"{self.bound.name}: its tables were swapped")
        moved = next((s, f) for s, f in zip(shares, found, strict=True) if f is None or f[:3] != s.before[:3])
        raise ProjectionFenced(self.bound.name, _where(*moved))

    def steps(self, shares: Sequence[Share]) -> list[Step]:
        """The events of a batch that a handler is there for. Raises `NewerRecord`."""
        steps: list[Step] = []
        for number, share in enumerate(shares):
            service, shard, decode = share.hosted.name, share.shard, share.hosted.kind.events.decode
            wanted, known = self._wanted[service], self._known[service]
            for place, (offset, commit, *_) in enumerate(share.facts):
                for index, raw in enumerate(commit.events):
                    if raw[0] not in wanted and raw[0] in known:
                        continue
                    where = (service, commit.entity, shard, offset, commit.sequence, commit.time, index)
                    at: At = build(At, where)
                    try:
                        steps.append(build(Step, (number, place, raw, decode(raw), at, None)))
                    except Undecodable as error:
                        steps.append(Step(number, place, raw, None, at, error))
        return steps

    def _load(self, rows: Rows, steps: Sequence[Step]) -> None:
        touches = self.bound.declared.touches
        wanted: dict[tuple[type, Any], None] = {}
        for step in steps:
            if step.event is not None:
                # The user's code: `handle` meets the error again, where it can be blamed.
                with contextlib.suppress(Exception):
                    wanted.update(dict.fromkeys(touches(step.event, step.at)))
        rows.load(wanted)

    def _handle(self, rows: Rows, steps: Sequence[Step], parked: list[dict[str, Any]] | None) -> int:
        """Call the handlers; how many steps are done, at the end of a commit, before time is up."""
        handle, until, late = self.bound.declared.handle, self.clock() + BATCH_MAX_S, False
        begun = steps[0][:2] if steps else (0, 0)
        for count, step in enumerate(steps):
            late = late or (count % _LOOKS == 0 and self.clock() > until)
            if late and step[:2] != begun:
                return count
            begun = step[:2]
            if parked is not None:
                rows.begin_undoable()
            try:
                if step.event is None:
                    raise step.error or AssertionError("an event that was not decoded has no error")
                handle(step.event, rows, step.at)
            except (SQLAlchemyError, NewerRecord):
                raise
            except Exception as error:
                if parked is None:
                    raise Poisoned(step, error) from error
                rows.undo()
                parked.append(self._parked(step, error))
            if parked is not None:
                rows.keep()
        return len(steps)

    def _flush(self, rows: Rows) -> None:
        try:
            rows.flush()
        except SQLAlchemyError:
            raise
        except Exception as error:
            raise DataRefused(f"{self.database}: {one_line(error)}") from error

    def _cut(self, connection: Connection, shares: Sequence[Share], steps: Sequence[Step], done: int) -> list[Share]:
        """What was done, if that was not all: the positions are those behind it."""
        if done == len(steps):
            return list(shares)
        first = steps[done]
        count = sum(len(share.facts) for share in shares[: first.share]) + first.fact
        less = first_of(shares, count)
        back = [Share(s.hosted, s.shard, s.after, [], l.after) for s, l in zip(shares, less, strict=True)]
        moved = books.move(connection, self.name, back)
        assert moved, "the positions were set in this transaction"
        books.count(connection, self.name, done - len(steps))
        return less

    def _parked(self, step: Step, error: BaseException) -> dict[str, Any]:
        at = step.at
        return {
            "service": at.service,
            "shard": at.shard,
            "record_offset": at.offset,
            "number": at.index,
            "sequence": at.sequence,
            "entity": at.key,
            "event": str(step.raw[0]),
            "data": pack(step.raw),
            "error": one_line(error),
            "parked_ms": self.now_ms(),
        }


def first_of(shares: Sequence[Share], facts: int) -> list[Share]:
    """The same batch with only so many facts; shares behind them stay where they are."""
    cut: list[Share] = []
    for share in shares:
        cut.append(share.cut(facts))
        facts -= len(cut[-1].facts)
    return cut


def adopted(shares: Sequence[Share], found: Sequence[Position | None]) -> list[Share] | None:
    """The part of a batch that leads to the positions that were found; None: they are not on its way."""
    done: list[Share] = []
    for share, position in zip(shares, found, strict=True):
        ways = (share, *(share.cut(count) for count in range(len(share.facts))))
        part = next((way for way in ways if way.after == position), None)
        if part is None:
            return None
        done.append(part)
    return done


def _where(share: Share, found: Position | None) -> str:
    was = f"shard {share.shard} of {share.hosted.name} was left at offset {share.before.offset}, term {share.before.term}, sequence {share.before.sequence}"
    if found is None:
        return f"{was} and has no position any more"
    return f"{was} and is at offset {found.offset}, term {found.term}, sequence {found.sequence}"


def _poison_event(projection: str, step: Step, why: str) -> PoisonEvent:
    at = step.at
    return PoisonEvent(projection, at.service, at.key, at.shard, at.offset, at.sequence, str(step.raw[0]), why)
