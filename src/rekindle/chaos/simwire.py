"""The simulated wire: connections between processes on hosts, with seeded delay, loss and partitions.

What it keeps of TCP: frames arrive in order, whole, or not at all; what was sent before its sender died may still
arrive; a stopped process's buffers fill, and then its peers wait; a cut between two hosts delays what is sent until it
heals; a host that goes dark says nothing, so its connections stay open until somebody gives them up. What is lost with
a connection is the end of what was on its way, never something in the middle.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple
from zlib import crc32

from rekindle.actors import Beacon, Closed, ConnectFailed, Listening
from rekindle.actors.wire import CONNECT_MAX_S, SEND_BUFFER_BYTES, Accept, Connection
from rekindle.chaos.loop import Process, SimLoop, die_if_dead

REFUSED_S: Final = 0.001
"""How long it takes to learn that nobody listens; never nothing, or a caller that retries would stop virtual time."""


LOST_WITH_IT: Final = 0.8
"""The chance that one more of the last frames is lost with their connection."""

LOST_WITH_ITS_PROCESS: Final = 0.1
"""The same where only the process at one end has died: its kernel still sends what it was handed, but for a reset."""


@dataclass(frozen=True, slots=True)
class WireFaults:
    """delay_s: ordinary frames take up to this. slow, slow_s: the chance that one takes longer, and up to how long.
    loss: the chance that a frame takes its connection with it."""

    delay_s: float = 0.001
    slow: float = 0.0
    slow_s: float = 0.3
    loss: float = 0.0


class _End:
    """One end of a connection: what it has sent and is on its way, what it has received and was not read."""

    def __init__(self, net: Net, process: Process) -> None:
        self.net = net
        self.process = process
        self.other = self
        self.line: deque[bytes | None] = deque()  # None: the end
        self.inbox: deque[bytes] = deque()
        self.on_the_way = 0  # bytes that this end has sent and the other has not read
        self.last_at = 0.0
        self.stalled = 0
        self.closed = False
        self.ended = False  # nothing will come any more
        self._changed: list[asyncio.Future[None]] = []

    async def send(self, frame: bytes) -> None:
        """See `Connection`."""
        await die_if_dead()
        while self.on_the_way > SEND_BUFFER_BYTES and not self._gone:
            await self._change()
        if self._gone:
            raise Closed(f"the connection of {self.process.name} and {self.other.process.name} is gone")
        self.put(frame)

    async def receive(self) -> bytes:
        """See `Connection`."""
        while not self.inbox:
            if self._gone:
                raise Closed(f"the connection of {self.process.name} and {self.other.process.name} is gone")
            await self._change()
        frame = self.inbox.popleft()
        self.other.on_the_way -= len(frame)
        self.other.wake()
        return frame

    async def close(self) -> None:
        """See `Connection`."""
        self.hang_up()

    @property
    def _gone(self) -> bool:
        return self.closed or self.ended

    async def _change(self) -> None:
        future = self.net.loop.create_future()
        self._changed.append(future)
        await future

    def wake(self) -> None:
        """Something has changed: whoever waits looks again."""
        changed, self._changed = self._changed, []
        for future in changed:
            if not future.done():
                future.set_result(None)

    def put(self, frame: bytes | None) -> None:
        """On its way, behind what is on its way already."""
        self.on_the_way += len(frame or b"")
        self.line.append(frame)
        self.last_at = max(self.last_at, self.net.loop.time() + self.net.delay())
        self.net.loop.call_at(self.last_at, self.arrive, context=Context())

    def arrive(self) -> None:
        """The next frame of the line is there, unless a cut or a lost connection keeps it."""
        if self.net.is_cut(self.process.host, self.other.process.host):
            self.stalled += 1
        elif self.line:
            self.other.take(self.line.popleft())

    def take(self, frame: bytes | None) -> None:
        """Something has come from the other end."""
        if frame is None:
            self.ended = True
        elif not self.ended:
            self.inbox.append(frame)
            self.net.note(self, frame)
        self.wake()

    def flow(self) -> None:
        """The cut has healed."""
        stalled, self.stalled = self.stalled, 0
        for _ in range(stalled):
            self.arrive()

    def hang_up(self) -> None:
        """This end is closed; the other learns of it behind what is on its way."""
        if not self.closed:
            self.closed = True
            self.wake()
            self.put(None)
            self.net.forget(self)

    def break_off(self, random: Random, lost: float = LOST_WITH_IT) -> None:
        """The connection is lost, and the end of what was on its way with it, either way."""
        for end in (self, self.other):
            while end.line and random.random() < lost:
                end.line.pop()
            end.put(None)
            self.net.forget(end)


class _Listener(NamedTuple):
    process: Process
    accept: Accept


class Net:
    """All hosts, what listens on them, what is connected, what is cut."""

    def __init__(self, loop: SimLoop, random: Random) -> None:
        self.loop = loop
        self.random = random
        self.faults = WireFaults()
        self.took: Counter[str] = Counter()
        self.digest = 0
        self.listeners: dict[str, _Listener] = {}
        self._ends: dict[_End, None] = {}
        self._cuts: set[frozenset[str]] = set()
        self._dark: set[str] = set()
        self._ports = 1024
        self._healed = asyncio.Event()

    # --- faults ------------------------------------------------------------------------------------------------

    def delay(self) -> float:
        """How long a frame takes."""
        delay = self.random.random() * self.faults.delay_s
        if self.random.random() < self.faults.slow:
            self.took["slow_frame"] += 1
            delay += self.random.random() * self.faults.slow_s
        return delay

    def cut(self, one: str, other: str) -> None:
        """Nothing passes between two hosts until it heals."""
        self._cuts.add(frozenset((one, other)))

    def heal(self) -> None:
        """Nothing is cut any more."""
        self._cuts.clear()
        self._healed.set()
        self._healed = asyncio.Event()
        for end in tuple(self._ends):
            end.flow()

    def is_cut(self, one: str, other: str) -> bool:
        """Whether nothing passes now."""
        return frozenset((one, other)) in self._cuts or not self._dark.isdisjoint((one, other))

    def go_dark(self, host: str) -> None:
        """The host is gone without a word: nothing comes from it any more, and nothing is refused by it."""
        self._dark.add(host)

    def break_some(self, share: float) -> int:
        """Connections are lost, each with this chance; how many."""
        broken = [end for end in tuple(self._ends) if self.random.random() < share]
        for end in broken:
            end.break_off(self.random)
        return len(broken)

    def note(self, end: _End, frame: bytes) -> None:
        """A frame has come: remember that it did (the digest tells two runs apart), perhaps lose its connection."""
        self.digest = crc32(frame, self.digest)
        if self.faults.loss and end in self._ends and self.random.random() < self.faults.loss:
            self.took["lost_connection"] += 1
            end.break_off(self.random)

    # --- connections -------------------------------------------------------------------------------------------

    def join(self, process: Process) -> SimWire:
        """The wire of one process."""
        process.at_death.append(lambda: self._bury(process))
        return SimWire(self, process)

    def _bury(self, process: Process) -> None:
        """Its ends are closed for it; on a dark host there is nobody to do that."""
        self.listeners = {a: listener for a, listener in self.listeners.items() if listener.process is not process}
        if process.host not in self._dark:
            for end in [end for end in self._ends if end.process is process]:
                end.break_off(self.random, LOST_WITH_ITS_PROCESS)

    def listen(self, bind: str, process: Process, accept: Accept) -> str:
        """Take a free port of the host; the address."""
        host, _, port = bind.rpartition(":")
        self._ports += 1
        address = f"{host}:{port if int(port) else self._ports}"
        self.listeners[address] = _Listener(process, accept)
        return address

    async def reach(self, process: Process, address: str) -> _End:
        """A new connection; not before the listener's process has taken it up."""
        host = address.rpartition(":")[0]
        await asyncio.sleep(REFUSED_S + self.delay())
        while self.is_cut(process.host, host):
            await self._healed.wait()
        listener = self.listeners.get(address)
        if listener is None:
            raise ConnectFailed(f"nobody listens at {address}")
        near, far = _End(self, process), _End(self, listener.process)
        near.other, far.other = far, near
        self._ends[near] = self._ends[far] = None
        taken = self.loop.create_future()
        listener.process.start(_serve(listener.accept, far, taken))
        await taken
        return near

    def forget(self, end: _End) -> None:
        """It is closed."""
        self._ends.pop(end, None)


async def _serve(accept: Accept, end: _End, taken: asyncio.Future[None]) -> None:
    if not taken.done():  # else the caller has given up
        taken.set_result(None)
        with suppress(Closed):
            await accept(end)
    end.hang_up()


class SimWire:
    """The `Wire` of one process."""

    def __init__(self, net: Net, process: Process) -> None:
        self.net = net
        self.process = process

    async def serve(self, bind: str, accept: Accept) -> Listening:
        """See `Wire`."""
        return _Listening(self.net, self.net.listen(bind, self.process, accept))

    async def connect(self, address: str) -> Connection:
        """See `Wire`."""
        try:
            async with asyncio.timeout(CONNECT_MAX_S):
                return await self.net.reach(self.process, address)
        except TimeoutError:
            raise ConnectFailed(f"no answer from {address} in {CONNECT_MAX_S} s") from None

    def beacon(self, bind: str, token: str | None, pulse: Callable[[], bytes], interval_s: float) -> Beacon:
        """See `Wire`."""
        return _SimBeacon(self.net, self.process, bind, token, pulse, interval_s)


class _Listening:
    def __init__(self, net: Net, address: str) -> None:
        self._net = net
        self.address = address

    async def close(self) -> None:
        """See `Listening`."""
        self._net.listeners.pop(self.address, None)


class _SimBeacon:
    """A beacon. It has a thread of its own: a slow process sends its pulses in time, a stopped or dead one sends none."""

    def __init__(
        self, net: Net, process: Process, bind: str, token: str | None, pulse: Callable[[], bytes], interval_s: float
    ) -> None:
        self.address = net.listen(bind, process, self._accept)
        self._net = net
        self._process = process
        self._token = (token or "").encode()
        self._pulse = pulse
        self._interval_s = interval_s
        self._listeners: list[Connection] = []
        self._tick()

    async def _accept(self, connection: Connection) -> None:
        if await connection.receive() == self._token:
            self._listeners.append(connection)
            self._send(connection, self._pulse())
            await connection.receive()  # nothing comes: until it is closed

    def _tick(self) -> None:
        if not self._process.alive:
            return
        if self._process.runs:
            self.announce(self._pulse())
        self._net.loop.call_later(self._interval_s, self._tick, context=Context())

    def announce(self, frame: bytes) -> None:
        """See `Beacon`."""
        for connection in self._listeners if self._process.alive else ():
            self._send(connection, frame)

    def _send(self, connection: Connection, frame: bytes) -> None:
        assert isinstance(connection, _End), f"a connection of another wire: {connection}"
        if not connection.closed and not connection.ended and connection.on_the_way < SEND_BUFFER_BYTES:
            connection.put(frame)

    def close(self) -> None:
        """See `Beacon`."""
        self._net.listeners.pop(self.address, None)
