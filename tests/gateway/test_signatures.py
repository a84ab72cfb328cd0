"""Routes from signatures, problems from errors, and how both are said in JSON.

Goal: whatever a handler's signature may be, its request has the same shape; every error of ours has a document. Method: an
entity with every kind of parameter, and the errors themselves; no application runs.
"""

from __future__ import annotations

import inspect
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from rekindle import BadRequest, CommandFailed, Entity, Event, Rejected, command, query
from rekindle.actors import (
    DeadlineExceeded,
    EntityQuarantined,
    KeyReused,
    OutcomeUnknown,
    Overloaded,
    ShardRefused,
    Stale,
)
from rekindle.events import LogTruncated, LogUnavailable, NewerRecord, RekindleError
from rekindle.gateway.entities import fingerprint_of, unquoted
from rekindle.gateway.plain import plain
from rekindle.gateway.problems import Problem, dashed, problem_of
from rekindle.gateway.signatures import refusals_of, shape_of


class Colour(Enum):
    RED = "red"


class Point(BaseModel):
    x: int = 0


class Moved(Event):
    pass


class Stuck(Rejected):
    where: str


class TooFar(Rejected):
    by: float


class Turtle(Entity):
    steps: int = 0

    def apply(self, event: Moved) -> None:
        self.steps += 1

    def _check(self) -> None:
        raise TooFar(by=1.0)

    @command
    def nothing(self) -> None:
        """Does nothing."""

    @command
    def go(self, to: Point, /, json: int, *rest: int, copy: str = "x", **more: float) -> list[Point]:
        if json < 0:
            raise Stuck(where="here")
        return [to]

    @query
    def plainly(
        self,
        a: int,
        b: str | None = None,
        c: Decimal | UUID = Decimal(1),
        d: Literal["x", "y"] = "x",
        e: Colour = Colour.RED,
        f: datetime | None = None,
    ) -> float:
        return 1.0

    @query
    def largely(self, at: Point) -> int:
        return at.x


KIND = Turtle.describe()


def test_every_kind_of_parameter_is_a_field_and_back() -> None:
    shape = shape_of(KIND, KIND.handlers["go"])
    schema = shape.model.model_json_schema()
    assert list(schema["properties"]) == ["to", "json", "rest", "copy"]
    assert (schema["required"], schema["additionalProperties"]) == (["to", "json"], True)
    request = shape.model.model_validate({"to": {"x": 1}, "json": "2", "rest": [3, 4], "speed": 0.5})
    assert shape.call(request) == ([Point(x=1), 3, 4], {"json": 2, "speed": 0.5})
    assert shape.call(shape.model.model_validate({"to": {}, "json": 1, "copy": "y"}))[1] == {"json": 1, "copy": "y"}
    assert shape.returns == list[Point]


def test_what_is_not_declared_is_refused() -> None:
    shape = shape_of(KIND, KIND.handlers["nothing"])
    assert (shape.is_optional, shape.summary) == (True, "Does nothing.")
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        shape.model.model_validate({"x": 1})


@pytest.mark.parametrize(("name", "is_plain"), [("plainly", True), ("largely", False)])
def test_query_parameters_say_what_is_plain(name: str, is_plain: bool) -> None:
    assert shape_of(KIND, KIND.handlers[name]).is_plain is is_plain


def test_a_name_that_the_gateway_needs_is_no_query_parameter() -> None:
    assert not shape_of(KIND, KIND.handlers["plainly"], ("b", int, 1)).is_plain


def test_refusals_are_those_that_are_raised_by_name() -> None:
    assert refusals_of(KIND, KIND.handlers["go"]) == [Stuck, TooFar]
    assert refusals_of(KIND, KIND.handlers["nothing"]) == [TooFar]


@pytest.mark.parametrize(
    ("error", "status", "name"),
    [
        (Stuck(where="here"), 409, "stuck"),
        (Rejected(), 409, "rejected"),
        (BadRequest("x"), 422, "bad-request"),
        (KeyReused("x"), 422, "key-reused"),
        (Overloaded("x"), 429, "overloaded"),
        (EntityQuarantined("x"), 409, "entity-quarantined"),
        (ShardRefused("x"), 503, "shard-refused"),
        (Stale("x"), 412, "stale"),
        (CommandFailed("x"), 500, "command-failed"),
        (DeadlineExceeded("x"), 503, "deadline-exceeded"),
        (OutcomeUnknown("x"), 504, "outcome-unknown"),
        (LogUnavailable("x"), 503, "log-unavailable"),
        (LogTruncated("x", 1, 2), 500, "log-truncated"),
        (NewerRecord("x"), 500, "newer-record"),
        (RekindleError("x"), 500, "rekindle-error"),
        (TimeoutError(), 503, "deadline-exceeded"),
        (HTTPException(404), 404, "not-found"),
        (HTTPException(405), 405, "method-not-allowed"),
        (Problem(418, "teapot", "short and stout"), 418, "teapot"),
        (ValueError("a secret"), 500, "internal-error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_error_has_its_problem(error: Exception, status: int, name: str) -> None:
    problem = problem_of(error)
    document = json.loads(problem.document("/there"))
    assert {"type", "title", "status", "detail", "instance"} <= document.keys()
    assert (document["status"], document["type"], document["instance"]) == (status, f"/problems/{name}", "/there")
    assert "a secret" not in str(document)
    assert ("Retry-After" in (problem.headers or {})) == (status in (429, 503, 504) and name != "shard-refused")


def test_an_unknown_outcome_says_how_to_go_on() -> None:
    assert "retry with the same Idempotency-Key" in problem_of(OutcomeUnknown("no answer")).detail


def test_a_refusal_that_this_build_does_not_know_keeps_its_name_and_fields() -> None:
    problem = problem_of(Rejected(rejection="shop:OutOfLuck", left=3))
    assert (problem.name, problem.more) == ("out-of-luck", {"fields": {"left": 3}})


@pytest.mark.parametrize(
    ("name", "said"), [("OutOfStock", "out-of-stock"), ("HTTPError", "http-error"), ("A", "a"), ("Room101", "room101")]
)
def test_names_are_dashed(name: str, said: str) -> None:
    assert dashed(name) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"\x00\xff", "AP8="),
        (float("inf"), "inf"),
        ("\ud800", "\\ud800"),
        ({1: {(2, "x"): {3}}}, {"1": {"[2, 'x']": [3]}}),
        (Point(x=1), {"x": 1}),
        (timedelta(seconds=1), "0:00:01"),
        (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01 00:00:00+00:00"),
        (1 << 70, 1 << 70),
        ([None, True, 0.5], [None, True, 0.5]),
    ],
)
def test_anything_can_be_said_in_json(value: Any, said: Any) -> None:
    assert plain(value) == said
    json.dumps(plain(value), allow_nan=False).encode()


def test_a_fingerprint_is_that_of_what_is_said() -> None:
    same = fingerprint_of("go", b'{"a": 1, "b": [1, 2]}')
    assert same == fingerprint_of("go", b'{"b":[1,2],"a":1}')
    assert (
        len({same, fingerprint_of("stop", b'{"a": 1, "b": [1, 2]}'), fingerprint_of("go", b'{"a": 1, "b": [2, 1]}')})
        == 3
    )
    assert fingerprint_of("go", b"") == fingerprint_of("go", b"null")


@pytest.mark.parametrize(("key", "meant"), [("k", "k"), ('"k"', "k"), ('""', '""'), ('"', '"'), ('"k', '"k')])
def test_a_key_is_what_it_says(key: str, meant: str) -> None:
    assert unquoted(key) == meant


def test_a_shape_keeps_the_order_of_its_signature() -> None:
    handler = KIND.handlers["plainly"]
    names = list(inspect.signature(handler.function).parameters)[1:]
    assert list(shape_of(KIND, handler).model.model_json_schema()["properties"]) == names
