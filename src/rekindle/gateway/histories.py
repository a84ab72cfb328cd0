"""What happened to an entity, and how it was at any offset or time: read from the log, asked of no instance.

    GET /v1/services/{service}/entities/{key}/history?after=&limit=      its commits, page by page
    GET /v1/services/{service}/entities/{key}/state?at=                  its state now, at an offset, or at a time

Both are bounded: a page reads `RECORDS_MAX` records at most and says how far it came; a state that needs more than
`TRAVEL_RECORDS_MAX` behind its snapshot is refused; both end with the caller's deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from fastapi import FastAPI, Query
from pydantic import BaseModel

from rekindle.actors import Hosted, Replica, outcomes
from rekindle.actors.client import DEADLINE_S
from rekindle.events import Commit, EventLog, SnapshotStore, shard_of, unpack
from rekindle.events.records import COMMAND
from rekindle.gateway.access import Reader
from rekindle.gateway.documents import problems
from rekindle.gateway.entities import KeyParameter, TimeoutHeader, entity_path
from rekindle.gateway.plain import plain
from rekindle.gateway.problems import RETRY_AFTER_S, Problem
from rekindle.gateway.reading import Found, Places, Reading

log = logging.getLogger("rekindle")

PAGE_DEFAULT: Final = 100
PAGE_MAX: Final = 1_000
TRAVEL_RECORDS_MAX: Final = 200_000
"""Records behind a snapshot that one state is folded from: some seconds."""

TRAVELS_MAX: Final = 4
"""Readings at a time; each holds a shard's state in memory, or has the log read for it."""

OFFSET_MAX: Final = (1 << 53) - 1
"""What every JSON reader can say."""

Outcome = Literal["ok", "rejected", "failed"]
_OUTCOMES: Final[dict[int, Outcome]] = {outcomes.OK: "ok", outcomes.REJECTED: "rejected", outcomes.FAILED: "failed"}


class EventReport(BaseModel):
    """An event as it lies in the log. version: of its schema."""

    type: str
    version: int
    data: dict[str, Any]


class CommitReport(BaseModel):
    """A command that took effect, or was refused, at one place in the log. version: the entity's events up to here."""

    offset: int
    sequence: int
    at: datetime
    version: int
    outcome: Outcome
    events: list[EventReport]


class HistoryPage(BaseModel):
    """Commits of an entity in order. scanned_to: the offset to give as `after` for the next page; complete: there was no
    more when it was read."""

    service: str
    key: str
    shard: int
    commits: list[CommitReport]
    scanned_to: int
    complete: bool


class StateReport(BaseModel):
    """An entity after the record at `offset` of its shard's log. at: the log's time there; state: None if it is as new."""

    service: str
    key: str
    shard: int
    offset: int
    at: datetime
    version: int
    state: dict[str, Any] | None


After = Annotated[int, Query(ge=-1, le=OFFSET_MAX, description="the offset that the page begins behind")]
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX, description="commits on the page")]
At = Annotated[
    str | None,
    Query(
        max_length=40,
        pattern=r"^(\d{1,16}|\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d.*)$",
        description="an offset of the shard's log, or a time (ISO 8601; UTC if it has no zone); default: now",
    ),
]


class Histories:
    """Reads logs for those who ask, a few at a time."""

    def __init__(self, event_log: EventLog, store: SnapshotStore | None) -> None:
        self._log = event_log
        self._store = store
        self._places = Places()
        self._reading = 0

    def add(self, app: FastAPI, hosted: Hosted) -> None:
        """The routes of one service."""

        async def history(
            key: KeyParameter,
            caller: Reader,
            after: After = -1,
            limit: Limit = PAGE_DEFAULT,
            within_s: TimeoutHeader = DEADLINE_S,
        ) -> HistoryPage:
            """What happened to the entity, in order: only what counts, by the rules of the log."""
            caller.check_key(key)
            async with self._turn(within_s):
                return await self.page(hosted, key, after, limit)

        async def state(
            key: KeyParameter, caller: Reader, at: At = None, within_s: TimeoutHeader = DEADLINE_S
        ) -> StateReport:
            """How the entity was, folded from the log up to there."""
            caller.check_key(key)
            async with self._turn(within_s):
                return await self.state(hosted, key, at)

        for name, endpoint in (("history", history), ("state", state)):
            app.add_api_route(
                f"{entity_path(hosted.name)}/{name}",
                endpoint,
                methods=["GET"],
                tags=[hosted.name],
                operation_id=f"{hosted.name}-{name}",
                responses=problems(404, 409, 422, 429, 503),
            )

    @asynccontextmanager
    async def _turn(self, within_s: float) -> AsyncGenerator[None]:
        if self._reading >= TRAVELS_MAX:
            detail = f"{TRAVELS_MAX} logs are being read, and no more at a time"
            raise Problem(429, "overloaded", detail, retry_after_s=RETRY_AFTER_S)
        self._reading += 1
        try:
            async with asyncio.timeout(within_s):
                yield
        finally:
            self._reading -= 1

    async def page(self, hosted: Hosted, key: str, after: int, limit: int) -> HistoryPage:
        """The page of an entity's history behind an offset."""
        shard = shard_of(key, hosted.shards)
        reading = Reading(hosted, shard, self._log, log.warning, lambda c: c.kind == COMMAND and c.entity == key)
        end = (await self._log.bounds(reading.partition)).end
        await reading.begin(after, self._places, self._store)
        page: list[Found] = []

        def enough() -> bool:
            page.extend(found for found in reading.sieve.found if found.offset > after)
            reading.sieve.found.clear()
            return len(page) >= limit

        ended = await reading.read(end, enough)
        enough()
        complete = ended and len(page) <= limit
        page = page[:limit]
        if page:
            self._places.keep(reading.partition.topic, shard, page[-1])
        reached = max(after, reading.offset - 1)
        return HistoryPage(
            service=hosted.name,
            key=key,
            shard=shard,
            commits=[_commit_report(found.offset, found.commit) for found in page],
            scanned_to=reached if complete or len(page) < limit else page[-1].offset,
            complete=complete,
        )

    async def state(self, hosted: Hosted, key: str, at: str | None) -> StateReport:
        """The entity as it was."""
        shard = shard_of(key, hosted.shards)
        partition = hosted.partition(shard)
        end = (await self._log.bounds(partition)).end
        last = await self._offset_at(hosted, shard, at, end)
        replica = Replica(hosted, shard, self._log, self._store, log.warning)
        await replica.load(last)
        _check_distance(last + 1 - max(replica.fold.offset, 0))
        await replica.read(last + 1)
        found = replica.state(key)
        version, state = found or (0, None)
        return StateReport(
            service=hosted.name,
            key=key,
            shard=shard,
            offset=last,
            at=_time(replica.fold.time),
            version=version,
            state=None if state is None else plain(state),
        )

    async def _offset_at(self, hosted: Hosted, shard: int, at: str | None, end: int) -> int:
        """The last offset that is meant."""
        if at is None:
            return end - 1
        if at.isdecimal():
            if int(at) >= end:
                raise Problem(422, "no-such-offset", f"the log ends at offset {end - 1}, {at} is not there yet")
            return int(at)
        return await self._last_before(hosted, shard, _milliseconds(at), end)

    async def _last_before(self, hosted: Hosted, shard: int, at_ms: int, end: int) -> int:
        """The last offset before the first commit that is later than this time. Times of a shard never fall."""
        reading = Reading(hosted, shard, self._log, log.warning, lambda commit: commit.time > at_ms)
        below = end
        while True:
            await reading.begin(below, None, self._store)
            if reading.sieve.fold.time <= at_ms or reading.replay.mark is None:
                break
            below = reading.replay.mark.offset - 1  # this snapshot is later: the one before it, or the start of the log
            reading = Reading(hosted, shard, self._log, log.warning, lambda commit: commit.time > at_ms)
        _check_distance(end - reading.offset)
        await reading.read(end, lambda: bool(reading.sieve.found), TRAVEL_RECORDS_MAX)
        return reading.sieve.found[0].offset - 1 if reading.sieve.found else end - 1


def _check_distance(records: int) -> None:
    if records > TRAVEL_RECORDS_MAX:
        raise Problem(422, "too-far", f"{records} records would have to be read, {TRAVEL_RECORDS_MAX} are allowed")


def _milliseconds(text: str) -> int:
    try:
        at = datetime.fromisoformat(text.replace(" ", "+") if text.count(" ") == 1 and "T" in text.upper() else text)
    except ValueError as error:
        raise Problem(422, "wrong-arguments", f"query.at: {error}") from error
    return round((at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp() * 1000)


def _time(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def _commit_report(offset: int, commit: Commit) -> CommitReport:
    return CommitReport(
        offset=offset,
        sequence=commit.sequence,
        at=_time(commit.time),
        version=commit.version,
        outcome=_OUTCOMES.get(unpack(commit.reply)[0], "failed"),
        events=[EventReport(type=name, version=version, data=plain(data)) for name, version, data in commit.events],
    )
