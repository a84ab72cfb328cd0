"""What may stand in events, arguments, replies and state: it comes back as what it was, or is refused by name.

Goal: nothing changes on its way through a record in silence. Method: hypothesis makes values of every type that the codec
knows; each goes to bytes and back the way that events do, through a pydantic model.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional, TypeVar
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import AliasPath, BaseModel, ConfigDict, Field, TypeAdapter

from rekindle.events import Event, Unencodable, pack, unpack
from rekindle.events.schema import EventTypes, pack_event

T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Mood(StrEnum):
    GLAD = "glad"
    SAD = "sad"


class Point(NamedTuple):
    x: int
    y: int


class Inner(BaseModel):
    point: Point
    colour: Colour = Colour.RED


class Outer(BaseModel):
    inner: Inner
    others: dict[str, Inner] = {}


zones = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
points = st.builds(Point, st.integers(-(2**63), 2**64 - 1), st.integers(0, 9))
inners = st.builds(Inner, point=points, colour=st.sampled_from(Colour))
texts = st.text(st.characters(codec="utf-8"))

TYPES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    str: texts,
    bytes: st.binary(),
    type(None): st.none(),
    datetime: st.datetimes(timezones=st.none() | zones),
    date: st.dates(),
    time: st.times(timezones=st.none() | zones),
    timedelta: st.integers(-(10**9), 10**9).map(lambda seconds: timedelta(seconds=seconds)),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    UUID: st.uuids(),
    Colour: st.sampled_from(Colour),
    Level: st.sampled_from(Level),
    Mood: st.sampled_from(Mood),
    Literal["a", 1]: st.sampled_from(["a", 1]),
    Optional[date]: st.none() | st.dates(),  # noqa: UP045 - as users write it
    int | str: st.integers(0, 9) | st.just("9"),
    list[date]: st.lists(st.dates(), max_size=5),
    tuple[int, str]: st.tuples(st.integers(0, 9), texts),
    tuple[UUID, ...]: st.lists(st.uuids(), max_size=5).map(tuple),
    set[int]: st.sets(st.integers(0, 99), max_size=5),
    frozenset[str]: st.frozensets(texts, max_size=5),
    deque[int]: st.lists(st.integers(0, 99), max_size=5).map(deque),
    dict[str, float]: st.dictionaries(texts, st.floats(allow_nan=False), max_size=5),
    dict[int, str]: st.dictionaries(st.integers(0, 99), texts, max_size=5),
    dict[date, int]: st.dictionaries(st.dates(), st.integers(0, 9), max_size=5),
    dict[UUID, list[set[int]]]: st.dictionaries(st.uuids(), st.lists(st.sets(st.integers(0, 9))), max_size=3),
    Point: points,
    Inner: inners,
    Outer: st.builds(Outer, inner=inners, others=st.dictionaries(texts, inners, max_size=3)),
}


def there_and_back(declared: Any, value: Any) -> Any:
    """As it goes through a record and the validation of whoever reads it."""
    return TypeAdapter(declared).validate_python(unpack(pack(value)))


@pytest.mark.parametrize("declared", TYPES, ids=str)
@given(st.data())
def test_what_is_supported_comes_back_as_what_it_was(declared: Any, data: st.DataObject) -> None:
    value = data.draw(TYPES[declared])
    found = there_and_back(declared, value)
    assert found == value
    assert type(found) is type(value)


@given(st.floats())
def test_a_float_keeps_every_bit(value: float) -> None:
    found = there_and_back(float, value)
    assert (found == value) or (found != found and value != value)  # noqa: PLR0124 - not a number


@given(
    st.recursive(st.none() | st.integers(0, 9) | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner))
)
def test_native_values_need_no_type_to_come_back(value: Any) -> None:
    assert unpack(pack(value)) == value


@dataclass
class Plain:
    x: int = 0


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), "a object cannot be kept in the log"),
        (Plain(), "a Plain cannot be kept in the log"),
        (1j, "a complex cannot be kept in the log"),
        (Path("a"), "a PosixPath cannot be kept in the log"),
        (IPv4Address("127.0.0.1"), "a IPv4Address cannot be kept in the log"),
        (lambda: None, "a function cannot be kept in the log"),
        (int, "a type cannot be kept in the log"),
        (range(3), "a range cannot be kept in the log"),
        (1 << 64, "cannot encode int"),
        (-(1 << 63) - 1, "cannot encode int"),
        ("\ud800", "cannot encode str"),
        ({"a": [object()]}, "a object cannot be kept in the log"),
        (Inner.model_construct(point=object()), "a object cannot be kept in the log"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(value: Any, named: str) -> None:
    with pytest.raises(Unencodable, match=named):
        pack(value)
    assert unpack(pack([1, "a"])) == [1, "a"]  # nothing of the refused value is left in the way of the next one


def test_what_holds_itself_is_refused() -> None:
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(Unencodable, match="recursion"):
        pack(ring)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\x01", b"\x01\x02", b"\xd9\x05ab", b"\xa2\xff\xff"])
def test_bytes_that_are_no_value_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each in words of its own
        unpack(data)


class Place(BaseModel, frozen=True):
    at: Point


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (dict[tuple[int, int], int], {(1, 2): 3}),
        (dict[frozenset[int], int], {frozenset([1]): 2}),
        (dict[tuple[int, tuple[str, int]], int], {(1, ("a", 2)): 3}),
        (dict[Point, list[int]], {Point(1, 2): [3]}),
        (dict[Place, dict[tuple[int, int], str]], {Place(at=Point(1, 2)): {(3, 4): "x"}, Place(at=Point(1, 3)): {}}),
    ],
)
def test_keys_that_are_no_scalars_come_back(declared: Any, value: Any) -> None:
    """A record that its owner can write and nobody can read would be void on replay: acknowledged and lost."""
    assert there_and_back(declared, value) == value


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    x: int


def test_a_model_with_undeclared_fields_keeps_them() -> None:
    value = Open.model_validate({"x": 1, "y": 2})
    assert there_and_back(Open, value) == value


class Renamed(BaseModel):
    x: int = Field(alias="ex")
    y: int = Field(validation_alias="why", serialization_alias="because")


class Moved(Event):
    to: Renamed
    from_: str = Field(alias="from")


def test_fields_with_aliases_come_back() -> None:
    value = Moved.model_validate({"from": "here", "to": {"ex": 1, "why": 2}})
    assert there_and_back(Renamed, value.to) == value.to
    assert EventTypes([Moved]).decode(unpack(pack_event(value))) == value


class Spread(BaseModel):
    x: int = Field(validation_alias=AliasPath("a", 0))


def test_a_field_that_is_read_from_inside_another_is_refused() -> None:
    with pytest.raises(Unencodable, match="AliasPath"):
        pack(Spread.model_validate({"a": [1]}))


@given(st.timedeltas(timedelta(days=-100_000), timedelta(days=100_000)))
@example(timedelta(days=99_999, microseconds=1))
def test_a_duration_comes_back_to_the_microsecond(value: timedelta) -> None:
    assert there_and_back(timedelta, value) == value


@contextmanager
def _switching_often() -> Generator[None, None, None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_threads_do_not_write_into_each_others_values() -> None:
    """The beacon's thread and the threads that encode snapshots pack while the loop does."""
    values = [datetime(2026, 1, 1, tzinfo=UTC)] * 50, [Inner(point=Point(1, 2))] * 50
    expected = [pack(value) for value in values]
    wrong: list[bytes] = []

    def work(index: int) -> None:
        for _ in range(300):
            found = pack(values[index])
            if found != expected[index]:
                wrong.append(found)

    with _switching_often():
        threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1, 0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
