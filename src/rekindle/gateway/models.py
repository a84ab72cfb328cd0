"""Read models over HTTP: how projections are doing, and the rows of their tables.

    GET /v1/views                                                    every projection: how far it is, what it has parked
    GET /v1/views/{projection}/{table}?qty.min=1&sort=-qty&limit=20  rows: filtered, sorted, page by page
        &fresh=stock/sku-42                                          which show everything that this entity has answered

Filters are the table's columns: `COLUMN` is equal, `COLUMN.min` and `COLUMN.max` are inclusive bounds. Rows are those of one
transaction; those of equal rank are in the order of their primary key. `fresh` waits, within the caller's deadline, until the
projection has read everything that the entity had answered when it was asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Final, TypeVar

from fastapi import FastAPI, Query
from pydantic import BaseModel, ConfigDict, Field, create_model
from sqlalchemy import Column, Select, Table, select

from rekindle.actors.client import DEADLINE_S
from rekindle.gateway.access import Viewer
from rekindle.gateway.documents import problems
from rekindle.gateway.entities import TimeoutHeader
from rekindle.gateway.problems import RETRY_AFTER_S, Problem
from rekindle.projections import (
    Bound,
    Database,
    DatabaseAway,
    DatabaseRefused,
    DataRefused,
    ProjectionReport,
    ViewIsBehind,
    Views,
    books,
)
from rekindle.projections.tables import table_of

T = TypeVar("T")

ROWS_DEFAULT: Final = 100
ROWS_MAX: Final = 1_000
OFFSET_MAX: Final = 100_000
"""Rows that a page may leave out: the database reads them all. Whoever wants more filters by what the last page ended with."""

SORT_MAX: Final = 8
"""Columns that rows are sorted by."""

FRESH_MAX: Final = 600
"""Characters of an entity's name, with its service."""

CONTROLS: Final = ("sort", "limit", "offset", "fresh")
"""What a page is asked for besides filters. A column of such a name is filtered by its bounds only."""


class Asked(BaseModel):
    """What page is wanted. sort: columns, each with a `-` before it to begin with the greatest. fresh: `SERVICE/KEY`."""

    model_config = ConfigDict(extra="forbid", populate_by_name=False)

    sort: Annotated[str | None, Field(max_length=1_000, description="COLUMN[,-COLUMN ...]")] = None
    limit: Annotated[int, Field(ge=1, le=ROWS_MAX)] = ROWS_DEFAULT
    offset: Annotated[int, Field(ge=0, le=OFFSET_MAX)] = 0
    fresh: Annotated[str | None, Field(max_length=FRESH_MAX, pattern=r"^[^/]+/.+$", description="SERVICE/KEY")] = None


def add_models(app: FastAPI, views: Views, projections: Mapping[str, Bound]) -> None:
    """The routes of an application's read models."""

    async def look(_: Viewer) -> list[ProjectionReport]:
        """How every projection is doing."""
        return await _told(views.report)

    app.add_api_route(
        "/v1/views", look, methods=["GET"], tags=["views"], operation_id="views", responses=problems(429, 503)
    )
    for name, bound in projections.items():
        for model in bound.declared.tables:
            _add_table(app, views, bound, name, table_of(model))


def _add_table(app: FastAPI, views: Views, bound: Bound, name: str, table: Table) -> None:
    asked_type, page_type = _asked_of(name, table), _page_of(name, table)
    services = {hosted.name: hosted for hosted in bound.services}

    async def wait_fresh(fresh: str, within_s: float) -> None:
        service, _, key = fresh.partition("/")
        if service not in services:
            raise Problem(422, "bad-request", f"{name!r} reads {sorted(services)}, not {service!r:.100}")
        place = await views.position_of(services[service].kind.cls, key)
        await views.wait_for(bound.declared, place, within_s)

    async def rows(asked: Annotated[Asked, Query()], _: Viewer, within_s: TimeoutHeader = DEADLINE_S) -> dict[str, Any]:
        statement = _statement(table, asked)
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        if asked.fresh is not None:
            fresh = asked.fresh
            await _told(lambda: wait_fresh(fresh, within_s))
        async with asyncio.timeout_at(until):
            return await _told(lambda: views.database.call(_read, name, statement, asked.limit))

    rows.__doc__ = f"Rows of `{table.fullname}`, as projection `{name}` has made them."
    rows.__annotations__["asked"] = Annotated[asked_type, Query()]
    app.add_api_route(
        f"/v1/views/{name}/{table.name}",
        rows,
        methods=["GET"],
        tags=["views"],
        operation_id=f"{name}-{table.name}",
        response_model=page_type,
        responses=problems(422, 429, 503),
    )


def _asked_of(name: str, table: Table) -> type[Asked]:
    """`Asked`, with the table's filters."""
    fields: dict[str, Any] = {}
    for number, column in enumerate(table.columns):
        kind = _type_of(column)
        for bound in ("", ".min", ".max"):
            if not bound and column.name in CONTROLS:
                continue
            fields[f"filter_{number}{bound.replace('.', '_')}"] = (kind | None, Field(None, alias=column.name + bound))
    return create_model(f"{name}_{table.name}_page", __base__=Asked, **fields)


def _page_of(name: str, table: Table) -> type[BaseModel]:
    columns: dict[str, Any] = {
        column.name: (_type_of(column) | None if column.nullable else _type_of(column), ...) for column in table.columns
    }
    row = create_model(f"{name}_{table.name}_row", __config__=ConfigDict(ser_json_bytes="base64"), **columns)
    return create_model(
        f"{name}_{table.name}_rows",
        __doc__="more: there are further ones. state, lag_seconds: of the projection, when they were read.",
        rows=(_list_of(row), ...),
        more=(bool, ...),
        state=(str, ...),
        lag_seconds=(float, ...),
    )


def _list_of(kind: Any) -> Any:
    return list[kind]


def _type_of(column: Column[Any]) -> Any:
    try:
        return column.type.python_type
    except (
        NotImplementedError
    ):  # a type of the user's, or of one database: it is told, and asked for, as what it is there
        return Any


def _statement(table: Table, asked: Asked) -> Select[Any]:
    """The page's rows, and one more if there is one. Raises a 422."""
    statement = select(table)
    for number, column in enumerate(table.columns):
        exact, least, most = (getattr(asked, f"filter_{number}{end}", None) for end in ("", "_min", "_max"))
        if exact is not None:
            statement = statement.where(column == exact)
        if least is not None:
            statement = statement.where(column >= least)
        if most is not None:
            statement = statement.where(column <= most)
    wanted = [] if asked.sort is None else asked.sort.split(",")
    if len(wanted) > SORT_MAX:
        raise Problem(422, "bad-request", f"sort by {len(wanted)} columns, {SORT_MAX} are allowed")
    for word in wanted:
        by = table.columns.get(word.removeprefix("-"))
        if by is None:
            raise Problem(422, "bad-request", f"sort by {word!r:.100}; the columns are {list(table.columns.keys())}")
        statement = statement.order_by(by.desc() if word.startswith("-") else by.asc())
    statement = statement.order_by(*(column.asc() for column in table.primary_key.columns))
    return statement.limit(asked.limit + 1).offset(asked.offset)


def _read(database: Database, name: str, statement: Select[Any], limit: int) -> dict[str, Any]:
    c = books.PROJECTION.c
    with database.transaction(write=False) as connection:
        known = connection.execute(select(c.state, c.lag_seconds).where(c.name == name)).one_or_none()
        if known is None:
            detail = f"projection {name!r} has made nothing here yet: rekindle projection run {name}"
            raise Problem(503, "no-view", detail, retry_after_s=RETRY_AFTER_S)
        found = connection.execute(statement).mappings().all()
    rows = [dict(row) for row in found[:limit]]
    return {"rows": rows, "more": len(found) > limit, "state": known.state, "lag_seconds": known.lag_seconds}


async def _told(work: Callable[[], Awaitable[T]]) -> T:
    """What comes of it; errors of databases in the words of HTTP."""
    try:
        return await work()
    except ViewIsBehind as error:
        raise Problem(503, "view-is-behind", str(error), retry_after_s=RETRY_AFTER_S) from error
    except DatabaseAway as error:
        raise Problem(503, "database-away", str(error), retry_after_s=RETRY_AFTER_S) from error
    except DataRefused as error:  # a number that the column cannot hold
        raise Problem(422, "bad-request", str(error)) from error
    except DatabaseRefused as error:
        raise Problem(500, "database-refused", str(error)) from error
