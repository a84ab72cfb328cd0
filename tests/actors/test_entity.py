"""What a class must be to be an entity, and how it is taken apart.

Goal: a class that cannot work is refused when it is declared, with what was expected and what was found; what works
keeps its defaults, its handlers and its fingerprint apart from every other's. Method: classes that are wrong in one way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

import pytest
from pydantic import BaseModel, Field

from rekindle import Entity, Event, Rejected, command, query
from rekindle.actors import Client, EntityDefinitionError, Proxy, WebsocketWire, outcomes
from rekindle.actors.entity import OF_ENTITY, OF_PROXY, EntityType, WrongArguments
from rekindle.events import SchemaError, Undecodable, unpack
from tests.support.inprocess import Clock, hosted_of


class Moved(Event):
    by: int


class Turned(Event):
    by: int


class Robot(Entity):
    """A whole one."""

    LEGS: ClassVar[int] = 4

    at: int = 0
    path: list[int] = []
    names: dict[str, list[int]] = {"home": [0]}
    _scratch: int = 0

    def apply(self, event: Moved | Turned) -> None:
        if isinstance(event, Moved):
            self.at += event.by

    @command
    def move(self, by: int, *, fast: bool = False) -> int:
        self.emit(Moved(by=2 * by if fast else by))
        return self.at

    @query
    async def where(self) -> int:
        return self.at

    def helper(self) -> int:
        """What handlers share; no handler."""
        return self.at


class FastRobot(Robot):
    """Inherits everything, adds a field and a handler."""

    speed: int = 1

    @command
    def accelerate(self) -> int:
        return self.speed


# Definition errors


class NoApply(Entity):
    at: int = 0


class ApplyWithoutType(Entity):
    def apply(self, event):  # type: ignore[no-untyped-def]  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]
        pass


class ApplyOfNoEvent(Entity):
    def apply(self, event: Moved | int) -> None:
        pass


class ApplyOfAnything(Entity):
    def apply(self, event: Any) -> None:
        pass


class MovedToo(Event, name="Moved"):
    by: int


class TwoEventsOfOneName(Entity):
    def apply(self, event: Moved | MovedToo) -> None:
        pass


class NoDefault(Entity):
    at: int
    on: bool = False

    def apply(self, event: Moved) -> None:
        pass


class UnknownType(Entity):
    at: Nowhere = None  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable]

    def apply(self, event: Moved) -> None:
        pass


class Opaque:
    """No type that can be kept."""


class UnsupportedField(Entity):
    at: Opaque = Opaque()

    def apply(self, event: Moved) -> None:
        pass


class UnsupportedArgument(Entity):
    def apply(self, event: Moved) -> None:
        pass

    @command
    def take(self, what: Opaque) -> None:
        pass


class UnsupportedReply(Entity):
    def apply(self, event: Moved) -> None:
        pass

    @command
    def give(self) -> Opaque:
        return Opaque()


class TakesTheKey(Entity):
    key: str = ""  # pyright: ignore[reportIncompatibleVariableOverride]

    def apply(self, event: Moved) -> None:
        pass


class TakesTheProxysNames(Entity):
    timeout: int = 0  # a field may be called like that: callers do not see it

    def apply(self, event: Moved) -> None:
        pass

    @query
    def shard(self) -> int:
        return 0

    @command
    def delete(self) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        pass


@pytest.mark.parametrize(
    ("cls", "problem"),
    [
        (
            NoApply,
            r"NoApply needs `def apply\(self, event: A \| B\) -> None`, with the union of its events as the type",
        ),
        (ApplyWithoutType, "expected its argument to be typed as one or a union of Events, got None"),
        (ApplyOfNoEvent, r"expected its argument to be typed as one or a union of Events, got .*Moved \| int"),
        (ApplyOfAnything, "expected its argument to be typed as one or a union of Events, got typing.Any"),
        (TwoEventsOfOneName, "two events of one entity are called 'Moved': Moved and MovedToo"),
        (NoDefault, r"every field needs a default, these have none: \['at'\]"),
        (UnknownType, "cannot be an entity: name 'Nowhere' is not defined"),
        (UnsupportedField, "cannot be an entity: Unable to generate pydantic-core schema for .*Opaque"),
        (UnsupportedArgument, "cannot be an entity: Unable to generate pydantic-core schema for .*Opaque"),
        (UnsupportedReply, "cannot be an entity: Unable to generate pydantic-core schema for .*Opaque"),
        (TakesTheKey, r"these names mean something else already: \['key'\]"),
        (TakesTheProxysNames, r"these names mean something else already: \['delete', 'shard'\]"),
    ],
)
def test_a_class_that_cannot_work_is_refused(cls: type[Entity], problem: str) -> None:
    for _ in range(2):  # also when it is asked for again
        with pytest.raises((EntityDefinitionError, SchemaError), match=problem):
            cls.describe()


def test_the_reserved_names_are_those_that_are_taken() -> None:
    async def nobody() -> list[str]:
        return []

    proxy = Proxy(Client("app", [], WebsocketWire(), nobody, Clock()), hosted_of(Robot), "a", 1.0, None)
    assert vars(proxy).keys() == OF_PROXY
    assert {name for name in dir(Entity) if not name.startswith("_")} == OF_ENTITY


def test_handlers_cannot_be_called_from_inside() -> None:
    """They would run without a record of their own."""
    with pytest.raises(TypeError, match=r"Robot\.move is a handler: callers reach it through a client"):
        Robot.describe().new("a").move(1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


# Descriptions


def test_a_description_has_all_parts_of_the_class() -> None:
    kind = Robot.describe()
    assert kind is Robot.describe()
    assert (kind.name, sorted(kind.handlers), list(kind.defaults)) == (
        "Robot",
        ["move", "where"],
        ["at", "path", "names"],
    )
    assert kind.events.names == ["Moved", "Turned", "rekindle.Deleted"]
    move, where = kind.handlers["move"], kind.handlers["where"]
    assert (move.name, move.is_command, move.is_async) == ("Robot.move", True, False)
    assert (where.name, where.is_command, where.is_async) == ("Robot.where", False, True)


def test_a_subclass_is_a_kind_of_its_own() -> None:
    kind = FastRobot.describe()
    assert (kind.name, sorted(kind.handlers)) == ("FastRobot", ["accelerate", "move", "where"])
    assert sorted(kind.defaults) == ["at", "names", "path", "speed"]
    assert Robot.describe().handlers.keys() == {"move", "where"}


def test_each_entity_has_its_own_defaults() -> None:
    kind = Robot.describe()
    first, second = kind.new("a"), kind.new("b")
    assert isinstance(first, Robot)
    assert isinstance(second, Robot)
    first.path.append(1)
    first.names["home"].append(1)
    assert (second.path, second.names) == ([], {"home": [0]})
    kind.reset(first)
    assert (first.path, first.names) == ([], {"home": [0]})
    assert (first.key, second.key) == ("a", "b")


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ([1], {}, ((1,), {"fast": False})),
        ([], {"by": 1}, ((), {"by": 1, "fast": False})),
        (["1"], {"fast": "yes"}, ((1,), {"fast": True})),
    ],
)
def test_arguments_are_converted_as_declared(args: list[Any], kwargs: dict[str, Any], expected: object) -> None:
    assert Robot.describe().handlers["move"].arguments_of(args, kwargs) == expected


@pytest.mark.parametrize("args", [[], ["far"], [1, True], [None]])
def test_arguments_that_do_not_fit_are_refused_by_name(args: list[Any]) -> None:
    with pytest.raises(WrongArguments, match=r"^Robot\.move: "):
        Robot.describe().handlers["move"].arguments_of(args, {})


# State that was encoded


def test_a_state_is_restored_in_the_types_of_its_fields() -> None:
    robot = Robot.describe().restore("a", {"at": 5, "path": (1, 2), "names": {}})
    assert vars(robot) == {"at": 5, "path": [1, 2], "names": {}}
    assert robot.key == "a"


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"at": "here", "path": [], "names": {}}, r"at: Input should be a valid integer.* \(got 'here'\)"),
        ({"at": 1, "path": []}, "names: Field required"),
        ([], "Input should be a valid dictionary"),
    ],
)
def test_a_state_that_does_not_fit_says_in_what(state: Any, problem: str) -> None:
    with pytest.raises(Undecodable, match=f"state of Robot 'a' does not fit the class: .*{problem}"):
        Robot.describe().restore("a", state)


# Fingerprints


@dataclass
class Shape:
    """What may change between two builds of one class."""

    field: Any = int
    default: Any = 0
    version: int = 1
    name: str = "Thing"
    more: bool = False


def _thing(shape: Shape) -> EntityType:
    """The class as that build has it."""

    def apply(self: Any, event: Moved) -> None: ...

    annotations = {"at": shape.field, **({"more": int} if shape.more else {})}
    body = {"__annotations__": annotations, "at": shape.default, "more": 0, "apply": apply}
    made = cast(type[Entity], type(shape.name, (Entity,), body, version=shape.version))
    return made.describe()


class Inner(BaseModel):
    x: int = 0


class Outer(BaseModel):
    inner: Inner = Inner()


def _changed(model: type[BaseModel], **fields: Any) -> type[BaseModel]:
    """The model, under the same name, with other fields."""
    return type(model.__name__, (BaseModel,), {"__annotations__": dict(fields), "__module__": __name__})


_BUILDS: dict[str, Callable[[], Shape]] = {
    "as it was": Shape,
    "another type": lambda: Shape(field=str),
    "another constraint": lambda: Shape(field=Annotated[int, Field(ge=0)]),
    "another field": lambda: Shape(more=True),
    "another version": lambda: Shape(version=2),
    "another name": lambda: Shape(name="OtherThing"),
    "a model": lambda: Shape(field=Outer, default=Outer()),
    "a model with another field": lambda: Shape(field=_changed(Outer, inner=int), default=Outer()),
    "a model in a model with another field": lambda: Shape(
        field=_changed(Outer, inner=_changed(Inner, x=int, y=int)), default=Outer()
    ),
}


def test_fingerprints_are_equal_only_where_a_snapshot_fits() -> None:
    """However deep the change is: a snapshot of the one must not be read by the other."""
    first = {name: _thing(build()).fingerprint for name, build in _BUILDS.items()}
    second = {name: _thing(build()).fingerprint for name, build in _BUILDS.items()}
    assert first == second
    assert len({repr(fingerprint) for fingerprint in first.values()}) == len(_BUILDS)


def test_a_default_and_a_handler_may_change_without_another_fingerprint() -> None:
    """A snapshot holds every field, so the default does not matter to it."""
    assert _thing(Shape(default=0)).fingerprint == _thing(Shape(default=7)).fingerprint


# --- refusals ----------------------------------------------------------------------------------------------------


class Full(Rejected):
    most: int


class Elsewhere:
    class Full(Rejected):
        """A namesake, as another module of the same process may have one."""

        weight: float


def refusal_of(error: Rejected, name: str | None = None) -> Rejected:
    """What the caller gets of it. name: what a process calls it that has another name for its module."""
    kind = Robot.describe()
    code, stored, fields = unpack(outcomes.rejected(error))
    with pytest.raises(Rejected) as caught:
        outcomes.result_of([code, name or stored, fields], kind, kind.handlers["move"])
    return caught.value


@pytest.mark.parametrize("error", [Full(most=3), Elsewhere.Full(weight=0.5)])
def test_a_refusal_is_not_mistaken_for_its_namesake(error: Rejected) -> None:
    found = refusal_of(error)
    assert (type(found), vars(found)) == (type(error), vars(error))


def test_a_refusal_is_known_where_its_module_has_another_name() -> None:
    assert type(refusal_of(Full(most=3), "__main__:Full")) is Full


def test_a_refusal_that_nobody_knows_still_says_what_it_is() -> None:
    found = refusal_of(Full(most=3), "gone:Forgotten")
    assert type(found) is Rejected
    assert vars(found) == {"rejection": "gone:Forgotten", "most": 3}
