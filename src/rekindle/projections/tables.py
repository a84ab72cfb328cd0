"""A projection's tables as a whole: made, told apart from other versions, built anew beside themselves, swapped.

Invariant: a swap happens in one transaction, of tables and positions together. Before it everybody sees the old rows, after it
the new ones; who dies in the middle of a rebuild leaves the old ones, and a half-built successor that the next one drops.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final, cast

from sqlalchemy import Connection, MetaData, Table, func, select
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase

from rekindle.projections import books
from rekindle.projections.database import Database
from rekindle.projections.errors import DatabaseRefused, RebuildNeeded
from rekindle.projections.reading import Position
from rekindle.projections.rows import SUCCESSOR, Shape
from rekindle.projections.writing import Bound, Writer

SHAPE_BYTES: Final = 16

Positions = dict[tuple[str, int], Position]
"""By service and shard."""


def successor_name(name: str) -> str:
    """Under which a projection is kept while it is rebuilt. No projection of a user's can be called that."""
    return f"{name}:rebuild"


def table_of(model: type) -> Table:
    """The table of a declarative class."""
    return cast("Table", cast("type[DeclarativeBase]", model).__table__)


def shape_of(bound: Bound, dialect: Dialect) -> str:
    """What tells a projection's tables, and what it reads, from others: other columns or services are another shape."""
    tables = [
        (
            table.fullname,
            [(c.name, c.type.compile(dialect), c.primary_key, c.nullable) for c in table.columns],
        )
        for table in map(table_of, bound.declared.tables)
    ]
    services = sorted((hosted.app, hosted.name, hosted.shards) for hosted in bound.services)
    return blake2b(repr((tables, services)).encode(), digest_size=SHAPE_BYTES).hexdigest()


def open_projection(database: Database, bound: Bound, now_ms: Any) -> tuple[Writer, Positions]:
    """A projection's writer, and where it is to go on; its tables are made if it is new here.

    Raises `RebuildNeeded`, `DatabaseRefused`, `DatabaseAway`.
    """
    database.prepare()
    name, version = bound.name, bound.declared.version
    shape = shape_of(bound, database.engine.dialect)
    tables = [table_of(model) for model in bound.declared.tables]
    with database.transaction() as connection:
        database.lock_setup(connection)
        known = books.standing(connection, name)
        if known is None:
            _create(connection, tables)
            _require_empty(connection, name, tables)
            books.enter(connection, name, version, shape, books.RUNNING, now_ms())
            books.enter_positions(connection, name, [(hosted.name, shard) for hosted, shard in bound.shards()])
        elif known.version != version:
            raise RebuildNeeded(name, f"its tables are of version {known.version}, this build makes version {version}")
        elif known.shape != shape:
            raise RebuildNeeded(name, "its tables have other columns, or it reads other services, than this build's")
        else:
            books.say(connection, name, books.RUNNING, "", now_ms())
        positions = books.positions(connection, name)
    shapes = _shapes(bound, tables, database.engine.dialect)
    return Writer(database, bound, name, shape, shapes, known.generation if known else 0, now_ms), positions


def open_successor(database: Database, bound: Bound, now_ms: Any) -> tuple[Writer, Positions]:
    """A writer for new tables beside those of a projection, from the start of the log. An earlier successor is dropped."""
    database.prepare()
    name, version = successor_name(bound.name), bound.declared.version
    shape = shape_of(bound, database.engine.dialect)
    tables = [_successor_of(table_of(model), database.is_sqlite) for model in bound.declared.tables]
    with database.transaction() as connection:
        database.lock_setup(connection)
        books.forget(connection, name)
        for table in tables:
            _drop(connection, table)
        _create(connection, tables)
        books.enter(connection, name, version, shape, books.REBUILDING, now_ms())
        books.enter_positions(connection, name, [(hosted.name, shard) for hosted, shard in bound.shards()])
        positions = books.positions(connection, name)
    shapes = _shapes(bound, tables, database.engine.dialect)
    return Writer(database, bound, name, shape, shapes, 0, now_ms), positions


def take_place(connection: Connection, bound: Bound, now_ms: int) -> None:
    """The successor's tables and positions become the projection's, in a transaction that somebody else commits."""
    for model in bound.declared.tables:
        table = table_of(model)
        successor = _successor_of(table, connection.dialect.name == "sqlite")
        grants = _grants(connection, table)
        _drop(connection, table)
        quote = connection.dialect.identifier_preparer
        connection.exec_driver_sql(f"ALTER TABLE {quote.format_table(successor)} RENAME TO {quote.quote(table.name)}")
        if connection.dialect.name == "sqlite":
            _rename_sqlite_indexes(connection, table)
        else:
            _rename_postgres_indexes(connection, table)
        for grant in grants:
            connection.exec_driver_sql(grant)
    books.succeed(connection, bound.name, successor_name(bound.name), now_ms)


def _shapes(bound: Bound, tables: Sequence[Table], dialect: Dialect) -> list[Shape]:
    return [Shape(model, table, dialect) for model, table in zip(bound.declared.tables, tables, strict=True)]


def _create(connection: Connection, tables: Sequence[Table]) -> None:
    for table in tables:
        table.create(connection, checkfirst=True)


def _require_empty(connection: Connection, name: str, tables: Sequence[Table]) -> None:
    """A table that is there and holds rows is somebody else's, or was filled by a projection that nothing is known of."""
    for table in tables:
        if (found := connection.execute(select(func.count()).select_from(table)).scalar_one()) > 0:
            raise DatabaseRefused(
                f"projection {name!r} is new in this database, but its table {table.fullname!r} has {found} rows already: "
                f"drop it, or build it anew in its place: rekindle projection rebuild {name}"
            )


def _drop(connection: Connection, table: Table) -> None:
    # Not `Table.drop`: that would take types with it that the other one still uses.
    connection.exec_driver_sql(f"DROP TABLE IF EXISTS {connection.dialect.identifier_preparer.format_table(table)}")


def _successor_of(table: Table, is_sqlite: bool) -> Table:
    """The same table under another name. Names of indexes are unique per database, in PostgreSQL those of constraints, too."""
    successor = table.to_metadata(
        MetaData(naming_convention=table.metadata.naming_convention), name=f"{table.name}{SUCCESSOR}"
    )
    named: list[Any] = [*successor.indexes, *(() if is_sqlite else successor.constraints)]
    for part in named:
        if isinstance(part.name, str) and SUCCESSOR not in part.name:
            part.name = f"{part.name}{SUCCESSOR}"
    return successor


def _rename_sqlite_indexes(connection: Connection, table: Table) -> None:
    """SQLite cannot rename an index: it is made again."""
    found = connection.exec_driver_sql(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = ? AND sql IS NOT NULL", (table.name,)
    ).all()
    for name, statement in found:
        if SUCCESSOR in name:
            connection.exec_driver_sql(f"DROP INDEX {connection.dialect.identifier_preparer.quote(name)}")
            connection.exec_driver_sql(statement.replace(SUCCESSOR, ""))


def _rename_postgres_indexes(connection: Connection, table: Table) -> None:
    """Constraints first: their indexes are renamed with them."""
    quote = connection.dialect.identifier_preparer
    where = quote.format_table(table)
    constraints = "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass"
    for (name,) in connection.exec_driver_sql(constraints, (where,)).all():
        if SUCCESSOR in name:
            to = quote.quote(name.replace(SUCCESSOR, ""))
            connection.exec_driver_sql(f"ALTER TABLE {where} RENAME CONSTRAINT {quote.quote(name)} TO {to}")
    indexes = (
        "SELECT n.nspname, c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE i.indrelid = %s::regclass"
    )
    for schema, name in connection.exec_driver_sql(indexes, (where,)).all():
        if SUCCESSOR in name:
            to = quote.quote(name.replace(SUCCESSOR, ""))
            connection.exec_driver_sql(f"ALTER INDEX {quote.quote(schema)}.{quote.quote(name)} RENAME TO {to}")


def _grants(connection: Connection, table: Table) -> list[str]:
    """What others may do with a PostgreSQL table, as statements: its successor has to allow the same."""
    if connection.dialect.name == "sqlite":
        return []
    quote = connection.dialect.identifier_preparer
    where = quote.format_table(table)
    if connection.exec_driver_sql("SELECT to_regclass(%s)", (where,)).scalar() is None:
        return []
    found = connection.exec_driver_sql(
        "SELECT a.privilege_type, a.is_grantable, r.rolname FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a "
        "LEFT JOIN pg_roles r ON r.oid = a.grantee WHERE c.oid = %s::regclass AND a.grantee <> c.relowner",
        (where,),
    ).all()
    return [
        f"GRANT {privilege} ON {where} TO {'PUBLIC' if role is None else quote.quote(role)}"
        + (" WITH GRANT OPTION" if grantable else "")
        for privilege, grantable, role in found
    ]
