"""How answers are documented in OpenAPI: problems by their status, and what every route may answer besides its own."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from rekindle.gateway.problems import MEDIA_TYPE, ProblemDocument

_SCHEMA: Final = "Problem"
_TEXTS: Final = {
    400: "The request cannot be read.",
    401: "It takes a token.",
    403: "This token does not do.",
    404: "There is no such thing.",
    408: "The request did not come in time.",
    409: "It is refused as things stand.",
    412: "The owner's answer would be staler than `max_staleness` allows.",
    413: "The body is too large.",
    415: "The body is no JSON.",
    422: "The arguments are wrong, or the Idempotency-Key was used for something else.",
    429: "Too much at a time; nothing was done. Come again after `Retry-After` seconds.",
    500: "Something is broken.",
    503: "Not now; nothing was done. Come again after `Retry-After` seconds.",
    504: "It may have been done: retry with the same Idempotency-Key.",
}
EVERYWHERE: Final = (401, 403, 500)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of these answers."""
    reference = {"$ref": f"#/components/schemas/{_SCHEMA}"}
    return {
        status: {"description": _TEXTS[status], "content": {MEDIA_TYPE: {"schema": dict(reference)}}}
        for status in statuses
    }


def document(app: FastAPI) -> None:
    """Make the application's OpenAPI, with the shape of problems in it; so a type that has none is found before it serves."""
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    made.setdefault("components", {}).setdefault("schemas", {})[_SCHEMA] = ProblemDocument.model_json_schema()
    app.openapi_schema = made
