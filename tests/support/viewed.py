"""A small shop, its read models, and logs for them that are written record by record.

    history = History(log, SHOP)                     # whoever writes here is the owner of every shard
    await history.commit("a", Received(qty=5))
    history.expected                                 # the rows, by a fold that is no projector's

The application is `tests.support.viewed:app`; processes of it find their log and database in the environment.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Index, String, UniqueConstraint, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rekindle import App, Entity, Event, Service, Supervisor, command
from rekindle.actors import Hosted
from rekindle.events import (
    Claim,
    Commit,
    EventLog,
    Fold,
    Keyed,
    Partition,
    Stored,
    decode,
    encode,
    pack,
    session_name,
    shard_of,
    unpack,
)
from rekindle.events.records import BARRIER, COMMAND, NO_SESSION
from rekindle.projections import PARK, At, Bound, Database, Declared, Projection, Rows, projection
from rekindle.projections.tables import table_of

SHARDS: Final = 2
LOG_VARIABLE: Final = "TEST_VIEWED_LOG"
DATABASE_VARIABLE: Final = "TEST_VIEWED_DATABASE"
TARGET: Final = "tests.support.viewed:app"
POISON: Final = 666
"""A quantity that no handler takes."""

TIME_MS: Final = 1_700_000_000_000


class Received(Event):
    qty: int


class Reserved(Event):
    order: str
    qty: int


class Counted(Event):
    """Nobody projects it."""


class Stock(Entity):
    on_hand: int = 0

    def apply(self, event: Received | Reserved | Counted) -> None:
        match event:
            case Received(qty=qty):
                self.on_hand += qty
            case Reserved(qty=qty):
                self.on_hand -= qty
            case Counted():
                pass

    @command
    def receive(self, qty: int) -> int:
        self.emit(Received(qty=qty))
        return self.on_hand


class Base(DeclarativeBase):
    """Of the read models here."""


class StockRow(Base):
    __tablename__ = "stock"
    __table_args__ = (Index("stock_by_orders", "orders"),)
    sku: Mapped[str] = mapped_column(String(100), primary_key=True)
    on_hand: Mapped[int] = mapped_column(default=0)
    orders: Mapped[int] = mapped_column(default=0, index=True)


class OrderRow(Base):
    __tablename__ = "orders"
    __table_args__ = (UniqueConstraint("number", name="one_row_per_number"),)
    number: Mapped[str] = mapped_column(primary_key=True)
    sku: Mapped[str]
    qty: Mapped[int]


class TotalRow(Base):
    __tablename__ = "totals"
    what: Mapped[str] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(default=0)


def fold_stock(event: Received | Reserved, row: StockRow) -> None:
    """What `stock` does, with a quantity that it does not take."""
    if event.qty == POISON:
        row.on_hand = -1  # a handler may well have changed something before it fails
        raise ValueError(f"{POISON} is too much")
    match event:
        case Received(qty=qty):
            row.on_hand += qty
        case Reserved(qty=qty):
            row.on_hand -= qty
            row.orders += 1


@projection(StockRow, of=Stock)
def stock(event: Received | Reserved, row: StockRow) -> None:
    fold_stock(event, row)


parking = projection(StockRow, of=Stock, name="stock", on_poison=PARK)(fold_stock)
"""The same, for those who would rather go on."""


class Orders(Projection):
    """Two tables, one of which all shards share."""

    name = "orders"
    tables = (OrderRow, TotalRow)
    of = (Stock,)

    def on_reserved(self, event: Reserved, rows: Rows, at: At) -> None:
        rows.put(OrderRow(number=event.order, sku=at.key, qty=event.qty))
        rows.at(TotalRow, "reserved").n += event.qty

    def on_received(self, event: Received, rows: Rows, at: At) -> None:
        rows.at(TotalRow, "received").n += event.qty
        if event.qty == 0:
            rows.drop(TotalRow, "received")


orders = Orders()

app = App(
    "viewed",
    log=os.environ.get(LOG_VARIABLE),
    database=os.environ.get(DATABASE_VARIABLE),
    tree=Supervisor("viewed", children=[Service("stock", Stock, shards=SHARDS, instances=1)]),
    projections=[stock, orders],
)

HOSTED: Final[Hosted] = app.services[0].hosted(app.name)


def bound(declared: Declared) -> Bound:
    """A projection of this shop's."""
    return Bound(declared, [HOSTED])


@dataclass
class History:
    """The owner of every shard, as far as the log can tell, and everything that a straggler may do."""

    log: EventLog
    hosted: Hosted = HOSTED
    owners: dict[int, Claim] = field(default_factory=dict[int, Claim])
    terms: dict[int, int] = field(default_factory=dict[int, int])
    sequences: dict[int, int] = field(default_factory=dict[int, int])

    async def claim(self, shard: int, assignment: int | None = None) -> None:
        """Take a shard, by default under a number that is higher than any before it."""
        before = self.owners.get(shard)
        number = assignment if assignment is not None else (before.assignment + 1 if before else 1)
        claim = Claim(number, f"owner-{number}", TIME_MS)
        offset = await self.log.append(self.partition(shard), [(None, encode(claim))])
        if before is None or number > before.assignment:
            self.owners[shard], self.terms[shard] = claim, offset

    def partition(self, shard: int) -> Partition:
        """Where the shard's log is."""
        return self.hosted.partition(shard)

    async def commit(self, key: str, *events: Event) -> int:
        """One command's events; its offset."""
        return await self.commit_all([(key, list(events))])

    async def commit_all(self, commits: Sequence[tuple[str, list[Event]]]) -> int:
        """Commits of keys of one shard, in one append; the offset of the first."""
        shard = shard_of(commits[0][0], self.hosted.shards)
        if shard not in self.owners:
            await self.claim(shard)
        records = [self._next(shard, key, events) for key, events in commits]
        return await self.log.append(self.partition(shard), records)

    def _next(self, shard: int, key: str, events: Sequence[Event]) -> Keyed:
        sequence = self.sequences[shard] = self.sequences.get(shard, 0) + 1
        return key.encode(), record(self.terms[shard], sequence, key, events)

    async def void(self, key: str, *events: Event, back: int = 0) -> None:
        """A straggler: a commit that counts nowhere. back: so many commits late; 0: of an owner that was fenced."""
        shard = shard_of(key, self.hosted.shards)
        if back:
            value = record(self.terms[shard], max(0, self.sequences[shard] - back + 1), key, events)
        else:
            value = record(self.terms[shard] - 1, self.sequences[shard] + 1, key, events)
        await self.log.append(self.partition(shard), [(key.encode(), value)])

    async def barrier(self, shard: int) -> None:
        """A commit without events."""
        if shard not in self.owners:
            await self.claim(shard)
        sequence = self.sequences[shard] = self.sequences.get(shard, 0) + 1
        commit = Commit(BARRIER, self.terms[shard], sequence, TIME_MS, NO_SESSION, 0, 0, "", 0, b"", None, [])
        await self.log.append(self.partition(shard), [(None, encode(commit))])


def record(term: int, sequence: int, key: str, events: Sequence[Event]) -> bytes:
    """The value of a command's commit."""
    raw: list[Any] = [unpack(pack([type(e).event_name, type(e).event_version, e.__dict__])) for e in events]
    session = session_name(TIME_MS, b"history!")
    fields = (
        COMMAND,
        term,
        sequence,
        TIME_MS + sequence,
        session,
        sequence,
        sequence,
        key,
        0,
        b"\x92\x00\x00",
        None,
        raw,
    )
    return encode(Commit(*fields))


# --- what must be in the tables ---

Expected = Mapping[str, tuple[int, int]]
"""sku -> (on hand, orders)"""


def valid_events(entries: Sequence[Stored]) -> list[tuple[str, Event]]:
    """What counts in a shard's log, in order."""
    fold, found = Fold(), list[tuple[str, Event]]()
    for entry in entries:
        commit = decode(entry.value)
        if fold.feed(entry.offset, commit):
            assert isinstance(commit, Commit)
            found += [(commit.entity, HOSTED.kind.events.decode(raw)) for raw in commit.events]
    return found


def expected_stock(logs: Sequence[Sequence[Stored]], *, without_poison: bool = False) -> Expected:
    """The rows of `stock`."""
    rows: dict[str, tuple[int, int]] = {}
    for key, event in (pair for log in logs for pair in valid_events(log)):
        on_hand, orders = rows.get(key, (0, 0))
        match event:
            case Received(qty=qty) | Reserved(qty=qty) if qty == POISON and without_poison:
                pass
            case Received(qty=qty):
                rows[key] = (on_hand + qty, orders)
            case Reserved(qty=qty):
                rows[key] = (on_hand - qty, orders + 1)
            case _:
                pass
    return rows


async def logs_of(log: EventLog) -> list[list[Stored]]:
    """All records of all shards."""
    found: list[list[Stored]] = []
    for shard in range(HOSTED.shards):
        partition, entries = HOSTED.partition(shard), list[Stored]()
        start, end = await log.bounds(partition)
        if end > start:
            async with log.reader(partition, start) as reader:
                while not entries or entries[-1].offset < end - 1:
                    entries += [Stored(e.offset, e.key, e.value) for e in await reader.next(1.0)]
        found.append(entries)
    return found


def stock_rows(database: Database, table: str = "stock") -> Expected:
    """What is in the table."""
    del table
    columns = table_of(StockRow).c
    with database.transaction(write=False) as connection:
        found = connection.execute(select(columns.sku, columns.on_hand, columns.orders)).all()
    return {sku: (on_hand, orders) for sku, on_hand, orders in found}


@asynccontextmanager
async def database_at(address: str, **options: Any) -> AsyncGenerator[Database]:
    """A database for read models, ready."""
    database = Database(address, **options)
    try:
        await database.call(Database.prepare)
        yield database
    finally:
        database.close()


def sqlite_at(folder: Path) -> str:
    """The address of a file in the folder."""
    return f"sqlite:///{folder / 'views.sqlite'}"
