"""Serving the gateway in a process of its own: `rekindle gateway`."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import uvicorn
import uvloop
from fastapi import FastAPI

from rekindle.actors import Client, WebsocketWire, require_token
from rekindle.app import TOKEN_VARIABLE, App, reading
from rekindle.gateway.access import GATEWAY_TOKEN_VARIABLE, READ_TOKEN_VARIABLE, Tenancy
from rekindle.gateway.building import build
from rekindle.gateway.patience import KEEP_ALIVE_S, PatientProtocol
from rekindle.supervisors import DeclarationError, Operator, leader, load, opened, seeds
from rekindle.supervisors.hosting import Application, now_ms

GRACE_S: Final = 5
"""How long requests may take to end when the gateway is told to."""

BACKLOG: Final = 1_024


class Server(uvicorn.Server):
    """Uvicorn, which sends the clients of the stream away before it waits for everybody to be done."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        self.gateway.state.feed.close()
        await super().shutdown(sockets)

    def __init__(self, gateway: FastAPI) -> None:
        self.gateway = gateway
        super().__init__(
            uvicorn.Config(
                gateway,
                http=PatientProtocol,
                ws="none",
                lifespan="on",
                access_log=False,
                log_level="warning",
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
            )
        )


@asynccontextmanager
async def opened_gateway(
    app: Application,
    log_url: str | None = None,
    *,
    token: str | None = None,
    read_token: str | None = None,
    tenancy: Tenancy | None = None,
) -> AsyncGenerator[FastAPI]:
    """The gateway of an application with its client, operator and log; see `build`. Raises `LogUnavailable`."""
    wire_token = os.environ.get(TOKEN_VARIABLE)
    async with opened(log_url or app.log, app.snapshots, app.name) as (event_log, store):
        hosted = [service.hosted(app.name) for service in app.services]
        found = seeds(app.name, event_log, store)
        leads = leader(app.name, event_log, store)
        async with (
            Client(app.name, hosted, WebsocketWire(), found, now_ms, wire_token) as client,
            Operator(app.name, leads, WebsocketWire(), wire_token) as operator,
        ):
            with_access = partial(
                build, app, client, operator, event_log, store, token=token, read_token=read_token, tenancy=tenancy
            )
            if not isinstance(app, App) or not app.projections:
                yield with_access()
                return
            from rekindle.projections import (
                Views,
            )  # takes half a second to import: only who has read models waits for it

            async with reading(app.database) as models:
                yield with_access(views=Views(event_log, models, hosted), projections=app.projections)


def listening(bind: str, token: str | None) -> socket.socket:
    """A socket that listens. Raises `DeclarationError` for an address that is none, or that takes a token."""
    host, _, port = bind.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise DeclarationError(f"expected an address as host:port, got {bind!r}")
    try:
        require_token(bind, token)
    except ValueError:
        raise DeclarationError(
            f"listening on {bind} takes a token ({GATEWAY_TOKEN_VARIABLE}): without one only loopback addresses are served"
        ) from None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), int(port)), family=family, backlog=BACKLOG)
    except OSError as error:
        raise DeclarationError(f"cannot listen on {bind}: {error}") from error


async def serve(app: Application, bind: str, log_url: str | None, say: Callable[[str], None]) -> None:
    """Serve until told to end (SIGINT, SIGTERM). say: is told the address."""
    token, read_token = os.environ.get(GATEWAY_TOKEN_VARIABLE) or None, os.environ.get(READ_TOKEN_VARIABLE) or None
    if read_token is not None and token is None:
        raise DeclarationError(
            f"{READ_TOKEN_VARIABLE} is set, {GATEWAY_TOKEN_VARIABLE} is not: anybody could change things"
        )
    with listening(bind, token) as listener:
        async with opened_gateway(app, log_url, token=token, read_token=read_token) as gateway:
            say(f"{app.name}: http://{bind.rpartition(':')[0]}:{listener.getsockname()[1]}")
            await Server(gateway).serve([listener])


def run(target: str, bind: str, log_url: str | None, say: Callable[[str], None]) -> None:
    """Serve an application, named as `module:app`, on a loop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(load(target), bind, log_url, say))
