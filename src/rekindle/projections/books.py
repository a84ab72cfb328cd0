"""What is kept beside the read models, in the same database: who stands where. Anybody may query it.

    rk_projection    one row per projection: version, state, rate, lag, error
    rk_position      one row per projection and shard: how far it is read; `next_offset` is the next record
    rk_parked        events that a handler could not take, where the projection parks such
    rk_meta          the format of these tables, and for SQLite the node that they belong to

    SELECT name, state, lag_events, lag_seconds, error FROM rk_projection;

Invariant: a row of rk_position moves in the transaction that changes the rows, from where its projector has left it
(`move`), and from nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    select,
)

from rekindle.projections.errors import DatabaseRefused
from rekindle.projections.reading import START, Position, Share

FORMAT: Final = "1"
"""Of these tables."""

MOVED_TOGETHER: Final = 500
"""Positions that one statement moves."""

RUNNING: Final = "running"
STOPPED: Final = "stopped"
ENDED: Final = "ended"
REBUILDING: Final = "rebuilding"
"""States: it is fed; it stands still until somebody does something, see `error`; it was asked to end; it is a successor
that is being built."""

_metadata: Final = MetaData()

META: Final = Table(
    "rk_meta", _metadata, Column("name", String(50), primary_key=True), Column("value", Text, nullable=False)
)

PROJECTION: Final = Table(
    "rk_projection",
    _metadata,
    Column("name", String(200), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("shape", String(64), nullable=False),
    Column("state", String(20), nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("rate", Float, nullable=False),
    Column("lag_events", BigInteger, nullable=False),
    Column("lag_seconds", Float, nullable=False),
    Column("error", Text, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
)
"""generation: how often the tables were swapped. events: that were handled. rate: events per second, lately. lag_events:
offset slots of the log that are not read yet. lag_seconds: the age of the oldest of them."""

POSITION: Final = Table(
    "rk_position",
    _metadata,
    Column("projection", String(200), primary_key=True),
    Column("service", String(200), primary_key=True),
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("next_offset", BigInteger, nullable=False),
    Column("term", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("assignment", BigInteger, nullable=False),
    Column("incarnation", Text, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Column("digest", String(32), nullable=False),
)

PARKED: Final = Table(
    "rk_parked",
    _metadata,
    Column("projection", String(200), primary_key=True),
    Column("service", String(200), primary_key=True),
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("record_offset", BigInteger, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),
    Column("entity", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("error", Text, nullable=False),
    Column("parked_ms", BigInteger, nullable=False),
)
"""number: of the event in its commit. data: the event as the log has it, [name, version, fields] in msgpack."""

_MOVED: Final = ("next_offset", "term", "sequence", "assignment", "incarnation", "time_ms", "digest")
_COMPARED: Final = ("next_offset", "term", "sequence")


class Standing(NamedTuple):
    """What is said of a projection besides its positions."""

    version: int
    shape: str
    state: str
    generation: int
    events: int


@dataclass(frozen=True, slots=True)
class Progress:
    """What a projector says of itself with every batch."""

    rate: float
    lag_events: int
    lag_seconds: float
    now_ms: int
    state: str = RUNNING
    error: str = ""


def create(connection: Connection) -> None:
    """Make the tables that are not there. Raises `DatabaseRefused` if they are a newer build's."""
    _metadata.create_all(connection)
    found = meta(connection, "format", FORMAT)
    if int(found) > int(FORMAT):
        raise DatabaseRefused(f"the tables rk_* have format {found}, this build knows up to {FORMAT}")


def meta(connection: Connection, name: str, default: str) -> str:
    """What is kept under a name; the default is kept if there is nothing yet."""
    found: str | None = connection.execute(select(META.c.value).where(META.c.name == name)).scalar()
    if found is None:
        connection.execute(META.insert().values(name=name, value=default))
        return default
    return found


def standing(connection: Connection, name: str) -> Standing | None:
    """What is said of a projection; None: it is not known here."""
    c = PROJECTION.c
    found = connection.execute(
        select(c.version, c.shape, c.state, c.generation, c.events).where(c.name == name)
    ).one_or_none()
    return None if found is None else Standing(*found)


def enter(connection: Connection, name: str, version: int, shape: str, state: str, now_ms: int) -> None:
    """A projection that is new here."""
    blank = {"generation": 0, "events": 0, "rate": 0.0, "lag_events": 0, "lag_seconds": 0.0, "error": ""}
    values = {"name": name, "version": version, "shape": shape, "state": state, "updated_ms": now_ms}
    connection.execute(PROJECTION.insert().values(**values, **blank))


def enter_positions(connection: Connection, name: str, shards: Iterable[tuple[str, int]]) -> None:
    """Shards that are to be read from their start."""
    rows = [{"projection": name, "service": service, "shard": shard} | _columns(START) for service, shard in shards]
    if rows:
        connection.execute(POSITION.insert(), rows)


def forget(connection: Connection, name: str) -> None:
    """Drop everything that is kept of a projection; its tables stay."""
    connection.execute(PROJECTION.delete().where(PROJECTION.c.name == name))
    connection.execute(POSITION.delete().where(POSITION.c.projection == name))
    connection.execute(PARKED.delete().where(PARKED.c.projection == name))


def succeed(connection: Connection, name: str, successor: str, now_ms: int) -> None:
    """Everything that is kept of a successor is the projection's from here on; whoever feeds it says soon that it does.

    The projection's own row stays: in PostgreSQL, who waits for a row that is then deleted would not find the one that came in
    its place.
    """
    c = PROJECTION.c
    new = connection.execute(select(c.version, c.shape, c.events).where(c.name == successor)).one()
    values = {"version": new.version, "shape": new.shape, "events": new.events, "state": ENDED, "error": ""}
    lag = {"rate": 0.0, "lag_events": 0, "lag_seconds": 0.0, "updated_ms": now_ms, "generation": c.generation + 1}
    if standing(connection, name) is None:
        enter(connection, name, new.version, new.shape, ENDED, now_ms)
    connection.execute(PROJECTION.update().where(c.name == name).values(**values, **lag))
    connection.execute(PROJECTION.delete().where(c.name == successor))
    for table in (POSITION, PARKED):
        connection.execute(table.delete().where(table.c.projection == name))
        connection.execute(table.update().where(table.c.projection == successor).values(projection=name))


def hold(connection: Connection, name: str) -> None:
    """Let nobody write for this projection until the transaction ends."""
    connection.execute(select(PROJECTION.c.name).where(PROJECTION.c.name == name).with_for_update())


def positions(connection: Connection, name: str) -> dict[tuple[str, int], Position]:
    """Where a projection stands, by service and shard."""
    columns = [POSITION.c[column] for column in ("service", "shard", *_MOVED)]
    rows = connection.execute(select(*columns).where(POSITION.c.projection == name)).all()
    found: list[tuple[Any, ...]] = [tuple(row) for row in rows]
    return {(service, shard): Position(*rest) for service, shard, *rest in found}


def lock(connection: Connection, name: str, version: int, shape: str, progress: Progress, events: int) -> bool:
    """Keep all others from writing for this projection until the transaction ends, and say how it goes, with so many events
    more. False: it is not (any more) of this version and shape."""
    c = PROJECTION.c
    of_this_build = (c.name == name, c.version == version, c.shape == shape)
    values = {
        "state": progress.state,
        "events": c.events + events,
        "rate": progress.rate,
        "lag_events": progress.lag_events,
        "lag_seconds": progress.lag_seconds,
        "error": progress.error,
        "updated_ms": progress.now_ms,
    }
    return connection.execute(PROJECTION.update().where(*of_this_build).values(**values)).rowcount == 1


def count(connection: Connection, name: str, events: int) -> None:
    """So many events more, or less."""
    c = PROJECTION.c
    connection.execute(PROJECTION.update().where(c.name == name).values(events=c.events + events))


def say(connection: Connection, name: str, state: str, error: str, now_ms: int) -> None:
    """Say how it is with a projection, without touching anything else."""
    change = PROJECTION.update().where(PROJECTION.c.name == name)
    connection.execute(change.values(state=state, error=error, updated_ms=now_ms))


def move(connection: Connection, name: str, shares: Sequence[Share]) -> bool:
    """Compare and set: every shard from where it was taken to where its share ends. False: one is not where it was."""
    moved = 0
    for start in range(0, len(shares), MOVED_TOGETHER):
        chunk = shares[start : start + MOVED_TOGETHER]
        statement, values = _move(connection, name, chunk)
        moved += connection.exec_driver_sql(statement, values).rowcount
    return moved == len(shares)


def _move(connection: Connection, name: str, shares: Sequence[Share]) -> tuple[str, tuple[Any, ...]]:
    """One statement for many shards. The columns of VALUES are called column1, column2, ... by both databases."""
    mark = "?" if connection.dialect.paramstyle == "qmark" else "%s"
    key = ("service", "shard")
    width = len(key) + len(_COMPARED) + len(_MOVED)
    compared = [f"rk_position.{c} = v.column{n}" for n, c in enumerate((*key, *_COMPARED), 1)]
    changed = [f"{c} = v.column{n}" for n, c in enumerate(_MOVED, len(key) + len(_COMPARED) + 1)]
    rows = ", ".join([f"({', '.join([mark] * width)})"] * len(shares))
    values = [
        value
        for share in shares
        for value in (share.hosted.name, share.shard, *share.before[: len(_COMPARED)], *share.after)
    ]
    statement = (
        f"UPDATE rk_position SET {', '.join(changed)} FROM (VALUES {rows}) AS v "
        f"WHERE rk_position.projection = {mark} AND {' AND '.join(compared)}"
    )
    return statement, (*values, name)


def park(connection: Connection, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Keep events that could not be handled."""
    if rows:
        connection.execute(PARKED.insert(), [{"projection": name} | row for row in rows])


def _columns(position: Position) -> dict[str, Any]:
    return dict(zip(_MOVED, position, strict=True))
