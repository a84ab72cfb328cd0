"""The `Wire` seam: frames between processes. The real one is websockets; this is the only module that imports it.

A frame is bytes, delivered whole and in order while the connection lasts, or not at all. Nothing else is promised:
whoever needs an answer keeps what it asked until the answer is there.

The beacon is the second, smaller half: a thread of its own sends a pulse to whoever listens, so that a busy loop is
told from a dead process (design, section 6).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync import server as sync_server

from rekindle.actors.errors import ConnectFailed, WireError

FRAME_BYTES_MAX: Final = 16 << 20
CONNECT_MAX_S: Final = 2.0
CLOSE_MAX_S: Final = 1.0
SEND_BUFFER_BYTES: Final = 1 << 20
BIND_TRIES: Final = 20
"""A port that an instance has just died on may be taken for a moment."""


class Closed(WireError):
    """The connection is gone."""


class Connection(Protocol):
    """One connection, either end."""

    async def send(self, frame: bytes) -> None:
        """Hand a frame over; waits while the other side does not read. Raises `Closed`."""
        ...

    async def receive(self) -> bytes:
        """The next frame. Raises `Closed`."""
        ...

    async def close(self) -> None: ...


class Listening(Protocol):
    """A server that accepts connections."""

    @property
    def address(self) -> str: ...

    async def close(self) -> None: ...


class Beacon(Protocol):
    """A thread that sends pulses; `announce` sends at once, from any thread, before it returns."""

    @property
    def address(self) -> str: ...

    def announce(self, frame: bytes) -> None: ...

    def close(self) -> None: ...


Accept = Callable[[Connection], Awaitable[None]]


class Wire(Protocol):
    """How processes reach each other. Addresses are `host:port`."""

    async def serve(self, bind: str, accept: Accept) -> Listening:
        """Listen; port 0 takes a free one. `accept` runs for as long as its connection is served."""
        ...

    async def connect(self, address: str) -> Connection:
        """Raises `ConnectFailed`, within `CONNECT_MAX_S`."""
        ...

    def beacon(self, bind: str, token: str | None, pulse: Callable[[], bytes], interval_s: float) -> Beacon:
        """Send `pulse()` every interval to whoever connects and says the token first."""
        ...


class _Websocket:
    def __init__(self, socket: ClientConnection | ServerConnection) -> None:
        self._socket = socket

    async def send(self, frame: bytes) -> None:
        try:
            await self._socket.send(frame)
        except ConnectionClosed as error:
            raise Closed(str(error)) from error

    async def receive(self) -> bytes:
        try:
            frame = await self._socket.recv(decode=False)
        except ConnectionClosed as error:
            raise Closed(str(error)) from error
        assert isinstance(frame, bytes), f"a {type(frame).__name__} came where bytes were asked for"
        return frame

    async def close(self) -> None:
        await self._socket.close()


class _Listening:
    def __init__(self, server: Server, host: str) -> None:
        self._server = server
        self.address = f"{host}:{next(iter(server.sockets)).getsockname()[1]}"

    async def close(self) -> None:
        self._server.close()
        await self._server.wait_closed()


def split(address: str) -> tuple[str, int]:
    """Host and port of `host:port`. Raises `ConnectFailed`."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdigit()):
        raise ConnectFailed(f"expected an address as host:port, got {address!r}")
    return host, int(port)


class WebsocketWire:
    """The real wire."""

    async def serve(self, bind: str, accept: Accept) -> Listening:
        host, port = split(bind)

        async def handle(socket: ServerConnection) -> None:
            await accept(_Websocket(socket))

        server = await serve(
            handle,
            host,
            port,
            compression=None,
            max_size=FRAME_BYTES_MAX,
            ping_interval=None,
            close_timeout=CLOSE_MAX_S,
            write_limit=SEND_BUFFER_BYTES,
        )
        return _Listening(server, host)

    async def connect(self, address: str) -> Connection:
        host, port = split(address)
        try:
            socket = await connect(
                f"ws://{host}:{port}",
                compression=None,
                max_size=FRAME_BYTES_MAX,
                ping_interval=None,
                open_timeout=CONNECT_MAX_S,
                close_timeout=CLOSE_MAX_S,
                write_limit=SEND_BUFFER_BYTES,
                proxy=None,
            )
        except (OSError, TimeoutError, InvalidHandshake, InvalidURI, EOFError) as error:
            raise ConnectFailed(f"nobody answers at {address}: {error!r}") from error
        return _Websocket(socket)

    def beacon(self, bind: str, token: str | None, pulse: Callable[[], bytes], interval_s: float) -> Beacon:
        return _BeaconThread(bind, token, pulse, interval_s)


class _BeaconThread:
    """The beacon on real threads: one that accepts, one for each listener."""

    def __init__(self, bind: str, token: str | None, pulse: Callable[[], bytes], interval_s: float) -> None:
        host, port = split(bind)
        self._token = (token or "").encode()
        self._pulse = pulse
        self._interval_s = interval_s
        self._listeners: list[sync_server.ServerConnection] = []
        self._closing = threading.Event()
        self._server = sync_server.serve(self._handle, host, port, compression=None, close_timeout=CLOSE_MAX_S)
        self.address = f"{host}:{self._server.socket.getsockname()[1]}"
        threading.Thread(target=self._server.serve_forever, name="rekindle-beacon", daemon=True).start()

    def _handle(self, listener: sync_server.ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            if listener.recv(timeout=CONNECT_MAX_S, decode=False) != self._token:
                listener.close(1008, "another token is asked for here")
                return
            self._listeners.append(listener)
            listener.send(self._pulse())
            while not self._closing.wait(self._interval_s):
                listener.send(self._pulse())
        if listener in self._listeners:
            self._listeners.remove(listener)

    def announce(self, frame: bytes) -> None:
        for listener in tuple(self._listeners):
            with contextlib.suppress(ConnectionClosed):
                listener.send(frame)

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
