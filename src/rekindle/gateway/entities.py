"""Commands and queries of entities: one concrete route for each handler, with the types of its own signature.

    POST /v1/services/{service}/entities/{key}/commands/{command}      Idempotency-Key: any text up to 255 characters
    GET  /v1/services/{service}/entities/{key}/queries/{query}         what query parameters can say; else
    POST /v1/services/{service}/entities/{key}/queries/{query}         with the arguments as its body

A command without an Idempotency-Key is run once for one request: what the gateway itself retries keeps its number. With one
it is run once for all requests that have it, whichever replica they reach (`rekindle.actors.keyed`).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from hashlib import blake2b
from typing import Annotated, Any, Final, cast

from fastapi import Body, FastAPI, Header, Path, Query
from pydantic import BaseModel, TypeAdapter

from rekindle.actors import LIFETIME_MS, TIMEOUT_MAX_S, Client, Hosted, Proxy, Rejected, once
from rekindle.actors.client import DEADLINE_S
from rekindle.actors.entity import HandlerType
from rekindle.actors.instance import KEY_BYTES_MAX
from rekindle.events import pack
from rekindle.gateway.access import Caller, Reader, Writer
from rekindle.gateway.documents import problems
from rekindle.gateway.lane import CommandRoute, Lane
from rekindle.gateway.problems import dashed
from rekindle.gateway.signatures import Shape, refusals_of, shape_of

TIMEOUT_MIN_S: Final = 0.01
STALENESS_MAX_S: Final = 3_600.0
IDEMPOTENCY_KEY_MAX: Final = 255
FINGERPRINT_BYTES: Final = 16

KeyParameter = Annotated[str, Path(description="the entity's key", min_length=1, max_length=KEY_BYTES_MAX)]
TimeoutHeader = Annotated[
    float,
    Header(
        alias="Rekindle-Timeout",
        ge=TIMEOUT_MIN_S,
        le=TIMEOUT_MAX_S,
        allow_inf_nan=False,
        description="seconds until the answer must be there",
    ),
]
IdempotencyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=IDEMPOTENCY_KEY_MAX,
        description=(
            "Retries with the same key are answered as the first time and not run again, for at least "
            f"{LIFETIME_MS // 1000} seconds from its first use. The key belongs to this entity."
        ),
    ),
]
Staleness = Annotated[
    float | None,
    Query(
        ge=0,
        le=STALENESS_MAX_S,
        allow_inf_nan=False,
        description="seconds; the owner then answers from its memory at once, and refuses to be staler",
    ),
]


def entity_path(service: str) -> str:
    """Where an entity of a service is."""
    return f"/v1/services/{service}/entities/{{key:path}}"


def add_handlers(app: FastAPI, client: Client, hosted: Hosted) -> None:
    """The routes of all handlers of one service."""
    for handler in hosted.kind.handlers.values():
        if handler.is_command:
            _add_command(app, client, hosted, handler)
        else:
            _add_query(app, client, hosted, handler)


def _add_command(app: FastAPI, client: Client, hosted: Hosted, handler: HandlerType) -> None:
    shape = shape_of(hosted.kind, handler)

    async def run(
        key: str, caller: Caller, arguments: Any, idempotency_key: str | None, within_s: float, body: bytes
    ) -> Any:
        caller.check_key(key)
        proxy = cast(Proxy, client.get(hosted.kind.cls, key, timeout=within_s))
        args, kwargs = shape.call(arguments or shape.model())
        if idempotency_key is None:
            return await client.call(proxy, handler, tuple(args), kwargs)
        identity = pack((caller.tenant, hosted.name, key, unquoted(idempotency_key)))
        fingerprint = fingerprint_of(handler.short, body)
        return await once(client, proxy, handler.short, (args, kwargs), key=identity, fingerprint=fingerprint)

    async def described(
        key: KeyParameter,
        caller: Writer,
        arguments: Any,
        idempotency_key: IdempotencyHeader = None,
        within_s: TimeoutHeader = DEADLINE_S,
    ) -> Any:
        raise AssertionError("only its signature is wanted, for the document: requests take the lane")

    refusals = refusals_of(hosted.kind, handler)
    end = f"/commands/{handler.short}"
    app.router.add_api_route(
        f"{entity_path(hosted.name)}{end}",
        _with_body(described, shape),
        methods=["POST"],
        summary=f"{hosted.kind.name}.{handler.short}",
        description=shape.summary,
        tags=[hosted.name],
        operation_id=f"{hosted.name}-command-{handler.short}",
        response_model=shape.returns,
        responses={**problems(400, 404, 409, 413, 415, 422, 429, 503, 504), **_refusals(refusals)},
        route_class_override=CommandRoute,
    )
    route = app.router.routes[-1]
    assert isinstance(route, CommandRoute), f"FastAPI has made a {type(route).__name__}"
    route.end = end
    route.app = Lane(
        app.state.access,
        body=shape.model | None if shape.is_optional else shape.model,
        is_optional=shape.is_optional,
        key=KeyParameter,
        timeout=(TimeoutHeader, DEADLINE_S),
        idempotency_key=IdempotencyHeader,
        answer=shape.returns,
        run=run,
    )


def _add_query(app: FastAPI, client: Client, hosted: Hosted, handler: HandlerType) -> None:
    named = shape_of(hosted.kind, handler, ("max_staleness", Staleness, None))

    async def ask(key: str, caller: Caller, arguments: BaseModel, shape: Shape, stale: float | None, s: float) -> Any:
        caller.check_key(key)
        proxy = cast(Proxy, client.get(hosted.kind.cls, key, timeout=s, max_staleness=stale))
        args, kwargs = shape.call(arguments)
        return await client.call(proxy, handler, tuple(args), kwargs)

    async def get(key: KeyParameter, caller: Reader, arguments: Any, within_s: TimeoutHeader = DEADLINE_S) -> Any:
        return await ask(key, caller, arguments, named, arguments.max_staleness, within_s)

    shape = shape_of(hosted.kind, handler)

    async def post(
        key: KeyParameter,
        caller: Reader,
        arguments: Any,
        max_staleness: Staleness = None,
        within_s: TimeoutHeader = DEADLINE_S,
    ) -> Any:
        return await ask(key, caller, arguments or shape.model(), shape, max_staleness, within_s)

    method, endpoint = ("GET", _with_query(get, named)) if named.is_plain else ("POST", _with_body(post, shape))
    app.add_api_route(
        f"{entity_path(hosted.name)}/queries/{handler.short}",
        endpoint,
        methods=[method],
        summary=f"{hosted.kind.name}.{handler.short}",
        description=shape.summary,
        tags=[hosted.name],
        operation_id=f"{hosted.name}-query-{handler.short}",
        response_model=shape.returns,
        responses={
            **problems(*((400, 413) if method == "POST" else ()), 404, 409, 412, 422, 429, 503),
            **_refusals(refusals_of(hosted.kind, handler)),
        },
    )


def _with_body(function: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
    """The endpoint with its arguments as the body."""
    if shape.is_optional:
        return _with(function, Annotated[shape.model | None, Body()], None)
    return _with(function, Annotated[shape.model, Body()], inspect.Parameter.empty)


def _with_query(function: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
    """The endpoint with its arguments as query parameters."""
    return _with(function, Annotated[shape.model, Query()], inspect.Parameter.empty)


def _with(function: Callable[..., Any], annotation: Any, default: Any) -> Callable[..., Any]:
    """The endpoint as FastAPI sees it: `arguments` has this type."""
    signature = inspect.signature(function, eval_str=True)
    parameters = [
        parameter.replace(
            kind=inspect.Parameter.KEYWORD_ONLY,
            **({"annotation": annotation, "default": default} if parameter.name == "arguments" else {}),
        )
        for parameter in signature.parameters.values()
    ]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return function


def unquoted(key: str) -> str:
    """An Idempotency-Key may come as the structured string that its draft wants, or as it is."""
    return key[1:-1] if len(key) > 2 and key[0] == key[-1] == '"' else key


def fingerprint_of(command: str, body: bytes) -> bytes:
    """What two requests have in common that ask for the same: the command, and what its body says, in whatever order."""
    said = json.dumps(json.loads(body or b"null"), sort_keys=True, separators=(",", ":"))
    return blake2b(f"{command} {said}".encode(), digest_size=FINGERPRINT_BYTES).digest()


def _refusals(refusals: list[type[Rejected]]) -> dict[int | str, dict[str, Any]]:
    """What a 409 may say, by the fields of each refusal."""
    if not refusals:
        return {}
    lines = [
        f"`/problems/{dashed(cls.__name__)}`: {(inspect.getdoc(cls) or cls.__name__).splitlines()[0]}"
        for cls in refusals
    ]
    answer = problems(409)[409]
    content = answer["content"]["application/problem+json"]
    content["examples"] = {
        cls.__name__: {"value": {"type": f"/problems/{dashed(cls.__name__)}", "title": cls.__name__, "status": 409}}
        for cls in refusals
    }
    content["schema"] = {
        "allOf": [content["schema"]],
        "x-rejections": {cls.__name__: _fields_of(cls) for cls in refusals},
    }
    return {409: {**answer, "description": "Refused by the handler: " + "; ".join(lines)}}


def _fields_of(cls: type[Rejected]) -> dict[str, Any]:
    adapter: TypeAdapter[dict[str, Any]] = cls.fields
    return adapter.json_schema()
