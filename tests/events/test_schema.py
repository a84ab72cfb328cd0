"""Events as data: what today's build writes, what it makes of older and newer ones, and what it refuses to define."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from rekindle.events import (
    Deleted,
    Event,
    EventTypes,
    NewerRecord,
    SchemaError,
    Undecodable,
    Unencodable,
    pack_event,
    unpack,
    upcast,
)


class Received(Event, version=3):
    """Its first version had no unit, its second counted in dozens."""

    qty: int
    unit: str

    @upcast(1)
    def _add_unit(data: dict[str, Any]) -> dict[str, Any]:  # pyright: ignore[reportGeneralTypeIssues]
        return {**data, "unit": "dozen"}

    @upcast(2)
    def _count_pieces(data: dict[str, Any]) -> dict[str, Any]:  # pyright: ignore[reportGeneralTypeIssues]
        return {"qty": data["qty"] * (12 if data["unit"] == "dozen" else 1), "unit": "piece"}


class Counted(Event):
    """As simple as can be."""

    qty: int


class Line(BaseModel):
    """A part of an event."""

    sku: str
    price: Decimal


class Ordered(Event, name="order.Ordered"):
    """With everything that travels in another form."""

    lines: list[Line]
    tags: set[str]
    at: datetime


TYPES = EventTypes([Received, Counted, Ordered])


def stored(event: Event) -> list[Any]:
    """The event as a record holds it."""
    return unpack(pack_event(event))  # type: ignore[no-any-return]


# --- there and back --------------------------------------------------------------------------------------------


def test_an_event_is_stored_with_its_name_and_version() -> None:
    assert stored(Received(qty=2, unit="piece")) == ["Received", 3, {"qty": 2, "unit": "piece"}]
    assert stored(Deleted()) == ["rekindle.Deleted", 1, {}]


def test_a_name_of_its_own_outlives_the_class() -> None:
    event = Ordered(lines=[Line(sku="a", price=Decimal("1.10"))], tags={"new"}, at=datetime(2024, 2, 29, tzinfo=UTC))
    assert stored(event)[0] == "order.Ordered"
    assert TYPES.decode(stored(event)) == event


@given(st.integers(-(2**63), 2**63 - 1), st.text())
def test_what_was_stored_is_read(qty: int, unit: str) -> None:
    event = Received(qty=qty, unit=unit)
    assert TYPES.decode(stored(event)) == event


def test_every_entity_knows_how_to_be_deleted() -> None:
    assert isinstance(TYPES.decode(stored(Deleted())), Deleted)
    assert TYPES.names == ["Counted", "Received", "order.Ordered", "rekindle.Deleted"]


def test_an_event_is_a_fact() -> None:
    event = Counted(qty=1)
    with pytest.raises(ValidationError, match="frozen"):
        event.qty = 2


# --- older -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        ["Received", 1, {"qty": 2}],
        ["Received", 2, {"qty": 2, "unit": "dozen"}],
        ["Received", 2, {"qty": 24, "unit": "piece"}],
        ["Received", 3, {"qty": 24, "unit": "piece"}],
    ],
)
def test_an_older_event_is_lifted_step_by_step(raw: list[Any]) -> None:
    assert TYPES.decode(raw) == Received(qty=24, unit="piece")


def test_a_failing_upcaster_says_whose_it_is() -> None:
    with pytest.raises(Undecodable, match=r"'Received' version 2: its upcaster failed: KeyError\('qty'\)"):
        TYPES.decode(["Received", 2, {"unit": "piece"}])


@pytest.mark.parametrize("version", [0, -1])
def test_a_version_that_nobody_wrote(version: int) -> None:
    with pytest.raises(Undecodable, match="'Received'"):
        TYPES.decode(["Received", version, {"qty": 1}])


# --- newer, unknown, misshapen -----------------------------------------------------------------------------------


def test_a_newer_event_stops_the_reader() -> None:
    with pytest.raises(NewerRecord, match="'Received' has version 4; this build reads up to 3"):
        TYPES.decode(["Received", 4, {"qty": 1, "unit": "piece"}])


def test_an_unknown_event_stops_the_reader() -> None:
    with pytest.raises(NewerRecord, match=r"'Shipped' is unknown to this build, which knows \['Counted'"):
        TYPES.decode(["Shipped", 1, {}])


@pytest.mark.parametrize("data", [{}, {"qty": "many"}, {"qty": 1, "extra": 2}, [1], None])
def test_data_that_does_not_fit_is_named(data: Any) -> None:
    with pytest.raises(Undecodable, match="event 'Counted' version 1 does not fit Counted"):
        TYPES.decode(["Counted", 1, data])


def test_what_msgpack_cannot_carry_is_refused_before_it_is_an_event_in_the_log() -> None:
    with pytest.raises(Unencodable, match="cannot encode"):
        pack_event(Counted(qty=2**70))


# --- definitions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "steps", "has"),
    [(2, [], r"\[\]"), (3, [1], r"\[1\]"), (3, [2], r"\[2\]"), (1, [1], r"\[1\]"), (2, [1, 2], r"\[1, 2\]")],
    ids=["none", "the last is missing", "the first is missing", "one too many", "one into the future"],
)
def test_a_version_needs_one_upcaster_for_each_older_one(version: int, steps: list[int], has: str) -> None:
    def steps_of(step: int) -> Any:
        def lift(data: dict[str, Any]) -> dict[str, Any]:
            return data

        return upcast(step)(lift)

    body = {f"_from_{step}": steps_of(step) for step in steps}
    with pytest.raises(SchemaError, match=rf"event Wrong is version {version}: it needs one @upcast .* it has {has}"):
        type("Wrong", (Event,), body | {"__module__": __name__}, version=version)


def test_two_events_of_one_entity_need_two_names() -> None:
    class Other(Event, name="Counted"):
        pass

    with pytest.raises(SchemaError, match=r"two events of one entity are called 'Counted': Counted and .*Other"):
        EventTypes([Counted, Other])


def test_the_same_event_twice_is_one() -> None:
    assert EventTypes([Counted, Counted]).names == ["Counted", "rekindle.Deleted"]


def test_an_event_of_another_entity_is_not_among_them() -> None:
    assert Received not in EventTypes([Counted]).classes
    assert Counted in EventTypes([Counted]).classes
