"""How long a connection may take, and how much it may send before it is heard: uvicorn's protocol with bounds of its own.

Uvicorn bounds neither the time nor the size of a request's head on httptools' parser, and waits for ever for a client that
does not read; each of them would hold memory and a descriptor for as long as somebody likes.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from rekindle.gateway.problems import MEDIA_TYPE, RETRY_AFTER_S, Problem

CONNECTIONS_MAX: Final = 4_096
"""Of one gateway; one more is told to come again."""

HEAD_BYTES_MAX: Final = 32_768
"""Of a request: its target and all of its headers."""

HEAD_MAX_S: Final = 10.0
"""From the connection, or from a request's first byte, to the end of its head."""

READ_MAX_S: Final = 20.0
"""How long a client may leave what it was sent unread, once the buffers are full."""

PIPELINED_MAX: Final = 64
"""Requests of one connection that wait for the answer to another one. Uvicorn reads on after each answer, and takes whatever
one read brings, so their number would grow with what is sent and not with what is answered."""

KEEP_ALIVE_S: Final = 30
"""How long a connection is kept without a request."""


class PatientProtocol(HttpToolsProtocol):
    """A connection that is not waited for for ever, and whose errors are problem documents."""

    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            detail = f"{CONNECTIONS_MAX} connections are open, and no more at a time"
            self._refuse(Problem(429, "overloaded", detail, retry_after_s=RETRY_AFTER_S))
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        _cancel(self._head_timer)
        _cancel(self._read_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`. What comes after the connection was given up is not looked at."""
        if not self.transport.is_closing():
            super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._head_bytes = 0
        self._await_head()

    def on_url(self, url: bytes) -> None:
        """A piece of its target."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of its headers."""
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """The end of its head."""
        _cancel(self._head_timer)
        if len(self.pipeline) >= PIPELINED_MAX:
            self._hang_up()
        if not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of its body."""
        if not self.transport.is_closing():
            super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is sent to."""
        super().pause_writing()
        self._read_timer = self.loop.call_later(READ_MAX_S, self._hang_up)

    def resume_writing(self) -> None:
        """It has caught up."""
        _cancel(self._read_timer)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        self._refuse(Problem(400, "malformed", msg))

    def _await_head(self) -> None:
        _cancel(self._head_timer)
        self._head_timer = self.loop.call_later(HEAD_MAX_S, self._on_late_head)

    def _on_late_head(self) -> None:
        detail = f"no whole head of a request came within {HEAD_MAX_S:g} s"
        self._refuse(Problem(408, "request-timeout", detail))

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            detail = f"the head of a request has at most {HEAD_BYTES_MAX} bytes, {self._head_bytes} came"
            self._refuse(Problem(431, "head-too-large", detail))

    def _hang_up(self) -> None:
        """At once, with what was not sent yet."""
        if self.cycle is not None:  # pyright: ignore[reportUnnecessaryComparison]  # it is None before the first request
            self.cycle.disconnected = True
        self.transport.abort()

    def _refuse(self, problem: Problem) -> None:
        """Answer by hand, outside of any request, and hang up."""
        _cancel(self._head_timer)
        if self.transport.is_closing():
            return
        body = problem.document("")
        head = {
            "content-type": MEDIA_TYPE,
            "content-length": str(len(body)),
            "connection": "close",
            **(problem.headers or {}),
        }
        lines = [f"{name}: {value}\r\n".encode() for name, value in head.items()]
        self.transport.write(b"".join((STATUS_LINE[problem.status_code], *lines, b"\r\n", body)))
        self.transport.close()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
