"""Projections as users write them: what becomes of an event in a table.

    class StockRow(Base):                                   # SQLAlchemy 2, declarative
        __tablename__ = "stock"
        sku: Mapped[str] = mapped_column(primary_key=True)
        on_hand: Mapped[int] = mapped_column(default=0)

    @projection(StockRow, of=Stock)
    def stock(event: Received | Reserved, row: StockRow) -> None:
        match event:
            case Received(qty=qty):
                row.on_hand += qty
            case Reserved(qty=qty):
                row.on_hand -= qty

The row is that of the event's entity: loaded, or new with its columns' defaults. Which events a handler takes is the type
of its first argument, one or a union; all others of the entity pass it by. A third argument, `at: At`, says where the event
lies. An entity that is deleted takes its row with it, unless the handler takes `Deleted` itself; `return DROP` deletes the
row, too. With `key=lambda event, at: ...` it is the row with that key instead (None: no row).

For several tables, or several services:

    class Delays(Projection):
        tables = (FlightRow, AirportRow)
        of = (Flight, Airport)

        def on_departed(self, event: Departed, rows: Rows, at: At) -> None:
            rows.at(FlightRow, at.key).delay = event.delay

Every method called `on_...` is a handler, of the events that its first argument is typed as; each event has one.

What a handler may count on: it is called once per event, in the order of the shard; between shards there is no order. What it
must not do: anything but change rows. It may be called again, on rows as they were, when a transaction is rolled back.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import (
    Any,
    Final,
    Generic,
    NamedTuple,
    Protocol,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from sqlalchemy import Table
from sqlalchemy.orm import DeclarativeBase

from rekindle.actors import Entity
from rekindle.events import Deleted, Event
from rekindle.projections.errors import listed
from rekindle.projections.rows import Rows, check_table
from rekindle.supervisors import DeclarationError

R = TypeVar("R")
E = TypeVar("E", bound=Event)
E_contra = TypeVar("E_contra", bound=Event, contravariant=True)
R_contra = TypeVar("R_contra", contravariant=True)

NAME_CHARS_MAX: Final = 100
HANDLER_PREFIX: Final = "on_"


class OnPoison(Enum):
    """What becomes of an event that a handler cannot take.

    STOP: the projection stands still before it and says so. PARK: the event is kept in `rk_parked`, with the error, and the
    projection goes on without it.
    """

    STOP = "stop"
    PARK = "park"


STOP: Final = OnPoison.STOP
PARK: Final = OnPoison.PARK


class Drop(Enum):
    """What a handler returns to have its row deleted."""

    DROP = "drop"


DROP: Final = Drop.DROP


class At(NamedTuple):
    """Where an event lies.

    key: of its entity. sequence, offset: of its commit; it is the event with this index there. time_ms: the log time.
    """

    service: str
    key: str
    shard: int
    offset: int
    sequence: int
    time_ms: int
    index: int  # type: ignore[assignment]  # the word for it; nobody asks where in the tuple an item is


Key = Any
"""Of a row: the value of its primary key, or a tuple of them where it has several columns."""


class Declared(Protocol):
    """A projection, whichever way it is declared.

    takes: for each entity, the events that a handler is there for. touches: the rows that an event will want, as far as that
    can be told before: they are loaded together.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def tables(self) -> Sequence[type]: ...
    @property
    def takes(self) -> dict[type[Entity], frozenset[type[Event]]]: ...
    @property
    def on_poison(self) -> OnPoison: ...

    def touches(self, event: Event, at: At, /) -> Iterable[tuple[type, Key]]: ...
    def handle(self, event: Event, rows: Rows, at: At, /) -> None: ...


# --- one function, one table ---


class RowHandler(Protocol[E_contra, R_contra]):
    """A handler that needs the event and the row."""

    def __call__(self, event: E_contra, row: R_contra, /) -> Drop | None: ...


class PlacedHandler(Protocol[E_contra, R_contra]):
    """A handler that also needs to know where the event lies."""

    def __call__(self, event: E_contra, row: R_contra, at: At, /) -> Drop | None: ...


@dataclass(frozen=True, eq=False)
class TableProjection(Generic[E, R]):
    """A function that folds an entity's events into the rows of a table. It can still be called as the function that it is."""

    function: Callable[..., Drop | None]
    table: type[R]
    entity: type[Entity]
    name: str
    version: int
    on_poison: OnPoison
    events: frozenset[type[Event]]
    key: Callable[[Any, At], Key] | None
    placed: bool

    def __call__(self, event: E, row: R, at: At | None = None) -> Drop | None:
        """Call the function."""
        return self.function(event, row, at) if self.placed else self.function(event, row)

    @property
    def tables(self) -> Sequence[type]:
        """See `Declared`."""
        return (self.table,)

    @property
    def takes(self) -> dict[type[Entity], frozenset[type[Event]]]:
        """See `Declared`."""
        return {self.entity: self.events if self.key else self.events | {Deleted}}

    def touches(self, event: Event, at: At, /) -> Iterable[tuple[type, Key]]:
        """See `Declared`."""
        key = at.key if self.key is None else self.key(event, at)
        return () if key is None else ((self.table, key),)

    def handle(self, event: Event, rows: Rows, at: At, /) -> None:
        """See `Declared`."""
        key = at.key if self.key is None else self.key(event, at)
        if key is None:
            return
        if type(event) is Deleted and Deleted not in self.events:
            rows.drop(self.table, key)
            return
        row = rows.at(self.table, key)
        outcome = self.function(event, row, at) if self.placed else self.function(event, row)
        if outcome is DROP:
            rows.drop(self.table, key)


class _Declaring(Generic[R]):
    """`@projection(...)`, waiting for its function."""

    def __init__(self, table: type[R], entity: type[Entity], settings: dict[str, Any]) -> None:
        self._table = table
        self._entity = entity
        self._settings = settings

    @overload
    def __call__(self, function: RowHandler[E, R]) -> TableProjection[E, R]: ...
    @overload
    def __call__(self, function: PlacedHandler[E, R]) -> TableProjection[E, R]: ...
    def __call__(self, function: Any) -> Any:
        name, settings = self._settings["name"] or function.__name__, self._settings
        _check_name(name, settings["version"])
        parameters = list(inspect.signature(function).parameters)
        if len(parameters) not in (2, 3):
            raise DeclarationError(
                f"projection {name!r}: expected a function of (event, row) or (event, row, at), got {parameters}"
            )
        events = _events_of(name, function, parameters[0], [self._entity])
        check_table(name, self._table, settings["key"] is None)
        return TableProjection[Any, R](
            function,
            self._table,
            self._entity,
            name,
            settings["version"],
            settings["on_poison"],
            events,
            settings["key"],
            len(parameters) == 3,
        )


def projection(
    table: type[R],
    *,
    of: type[Entity],
    name: str | None = None,
    version: int = 1,
    key: Callable[[Any, At], Key] | None = None,
    on_poison: OnPoison = STOP,
) -> _Declaring[R]:
    """Declare that a function folds the events of an entity into a table.

    name: default the function's. version: raise it when the function changes what it makes of old events: the tables then
    have to be rebuilt. key: which row an event belongs to, where that is not its entity's. Raises `DeclarationError`.
    """
    return _Declaring(table, of, {"name": name, "version": version, "key": key, "on_poison": on_poison})


# --- a class, several tables ---


class Projection:
    """Folds the events of some entities into some tables. Subclass it: see the head of this module.

    name: default the class's. version, on_poison: as of `projection`. Override `touches` to have the rows that an event will
    want loaded with those of its whole batch, in one query instead of one by one.
    """

    name: str
    tables: Sequence[type]
    of: Sequence[type[Entity]]
    version: int = 1
    on_poison: OnPoison = STOP

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = cls.__name__

    def __init__(self) -> None:
        cls, name = type(self), self.name
        _check_name(name, cls.version)
        tables, entities = getattr(cls, "tables", ()), getattr(cls, "of", ())
        if not tables or not entities:
            raise DeclarationError(f"projection {name!r}: expected `tables` and `of`, each with one class or more")
        for table in tables:
            check_table(name, table, False)
        self._handlers = self._find_handlers(name, list(entities))
        taken = frozenset(self._handlers)
        self._takes = {entity: taken & entity.describe().events.classes for entity in entities}

    def _find_handlers(
        self, name: str, entities: list[type[Entity]]
    ) -> dict[type[Event], Callable[[Event, Rows, At], None]]:
        found: dict[type[Event], Callable[[Event, Rows, At], None]] = {}
        for attribute, _ in inspect.getmembers_static(type(self), inspect.isfunction):
            if not attribute.startswith(HANDLER_PREFIX) or attribute == "on_poison":
                continue
            method = getattr(self, attribute)
            parameters = list(inspect.signature(method).parameters)
            if len(parameters) != 3:
                raise DeclarationError(
                    f"projection {name!r}: expected {attribute}(self, event, rows, at), got {parameters}"
                )
            for event in _events_of(name, method, parameters[0], entities):
                if event in found:
                    raise DeclarationError(
                        f"projection {name!r}: {event.__name__} has two handlers, one is {attribute}"
                    )
                found[event] = method
        if not found:
            raise DeclarationError(f"projection {name!r}: expected methods called {HANDLER_PREFIX}..., there is none")
        return found

    @property
    def takes(self) -> dict[type[Entity], frozenset[type[Event]]]:
        """See `Declared`."""
        return self._takes

    def touches(self, event: Event, at: At, /) -> Iterable[tuple[type, Key]]:
        """The rows that an event will want, as (table, key)."""
        return ()

    def handle(self, event: Event, rows: Rows, at: At, /) -> None:
        """See `Declared`."""
        self._handlers[type(event)](event, rows, at)


# --- checks ---


def _check_name(name: str, version: int) -> None:
    letters = name.replace("-", "").replace("_", "")
    if not (name.isascii() and letters.isalnum() and len(name) <= NAME_CHARS_MAX):
        raise DeclarationError(
            f"a projection's name has ASCII letters, digits, - and _, at most {NAME_CHARS_MAX}; got {name!r}"
        )
    if version < 1:
        raise DeclarationError(f"projection {name!r}: version must be at least 1, got {version}")


def _events_of(
    name: str, function: Callable[..., Any], parameter: str, entities: Sequence[type[Entity]]
) -> frozenset[type[Event]]:
    """The events that a handler's first argument is typed as. Raises `DeclarationError`."""
    try:
        declared = get_type_hints(function).get(parameter)
    except NameError as error:
        raise DeclarationError(
            f"projection {name!r}: the types of {function.__name__} cannot be resolved: {error}"
        ) from error
    known = {event for entity in entities for event in entity.describe().events.classes}
    if declared is Event:
        return frozenset(known - {Deleted})
    members: tuple[Any, ...] = get_args(declared) if get_origin(declared) in (Union, types.UnionType) else (declared,)
    wrong: list[Any] = [member for member in members if not (isinstance(member, type) and issubclass(member, Event))]
    if wrong:
        raise DeclarationError(
            f"projection {name!r}: expected the first argument of {function.__name__} to be typed as one or a union of "
            f"Events, got {declared!r}"
        )
    if foreign := sorted(member.__name__ for member in members if member not in known):
        names = listed([entity.__name__ for entity in entities])
        raise DeclarationError(f"projection {name!r}: {listed(foreign)} of {function.__name__} is no event of {names}")
    return frozenset(cast("tuple[type[Event], ...]", members))


def tables_of(declared: Declared) -> dict[type, Table]:
    """The tables of a projection, as they are declared."""
    return {model: cast("type[DeclarativeBase]", model).__table__ for model in declared.tables}  # type: ignore[misc]
