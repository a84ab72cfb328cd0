"""The client's end of a connection to one instance, and the calls that travel over it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from rekindle.actors.entity import HandlerType
from rekindle.actors.errors import ConnectFailed, TokenRefused
from rekindle.actors.frames import (
    ANSWER,
    ASK,
    CALL,
    CLIENT,
    GOODBYE,
    HELLO,
    PROTOCOL,
    TABLE,
    WELCOME,
    BadFrame,
    frame,
    parse,
)
from rekindle.actors.host import Hosted
from rekindle.actors.link import LARGE_FRAME_BYTES
from rekindle.actors.routes import Table
from rekindle.actors.wire import FRAME_BYTES_MAX, Closed, Connection
from rekindle.events import Unencodable

if TYPE_CHECKING:
    from rekindle.actors.client import Client

RETRY_FIRST_S: Final = 0.02
GREET_MAX_S: Final = 2.0
"""How long an instance that took a connection may take to greet."""
SILENT_S: Final = 1.0
"""A peer that does not answer for this long does not count as one that can be asked."""
QUIET_S: Final = 0.5
"""A peer that said nothing for this long is not waited for once its shard has another owner."""
FRAME_CALLS_MAX: Final = 256
"""Calls in one frame: few enough that the instance works on the first while this process packs the next."""
CALLS_BYTES_MAX: Final = FRAME_BYTES_MAX // 2


class Session:
    """This client's numbered commands to one shard."""

    __slots__ = ("name", "next", "outstanding", "used_at")

    def __init__(self, name: bytes, now: float) -> None:
        self.name = name
        self.next = 1
        self.outstanding: OrderedDict[int, Call] = OrderedDict()
        self.used_at = now

    @property
    def low(self) -> int:
        """The lowest number still waited for."""
        return next(iter(self.outstanding), self.next)


class Call:
    """One call until it is answered. `wire` is what a frame carries of it, the same each time it is sent.

    sent: a copy of it is out that was not answered. unsure: one never will be, or its answer decided nothing. busy: what
    the last full queue said.
    """

    __slots__ = (
        "busy",
        "deadline",
        "future",
        "handler",
        "hosted",
        "number",
        "pause",
        "peer",
        "sent",
        "session",
        "shard",
        "suspect",
        "unsure",
        "wire",
    )

    def __init__(
        self,
        hosted: Hosted,
        shard: int,
        handler: HandlerType,
        session: Session | None,
        number: int,
        wire: list[Any],
        deadline: float,
        future: asyncio.Future[Any],
    ) -> None:
        self.hosted = hosted
        self.shard = shard
        self.handler = handler
        self.session = session
        self.number = number
        self.wire = wire
        self.deadline = deadline
        self.future = future
        self.peer: Peer | None = None
        self.sent = False
        self.unsure = False
        self.busy: str | None = None
        self.suspect = False
        self.pause = RETRY_FIRST_S


class Peer:
    """The client's end of a connection to one instance."""

    def __init__(self, client: Client, address: str) -> None:
        self.client = client
        self.address = address
        self.queue: list[Call] = []
        self.asking = False
        self.asked_at: float | None = None
        self.heard_at = 0.0
        self.wake = asyncio.Event()
        self.connection: Connection | None = None

    @property
    def open(self) -> bool:
        """Whether calls are sent to it."""
        return self.connection is not None

    def ask(self, now: float) -> bool:
        """Ask for the table; False if this peer has not even answered the last time: its host may be gone in silence."""
        if not self.open or (self.asked_at is not None and now - self.asked_at > SILENT_S):
            return False
        self.asked_at = self.asked_at or now
        self.asking = True
        self.wake.set()
        return True

    async def run(self) -> None:
        """Connect, then send and receive until the connection is gone; what was unanswered goes back to the client."""
        connection: Connection | None = None
        try:
            connection = await self.client.wire.connect(self.address)
            async with asyncio.timeout(GREET_MAX_S):
                await self._greet(connection)
            self.connection = connection
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send(connection))
                group.create_task(self._receive(connection))
        except* (Closed, ConnectFailed, BadFrame, TimeoutError) as errors:
            self.client.last_error = str(errors.exceptions[0])
        except* TokenRefused as errors:
            self.client.fail_all(errors.exceptions[0])
        finally:
            self.connection = None
            self.client.on_gone(self)
            if connection is not None:
                await connection.close()

    async def _greet(self, connection: Connection) -> None:
        client = self.client
        await connection.send(frame(HELLO, PROTOCOL, client.token, CLIENT))
        fields = parse(await connection.receive())
        if fields[0] == GOODBYE:
            raise TokenRefused(f"{self.address} says: {fields[1]}")
        if fields[0] != WELCOME or fields[2] != client.app:
            raise ConnectFailed(f"expected an instance of {client.app!r} at {self.address}, got {fields[:5]}")
        client.on_welcome(fields[5], Table.load(*fields[6]))

    async def _send(self, connection: Connection) -> None:
        while True:
            await self.wake.wait()
            self.wake.clear()
            if self.asking:
                self.asking = False
                await connection.send(frame(ASK))
            while self.queue:
                calls, self.queue = self.queue[:FRAME_CALLS_MAX], self.queue[FRAME_CALLS_MAX:]
                for data in self._frames(calls):
                    await connection.send(data)

    def _frames(self, calls: list[Call]) -> Iterator[bytes]:
        """The calls as one frame; as several if they are large; without those that cannot travel, which fail alone."""
        # What has expired while it waited here was said to have no effect: it must not be sent any more.
        calls = [call for call in calls if call.peer is self and not call.future.done()]
        if not calls:
            return
        try:
            data = self._pack(calls)
        except Unencodable as error:
            problem = str(error)
        else:
            if len(data) <= CALLS_BYTES_MAX:
                for call in calls:
                    call.sent = True
                yield data
                return
            problem = f"the call takes {len(data)} bytes encoded, {CALLS_BYTES_MAX} are allowed"
        if len(calls) > 1:
            middle = len(calls) // 2
            yield from self._frames(calls[:middle])
            yield from self._frames(calls[middle:])
        else:
            self.client.on_bad(calls[0], problem)

    def _pack(self, calls: list[Call]) -> bytes:
        groups: dict[tuple[Session | int, bool], list[Any]] = {}
        for call in calls:
            session = call.session
            which = (call.shard if session is None else session, call.suspect)
            group = groups.get(which)
            if group is None:
                name, low = (self.client.name, 0) if session is None else (session.name, session.low)
                group = groups[which] = [call.shard, name, low, call.suspect, []]
            group[4].append(call.wire)
        return frame(CALL, list(groups.values()))

    async def _receive(self, connection: Connection) -> None:
        answered, calls, loop = self.client.on_answer, self.client.calls, asyncio.get_running_loop()
        self.heard_at = loop.time()
        while True:
            data = await connection.receive()
            self.asked_at, self.heard_at = None, loop.time()
            fields = parse(data)
            if fields[0] == ANSWER:
                for number, payload in fields[1]:
                    call = calls.get(number)
                    if call is not None and call.peer is self:  # else it was answered, or has been sent elsewhere since
                        answered(call, payload)
                if len(data) > LARGE_FRAME_BYTES:
                    await asyncio.sleep(0)  # who was answered may ask again while the next frame is read
            elif fields[0] == TABLE:
                self.client.on_table(Table.load(*fields[1:]))
            elif fields[0] == GOODBYE:
                raise ConnectFailed(f"{self.address} closed the connection: {fields[1]}")
            else:
                raise BadFrame(f"frame kind {fields[0]} is not for a client")

    def put(self, call: Call) -> None:
        """Send the call with this turn's frame."""
        call.peer = self
        self.queue.append(call)
        if len(self.queue) == 1:
            self.wake.set()
