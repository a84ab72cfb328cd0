"""The projector: reads what counts from the log, and keeps a read model up with it.

    projector = Projector(bound, log, database)
    await projector.run()           # until `stop`, or an error that somebody has to know of

It can be run by anybody, anywhere, any number of times: what it has done is in the database, and nowhere else. That is also
the seam to supervision: a supervised service needs to call `run`, `stop`, and to look at the error.

Invariants:
- A batch is applied whole or not at all, and its events once, whoever dies or is stopped in the middle.
- Two projectors of one projection never both go on: the one whose position was moved by the other stops (`ProjectionFenced`).
- It says how it is: `rk_projection` is written with every batch, and every `SAY_EVERY_S` without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar, cast

from rekindle.actors.replay import RETRY_FIRST_S
from rekindle.events import EventLog, LogUnavailable, RekindleError
from rekindle.projections import books
from rekindle.projections.books import Progress
from rekindle.projections.database import Database
from rekindle.projections.errors import DatabaseAway, ProjectionFenced, one_line
from rekindle.projections.feeding import Feed
from rekindle.projections.reading import Reading, Share
from rekindle.projections.tables import Positions, open_projection
from rekindle.projections.writing import Bound, Swapped, Writer
from rekindle.supervisors.hosting import now_ms as wall_clock

T = TypeVar("T")

log = logging.getLogger("rekindle")

SAY_EVERY_S: Final = 1.0
"""How often it is said that a projection stands where it stands, when it does not move."""

PASS_EVERY_S: Final = 0.2
"""How often positions move past records without events: every query of an idle service leaves one in the log."""

AWAY_PAUSE_MAX_S: Final = 2.0
"""The longest pause between two attempts to reach a database that is away."""

RATE_WINDOW_S: Final = 5.0
"""What `rate` is an average of, about."""


class Projector:
    """Runs one projection. events: that it has handled. say: is told what an operator should know."""

    def __init__(
        self,
        bound: Bound,
        event_log: EventLog,
        database: Database,
        *,
        say: Callable[[str], None] = log.warning,
        now_ms: Callable[[], int] = wall_clock,
    ) -> None:
        self.bound = bound
        self.event_log = event_log
        self.database = database
        self.say = say
        self.now_ms = now_ms
        self.feed: Feed | None = None
        self.events = 0
        self._rate = 0.0
        self._rated_at = 0.0
        self._ending = asyncio.Event()

    def stop(self) -> None:
        """Ask it to end, behind the batch that it is at. Harmless before `run`, and twice."""
        self._ending.set()
        if self.feed is not None:
            self.feed.filled.set()

    async def run(self) -> None:
        """Go on from where the read model stands, until `stop`.

        Raises `ProjectionError` (fenced, poison, not confirmed, refused ...) and `LogError`. What makes it stand still until
        somebody acts is also in `rk_projection.error`.
        """
        try:
            for hosted in self.bound.services:
                await self._until_there(lambda hosted=hosted: self.event_log.check(hosted.topic()))  # type: ignore[misc]
            while not self._ending.is_set():
                with contextlib.suppress(Swapped):
                    await self._run_once()
        except RekindleError as error:
            if not isinstance(error, ProjectionFenced):
                await self.tell(self.bound.name, books.STOPPED, one_line(error))
            raise
        await self.tell(self.bound.name, books.ENDED, "")

    async def _run_once(self) -> None:
        opened = await self._reach(lambda: self.database.call(open_projection, self.bound, self.now_ms))
        if opened is not None:
            writer, positions = opened
            await self.feed_into(writer, positions, self._write)

    async def feed_into(
        self, writer: Writer, positions: Positions, write: Callable[[Feed, Writer], Awaitable[None]]
    ) -> None:
        """Read from these positions on, and write, until either ends."""
        readings = [Reading(hosted, shard, positions[hosted.name, shard]) for hosted, shard in self.bound.shards()]
        feed = self.feed = Feed(self.bound.name, self.event_log, readings, self.say)
        feeding = asyncio.ensure_future(feed.run())
        writing = asyncio.ensure_future(write(feed, writer))
        try:
            await asyncio.wait((feeding, writing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (feeding, writing):
                task.cancel()
            ended = await asyncio.gather(writing, feeding, return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError):
                raise _first(error)

    # --- writing ---

    async def _write(self, feed: Feed, writer: Writer) -> None:
        """Batch after batch, until asked to end. What arrives while one is written is the next one: nobody waits for more."""
        loop = asyncio.get_running_loop()
        said_at = passed_at = loop.time()
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PASS_EVERY_S):
                    await feed.filled.wait()
            now = loop.time()
            shares: Sequence[Share] = ()
            if feed.filled.is_set() or now - passed_at >= PASS_EVERY_S:
                shares, passed_at = feed.take(writer.events_max), now
            if not shares and now - said_at >= SAY_EVERY_S:
                shares = feed.standing_still()
            if shares:
                await self.write_batch(feed, writer, shares)
                said_at = loop.time()

    async def write_batch(
        self, feed: Feed, writer: Writer, shares: Sequence[Share], state: str = books.RUNNING
    ) -> None:
        """Write a batch, however often that has to be tried; what could not be done at once waits in the feed again."""
        in_doubt = False

        async def attempt() -> list[Share]:
            nonlocal in_doubt
            doubt, in_doubt = in_doubt, True
            progress = self.progress(feed, state)
            return await self.database.call(lambda _: writer.write(shares, progress, in_doubt=doubt))

        done = await self._reach(attempt)
        if done is not None:
            feed.give_back(shares, done)
            self._count(sum(len(fact.commit.events) for share in done for fact in share.facts))

    def progress(self, feed: Feed, state: str = books.RUNNING) -> Progress:
        """What is said with a batch."""
        now = self.now_ms()
        slots, seconds = feed.lag(now)
        return Progress(self._rate, slots, seconds, now, state, feed.away)

    def _count(self, events: int) -> None:
        now = asyncio.get_running_loop().time()
        passed_s = now - self._rated_at
        if self._rated_at and passed_s > 0:
            self._rate += (1 - math.exp(-passed_s / RATE_WINDOW_S)) * (events / passed_s - self._rate)
        self._rated_at = now
        self.events += events

    # --- what may be away ---

    async def _reach(self, attempt: Callable[[], Awaitable[T]]) -> T | None:
        """What comes of an attempt, once the database can be reached. None: it was asked to end meanwhile."""
        pause, waits = RETRY_FIRST_S, False
        while True:
            try:
                done = await attempt()
            except DatabaseAway as error:
                if not waits:
                    self.say(f"projection {self.bound.name!r} waits for the database: {error}")
                waits = True
            else:
                if waits:
                    self.say(f"projection {self.bound.name!r} goes on: the database is back")
                return done
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._ending.wait()
            if self._ending.is_set():
                return None
            pause = min(2 * pause, AWAY_PAUSE_MAX_S)

    async def _until_there(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Do it once the log can be reached."""
        pause = RETRY_FIRST_S
        while not self._ending.is_set():
            try:
                return await attempt()
            except LogUnavailable as error:
                self.say(f"projection {self.bound.name!r} waits for the log: {error}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._ending.wait()
            pause = min(2 * pause, AWAY_PAUSE_MAX_S)
        return None

    async def tell(self, name: str, state: str, error: str) -> None:
        """Say how it ended, if the database can be reached."""

        def tell(database: Database) -> None:
            with database.transaction() as connection:
                books.say(connection, name, state, error, self.now_ms())

        try:
            await self.database.call(tell)
        except RekindleError as failed:
            self.say(f"projection {name!r}: cannot say that it is {state!r}: {failed}")


def _first(error: BaseException) -> BaseException:
    """The error of ours in a group of them; what else there is was cancelled because of it."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    inner = [_first(each) for each in cast("BaseExceptionGroup[BaseException]", error).exceptions]
    return next((each for each in inner if isinstance(each, RekindleError)), inner[0])
