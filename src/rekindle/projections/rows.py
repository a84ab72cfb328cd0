"""The rows of one transaction: loaded together, changed by handlers as plain objects, written back together.

SQLAlchemy's models say what a table is, and its types say how values travel; its session, which would follow every row one
by one, has no part in it: a statement for a few hundred rows costs little more than one for a single row.

Invariants:
- A row is loaded once per transaction. It is written once, at the end, if it differs from what was loaded.
- A row keeps the key that it was loaded by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final, TypeVar, cast
from uuid import UUID

from sqlalchemy import ARRAY, Column, Connection, Table, any_, bindparam, inspect, select, tuple_, types
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import InvalidRequestError, NoInspectionAvailable
from sqlalchemy.orm import Mapper

from rekindle.projections.errors import ProjectionError, listed
from rekindle.supervisors import DeclarationError

R = TypeVar("R")

TABLE_CHARS_MAX: Final = 50
"""Of a table's name: PostgreSQL cuts names at 63 bytes, and those of its indexes and of its successor are longer."""

SUCCESSOR: Final = "__new"
"""Added to the names of a table that is to take another one's place, and of its indexes and constraints."""

LOADED_TOGETHER: Final = 500
"""Rows that one query asks for, where each key is a value of its own: SQLite takes 32,766 values."""

_IMMUTABLE: Final = (str, int, float, bytes, Decimal, date, time, timedelta, UUID, Enum)
"""Types of values that can only be replaced. Of all others a copy tells whether a handler has changed them."""


def check_table(name: str, model: type, keyed_by_entity: bool) -> None:
    """Refuse a class that cannot be a read model. Raises `DeclarationError`."""
    try:
        mapper = cast("Mapper[Any]", inspect(model))
        table = _own_table(mapper)
    except (NoInspectionAvailable, InvalidRequestError, AttributeError) as error:
        raise DeclarationError(
            f"projection {name!r}: expected a declarative SQLAlchemy class, got {model!r}"
        ) from error
    if table is None:
        raise DeclarationError(
            f"projection {name!r}: {model.__name__} must have a table of its own, without inheritance"
        )
    whose = f"projection {name!r}: table {table.name!r}"
    if len(table.name) > TABLE_CHARS_MAX:
        raise DeclarationError(
            f"{whose} has a name of {len(table.name)} characters, at most {TABLE_CHARS_MAX} are allowed"
        )
    if marked := [name for name in (table.name, *table.columns.keys()) if SUCCESSOR in name]:
        raise DeclarationError(f"{whose}: {listed(marked)} cannot be a name: {SUCCESSOR!r} marks what is being rebuilt")
    if table.foreign_keys:
        raise DeclarationError(f"{whose} has foreign keys: a table that is swapped for a rebuilt one cannot have them")
    keys = list(table.primary_key.columns)
    if keyed_by_entity and (len(keys) != 1 or _python_type(keys[0]) is not str):
        raise DeclarationError(
            f"{whose} must have one primary key column of type str, the entity's key, or say which row an event belongs to: "
            "key=lambda event, at: ..."
        )
    without = [c.name for c in table.columns if not (c.primary_key or c.nullable or c.computed) and c.default is None]
    if keyed_by_entity and without:
        raise DeclarationError(
            f"{whose}: a row begins with its columns' defaults, and {listed(without)} has none: mapped_column(default=...), "
            "or Mapped[... | None]"
        )


def _own_table(mapper: Mapper[Any]) -> Table | None:
    table: Any = mapper.local_table
    return cast("Table", table) if isinstance(table, Table) and mapper.inherits is None else None


def _python_type(column: Column[Any]) -> type | None:
    try:
        return column.type.python_type
    except NotImplementedError:
        return None


class Shape:
    """A table as rows are moved in and out of it: its columns, the model's attributes for them, its statements.

    table: the one that is written, which is the model's own, or the one that is to take its place.
    """

    def __init__(self, model: type, table: Table, dialect: Dialect) -> None:
        mapper = cast("Mapper[Any]", inspect(model))
        mapper.registry.configure(cascade=True)  # until then a model's attributes are only promised
        self.model = model
        self.table = table
        declared = cast("Table", mapper.local_table)
        own = [(c, mapper.get_property_by_column(c).key) for c in declared.columns if not c.computed]
        self.columns = [table.columns[column.name] for column, _ in own]
        self.attributes = [attribute for _, attribute in own]
        self.keys = [table.columns[column.name] for column in declared.primary_key.columns]
        self.key_attributes = [attribute for column, attribute in own if column.primary_key]
        self.single = self.key_attributes[0] if len(self.key_attributes) == 1 else None
        self._places = [self.attributes.index(attribute) for attribute in self.key_attributes]
        self._new = mapper.class_manager.new_instance
        self._defaults = [(attribute, _default(column)) for column, attribute in own if not column.primary_key]
        self.mutable = not all(issubclass(_python_type(column) or object, _IMMUTABLE) for column in self.columns)
        self._binders = [_binder(column, dialect) for column in self.columns]
        self._converts = any(self._binders)
        self._quote = dialect.identifier_preparer
        # PostgreSQL takes a column of values as one array; an array of arrays it would take apart.
        self._arrays = dialect.name == "postgresql" and not any(isinstance(c.type, types.ARRAY) for c in self.columns)
        mark = "?" if dialect.paramstyle == "qmark" else "%s"
        self._upsert_one = self._upsert(f"VALUES ({', '.join([mark] * len(self.columns))})")
        arrays = ", ".join(f"%s::{_element_type(column, dialect)}[]" for column in self.columns)
        self._upsert_arrays = self._upsert(f"SELECT * FROM unnest({arrays})")

    def key_of(self, values: Sequence[Any]) -> Any:
        """The key of a row as it is loaded."""
        places = self._places
        return values[places[0]] if len(places) == 1 else tuple(values[place] for place in places)

    def new(self, key: Any) -> Any:
        """A row with this key and the columns' defaults."""
        row = self._new()
        values = row.__dict__
        if self.single is not None:
            values[self.single] = key
        else:
            values.update(zip(self.key_attributes, key, strict=True))
        for attribute, default in self._defaults:
            values[attribute] = default() if callable(default) else default
        return row

    def complete(self, row: Any) -> None:
        """Give a row that a handler has made the defaults that it lacks."""
        values = row.__dict__
        for attribute, default in self._defaults:
            if attribute not in values:
                values[attribute] = default() if callable(default) else default

    def loaded(self, values: Sequence[Any]) -> Any:
        """A row from a query's result."""
        row = self._new()
        row.__dict__.update(zip(self.attributes, values, strict=True))
        return row

    def values_of(self, row: Any) -> tuple[Any, ...]:
        """A row's values, in the order of the columns."""
        get = row.__dict__.get
        return tuple([get(attribute) for attribute in self.attributes])

    def select(self, connection: Connection, keys: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """The rows with these keys, each as its values."""
        if self._arrays and self.single is not None and _alike(keys):
            wanted = bindparam("keys", list(keys), type_=ARRAY(self.keys[0].type))
            yield from connection.execute(select(*self.columns).where(self.keys[0] == any_(wanted)))
            return
        for start in range(0, len(keys), LOADED_TOGETHER):
            chunk = keys[start : start + LOADED_TOGETHER]
            among = self.keys[0] if self.single is not None else tuple_(*self.keys)
            yield from connection.execute(select(*self.columns).where(among.in_(chunk)))

    def upsert(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write rows, whether they are there or not."""
        rows = [self._bound(row) for row in rows] if self._converts else rows
        if self._arrays and all(map(_alike, columns := list(zip(*rows, strict=True)))):
            connection.exec_driver_sql(self._upsert_arrays, tuple(map(list, columns)))
        else:
            connection.exec_driver_sql(self._upsert_one, list(rows))

    def _bound(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """The values as the driver takes them."""
        pairs = zip(self._binders, row, strict=True)
        return tuple([value if bind is None or value is None else bind(value) for bind, value in pairs])

    def _upsert(self, source: str) -> str:
        quote = self._quote.quote
        names = [quote(column.name) for column in self.columns]
        others = [quote(column.name) for column in self.columns if not column.primary_key]
        keys = ", ".join(quote(column.name) for column in self.keys)
        change = "UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in others) if others else "NOTHING"
        into = f"INSERT INTO {self._quote.format_table(self.table)} ({', '.join(names)})"
        return f"{into} {source} ON CONFLICT ({keys}) DO {change}"

    def delete(self, connection: Connection, keys: Sequence[Any]) -> None:
        """Delete the rows with these keys."""
        for start in range(0, len(keys), LOADED_TOGETHER):
            chunk = keys[start : start + LOADED_TOGETHER]
            among = self.keys[0] if self.single is not None else tuple_(*self.keys)
            connection.execute(self.table.delete().where(among.in_(chunk)))


def _element_type(column: Column[Any], dialect: Dialect) -> str:
    """What PostgreSQL is told that an array of such values consists of: text without its length, because a cast to a shorter one
    cuts it in silence, where an INSERT refuses it."""
    name = column.type.compile(dialect)
    return "TEXT" if name.upper().startswith(("VARCHAR", "CHAR")) else name


def _alike(values: Sequence[Any]) -> bool:
    """Whether values are of one type, but for those that are None: only then do they fit into one array."""
    found = set(map(type, values))
    found.discard(type(None))
    return len(found) <= 1


def _default(column: Column[Any]) -> Any:
    """A value, or what makes one."""
    default: Any = column.default
    if default is None:
        return None
    if default.is_callable:
        return lambda: default.arg(None)
    if not default.is_scalar:
        raise DeclarationError(f"column {column}: expected a default that Python can make, got {default!r}")
    return default.arg


def _binder(column: Column[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    found: Any = column.type.dialect_impl(dialect).bind_processor(dialect)
    return cast("Callable[[Any], Any] | None", found)


class _Held:
    """The rows of one table that a transaction has met. None: it is known that there is none."""

    __slots__ = ("before", "rows", "shape")

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.rows: dict[Any, Any] = {}
        self.before: dict[Any, tuple[Any, ...]] = {}


class Rows:
    """What a handler of a `Projection` gets at its tables with."""

    def __init__(self, connection: Connection, shapes: Iterable[Shape]) -> None:
        self._connection = connection
        self._held = {shape.model: _Held(shape) for shape in shapes}
        self._undo: dict[tuple[type, Any], Any] | None = None

    def get(self, table: type[R], *key: Any) -> R | None:
        """The row with this key, if there is one. What is changed in it is written."""
        held = self._of(table)
        at: Any = key[0] if len(key) == 1 else key
        if at not in held.rows:
            self._load(held, [at])
        row = held.rows[at]
        if self._undo is not None:
            self._keep(held, at, row)
        return cast("R | None", row)

    def at(self, table: type[R], *key: Any) -> R:
        """The row with this key; if there is none, a new one with the columns' defaults."""
        row = self.get(table, *key)
        if row is None:
            held = self._of(table)
            at: Any = key[0] if len(key) == 1 else key
            row = held.rows[at] = held.shape.new(at)
        return cast(R, row)

    def put(self, row: object) -> None:
        """Add a row that was made with its class, in place of the one with the same key, if there is one."""
        held = self._of(type(row))
        key = held.shape.key_of(held.shape.values_of(row))
        self.get(type(row), *(key if isinstance(key, tuple) and held.shape.single is None else (key,)))
        held.shape.complete(row)
        held.rows[key] = row

    def drop(self, table: type, *key: Any) -> None:
        """Delete the row with this key, if there is one."""
        self.get(table, *key)
        self._of(table).rows[key[0] if len(key) == 1 else key] = None

    def _of(self, table: type) -> _Held:
        held = self._held.get(table)
        if held is None:
            raise ProjectionError(
                f"{table.__name__} is none of this projection's tables: {listed([t.__name__ for t in self._held])}"
            )
        return held

    # --- for whoever runs the transaction ---

    def load(self, touched: Iterable[tuple[type, Any]]) -> None:
        """Load rows before they are asked for."""
        wanted: dict[type, dict[Any, None]] = {}
        for table, key in touched:
            wanted.setdefault(table, {})[key] = None
        for table, keys in wanted.items():
            held = self._of(table)
            self._load(held, [key for key in keys if key not in held.rows])

    def _load(self, held: _Held, keys: list[Any]) -> None:
        held.rows.update(dict.fromkeys(keys))
        for found in held.shape.select(self._connection, keys):
            values = tuple(found)
            key = held.shape.key_of(values)
            held.rows[key] = held.shape.loaded(values)
            held.before[key] = deepcopy(values) if held.shape.mutable else values

    def begin_undoable(self) -> None:
        """From here on remember rows as they are when they are first met, until `keep` or `undo`."""
        self._undo = {}

    def keep(self) -> None:
        """What was changed since `begin_undoable` stays."""
        self._undo = None

    def undo(self) -> None:
        """Rows are as they were at `begin_undoable`."""
        assert self._undo is not None, "there is nothing that could be undone"
        for (table, key), values in self._undo.items():
            held = self._held[table]
            held.rows[key] = None if values is None else held.shape.loaded(values)
        self._undo = None

    def _keep(self, held: _Held, key: Any, row: Any) -> None:
        assert self._undo is not None, "only called while something is to be undone"
        if (held.shape.model, key) not in self._undo:
            values = None if row is None else deepcopy(held.shape.values_of(row))
            self._undo[held.shape.model, key] = values

    def flush(self) -> None:
        """Write what was changed."""
        for held in self._held.values():
            changed: list[tuple[Any, ...]] = []
            gone: list[Any] = []
            for key, row in held.rows.items():
                before = held.before.get(key)
                if row is None:
                    if before is not None:
                        gone.append(key)
                    continue
                values = held.shape.values_of(row)
                if held.shape.key_of(values) != key:
                    raise ProjectionError(
                        f"a handler changed the key of a row of {held.shape.table.name} from {key!r} to {held.shape.key_of(values)!r}"
                    )
                if values != before:
                    changed.append(values)
            if gone:
                held.shape.delete(self._connection, gone)
            if changed:
                held.shape.upsert(self._connection, changed)
