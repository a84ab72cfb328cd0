"""The way of a command through the gateway: what FastAPI would do for its route, without what it does for any other one.

The route is FastAPI's, so it is found, documented and named like all others. Only its inside is ours: FastAPI's own spends
four times as long on a request as the gateway has to (dependencies, a form's body, two exit stacks), and commands are what
gateways are there for. A route is looked for by the end of its path first, so it costs little that there are many.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi.exceptions import RequestValidationError, ResponseValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from rekindle.gateway.access import Access, Caller
from rekindle.gateway.problems import Problem

_JSON_HEAD: Final = (b"content-type", b"application/json")


class CommandRoute(APIRoute):
    """A route that is known by the end of its path."""

    end = ""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See `APIRoute`."""
        if self.end and not scope.get("path", "").endswith(self.end):
            return Match.NONE, {}
        return super().matches(scope)


class Lane:
    """The inside of a command's route.

    body, timeout, idempotency_key, key, answer: the types of what comes in and goes out. is_optional: whether there may be no
    body. run: the command itself: (key, caller, arguments, idempotency key, seconds, body).
    """

    def __init__(
        self,
        access: Access,
        *,
        body: Any,
        is_optional: bool,
        key: Any,
        timeout: tuple[Any, float],
        idempotency_key: Any,
        answer: Any,
        run: Callable[[str, Caller, Any, str | None, float, bytes], Awaitable[Any]],
    ) -> None:
        self._access = access
        self._body: TypeAdapter[Any] = TypeAdapter(body)
        self._is_optional = is_optional
        self._key: TypeAdapter[str] = TypeAdapter(key)
        self._timeout: TypeAdapter[float] = TypeAdapter(timeout[0])
        self._timeout_s = timeout[1]
        self._idempotency_key: TypeAdapter[str | None] = TypeAdapter(idempotency_key)
        self._answer: TypeAdapter[Any] = TypeAdapter(answer)
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        caller = self._access.writer(_bearer(headers.get(b"authorization")))
        key = _checked("path.key", self._key, scope["path_params"]["key"])
        idempotency_key, within_s = headers.get(b"idempotency-key"), self._timeout_s
        if idempotency_key is not None:
            _checked("header.Idempotency-Key", self._idempotency_key, idempotency_key.decode("latin-1"))
        if (seconds := headers.get(b"rekindle-timeout")) is not None:
            within_s = _checked("header.Rekindle-Timeout", self._timeout, seconds.decode("latin-1"))
        body = await _whole(receive)
        arguments = self._arguments(headers.get(b"content-type", b""), body)
        named = None if idempotency_key is None else idempotency_key.decode("latin-1")
        answer = self._encoded(await self._run(key, caller, arguments, named, within_s, body))
        length = (b"content-length", b"%d" % len(answer))
        await send({"type": "http.response.start", "status": 200, "headers": [_JSON_HEAD, length]})
        await send({"type": "http.response.body", "body": answer})

    def _arguments(self, content_type: bytes, body: bytes) -> Any:
        """The body as the handler's arguments. Raises a 415, or `RequestValidationError`."""
        if not body and not self._is_optional:
            raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required"}])
        if not body:
            return None
        kind = content_type.partition(b";")[0].strip().lower()
        if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
            raise Problem(
                415, "unsupported-media-type", f"a body is application/json, not {kind.decode('latin-1')!r:.80}"
            )
        try:
            return self._body.validate_json(body)
        except ValidationError as error:
            raise _wrong("body", error) from error

    def _encoded(self, value: Any) -> bytes:
        """The answer. Raises `ResponseValidationError` where it is not of the type that the handler declares."""
        try:
            return self._answer.dump_json(self._answer.validate_python(value))
        except ValueError as error:
            raise ResponseValidationError([str(error)]) from error


async def _whole(receive: Receive) -> bytes:
    """The body; the door has seen to it that it ends."""
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem(400, "malformed", "the client went away before the body was whole")
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _bearer(header: bytes | None) -> str | None:
    """The credential, if there is one of the scheme that is asked for."""
    scheme, _, credential = (header or b"").decode("latin-1").partition(" ")
    return credential if scheme.lower() == "bearer" and credential else None


def _checked(where: str, adapter: TypeAdapter[Any], value: Any) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise _wrong(where, error) from error


def _wrong(where: str, error: ValidationError) -> RequestValidationError:
    errors = [{**told, "loc": (where, *told["loc"])} for told in error.errors(include_url=False, include_input=False)]
    return RequestValidationError(errors)
