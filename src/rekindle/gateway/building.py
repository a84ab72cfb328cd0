"""The gateway's application, put together: routes for what an application declares, behind one door."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from starlette.exceptions import HTTPException

from rekindle.actors import Client
from rekindle.events import EventLog, RekindleError, SnapshotStore
from rekindle.gateway.access import Access, Tenancy, one_tenant
from rekindle.gateway.control import add_control
from rekindle.gateway.documents import EVERYWHERE, document, problems
from rekindle.gateway.door import Door
from rekindle.gateway.entities import add_handlers
from rekindle.gateway.histories import Histories
from rekindle.gateway.meters import Meters
from rekindle.gateway.probes import add_probes
from rekindle.gateway.problems import answer
from rekindle.gateway.stream import Feed, add_stream
from rekindle.supervisors import Operator, decided
from rekindle.supervisors.hosting import Application

if TYPE_CHECKING:  # SQLAlchemy takes half a second to import: only who has read models waits for it
    from rekindle.projections import Bound, Views

log = logging.getLogger("rekindle")


def build(
    app: Application,
    client: Client,
    operator: Operator,
    event_log: EventLog,
    store: SnapshotStore | None,
    *,
    token: str | None = None,
    read_token: str | None = None,
    tenancy: Tenancy | None = None,
    views: Views | None = None,
    projections: Mapping[str, Bound] | None = None,
) -> FastAPI:
    """The gateway of an application: any number of them may run, none keeps anything.

    token: what it takes to change something; None: nothing, so have it listen on loopback only. read_token: what it takes
    to read; None: nothing. tenancy: who has which credential, in place of these two. views, projections: the read models.
    """
    meters = Meters()
    feed = Feed(app.name, event_log, store, operator, meters, log.warning)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        running = asyncio.get_running_loop().create_task(feed.run())
        try:
            yield
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    gateway = FastAPI(
        title=app.name,
        version="1",
        description="Commands, queries and histories of its entities, and its control plane.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
        responses=problems(*EVERYWHERE),
    )
    gateway.state.access = Access(tenancy or one_tenant(token, read_token))
    gateway.state.feed = feed
    for kind in (HTTPException, RequestValidationError, ResponseValidationError, RekindleError, TimeoutError):
        gateway.add_exception_handler(kind, answer)
    gateway.add_middleware(Door, meters=meters)
    histories = Histories(event_log, store)
    for service in app.services:
        hosted = service.hosted(app.name)
        add_handlers(gateway, client, hosted)
        histories.add(gateway, hosted)
    add_probes(gateway, decided(app.name, event_log, store), meters)
    add_control(gateway, operator)
    add_stream(gateway)
    if views is not None:
        from rekindle.gateway.models import add_models

        add_models(gateway, views, projections or {})
    document(gateway)
    return gateway
