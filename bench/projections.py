"""What a read model costs: events per second into PostgreSQL, and how soon a commit is visible."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from itertools import islice
from pathlib import Path
from typing import Any, Final

import psycopg
from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from bench import Run, benchmark
from bench.filled import BATCH, history
from bench.stock import Received, Reserved, Stock, one_shard_app
from bench.table import Row, judged
from rekindle.events import Claim, Commit, EventLog, Fold, decode, encode
from rekindle.events.embedded import EmbeddedLog
from rekindle.projections import Bound, Database, Projector, projection
from rekindle.projections.writing import BATCH_EVENTS_MAX
from rekindle.supervisors.hosting import spare_the_collector
from tests.support.postgres import Postgres

EVENTS: Final = 200_000
EVENTS_QUICK: Final = 20_000
ENTITIES: Final = 10_000
ROUNDS: Final = 3
SHARE: Final = 0.5
EVENTS_PER_S: Final = 10_000.0

COMMITS: Final = 500
COMMITS_QUICK: Final = 200
COMMIT_EVERY_S: Final = 0.02
VISIBLE_MS: Final = 100.0
VISIBLE_MAX_S: Final = 10.0
LOOK_S: Final = 0.001
"""Between two queries, so that who asks does not keep the projector, in the same process, from its work."""

DURABLE: Final = "a transaction per batch in PostgreSQL, fsync for each"
IDLE: Final = "as above; the log is on disk, with an fsync for every commit"


class Base(DeclarativeBase):
    """Of the table here."""


class StockRow(Base):
    __tablename__ = "stock"
    sku: Mapped[str] = mapped_column(String(100), primary_key=True)
    on_hand: Mapped[int] = mapped_column(default=0)
    held: Mapped[int] = mapped_column(default=0)


@projection(StockRow, of=Stock)
def stock(event: Received | Reserved, row: StockRow) -> None:
    match event:
        case Received(qty=qty):
            row.on_hand += qty % 1_000
        case Reserved(qty=qty):
            row.on_hand -= qty
            row.held += 1


@benchmark("projections")
async def projections(run: Run) -> AsyncIterator[Row]:
    """One row touched per event, against a loop written by hand with the same batches; then the way of a single commit."""
    spare_the_collector()  # as every process of ours does
    hosted = one_shard_app.services[0].hosted(one_shard_app.name)
    events = EVENTS_QUICK if run.quick else EVENTS
    async with AsyncExitStack() as stack:
        postgres = stack.enter_context(Postgres(fsync=True))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = EmbeddedLog(folder / "log.sqlite")
        await log.open()
        stack.push_async_callback(log.close)
        await log.create(hosted.topic())
        records = history(ENTITIES, events, [f"sku-{number}" for number in range(ENTITIES)])
        while batch := list(islice(records, BATCH)):
            await log.append(hosted.partition(0), batch)
        bound = Bound(stock, [hosted])
        ours: list[float] = []
        ratios: list[float] = []
        for number in range(1 if run.quick else ROUNDS):
            raw = events / await by_hand(log, bound, postgres.database(f"by_hand_{number}"), events)
            ours.append(events / await projected(log, bound, postgres.database(f"projected_{number}"), events))
            ratios.append(ours[-1] / raw)
        rate, ratio = statistics.median(ours), statistics.median(ratios)
        yield judged(
            f"projection of {events:,} events onto {ENTITIES:,} rows",
            rate,
            "events/s",
            durable=DURABLE,
            baseline=rate / ratio,
            at_least=SHARE,
        )
        yield judged("the same, by itself", rate, "events/s", durable=DURABLE, at_least=EVENTS_PER_S)
        took = await visible(log, bound, postgres.database("visible"), COMMITS_QUICK if run.quick else COMMITS)
        yield Row("commit to visible, median", 1000 * statistics.median(took), "ms", durable=IDLE)
        worst = 1000 * statistics.quantiles(took, n=100)[98]
        yield judged("commit to visible, p99", worst, "ms", durable=IDLE, at_most=VISIBLE_MS)


async def projected(log: EventLog, bound: Bound, address: str, events: int) -> float:
    """Seconds until a projector has handled everything."""
    database = Database(address)
    projector = Projector(bound, log, database)
    began = time.perf_counter()
    task = asyncio.create_task(projector.run())
    while projector.events < events:
        await asyncio.sleep(0.005)
        assert not task.done(), f"the projector ended: {task}"
    took = time.perf_counter() - began
    projector.stop()
    await task
    await asyncio.to_thread(database.close)
    return took


# --- by hand ---

SELECT: Final = "SELECT sku, on_hand, held FROM stock WHERE sku = ANY(%s)"
UPSERT: Final = (
    "INSERT INTO stock (sku, on_hand, held) VALUES (%s, %s, %s) "
    "ON CONFLICT (sku) DO UPDATE SET on_hand = excluded.on_hand, held = excluded.held"
)


async def by_hand(log: EventLog, bound: Bound, address: str, events: int) -> float:
    """Seconds of what a good Python programmer writes in an afternoon: the same rules, the same batches, dicts for rows, and
    psycopg's own way to write many of them. It reads on while a batch is written, and has no second projector to fear."""
    hosted = bound.services[0]
    with psycopg.connect(address) as connection:
        connection.execute("CREATE TABLE stock (sku varchar(100) PRIMARY KEY, on_hand int, held int)")
        connection.execute("CREATE TABLE position (next_offset bigint)")
        connection.execute("INSERT INTO position VALUES (0)")
        connection.commit()
        fold, done, writing, commits = Fold(), 0, None, list[Commit]()
        began = time.perf_counter()
        async with log.reader(hosted.partition(0), 0) as reader:
            while done < events:
                for entry in await reader.next(1.0):
                    record = decode(entry.value)
                    if fold.feed(entry.offset, record):
                        commits.append(record)  # type: ignore[arg-type]
                fold.sessions.clear()
                while len(commits) >= BATCH_EVENTS_MAX or (commits and done + len(commits) == events):
                    batch, commits = commits[:BATCH_EVENTS_MAX], commits[BATCH_EVENTS_MAX:]
                    if writing is not None:
                        await writing
                    writing = asyncio.ensure_future(asyncio.to_thread(_write, connection, bound, batch, fold.offset))
                    done += len(batch)
                    await asyncio.sleep(0)
        if writing is not None:
            await writing
        took = time.perf_counter() - began
        found = connection.execute("SELECT count(*), sum(held) FROM stock").fetchone()
        assert found == (ENTITIES, events - ENTITIES), f"the loop by hand made {found}"
    return took


def _write(connection: psycopg.Connection[Any], bound: Bound, commits: Sequence[Commit], offset: int) -> None:
    decode_event = bound.services[0].kind.events.decode
    with connection.cursor() as cursor:
        keys = list({commit.entity for commit in commits})
        rows: dict[str, list[Any]] = {row[0]: list(row) for row in cursor.execute(SELECT, (keys,))}
        for commit in commits:
            row = rows.get(commit.entity) or rows.setdefault(commit.entity, [commit.entity, 0, 0])
            for raw in commit.events:
                match decode_event(raw):
                    case Received(qty=qty):
                        row[1] += qty % 1_000
                    case Reserved(qty=qty):
                        row[1] -= qty
                        row[2] += 1
                    case _:
                        pass
        cursor.executemany(UPSERT, rows.values())
        cursor.execute("UPDATE position SET next_offset = %s", (offset,))
    connection.commit()


# --- one commit ---


async def visible(log: EventLog, bound: Bound, address: str, commits: int) -> list[float]:
    """Seconds from the acknowledgement of a commit until a query shows it, one by one, on a system that does nothing else."""
    hosted = bound.services[0]
    database = Database(address)
    projector = Projector(bound, log, database)
    task = asyncio.create_task(projector.run())
    end = (await log.bounds(hosted.partition(0))).end
    while projector.feed is None or not projector.feed.caught_up:  # noqa: ASYNC110 - it has no bell
        await asyncio.sleep(0.01)
    term = await log.append(hosted.partition(0), [(None, encode(Claim(1, "bench", 0)))])
    sequence = end - 1  # one claim, then commits without a gap
    took: list[float] = []
    with psycopg.connect(address, autocommit=True) as connection:
        for number in range(1, commits + 1):
            sequence += 1
            key = f"new-{number}"
            event: Any = ["Reserved", 1, {"order": key, "qty": 1}]
            commit = Commit(2, term, sequence, time.time_ns() // 1_000_000, b"", 0, 0, key, 1, b"", None, [event])
            await log.append(hosted.partition(0), [(key.encode(), encode(commit))])
            began = time.perf_counter()
            while not await asyncio.to_thread(_is_there, connection, key):
                assert time.perf_counter() - began < VISIBLE_MAX_S, f"commit {number} is not visible"
                await asyncio.sleep(LOOK_S)
            took.append(time.perf_counter() - began)
            await asyncio.sleep(COMMIT_EVERY_S)
    projector.stop()
    await task
    await asyncio.to_thread(database.close)
    return took


def _is_there(connection: psycopg.Connection[Any], key: str) -> bool:
    return connection.execute("SELECT 1 FROM stock WHERE sku = %s", (key,)).fetchone() is not None
