"""Building a read model anew: into tables beside it, which take its place in one transaction.

The old tables serve, and are fed on, until the new ones are at least as far. Then, while whoever feeds the old ones waits for a
moment, the last events are applied and the tables swapped. That projector finds the positions changed, and goes on with
the new ones. A rebuild that dies leaves the old tables as they are; the next one starts from the beginning, because nobody
knows with what code the half-built ones were made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from rekindle.events import EventLog, RekindleError
from rekindle.projections import books
from rekindle.projections.database import Database
from rekindle.projections.errors import DatabaseAway, DataRefused, ProjectionError, one_line
from rekindle.projections.feeding import Feed
from rekindle.projections.projector import Projector
from rekindle.projections.reading import Share
from rekindle.projections.tables import open_successor, take_place
from rekindle.projections.writing import Bound, Unapplied, Writer
from rekindle.supervisors.hosting import now_ms as wall_clock

SWAP_MAX_S: Final = 3.0
"""How long the old tables may stand still for a swap, above all to read the log as far as they have; else it is tried again."""

SWAPS_MAX: Final = 20
"""How often a swap is tried."""

LOOK_S: Final = 0.1
"""Between two looks at whether there is something to write, and two reports of progress."""


@dataclass(frozen=True, slots=True)
class Done:
    """How far a rebuild is, in offset slots. left_s: seconds that the rest will take, as fast as it goes now; None: unknown."""

    slots: int
    of: int
    events: int
    left_s: float | None


class SwapFailed(ProjectionError):
    """The new tables are there, but could not take the place of the old ones. These serve on."""


class Rebuilder(Projector):
    """Builds a projection anew. on_progress: is told now and then how far it is."""

    def __init__(
        self,
        bound: Bound,
        event_log: EventLog,
        database: Database,
        *,
        say: Callable[[str], None],
        on_progress: Callable[[Done], None] = lambda _: None,
        now_ms: Callable[[], int] = wall_clock,
    ) -> None:
        super().__init__(bound, event_log, database, say=say, now_ms=now_ms)
        self.on_progress = on_progress
        self.swapped = False

    async def run(self) -> None:
        """Build, swap, end. Raises what `Projector.run` raises, and `SwapFailed`. The old tables serve on, then."""
        for hosted in self.bound.services:
            await self.event_log.check(hosted.topic())
        writer, positions = await self.database.call(open_successor, self.bound, self.now_ms)
        try:
            await self.feed_into(writer, positions, self._build)
        except RekindleError as error:
            await self.tell(writer.name, books.STOPPED, one_line(error))
            raise
        if not self.swapped:
            await self.tell(writer.name, books.ENDED, "")

    async def _build(self, feed: Feed, writer: Writer) -> None:
        loop = asyncio.get_running_loop()
        began, told_at = loop.time(), 0.0
        while not self._ending.is_set():
            if feed.filled.is_set() or feed.caught_up:
                if shares := feed.take(writer.events_max):
                    await self.write_batch(feed, writer, shares, books.REBUILDING)
            else:
                await asyncio.sleep(LOOK_S)
            if (now := loop.time()) - told_at > LOOK_S:
                told_at = now
                self.on_progress(self._done(feed, now - began))
            if feed.caught_up:
                await self._swap(feed, writer)
                self.on_progress(self._done(feed, loop.time() - began))
                return

    def _done(self, feed: Feed, passed_s: float) -> Done:
        slots = sum(reading.taken.offset for reading in feed.readings)
        of = sum(max(reading.end, reading.taken.offset) for reading in feed.readings)
        left_s = (of - slots) * passed_s / slots if slots and passed_s > 0 else None
        return Done(slots, of, self.events, left_s)

    async def _swap(self, feed: Feed, writer: Writer) -> None:
        loop = asyncio.get_running_loop()
        error: RekindleError | None = None
        for _ in range(SWAPS_MAX):
            taken: list[Share] = []

            def collect(connection: Connection, taken: list[Share] = taken) -> list[Share]:
                """In the database's thread: what is to be applied before the swap. The loop reads on meanwhile."""
                far = books.positions(connection, self.bound.name)
                goal = {place: position.offset for place, position in far.items()}
                collecting = asyncio.run_coroutine_threadsafe(self._collect(feed, goal, taken), loop)
                try:
                    collecting.result(SWAP_MAX_S)
                finally:
                    collecting.cancel()
                return taken

            try:
                await self.database.call(_swap_tables, writer, collect, lambda: self.progress(feed, books.REBUILDING))
            except (DatabaseAway, DataRefused, SwapFailed) as failed:
                error = failed
                self.say(f"projection {self.bound.name!r}: a swap failed, it is tried again: {failed}")
            else:
                self._count(sum(len(fact.commit.events) for share in taken for fact in share.facts))
                self.swapped = True
                return
            feed.give_back(taken, [share.cut(0)._replace(after=share.before) for share in taken])
            while shares := feed.take(
                writer.events_max
            ):  # as ever, so that what it was that failed is dealt with as ever
                await self.write_batch(feed, writer, shares, books.REBUILDING)
        raise SwapFailed(f"projection {self.bound.name!r}: {SWAPS_MAX} swaps failed, the last one: {error}") from error

    async def _collect(self, feed: Feed, goal: dict[tuple[str, int], int], taken: list[Share]) -> None:
        """Read to the goal, but no further than the log goes: what it does not hold, nobody can build anew."""
        for reading in feed.readings:
            place = (reading.service, reading.shard)
            if goal.get(place, 0) > reading.fold.offset:
                goal[place] = min(goal[place], (await self.event_log.bounds(reading.partition)).end)
        await feed.read_to(goal)
        taken += feed.take_all()


def _swap_tables(
    database: Database,
    writer: Writer,
    collect: Callable[[Connection], list[Share]],
    progress: Callable[[], books.Progress],
) -> None:
    """All of it in one transaction, in which nobody feeds the old tables."""
    name = writer.bound.name
    with database.transaction() as connection:
        database.lock_setup(connection)
        books.hold(connection, name)
        try:
            shares = collect(connection)
        except TimeoutError as error:
            raise SwapFailed(f"the log was not read as far as the old tables within {SWAP_MAX_S} s") from error
        try:
            steps = writer.steps(shares)
            done = writer.apply_in(connection, shares, steps, progress())
        except (RekindleError, Unapplied) as error:
            raise SwapFailed(f"the last {len(shares)} shards' events: {error}") from error
        if done != shares:
            raise SwapFailed("the last events took too long")
        take_place(connection, writer.bound, writer.now_ms())
