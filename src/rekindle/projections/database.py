"""A database for read models: one address, one thread, and what its errors mean to a projector.

    sqlite:///path, or just a path         the default: a file, in WAL mode, on one node
    postgresql://user@host:port/name       PostgreSQL, by psycopg

Everything here blocks, and is therefore done in the database's own thread: `await database.call(work, ...)`.

Invariants:
- A transaction that writes holds a lock that excludes others of the same projection (SQLite: all others) from its first
  statement on, so what it reads does not change until it commits.
- Nobody who is stopped in the middle of a transaction keeps others out for ever: PostgreSQL ends it after
  `IDLE_MAX_S`. SQLite cannot; its others wait, each no longer than `LOCK_MAX_S` at a time, until the stopped one goes on or dies.
"""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import sqlite3
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError

from rekindle.projections import books
from rekindle.projections.errors import DatabaseAway, DatabaseRefused, DataRefused, OneNodeOnly, one_line
from rekindle.supervisors import DeclarationError

P = ParamSpec("P")
T = TypeVar("T")

CONNECT_MAX_S: Final = 5
LOCK_MAX_S: Final = 5
"""How long a statement waits for somebody else's lock, before its transaction is tried again from the start."""

IDLE_MAX_S: Final = 5
"""How long PostgreSQL keeps a transaction open in which nothing is said: its client was stopped, or its machine is gone."""

SILENT_MAX_S: Final = 15
"""After how long a server that acknowledges nothing is taken for gone."""

SETUP_LOCK: Final = 0x72656B696E646C65
"""PostgreSQL's advisory lock for changes of tables: two that create the same one would fail each other."""

_SQLITE_AWAY: Final = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN}
)
_POSTGRES_REFUSED: Final = ("42", "28", "3D", "3F")
"""Classes of SQLSTATE: syntax or access rule, authorisation, no such database, no such schema."""

_POSTGRES_READ_ONLY: Final = "25"
"""Class of SQLSTATE: the transaction cannot do that; on a server that is becoming, or is no more, the one to write to."""


def url_of(address: str) -> URL:
    """The address as SQLAlchemy takes it. Raises `DeclarationError`."""
    if "://" not in address:
        return URL.create("sqlite", database=address)
    try:
        url = make_url(address)
    except ArgumentError as error:
        raise DeclarationError(f"expected a database as postgresql://... or a path, got {address!r}") from error
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        if importlib.util.find_spec("psycopg") is None:
            raise DeclarationError("PostgreSQL needs psycopg: pip install 'rekindle[postgres]'")
        return url.set(drivername="postgresql+psycopg")
    if url.drivername == "sqlite" and url.database:
        return url
    raise DeclarationError(f"expected a database as postgresql://... or sqlite:///path, got {address!r}")


class Database:
    """A database that is written from one thread. node: this machine's name, as it is kept in a SQLite file."""

    def __init__(self, address: str, *, node: str | None = None) -> None:
        self.url = url_of(address)
        self.node = node or socket.gethostname()
        self.is_sqlite = self.url.drivername == "sqlite"
        self.engine: Engine = self._engine()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read models")

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    async def call(self, work: Callable[Concatenate[Database, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something with the database in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(self, *args, **kwargs))

    def prepare(self) -> None:
        """Make what is kept beside the read models, if it is not there. Raises `OneNodeOnly`, `DatabaseAway`, ..."""
        if self.is_sqlite and self.url.database:
            Path(self.url.database).absolute().parent.mkdir(parents=True, exist_ok=True)
        with self.transaction() as connection:
            self.lock_setup(connection)
            books.create(connection)
            if self.is_sqlite:
                owner = books.meta(connection, "node", self.node)
                if owner != self.node:
                    raise OneNodeOnly(str(self.url.database), owner, self.node)

    def close(self) -> None:
        """Let go of the connections. What runs in the thread is waited for."""
        self._thread.shutdown(wait=True)
        self.engine.dispose()

    @contextmanager
    def transaction(self, *, write: bool = True) -> Generator[Connection]:
        """All of it or nothing. write: it may write; one that does not keeps nobody waiting.

        Raises `DatabaseAway` (then it may have been committed), `DatabaseRefused`, `DataRefused`.
        """
        try:
            with self.engine.connect().execution_options(rekindle_write=write) as connection, connection.begin():
                yield connection
        except SQLAlchemyError as error:
            raise self.translated(error) from error

    def lock_setup(self, connection: Connection) -> None:
        """Keep others from creating, registering or swapping tables until this transaction ends."""
        if not self.is_sqlite:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({SETUP_LOCK})")

    def translated(self, error: SQLAlchemyError) -> DatabaseAway | DatabaseRefused:
        """What an error means to a projector."""
        text = f"{self}: {one_line(getattr(error, 'orig', None) or error)}"
        if not isinstance(error, DBAPIError):
            return DatabaseRefused(text)
        if error.connection_invalidated:
            return DatabaseAway(text)
        return (_sqlite_error(error) if self.is_sqlite else _postgres_error(error))(text)

    def _engine(self) -> Engine:
        if self.is_sqlite:
            engine = create_engine(
                self.url, connect_args={"timeout": LOCK_MAX_S, "check_same_thread": False}, pool_size=1
            )
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        settings = {"lock_timeout": LOCK_MAX_S, "idle_in_transaction_session_timeout": IDLE_MAX_S}
        return create_engine(
            self.url,
            pool_size=1,
            connect_args={
                "connect_timeout": CONNECT_MAX_S,
                "tcp_user_timeout": SILENT_MAX_S * 1000,
                "keepalives_idle": SILENT_MAX_S,
                "options": " ".join(f"-c {name}={seconds}s" for name, seconds in settings.items()),
            },
        )


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # transactions begin where we say: `_begin_sqlite`
    connection.execute("PRAGMA journal_mode = WAL")
    # A power cut may take the last transactions with it, rows and positions together: the log still has the events.
    connection.execute("PRAGMA synchronous = NORMAL")


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("rekindle_write", True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _sqlite_error(error: DBAPIError) -> type[DatabaseAway | DatabaseRefused]:
    code: int | None = getattr(error.orig, "sqlite_errorcode", None)
    if isinstance(error, IntegrityError) or code is None:  # no code: Python's own driver cannot bind a value
        return DataRefused
    return DatabaseAway if code & 0xFF in _SQLITE_AWAY else DatabaseRefused


def _postgres_error(error: DBAPIError) -> type[DatabaseAway | DatabaseRefused]:
    state: str | None = getattr(error.orig, "sqlstate", None)
    if isinstance(error, (OperationalError, InterfaceError)):
        return DatabaseRefused if (state or "").startswith(_POSTGRES_REFUSED) else DatabaseAway
    if state is None or state.startswith(
        ("22", "23")
    ):  # data exception, constraint; none: psycopg cannot adapt a value
        return DataRefused
    return DatabaseAway if state.startswith(_POSTGRES_READ_ONLY) else DatabaseRefused
