"""The control log as a stream of server-sent events: what happens, while it happens, without gaps.

    GET /v1/stream?topics=incidents,plans      event: incidents, id: 4711, data: {"offset": 4711, "at": ..., "events": [...]}

One reader follows the log for all clients. An event's id is its offset in the log: a client that comes again says which one it
has seen last (`Last-Event-ID`), and goes on behind it. `status` is no event but a state: the report as it is now, at most
`STATE_HZ` times a second, and only when it has changed.

Invariants:
- Between what a client has missed and what it gets live there is no gap: it is enrolled before what it missed is looked up.
- Where one record gives several messages only the last one carries its id: who got half of them gets all of them again.
- Nobody's queue grows beyond `QUEUE_MAX`: who is slower gets `event: end` as the last one, with the reason and where to go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final, NamedTuple

from fastapi import Depends, FastAPI, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.requests import Request

from rekindle.events import EventLog, LogError, SnapshotStore
from rekindle.gateway.access import Viewer
from rekindle.gateway.control import STATUS
from rekindle.gateway.documents import problems
from rekindle.gateway.meters import Meters
from rekindle.gateway.plain import plain
from rekindle.gateway.problems import RETRY_AFTER_S, Problem
from rekindle.gateway.reading import RECORDS_MAX, Found, Reading
from rekindle.supervisors import Operator, control_log

STREAMS_MAX: Final = 256
"""Clients at a time; one more is told to come again."""

QUEUE_MAX: Final = 256
"""Messages that wait for one client."""

RECENT_MAX: Final = 4_096
"""Records that are kept for clients that come again; who is further behind has the log read for it."""

STATE_HZ: Final = 4.0
STATE_STALE_S: Final = 2.0
"""A state is looked at so often also if nothing was decided: an instance may have stopped answering."""

AGAIN_S: Final = 0.5
"""When the log is tried again after it failed."""

RETRY_MS: Final = 1_000
"""What clients are told to wait before they come again."""

STATE: Final = "status"
TOPICS: Final[dict[str, tuple[str, ...]]] = {
    "incidents": ("Noticed",),
    "instances": ("Started", "Gone", "Scaled", "Declared"),
    "leaders": ("Leads", "Ended"),
    "nodes": ("Cordoned",),
    "plans": ("Proposed", "Stepped", "Stood", "Performed", "Forced"),
    "sayings": ("Said",),
    "shards": ("Assigned", "Followed", "Refused"),
}
"""The events of the control log by topic."""

EVENTS: Final = ",".join(TOPICS)
"""All of them: what a client gets that names none."""

_TOPIC_OF: Final = {event: topic for topic, events in TOPICS.items() for event in events}


class Message(NamedTuple):
    """What a client gets. offset: where in the log it is. closes: it is the last one of its record, and carries its id."""

    topic: str
    offset: int
    data: Any


def messages_of(found: Found) -> list[Message]:
    """A record of the control log as messages, one for each topic that it touches."""
    by_topic: dict[str, list[dict[str, Any]]] = {}
    for name, version, data in found.commit.events:
        topic = _TOPIC_OF.get(name)
        if topic is not None:
            by_topic.setdefault(topic, []).append({"type": name, "version": version, "data": plain(data)})
    return [
        Message(topic, found.offset, {"offset": found.offset, "at_ms": found.commit.time, "events": events})
        for topic, events in by_topic.items()
    ]


class Client:
    """One client of the stream. seen: the offset up to which it has everything."""

    def __init__(self, topics: frozenset[str], seen: int) -> None:
        self.topics = topics
        self.seen = seen
        self.ended = ""
        self.seen_state = False
        self._queue: deque[ServerSentEvent] = deque()
        self._state: ServerSentEvent | None = None
        self._wake = asyncio.Event()

    def offer(self, messages: Iterable[Message]) -> None:
        """Take the messages of one record, as far as they are wanted; or end, if there is no room for them."""
        events = self.events(messages)
        if self.ended or not events:
            return
        if len(self._queue) + len(events) > QUEUE_MAX:
            self.end("too slow")
        else:
            self._queue.extend(events)
            self._wake.set()

    def show(self, state: Any, offset: int) -> None:
        """Take a state in place of the one before, seen or not."""
        if STATE in self.topics and not self.ended:
            self._state = ServerSentEvent(event=STATE, data={"offset": offset, "report": state})
            self._wake.set()

    def end(self, reason: str) -> None:
        """What waits is the last that it gets, and then why."""
        self.ended = self.ended or reason
        self._wake.set()

    def events(self, messages: Iterable[Message]) -> list[ServerSentEvent]:
        """Messages of one record as they are sent."""
        wanted = [message for message in messages if message.topic in self.topics]
        return [
            ServerSentEvent(event=m.topic, data=m.data, id=str(m.offset) if m is wanted[-1] else None) for m in wanted
        ]

    async def coming(self) -> AsyncIterator[ServerSentEvent]:
        """Everything from now on, until it ends."""
        while True:
            while self._queue:
                event = self._queue.popleft()
                if event.id is not None:
                    self.seen = int(event.id)
                yield event
            if self._state is not None:
                state, self._state = self._state, None
                yield state
            if self.ended:
                yield ServerSentEvent(event="end", data={"reason": self.ended, "resume": self.seen})
                return
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()


class Feed:
    """Follows the control log for all clients of one gateway. `run` it beside the server."""

    def __init__(
        self,
        app: str,
        event_log: EventLog,
        store: SnapshotStore | None,
        operator: Operator,
        meters: Meters,
        say: Callable[[str], None],
    ) -> None:
        self.hosted = control_log(app)
        self.position = -1
        self.problem = ""
        self._log = event_log
        self._store = store
        self._operator = operator
        self._meters = meters
        self._say = say
        self._clients: set[Client] = set()
        self._recent: deque[tuple[int, list[Message]]] = deque(maxlen=RECENT_MAX)
        self._recent_from = 0
        self._changed = asyncio.Event()
        self._closing = False

    # --- the log ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the log until cancelled, whatever happens to it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._look())

    async def _follow(self) -> None:
        reading: Reading | None = None
        while True:
            try:
                if reading is None:
                    reading = await self._begin()
                async with reading.following() as following:
                    self.problem = ""
                    while True:
                        await following()
                        self._take(reading)
            except LogError as error:
                self._trouble(f"the control log cannot be read: {error}")
                if type(error).__name__ != "LogUnavailable":
                    reading = None
                await asyncio.sleep(AGAIN_S)
            except Exception as error:  # noqa: BLE001 - clients of the stream must not be left without a word for good
                self._trouble(f"bug: the control log cannot be followed: {error!r}")
                reading = None
                await asyncio.sleep(AGAIN_S)

    def _trouble(self, problem: str) -> None:
        """Say it once, however often it is tried again."""
        if problem != self.problem:
            self.problem = problem
            self._say(problem)

    async def _begin(self) -> Reading:
        """A reading at the end of the log; or where this feed was, if it was anywhere."""
        reading = Reading(self.hosted, 0, self._log, self._say, lambda commit: bool(commit.events))
        end = (await self._log.bounds(reading.partition)).end
        if self.position >= end:  # another log than it was
            self.position = -1
            self._recent.clear()
        await reading.begin(end if self.position < 0 else self.position, None, self._store)
        await reading.read(end, lambda: False, end + 1)
        if self.position < 0:
            self.position = end - 1
            self._recent_from = end
            reading.sieve.found.clear()
        self._take(reading)
        return reading

    def _take(self, reading: Reading) -> None:
        """Hand on what was found."""
        while reading.sieve.found:
            found = reading.sieve.found.popleft()
            if found.offset <= self.position:
                continue
            if messages := messages_of(found):
                if len(self._recent) == RECENT_MAX:
                    self._recent_from = self._recent[0][0] + 1
                self._recent.append((found.offset, messages))
                self.position = found.offset
                for client in self._clients:
                    client.offer(messages)
                self._changed.set()
        self.position = max(self.position, reading.offset - 1)

    # --- the state --------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Look at the state for those who want it, when it may have changed, and not too often."""
        shown: dict[str, Any] = {}
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATE_STALE_S):
                    await self._changed.wait()
            self._changed.clear()
            clients = [client for client in self._clients if STATE in client.topics]
            if clients:
                shown = await self._show(clients, shown)
                await asyncio.sleep(1 / STATE_HZ)

    async def _show(self, clients: list[Client], shown: dict[str, Any]) -> dict[str, Any]:
        try:
            report = await self._operator.look(STATUS)
        except Exception as error:  # noqa: BLE001 - as in `_follow`: whatever keeps the state from being known is told
            state: dict[str, Any] = {"problem": str(error)}
        else:
            state = report.model_dump(mode="json", exclude={"at_ms"})
        for client in clients:
            if state != shown or client.seen_state is False:
                client.show(state, self.position)
                client.seen_state = True
        return state

    # --- clients ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def enrolled(
        self, topics: frozenset[str], last: int | None
    ) -> AsyncGenerator[AsyncIterator[ServerSentEvent]]:
        """A client, for the length of the block; what it gets. Raises a 429."""
        if len(self._clients) >= STREAMS_MAX:
            detail = f"{STREAMS_MAX} clients are on the stream, and no more at a time"
            raise Problem(429, "overloaded", detail, retry_after_s=RETRY_AFTER_S)
        client = Client(topics, self.position if last is None else last)
        if self._closing:
            client.end("the gateway ends")
        self._clients.add(client)
        self._meters.streams.inc()
        self._changed.set()
        try:
            yield self._events(client, self.position, last)
        finally:
            self._clients.discard(client)
            self._meters.streams.dec()
            if client.ended == "too slow":
                self._meters.dropped.inc()

    def close(self) -> None:
        """Send everybody away, for the server to end."""
        self._closing = True
        for client in self._clients:
            client.end("the gateway ends")

    async def _events(self, client: Client, position: int, last: int | None) -> AsyncIterator[ServerSentEvent]:
        """What it missed, then what comes. position: of the feed when it was enrolled; what is later is in its queue."""
        yield ServerSentEvent(
            event="hello", data={"position": position, "topics": sorted(client.topics)}, retry=RETRY_MS
        )
        if last is not None:
            if last > position:
                yield ServerSentEvent(
                    event="reset", data={"reason": f"the log ends at {position}", "position": position}
                )
                client.seen = position
            else:
                async for event in self._missed(client, last, position):
                    yield event
        async for event in client.coming():
            yield event

    async def _missed(self, client: Client, last: int, position: int) -> AsyncIterator[ServerSentEvent]:
        if last + 1 >= self._recent_from:
            missed = [messages for offset, messages in self._recent if last < offset <= position]
        else:
            try:
                missed = [messages_of(found) for found in await self._read(last, position)]
            except (LogError, Problem) as error:
                yield ServerSentEvent(event="reset", data={"reason": str(error), "position": position})
                client.seen = position
                return
        for messages in missed:
            for event in client.events(messages):
                if event.id is not None:
                    client.seen = int(event.id)
                yield event
        client.seen = max(client.seen, position)

    async def _read(self, last: int, position: int) -> list[Found]:
        """What counts in the log behind one offset, up to another one. Raises `LogError`; a 422 if that is too much."""
        if position - last > RECORDS_MAX:
            raise Problem(422, "too-far", f"{position - last} records were missed, {RECORDS_MAX} are looked up")
        reading = Reading(self.hosted, 0, self._log, self._say, lambda commit: bool(commit.events))
        await reading.begin(last, None, self._store)
        if reading.offset > last + 1:
            raise Problem(422, "too-far", f"offset {last} is not in the log any more")
        await reading.read(position + 1, lambda: False, position - reading.offset + 2)
        return [found for found in reading.sieve.found if found.offset > last]


Topics = Annotated[str, Query(max_length=200, description=f"any of {', '.join((*TOPICS, STATE))}, with commas between")]
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", max_length=20, pattern=r"^\d*$", description="the last id that was seen")
]


async def _coming(
    request: Request, caller: Viewer, topics: Topics = EVENTS, last_event_id: LastEventId = None
) -> AsyncIterator[AsyncIterator[ServerSentEvent]]:
    """What a client of the stream gets, while it is enrolled."""
    wanted = frozenset(filter(None, topics.split(",")))
    known = {*TOPICS, STATE}
    if not wanted or not wanted <= known:
        detail = f"query.topics: expected some of {sorted(known)}, got {sorted(wanted)}"
        raise Problem(422, "wrong-arguments", detail)
    feed: Feed = request.app.state.feed
    async with feed.enrolled(wanted, int(last_event_id) if last_event_id else None) as coming:
        yield coming


Coming = Annotated[AsyncIterator[ServerSentEvent], Depends(_coming)]


async def _stream(coming: Coming) -> AsyncIterator[ServerSentEvent]:
    """What happens, while it happens, as server-sent events; `Last-Event-ID` goes on where a connection broke off."""
    async for event in coming:
        yield event


def add_stream(app: FastAPI) -> None:
    """The route of the stream."""
    app.add_api_route(
        "/v1/stream",
        _stream,
        methods=["GET"],
        summary="stream",
        operation_id="stream",
        tags=["control"],
        response_class=EventSourceResponse,
        responses=problems(422, 429),
    )
