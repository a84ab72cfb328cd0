"""The door: what every request passes, before any route and after it. Plain ASGI, because it runs for all of them.

Invariants:
- At most `IN_FLIGHT_MAX` requests are inside; one more is told to come again (429). Streams, probes and metrics do not count:
  each has a bound of its own, or is cheap.
- A body is at most `BODY_BYTES_MAX` long, counted as it comes, and is there within `BODY_MAX_S`: whatever was announced.
- Whatever happens inside, the answer is a problem document, and it is counted.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rekindle.gateway.meters import UNMATCHED, Meters
from rekindle.gateway.problems import RETRY_AFTER_S, Problem, problem_of

IN_FLIGHT_MAX: Final = 1_000
BODY_BYTES_MAX: Final = 1_000_000
"""As much as a record may have: nothing larger could be kept."""

BODY_MAX_S: Final = 10.0
"""From the head of a request to the end of its body."""

FREE: Final = frozenset({"/healthz", "/readyz", "/metrics", "/v1/stream"})
"""What is not counted as in flight."""

STREAMS: Final = "/v1/stream"


class Door:
    """Stands in front of the application."""

    def __init__(
        self,
        app: ASGIApp,
        meters: Meters,
        in_flight_max: int = IN_FLIGHT_MAX,
        body_bytes_max: int = BODY_BYTES_MAX,
        body_max_s: float = BODY_MAX_S,
    ) -> None:
        self.app = app
        self.meters = meters
        self.in_flight_max = in_flight_max
        self.body_bytes_max = body_bytes_max
        self.body_max_s = body_max_s
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path: str = scope["path"]
        began, answer = time.perf_counter(), _Answer(send)
        counts = path not in FREE
        if counts:
            self.in_flight += 1
            self.meters.in_flight.inc()
        try:
            if counts and self.in_flight > self.in_flight_max:
                detail = f"{self.in_flight_max} requests are being answered, and no more at a time"
                raise Problem(429, "overloaded", detail, retry_after_s=RETRY_AFTER_S)
            await self.app(scope, self._bounded(scope, receive), answer.send)
        except Exception as error:
            if not answer.status:
                await problem_of(error).response(path)(scope, receive, answer.send)
            elif not answer.whole:  # too late to say it: the connection breaks off
                raise
        finally:
            if counts:
                self.in_flight -= 1
                self.meters.in_flight.dec()
            seconds = None if path == STREAMS else time.perf_counter() - began
            self.meters.answered(scope["method"], _route_of(scope), answer.status or 499, seconds)

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """The body, within its bounds. Raises a 413 or a 408."""
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if announced.isdigit() and int(announced[:20]) > self.body_bytes_max:
            raise self._too_large(f"{int(announced[:20])} bytes were announced")
        body = _Body(self, receive)
        return body.receive

    def _too_large(self, found: str) -> Problem:
        detail = f"a body has at most {self.body_bytes_max} bytes, {found}"
        return Problem(413, "body-too-large", detail, headers={"Connection": "close"})


class _Body:
    """The body of one request as it comes."""

    __slots__ = ("_done", "_door", "_ends_at", "_receive", "_size")

    def __init__(self, door: Door, receive: Receive) -> None:
        self._door = door
        self._receive = receive
        self._size = 0
        self._done = False
        self._ends_at = 0.0

    async def receive(self) -> Message:
        """See ASGI. After the body it waits for the client to go away, however long that takes."""
        if self._done:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        self._ends_at = self._ends_at or now + self._door.body_max_s
        try:
            async with asyncio.timeout_at(self._ends_at):
                message = await self._receive()
        except TimeoutError:
            detail = f"after {self._door.body_max_s:g} s only {self._size} bytes of the body were there"
            raise Problem(408, "request-timeout", detail, headers={"Connection": "close"}) from None
        self._size += len(message.get("body", b""))
        if self._size > self._door.body_bytes_max:
            raise self._door._too_large(f"{self._size} came")  # pyright: ignore[reportPrivateUsage]
        self._done = not message.get("more_body", False)
        return message


class _Answer:
    """What was sent; status: 0 while nothing was. whole: to its end."""

    __slots__ = ("_send", "status", "whole")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.whole = False

    async def send(self, message: Message) -> None:
        """See ASGI."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
        self.whole = message["type"] == "http.response.body" and not message.get("more_body", False)


def _route_of(scope: Scope) -> str:
    route: Any = scope.get("route")
    return getattr(route, "path_format", None) or UNMATCHED
