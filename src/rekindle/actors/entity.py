"""Entities as users write them: state as annotated fields, `apply` for events, `command` and `query` for requests.

    class Stock(Entity):
        on_hand: int = 0

        def apply(self, event: Received) -> None:          # the only code a replay runs
            self.on_hand += event.qty

        @command
        def receive(self, qty: int) -> int:
            self.emit(Received(qty=qty))
            return self.on_hand

The decorators' types turn a handler into an awaitable call for the caller (`await stock.receive(5)`), without code
generation: a wrong argument is an error in the editor. `Entity.describe()` is what the shard and the client use.
"""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from hashlib import blake2b
from typing import (
    Any,
    ClassVar,
    Concatenate,
    Generic,
    ParamSpec,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from pydantic_core import ArgsKwargs
from typing_extensions import TypedDict

from rekindle.actors.errors import BadRequest, CallError, EntityDefinitionError
from rekindle.events import Deleted, Event, EventTypes, Undecodable, pack_event

E_contra = TypeVar("E_contra", contravariant=True)
P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
E2 = TypeVar("E2")
R2 = TypeVar("R2")


class Handler(Generic[E_contra, P, R_co]):
    """A method that callers reach by name: a command or a query."""

    def __init__(self, function: Callable[Concatenate[E_contra, P], Any], *, is_command: bool) -> None:
        self.function = function
        self.is_command = is_command

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> Callable[P, Awaitable[R_co]]:
        if instance is None:
            return cast(Callable[P, Awaitable[R_co]], self)
        raise TypeError(
            f"{owner.__name__}.{self.name} is a handler: callers reach it through a client; inside the entity put what handlers share into a plain method"
        )


@overload
def command(function: Callable[Concatenate[E2, P], Coroutine[Any, Any, R2]]) -> Handler[E2, P, R2]: ...
@overload
def command(function: Callable[Concatenate[E2, P], R2]) -> Handler[E2, P, R2]: ...
def command(function: Any) -> Any:
    """A request that may emit events. It is all or nothing, and takes effect exactly once."""
    return Handler[Any, Any, Any](function, is_command=True)


@overload
def query(function: Callable[Concatenate[E2, P], Coroutine[Any, Any, R2]]) -> Handler[E2, P, R2]: ...
@overload
def query(function: Callable[Concatenate[E2, P], R2]) -> Handler[E2, P, R2]: ...
def query(function: Any) -> Any:
    """A request that emits no events. Its answer is linearizable unless the caller asks for a local one."""
    return Handler[Any, Any, Any](function, is_command=False)


@dataclass_transform(kw_only_default=True)
class Rejected(CallError):
    """A business refusal, raised by a handler: typed, returned to the caller, never a failure.

    class OutOfStock(Rejected):
        left: int
    """

    fields: ClassVar[TypeAdapter[dict[str, Any]]] = TypeAdapter(dict[str, Any])

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.fields = _typed_dict(cls, Rejected)

    def __init__(self, **fields: Any) -> None:
        vars(self).update(type(self).fields.validate_python(fields))
        super().__init__(", ".join(f"{name}={value!r}" for name, value in vars(self).items()))


class WrongArguments(BadRequest):
    """The arguments of a call do not fit its handler, which was not begun; callers see the `BadRequest`."""


class Entity:
    """One keyed unit of state and behaviour. Subclass it; declare state as annotated fields with defaults.

    Class argument `version`: raise it when `apply` or the fields change so that old snapshots must not be used (the
    log is replayed instead). `key` is the entity's own key; `now_ms` the log time of the command that is running.
    """

    __slots__ = ("__dict__", "_emitted", "_gone", "_type", "key", "now_ms")

    _state_version: ClassVar[int] = 1
    _described: ClassVar[EntityType | None] = None

    key: str
    now_ms: int
    _emitted: list[bytes] | None
    _gone: bool
    _type: EntityType

    def __init_subclass__(cls, *, version: int = 1, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._state_version = version
        cls._described = None

    @classmethod
    def describe(cls) -> EntityType:
        """What the class declares. Raises `EntityDefinitionError`."""
        if cls._described is None:
            cls._described = _describe(cls)
        return cls._described

    def emit(self, event: Event) -> None:
        """Record a fact and apply it at once. Only inside a command."""
        emitted = self._emitted
        if emitted is None:
            raise TypeError(
                f"{type(self).__name__}.emit was called outside a command: queries and `apply` emit nothing"
            )
        kind = self._type
        if type(event) not in kind.events.classes:
            raise TypeError(
                f"{type(self).__name__}.apply does not declare {type(event).__name__}; it declares {kind.events.names}"
            )
        emitted.append(pack_event(event))
        self._gone = False
        self._emitted = None  # what `apply` emitted a replay would not know; and it stays so if `apply` raises
        kind.apply(self, event)
        kind.check_fields(self)
        self._emitted = emitted

    def delete(self) -> None:
        """Delete the entity: an event like any other. Its next command finds it as new."""
        if self._emitted is None:
            raise TypeError(f"{type(self).__name__}.delete was called outside a command")
        self._emitted.append(pack_event(Deleted()))
        self._gone = True
        self._type.reset(self)


@dataclass(frozen=True, slots=True)
class HandlerType:
    """A handler as the shard needs it. `arguments` checks and converts what came over the wire."""

    name: str
    short: str
    function: Callable[..., Any]
    is_command: bool
    is_async: bool
    arguments: Callable[[ArgsKwargs | list[Any]], tuple[tuple[Any, ...], dict[str, Any]]]
    returns: TypeAdapter[Any] | None

    def arguments_of(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as the handler takes them. Raises `WrongArguments`: what was expected and what came."""
        try:
            return self.arguments(ArgsKwargs(tuple(args), kwargs) if kwargs else args)
        except ValidationError as error:
            raise WrongArguments(f"{self.name}: {_in_one_line(error)}") from error


class EntityType:
    """An entity class taken apart: fields, handlers, events."""

    def __init__(self, cls: type[Entity]) -> None:
        self.cls = cls
        self.name = cls.__name__
        self.state_version = cls._state_version  # pyright: ignore[reportPrivateUsage]
        self.apply: Callable[[Entity, Event], None] = vars(cls).get("apply") or cls.apply  # type: ignore[attr-defined]
        self.events = EventTypes(_event_classes(cls))
        members = inspect.getmembers_static(cls, lambda member: isinstance(member, Handler))
        self.handlers = {name: _handler(cls, member) for name, member in members}
        self.state = _typed_dict(cls, Entity)
        self.defaults = {name: getattr(cls, name) for name in _fields(cls, Entity)}
        self.rejections = {name_of(c): c for c in _subclasses(Rejected)}
        self._plain_defaults = all(type(v) in _IMMUTABLE for v in self.defaults.values())
        self._fields_count = len(self.defaults)

    def new(self, key: str) -> Entity:
        """The entity as nobody has written to it yet."""
        entity = self.cls.__new__(self.cls)
        entity.key = key
        entity.now_ms = 0
        entity._emitted = None  # pyright: ignore[reportPrivateUsage]
        entity._type = self  # pyright: ignore[reportPrivateUsage]
        self.reset(entity)
        entity._gone = False  # pyright: ignore[reportPrivateUsage]
        return entity

    def reset(self, entity: Entity) -> None:
        """All fields to their defaults, each entity with its own copies."""
        state = vars(entity)
        state.clear()
        state.update(self.defaults if self._plain_defaults else copy.deepcopy(self.defaults))

    def restore(self, key: str, state: dict[str, Any]) -> Entity:
        """The entity with this encoded state. Raises `Undecodable`."""
        entity = self.new(key)
        try:
            vars(entity).update(self.state.validator.validate_python(state))
        except ValidationError as error:
            raise Undecodable(f"state of {self.name} {key!r} does not fit the class: {_in_one_line(error)}") from error
        return entity

    def check_fields(self, entity: Entity) -> None:
        """Raises TypeError if `apply` set or deleted attributes so that they are not the fields: they would be lost."""
        if len(entity.__dict__) != self._fields_count:
            wrong = sorted(entity.__dict__.keys() ^ self.defaults.keys())
            raise TypeError(
                f"{self.name}: {wrong} set or deleted, but the state is what has a type and a default in the class"
            )

    def rejection(self, name: str) -> type[Rejected] | None:
        """The class of this name; the one beside the entity if this process knows that module by another name
        (`python shop.py` calls it `__main__`)."""
        return self.rejections.get(name) or self.rejections.get(f"{self.cls.__module__}:{name.partition(':')[2]}")

    @property
    def fingerprint(self) -> list[Any]:
        """What a snapshot's state fits: the class's name, version and fields."""
        try:
            shape: Any = self.state.json_schema()  # reaches into nested models too
        except PydanticInvalidForJsonSchema:
            shape = {name: str(hint) for name, hint in sorted(_fields(self.cls, Entity).items())}
        return [self.name, self.state_version, blake2b(repr(shape).encode(), digest_size=16).digest()]


_IMMUTABLE = {int, str, float, bool, bytes, type(None)}

OF_ENTITY = {"delete", "describe", "emit", "key", "now_ms"}
"""Public attributes of `Entity`: no field and no handler is called like one of them."""

OF_PROXY = {"client", "hosted", "key", "max_staleness", "shard", "timeout"}
"""Attributes of the callers' `Proxy`: no handler is called like one of them."""


def _describe(cls: type[Entity]) -> EntityType:
    try:
        _check(cls)
        return EntityType(cls)
    except (TypeError, NameError, PydanticUserError) as error:
        raise EntityDefinitionError(f"{cls.__name__} cannot be an entity: {error}") from error


def _check(cls: type[Entity]) -> None:
    if not callable(getattr(cls, "apply", None)):
        raise EntityDefinitionError(
            f"{cls.__name__} needs `def apply(self, event: A | B) -> None`, with the union of its events as the type"
        )
    fields = _fields(cls, Entity)
    missing = [name for name in fields if not hasattr(cls, name)]
    if missing:
        raise EntityDefinitionError(f"{cls.__name__}: every field needs a default, these have none: {missing}")
    handlers = {name for name, member in inspect.getmembers_static(cls) if isinstance(member, Handler)}
    taken = sorted(fields.keys() & OF_ENTITY | handlers & (OF_ENTITY | OF_PROXY))
    if taken:
        raise EntityDefinitionError(f"{cls.__name__}: these names mean something else already: {taken}")


def _fields(cls: type, base: type) -> dict[str, Any]:
    """Annotated public fields that subclasses of `base` declare."""
    own = [c for c in cls.__mro__ if issubclass(c, base) and c is not base]
    names = {name for c in own for name in vars(c).get("__annotations__", {}) if not name.startswith("_")}
    hints = get_type_hints(cls, include_extras=True)
    return {name: hints[name] for name in hints if name in names and get_origin(hints[name]) is not ClassVar}


def _typed_dict(cls: type, base: type) -> TypeAdapter[dict[str, Any]]:
    return TypeAdapter(TypedDict(cls.__name__, _fields(cls, base)))  # type: ignore[operator]


def _event_classes(cls: type[Entity]) -> list[type[Event]]:
    hints = get_type_hints(cls.apply)  # type: ignore[attr-defined]
    parameters = list(inspect.signature(cls.apply).parameters)[1:]  # type: ignore[attr-defined]
    declared: Any = hints.get(parameters[0]) if parameters else None
    members: tuple[Any, ...] = get_args(declared) if get_origin(declared) in (Union, types.UnionType) else (declared,)
    wrong: list[Any] = [m for m in members if not (isinstance(m, type) and issubclass(m, Event))]
    if wrong:
        raise EntityDefinitionError(
            f"{cls.__name__}.apply: expected its argument to be typed as one or a union of Events, got {declared!r}"
        )
    return list(members)


def _handler(cls: type[Entity], handler: Handler[Any, Any, Any]) -> HandlerType:
    function = handler.function
    hints = get_type_hints(function, include_extras=True)
    returns = hints.pop("return", None)

    def arguments(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    signature = inspect.signature(function)
    arguments.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    arguments.__annotations__ = hints
    arguments.__name__ = f"{cls.__name__}.{handler.name}"
    return HandlerType(
        arguments.__name__,
        handler.name,
        function,
        handler.is_command,
        inspect.iscoroutinefunction(function),
        checker(arguments),
        None if returns in _IMMUTABLE or returns is Any or returns is None else TypeAdapter(returns),
    )


def checker(function: Any) -> Callable[[ArgsKwargs | list[Any]], Any]:
    """Pydantic's check of a function's arguments (its own types know classes only)."""
    return TypeAdapter(function).validator.validate_python


def name_of(cls: type[Rejected]) -> str:
    """What a refusal is called on the wire and in the log: two entities may both have an `OutOfStock`."""
    return f"{cls.__module__}:{cls.__qualname__}"


def _subclasses(cls: type[Rejected]) -> list[type[Rejected]]:
    return [found for direct in cls.__subclasses__() for found in (direct, *_subclasses(direct))]


def _in_one_line(error: ValidationError) -> str:
    parts = [
        f"{'.'.join(str(p) for p in e['loc']) or 'arguments'}: {e['msg']} (got {e['input']!r:.80})"
        for e in error.errors(include_url=False)
    ]
    return "; ".join(parts)
