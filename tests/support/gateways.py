"""Gateways of a running application, each on a thread of its own: a real server on a real socket, and clients of it.

with served(shop) as gateway, gateway.client() as http:
    http.post("/v1/services/stock/entities/a/commands/receive", json={"qty": 5})
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2
import uvloop
from fastapi import FastAPI

from rekindle import App
from rekindle.gateway.serving import Server, listening, opened_gateway
from tests.support.loops import DEADLINE_S
from tests.support.operated import BIND

ANSWER_MAX_S: Final = 40.0
"""How long a client waits: longer than any outage that a test makes."""


@dataclass
class Gateway:
    """A gateway that serves. seen: what the application object was given to."""

    address: str
    app: FastAPI
    server: Server
    loop: asyncio.AbstractEventLoop
    token: str | None = None
    errors: list[BaseException] = field(default_factory=list[BaseException])

    def client(self, token: str | None = None) -> httpx2.Client:
        """A client that keeps its connections; to be entered."""
        credential = token or self.token
        headers = {} if credential is None else {"Authorization": f"Bearer {credential}"}
        return httpx2.Client(base_url=f"http://{self.address}", headers=headers, timeout=ANSWER_MAX_S, trust_env=False)

    def call(self, function: Callable[[], object]) -> None:
        """Have it called on the gateway's loop."""
        self.loop.call_soon_threadsafe(function)


@contextmanager
def served(app: App, log: str, **access: Any) -> Generator[Gateway]:
    """A gateway of an application that runs on this log; it is told to end with the block."""
    ready, found = threading.Event(), list[Gateway]()
    errors: list[BaseException] = []
    listener = listening(BIND, None)

    async def serve() -> None:
        async with opened_gateway(app, log, **access) as gateway:
            server = Server(gateway)
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            found.append(Gateway(address, gateway, server, asyncio.get_running_loop(), access.get("token")))
            ready.set()
            await server.serve([listener])

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve())
        except BaseException as error:  # noqa: BLE001 - told in the thread of the test
            errors.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="gateway", daemon=True)
    thread.start()
    assert ready.wait(DEADLINE_S)
    assert found, f"the gateway did not come up: {errors}"
    try:
        yield found[0]
    finally:
        found[0].server.should_exit = True
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "the gateway did not end"
        assert not errors, errors
