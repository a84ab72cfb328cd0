"""Errors as problem documents (RFC 9457): every answer that is no success is one, whoever refused the request.

    {"type": "/problems/out-of-stock", "title": "OutOfStock", "status": 409, "detail": "left=3", "instance": "/v1/...",
     "fields": {"left": 3}}

`type` is what a program acts on; it stays. `detail` has the numbers, for people. A problem that may pass says when to come
again (`Retry-After`, seconds).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi.exceptions import RequestValidationError, ResponseValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from rekindle.actors import (
    BadRequest,
    CallError,
    CommandFailed,
    ConnectFailed,
    DeadlineExceeded,
    EntityQuarantined,
    KeyReused,
    OutcomeUnknown,
    Overloaded,
    Rejected,
    ShardRefused,
    Stale,
    TokenRefused,
)
from rekindle.events import LogUnavailable, RekindleError, Undecodable
from rekindle.gateway.plain import plain
from rekindle.supervisors.control import Unknown

log = logging.getLogger("rekindle")

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 1
"""When to come again: by then a full queue is empty, or a shard has another owner."""

ERRORS_MAX: Final = 20
"""Of a request that is not as the route wants it, so many are told."""

TEXT_MAX: Final = 2_000
"""Characters of a detail."""


class ProblemDocument(BaseModel):
    """Why a request was not served (RFC 9457)."""

    model_config = ConfigDict(extra="allow", title="Problem")

    type: str
    title: str
    status: int
    detail: str
    instance: str


class Problem(HTTPException):
    """A request that is not served. more: further members of the document; retry_after_s: when to come again."""

    def __init__(
        self,
        status: int,
        name: str,
        detail: str,
        *,
        title: str | None = None,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        retry = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        super().__init__(status, detail[:TEXT_MAX], {**retry, **(headers or {})})
        self.name = name
        self.title = title or HTTPStatus(status).phrase
        self.more = more or {}

    def document(self, instance: str) -> bytes:
        """Its JSON. instance: the path of the request."""
        document = {
            "type": f"/problems/{self.name}",
            "title": self.title,
            "status": self.status_code,
            "detail": self.detail,
            "instance": instance,
            **self.more,
        }
        return json.dumps(plain(document), allow_nan=False).encode()

    def response(self, instance: str) -> Response:
        """Its answer."""
        return Response(self.document(instance), self.status_code, self.headers, MEDIA_TYPE)


def dashed(name: str) -> str:
    """`OutOfStock` as `out-of-stock`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def problem_of(error: Exception) -> Problem:
    """What an error says to whoever asked. What may have had an effect says so; all others say that there was none."""
    text = str(error)
    match error:
        case Problem():
            return error
        case RekindleError():
            return _of_ours(error, text)
        case RequestValidationError():
            return _of_request(error.errors())
        case ResponseValidationError():
            log.error("an answer does not fit its declared type: %s", text)
            return Problem(500, "answer-does-not-fit", "the answer does not fit the type that its handler declares")
        case HTTPException():
            return _of_http(error)
        case TimeoutError():
            detail = "the time that was given for it is over; nothing was changed"
            return Problem(503, "deadline-exceeded", detail, retry_after_s=RETRY_AFTER_S)
        case _:
            log.error("bug: a request cannot be answered", exc_info=error)
            return Problem(500, "internal-error", "our bug, please report it: the log of the gateway has more")


def _of_ours(error: RekindleError, text: str) -> Problem:
    match error:
        case Unknown():
            return Problem(404, "unknown", text, title="Unknown", more={"fields": vars(error)})
        case Rejected():
            return _of_rejection(error, text)
        case KeyReused():
            return Problem(422, "key-reused", text, title="KeyReused")
        case BadRequest():
            return Problem(422, "bad-request", text)
        case Overloaded():
            return Problem(429, "overloaded", text, retry_after_s=RETRY_AFTER_S)
        case EntityQuarantined() | Undecodable():
            return Problem(409, "entity-quarantined", text, title="EntityQuarantined")
        case ShardRefused():
            return Problem(503, "shard-refused", text, title="ShardRefused")
        case CommandFailed():
            return Problem(500, "command-failed", text, title="CommandFailed")
        case OutcomeUnknown():
            detail = (
                f"{text}. It may have been run: retry with the same Idempotency-Key, or look before you send it again"
            )
            return Problem(504, "outcome-unknown", detail, title="OutcomeUnknown", retry_after_s=RETRY_AFTER_S)
        case Stale():
            return Problem(412, "stale", text, title="Stale")
        case DeadlineExceeded():
            return Problem(503, "deadline-exceeded", text, title="DeadlineExceeded", retry_after_s=RETRY_AFTER_S)
        case LogUnavailable() | ConnectFailed() | TokenRefused():
            name = type(error).__name__
            return Problem(503, dashed(name), text, title=name, retry_after_s=RETRY_AFTER_S)
        case _:
            name = type(error).__name__
            status = 500 if not isinstance(error, CallError) or error.definite else 504
            return Problem(status, dashed(name), text, title=name)


def _of_rejection(error: Rejected, text: str) -> Problem:
    """A business refusal, with its fields: as typed as it was raised."""
    name, fields = type(error).__name__, dict(vars(error))
    if type(error) is Rejected:  # of a class that this build does not know
        name = str(fields.pop("rejection", name)).rpartition(":")[2]
    return Problem(409, dashed(name), text or name, title=name, more={"fields": fields})


def _of_request(errors: Sequence[Any]) -> Problem:
    """A request that is not as the route wants it. What came is not repeated: it may be large, or a secret."""
    told = [{"at": ".".join(map(str, e["loc"])), "message": str(e["msg"])} for e in errors[:ERRORS_MAX]]
    text = "; ".join(f"{e['at']}: {e['message']}" for e in told)
    if errors[0]["type"] == "json_invalid":
        return Problem(400, "malformed", f"the body is not JSON: {text}")
    return Problem(422, "wrong-arguments", text, more={"errors": told, "count": len(errors)})


_OF_STATUS: Final = {400: "malformed", 404: "not-found", 405: "method-not-allowed"}


def _of_http(error: HTTPException) -> Problem:
    phrase = HTTPStatus(error.status_code).phrase
    name = _OF_STATUS.get(error.status_code, phrase.lower().replace(" ", "-"))
    return Problem(error.status_code, name, error.detail, headers=error.headers)


async def answer(request: Request, error: Exception) -> Response:
    """The answer to a request that raised."""
    problem, path = problem_of(error), request.url.path
    if isinstance(error, HTTPException) and not isinstance(error, Problem) and error.status_code == 404:
        problem = Problem(404, "not-found", f"there is no {path:.200}: /openapi.json has what there is")
    return problem.response(path)
