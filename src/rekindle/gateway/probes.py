"""Whether the process lives, whether it can serve, and what it counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import Response

from rekindle.events import RekindleError
from rekindle.gateway.access import Viewer
from rekindle.gateway.documents import problems
from rekindle.gateway.meters import CONTENT_TYPE, Meters
from rekindle.gateway.problems import RETRY_AFTER_S, Problem
from rekindle.supervisors import Control

READY_MAX_S: Final = 2.0
"""How long the log may take to answer a probe."""


class Health(BaseModel):
    """How the gateway is: in a word."""

    status: str


def add_probes(app: FastAPI, decided: Callable[[], Awaitable[Control]], meters: Meters) -> None:
    """The routes of probes and metrics."""
    reading = asyncio.Lock()

    async def healthz() -> Health:
        """Whether the process answers at all."""
        return Health(status="alive")

    async def readyz() -> Health:
        """Whether commands can be served: the log answers, somebody leads, and shards have owners. Else it says why not."""
        try:
            async with asyncio.timeout(READY_MAX_S), reading:
                control = await decided()
        except TimeoutError:
            raise _not_ready(f"the log did not answer within {READY_MAX_S:g} s") from None
        except RekindleError as error:
            raise _not_ready(f"the log does not answer: {type(error).__name__}: {error}") from error
        if not control.leader_at or control.ended:
            raise _not_ready("nobody leads the application: `rekindle up` starts it")
        if not any(owned.incarnation for shards in control.services.values() for owned in shards):
            raise _not_ready("no shard has an owner yet")
        return Health(status="ready")

    async def metrics(caller: Viewer) -> Response:
        """What the gateway counts of itself, for Prometheus."""
        return Response(meters.exposed(), media_type=CONTENT_TYPE)

    app.add_api_route("/healthz", healthz, methods=["GET"], operation_id="healthz", tags=["probes"])
    app.add_api_route(
        "/readyz", readyz, methods=["GET"], operation_id="readyz", tags=["probes"], responses=problems(503)
    )
    app.add_api_route(
        "/metrics", metrics, methods=["GET"], operation_id="metrics", tags=["probes"], response_class=Response
    )


def _not_ready(detail: str) -> Problem:
    return Problem(503, "not-ready", detail, retry_after_s=RETRY_AFTER_S)
