"""Projectors on real databases: they follow, they start again, and they stop when what they stand on is gone.

Goal: rows are what the log says, on SQLite and on PostgreSQL; a log or a database that is away is waited for; a log that is not
the one that was read stops a projection, with the numbers. Method: a simulated log without faults that can be cut, made anew and
taken away; a real SQLite file and a real PostgreSQL server, which is killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from rekindle.actors.replay import READ_WAIT_S
from rekindle.events import LogDamaged, NewerRecord, Partition, RekindleError, TopicMissing, pack, shard_of
from rekindle.events.followers import FollowingReader
from rekindle.events.records import COMMAND, MARK, VERSION
from rekindle.events.simulated import SimulatedLog
from rekindle.projections import (
    Bound,
    Database,
    DatabaseRefused,
    Declared,
    Done,
    HistoryGone,
    OneNodeOnly,
    PoisonEvent,
    PositionNotConfirmed,
    ProjectionFenced,
    ProjectionReport,
    Projector,
    Rebuilder,
    RebuildNeeded,
    ViewIsBehind,
    Views,
    books,
    projection,
)
from rekindle.projections import database as database_module
from rekindle.projections.feeding import Feed
from rekindle.projections.writing import Writer
from tests.support.inprocess import in_loop, running
from tests.support.logs import kafka as kafka_at
from tests.support.loops import DEADLINE_S, eventually
from tests.support.postgres import Postgres
from tests.support.viewed import (
    HOSTED,
    POISON,
    SHARDS,
    Counted,
    History,
    OrderRow,
    Received,
    Reserved,
    Stock,
    StockRow,
    TotalRow,
    bound,
    database_at,
    expected_stock,
    fold_stock,
    logs_of,
    orders,
    parking,
    sqlite_at,
    stock,
    stock_rows,
)

AWAY_S: Final = 2 * READ_WAIT_S
"""Long enough that whoever waits at the end of the log looks at it meanwhile."""


@pytest.fixture(params=["sqlite", "postgres"])
def address(request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> str:
    """A database for read models."""
    if request.param == "sqlite":
        return sqlite_at(tmp_path)
    server: Postgres = request.getfixturevalue("postgres")
    return server.database(unique)


async def log_with_topic() -> SimulatedLog:
    """A log with the shop's topic, empty."""
    log = SimulatedLog(Random(0))
    await log.create(HOSTED.topic())
    return log


@asynccontextmanager
async def projecting(
    log: SimulatedLog, database: Database, declared: Declared = stock, said: list[str] | None = None
) -> AsyncGenerator[Projector]:
    """A projector that runs; it must not have ended by itself."""
    projector = Projector(bound(declared), log, database, say=(said if said is not None else []).append)
    task = asyncio.create_task(projector.run())
    try:
        yield projector
    finally:
        projector.stop()
        await task


async def holds(check: Callable[[], Any]) -> None:
    """Until an async condition holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not await check():  # noqa: ASYNC110 - a database has no bell to wait for
            await asyncio.sleep(0)


async def rows_arrive(database: Database, log: SimulatedLog) -> None:
    """Until the rows are what the log says."""
    expected = expected_stock(await logs_of(log))

    async def are_there() -> bool:
        return await database.call(stock_rows) == expected

    await holds(are_there)


async def report_of(database: Database, log: SimulatedLog, name: str = "stock") -> ProjectionReport:
    """What is said of a projection."""
    found = await Views(log, database, [HOSTED]).report()
    return next(report for report in found if report.name == name)


async def ended_with(
    error: type[RekindleError], log: SimulatedLog, database: Database, declared: Declared = stock
) -> str:
    """The text of the error that a projector ends with, which is kept, too."""
    with pytest.raises(error) as caught:
        await Projector(bound(declared), log, database, say=lambda _: None).run()
    report = await report_of(database, log)
    assert (report.state, report.error) == (books.STOPPED, f"{error.__name__}: {caught.value}")
    return str(caught.value)


# Following


@in_loop
async def test_rows_follow_the_log(address: str) -> None:
    log = await log_with_topic()
    history = History(log)
    async with database_at(address) as database, projecting(log, database):
        for n in range(60):
            key = f"sku-{n % 5}"
            await history.commit(key, Received(qty=n), Reserved(order=f"o-{n}", qty=1), Counted())
            await history.void(key, Received(qty=1000), back=n % 3)
            if n % 20 == 0:
                await history.claim(shard_of(key, SHARDS))
        await rows_arrive(database, log)
        assert len(await database.call(stock_rows)) == 5


@in_loop
async def test_rows_follow_a_log_in_kafka(kafka: str, tmp_path: Path, unique: str) -> None:
    hosted = replace(HOSTED, app=unique)
    async with kafka_at(kafka).opened() as log, database_at(sqlite_at(tmp_path)) as database:
        await log.create(hosted.topic())
        history = History(log, hosted)
        for n in range(20):
            await history.commit(f"sku-{n % 5}", Received(qty=n))
            await history.void(f"sku-{n % 5}", Received(qty=1000), back=n % 2)
        expected = {f"sku-{n}": (4 * n + 30, 0) for n in range(5)}

        async def are_there() -> bool:
            return await database.call(stock_rows) == expected

        for _ in range(2):  # the second one begins at a position, which the log has to confirm
            projector = Projector(Bound(stock, [hosted]), log, database, say=lambda _: None)
            task = asyncio.create_task(projector.run())
            await eventually(lambda projector=projector: projector.feed is not None)  # type: ignore[misc]
            await holds(are_there)
            projector.stop()
            await task
            await history.commit("sku-0", Received(qty=1))
            expected["sku-0"] = (expected["sku-0"][0] + 1, 0)


@in_loop
async def test_a_class_fills_several_tables_and_one_row_from_all_shards(address: str) -> None:
    log = await log_with_topic()
    history = History(log)

    def tables(database: Database) -> tuple[Sequence[Any], Sequence[Any]]:
        with database.transaction(write=False) as connection:
            found = connection.execute(select(OrderRow.number, OrderRow.sku, OrderRow.qty).order_by(OrderRow.number))
            totals = connection.execute(select(TotalRow.what, TotalRow.n).order_by(TotalRow.what))
            return [tuple(row) for row in found], [tuple(row) for row in totals]

    async with database_at(address) as database, projecting(log, database, orders):
        for n in range(20):
            await history.commit(f"sku-{n}", Received(qty=10), Reserved(order=f"o-{n:02}", qty=n))
        everything = [(f"o-{n:02}", f"sku-{n}", n) for n in range(20)]

        async def are_there() -> bool:
            return await database.call(tables) == (everything, [("received", 200), ("reserved", 190)])

        await holds(are_there)
        await history.commit("sku-1", Received(qty=0))

        async def is_dropped() -> bool:
            return await database.call(tables) == (everything, [("reserved", 190)])

        await holds(is_dropped)


@in_loop
async def test_one_that_starts_again_goes_on(address: str) -> None:
    log = await log_with_topic()
    history = History(log)
    async with database_at(address) as database:
        for n in range(5):
            await history.commit("sku", Received(qty=n))
            async with projecting(log, database):
                await rows_arrive(database, log)
            report = await report_of(database, log)
            assert (report.state, report.events, report.lag_events) == (books.ENDED, n + 1, 0)


@in_loop
async def test_the_second_of_two_projectors_goes_on_and_the_first_stops(address: str) -> None:
    log = await log_with_topic()
    history = History(log)
    async with database_at(address) as database, database_at(address) as another:
        await history.commit("sku", Received(qty=1))
        first = Projector(bound(stock), log, database, say=lambda _: None)
        running = asyncio.create_task(first.run())
        await rows_arrive(database, log)
        second = Projector(bound(stock), log, another, say=lambda _: None)
        both = [running, asyncio.create_task(second.run())]
        await eventually(lambda: second.feed is not None)
        while not any(task.done() for task in both):  # both read the same; whoever writes second is fenced
            await history.commit("sku", Received(qty=1))
            await asyncio.sleep(0)
        (ended,) = [task for task in both if task.done()]
        assert isinstance(ended.exception(), ProjectionFenced)
        await rows_arrive(database, log)
        first.stop()
        second.stop()
        await asyncio.wait(both)
        assert (await report_of(database, log)).error == ""


@in_loop
async def test_void_records_move_the_position_and_no_row(address: str) -> None:
    log = await log_with_topic()
    history = History(log)
    async with database_at(address) as database, projecting(log, database):
        for _ in range(5):
            await history.barrier(0)

        async def is_past() -> bool:
            return (await report_of(database, log)).shards[0].next_offset == 6

        await holds(is_past)
        assert await database.call(stock_rows) == {}


# What is away is waited for


@in_loop
async def test_while_the_log_is_away_a_projector_waits_and_says_so(address: str) -> None:
    log, said = await log_with_topic(), list[str]()
    history = History(log)
    async with database_at(address) as database, projecting(log, database, said=said):
        await history.commit("sku", Received(qty=1))
        await rows_arrive(database, log)
        log.go_away(AWAY_S)
        await eventually(lambda: any("waits for the log" in line for line in said))
        await eventually(lambda: _is_back(log))
        await history.commit("sku", Received(qty=2))
        await rows_arrive(database, log)


def _is_back(log: SimulatedLog) -> bool:
    return asyncio.get_running_loop().time() >= log._away_until  # pyright: ignore[reportPrivateUsage]


@in_loop
async def test_a_killed_postgres_is_waited_for(postgres: Postgres, unique: str) -> None:
    log, said = await log_with_topic(), list[str]()
    history = History(log)
    async with database_at(postgres.database(unique)) as database, projecting(log, database, said=said):
        for n in range(100):
            await history.commit(f"sku-{n % 3}", Received(qty=n))
        await asyncio.to_thread(postgres.kill)
        for n in range(100):
            await history.commit(f"sku-{n % 3}", Received(qty=n))
        await eventually(lambda: any("waits for the database" in line for line in said))
        await asyncio.to_thread(postgres.start)
        await rows_arrive(database, log)
        assert any("the database is back" in line for line in said)


@in_loop
async def test_who_is_stopped_in_a_transaction_keeps_nobody_out_for_ever(
    postgres: Postgres, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "IDLE_MAX_S", 1)
    log, address = await log_with_topic(), postgres.database(unique)
    async with database_at(address) as stopped, database_at(address) as database:
        history = await stand_at(log, database, 1)
        with stopped.engine.connect() as connection, suppress(DBAPIError):
            connection.exec_driver_sql("UPDATE rk_projection SET events = 0")
            await history.commit("sku", Received(qty=1))
            async with projecting(log, database):
                await rows_arrive(database, log)
            with pytest.raises(DBAPIError):
                connection.commit()


@in_loop
async def test_a_projector_can_be_stopped_while_the_database_is_away(postgres: Postgres, unique: str) -> None:
    log, said = await log_with_topic(), list[str]()
    address = postgres.database(unique)
    async with database_at(address) as database:
        await asyncio.to_thread(postgres.kill)
        async with projecting(log, database, said=said):
            await eventually(lambda: any("waits for the database" in line for line in said))


# Another log


async def stand_at(log: SimulatedLog, database: Database, commits: int) -> History:
    """Have a read model of so many commits of one key, in one shard."""
    history = History(log)
    for n in range(commits):
        await history.commit("sku", Received(qty=n))
    async with projecting(log, database):
        await rows_arrive(database, log)
    return history


SHARD: Final = shard_of("sku", SHARDS)


@in_loop
async def test_a_truncated_log_is_not_confirmed(address: str) -> None:
    log = await log_with_topic()
    async with database_at(address) as database:
        await stand_at(log, database, 5)
        log.truncate(HOSTED.partition(SHARD), 3)
        text = await ended_with(PositionNotConfirmed, log, database)
        assert f"stands at offset 6 of viewed.stock/{SHARD}, but the log ends at 3" in text
        assert "rekindle projection rebuild stock" in text
        assert len(await database.call(stock_rows)) == 1


@in_loop
async def test_a_recreated_log_that_has_grown_again_is_not_confirmed(address: str) -> None:
    log = await log_with_topic()
    async with database_at(address) as database:
        await stand_at(log, database, 5)
        log.recreate(HOSTED.topic().name)
        again = History(log)
        for _ in range(9):
            await again.commit("sku", Received(qty=7))
        text = await ended_with(PositionNotConfirmed, log, database)
        assert "the record at 5 is not the one that was read" in text


@in_loop
async def test_a_trimmed_log_is_not_confirmed_unless_everything_was_read(address: str) -> None:
    log = await log_with_topic()
    async with database_at(address) as database:
        history = await stand_at(log, database, 5)
        await log.trim(HOSTED.partition(SHARD), 6)
        async with projecting(log, database):
            await history.commit("sku", Received(qty=100))

            async def is_there() -> bool:
                return await database.call(stock_rows) == {"sku": (0 + 1 + 2 + 3 + 4 + 100, 0)}

            await holds(is_there)
        for _ in range(3):
            await history.commit("sku", Received(qty=1))
        await log.trim(HOSTED.partition(SHARD), 9)
        text = await ended_with(PositionNotConfirmed, log, database)
        assert "the log begins at 9: 2 records were trimmed unread" in text


@in_loop
async def test_a_log_that_is_cut_under_a_running_projector_stops_it(address: str) -> None:
    log = await log_with_topic()
    async with database_at(address) as database:
        await stand_at(log, database, 5)
        projector = Projector(bound(stock), log, database, say=lambda _: None)
        task = asyncio.create_task(projector.run())
        await eventually(lambda: projector.feed is not None and projector.feed.caught_up)
        log.truncate(HOSTED.partition(SHARD), 2)
        with pytest.raises(PositionNotConfirmed, match="expected at least offset 6, found 2"):
            await task
        assert (await report_of(database, log)).state == books.STOPPED


@in_loop
async def test_a_projection_that_begins_needs_the_whole_log(address: str) -> None:
    log = await log_with_topic()
    history = History(log)
    for _ in range(5):
        await history.commit("sku", Received(qty=1))
    await log.trim(HOSTED.partition(SHARD), 3)
    async with database_at(address) as database:
        assert "first record is at offset 3" in await ended_with(HistoryGone, log, database)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (pack([[MARK, VERSION + 1, COMMAND], []]), NewerRecord),
        (pack([[MARK, VERSION, COMMAND], []]), LogDamaged),
    ],
)
@in_loop
async def test_a_record_that_nobody_here_can_read_is_never_skipped(
    tmp_path: Path, value: bytes, error: type[RekindleError]
) -> None:
    log = await log_with_topic()
    async with database_at(sqlite_at(tmp_path)) as database:
        await stand_at(log, database, 2)
        await log.append(HOSTED.partition(SHARD), [(None, value)])
        await ended_with(error, log, database)


@in_loop
async def test_without_its_topic_a_projection_does_not_begin(tmp_path: Path) -> None:
    async with database_at(sqlite_at(tmp_path)) as database:
        with pytest.raises(TopicMissing):
            await Projector(bound(stock), SimulatedLog(Random(0)), database).run()


# Poison


@in_loop
async def test_poison_stops_the_projection_and_a_mended_handler_goes_on(address: str) -> None:
    log = await log_with_topic()
    history = History(log)
    async with database_at(address) as database:
        for qty in (1, 2, POISON, 4):
            await history.commit("sku", Received(qty=qty))
        text = await ended_with(PoisonEvent, log, database)
        assert (
            f"before Received of stock 'sku' (shard {SHARD}, offset 3, sequence 3): ValueError: 666 is too much" in text
        )
        assert await database.call(stock_rows) == {"sku": (3, 0)}

        @projection(StockRow, of=Stock, name="stock")
        def mended(event: Received | Reserved, row: StockRow) -> None:
            if event.qty != POISON:
                fold_stock(event, row)

        async with projecting(log, database, mended):

            async def is_there() -> bool:
                return await database.call(stock_rows) == {"sku": (7, 0)}

            await holds(is_there)
        assert (await report_of(database, log)).error == ""


@in_loop
async def test_parked_poison_lets_the_projection_go_on(address: str) -> None:
    log = await log_with_topic()
    history = History(log)
    async with database_at(address) as database, projecting(log, database, parking):
        for qty in (1, 2, POISON, 4, POISON):
            await history.commit("sku", Received(qty=qty))

        async def is_there() -> bool:
            return await database.call(stock_rows) == {"sku": (7, 0)} and (await report_of(database, log)).parked == 2

        await holds(is_there)


@in_loop
async def test_what_the_database_does_not_take_is_found_and_blamed(address: str) -> None:
    log = await log_with_topic()
    history = History(log)
    async with database_at(address) as database:
        for _ in range(20):
            await history.commit("sku", Received(qty=1))
        await history.commit("sku", Received(qty=2**63 - 1), Received(qty=2**63 - 1))
        await history.commit("sku", Received(qty=1))
        assert "offset 21, sequence 21" in await ended_with(PoisonEvent, log, database)
        assert await database.call(stock_rows) == {"sku": (20, 0)}


@in_loop
async def test_a_text_that_is_too_long_for_postgres_is_poison_and_not_cut(postgres: Postgres, unique: str) -> None:
    log = await log_with_topic()
    history = History(log)
    long = "x" * 101
    shard = shard_of(long, SHARDS)
    short = next(f"sku-{n}" for n in range(100) if shard_of(f"sku-{n}", SHARDS) == shard)
    async with database_at(postgres.database(unique)) as database:
        for key in (short, long, short):
            await history.commit(key, Received(qty=1))
        text = await ended_with(PoisonEvent, log, database)
        assert f"of stock '{long}' (shard {shard}, offset 2, sequence 2)" in text
        assert "StringDataRightTruncation" in text
        assert await database.call(stock_rows) == {short: (1, 0)}


# Who may write where


@in_loop
async def test_a_sqlite_file_belongs_to_one_node(tmp_path: Path) -> None:
    address = sqlite_at(tmp_path)
    async with database_at(address, node="north"):
        pass
    with pytest.raises(OneNodeOnly, match="belong to node 'north', this is 'south'"):
        async with database_at(address, node="south"):
            pass
    async with database_at(address, node="north"):
        pass


@in_loop
async def test_postgres_takes_projectors_of_any_node(postgres: Postgres, unique: str) -> None:
    address = postgres.database(unique)
    for node in ("north", "south"):
        async with database_at(address, node=node):
            pass


@in_loop
async def test_another_version_asks_for_a_rebuild(address: str) -> None:
    log = await log_with_topic()
    async with database_at(address) as database:
        await stand_at(log, database, 1)
        newer = projection(StockRow, of=Stock, name="stock", version=2)(fold_stock)
        text = await ended_with(RebuildNeeded, log, database, newer)
        assert "of version 1, this build makes version 2" in text


@in_loop
async def test_a_table_that_is_somebody_elses_is_left_alone(address: str) -> None:
    log = await log_with_topic()

    def fill(database: Database) -> None:
        with database.transaction() as connection:
            StockRow.metadata.tables["stock"].create(connection)
            connection.execute(StockRow.metadata.tables["stock"].insert().values(sku="mine"))

    async with database_at(address) as database:
        await database.call(fill)
        with pytest.raises(DatabaseRefused, match="table 'stock' has 1 rows already"):
            await Projector(bound(stock), log, database, say=lambda _: None).run()
        assert await database.call(stock_rows) == {"mine": (0, 0)}


# For readers


@in_loop
async def test_who_waits_for_a_position_reads_its_own_writes(address: str) -> None:
    log = await log_with_topic()
    async with (
        running(HOSTED, log) as stage,
        database_at(address) as database,
        database_at(address) as readers,
        projecting(log, database),
    ):
        views = Views(log, readers, [HOSTED])
        for n in range(1, 11):
            await stage.client.get(Stock, "sku").receive(1)
            await views.wait_for(stock, await views.position_of(Stock, "sku"))
            assert await readers.call(stock_rows) == {"sku": (n, 0)}


@in_loop
async def test_a_view_that_is_behind_says_how_far(tmp_path: Path) -> None:
    log = await log_with_topic()
    async with database_at(sqlite_at(tmp_path)) as database:
        history = await stand_at(log, database, 3)
        await history.commit("sku", Received(qty=1))
        views = Views(log, database, [HOSTED])
        with pytest.raises(
            ViewIsBehind, match=r"\(state 'ended'\) is at 4 in shard . of stock, not at offset 5, after 0.05 s"
        ):
            await views.wait_for(stock, await views.position_of(Stock, "sku"), 0.05)
        with pytest.raises(ViewIsBehind, match="has no position there"):
            await views.wait_for(orders, await views.position_of(Stock, "sku"), 0.05)


@in_loop
async def test_lag_is_known_while_a_projector_catches_up(address: str) -> None:
    log = await log_with_topic()
    history = History(log)
    async with database_at(address) as database:
        await history.commit("sku", Received(qty=1))
        await history.commit("sku", Received(qty=POISON))
        await history.commit("sku", Received(qty=1))
        await ended_with(PoisonEvent, log, database)
        report = await report_of(database, log)
        assert report.events == 1
        assert report.lag_seconds > 0 or report.lag_events == 0


# Building anew


@in_loop
async def test_a_rebuild_swaps_tables_under_a_running_projector(address: str) -> None:
    log = await log_with_topic()
    history = History(log)
    async with (
        database_at(address) as database,
        database_at(address) as another,
        projecting(log, database) as projector,
    ):
        for n in range(50):
            await history.commit(f"sku-{n % 3}", Received(qty=n))
        await rows_arrive(database, log)

        def spoil(database: Database) -> None:
            with database.transaction() as connection:
                connection.exec_driver_sql("UPDATE stock SET on_hand = -1")

        await database.call(spoil)
        stopping = asyncio.Event()

        async def go_on() -> None:
            while not stopping.is_set():
                await history.commit("sku-1", Received(qty=1))
                await asyncio.sleep(0)

        writing = asyncio.create_task(go_on())
        rebuilder = Rebuilder(bound(stock), log, another, say=lambda _: None)
        await rebuilder.run()
        assert rebuilder.swapped
        stopping.set()
        await writing
        await history.commit("sku-2", Received(qty=1))
        await rows_arrive(database, log)
        report = await report_of(database, log)
        assert (report.generation, len(await Views(log, database, [HOSTED]).report())) == (1, 1)
        assert projector.feed is not None


class HeldLog(SimulatedLog):
    """Another object for the same log. Who follows by it stands still while the gate is closed."""

    def __init__(self, log: SimulatedLog) -> None:
        super().__init__(Random(0))
        self._topics, self._shelves, self._followers = log._topics, log._shelves, log._followers  # pyright: ignore[reportPrivateUsage]
        self.gate = asyncio.Event()

    @asynccontextmanager
    async def follow(self, partition: Partition, offset: int) -> AsyncGenerator[FollowingReader]:
        """See `EventLog`."""
        await self.gate.wait()
        async with super().follow(partition, offset) as reader:
            yield reader


@in_loop
async def test_the_new_tables_are_never_behind_the_old_ones(address: str) -> None:
    log = await log_with_topic()
    async with database_at(address) as database, database_at(address) as another:
        history = await stand_at(log, database, 5)
        held = HeldLog(log)

        class Late(Rebuilder):
            """Has read everything, and then the old tables get further than it."""

            async def _swap(self, feed: Feed, writer: Writer) -> None:
                await history.commit("sku", Received(qty=100))
                async with projecting(log, database):
                    await rows_arrive(database, log)
                assert sum(reading.fold.offset for reading in feed.readings) == 6
                asyncio.get_running_loop().call_later(AWAY_S / 10, held.gate.set)
                await super()._swap(feed, writer)

        await Late(bound(stock), held, another, say=lambda _: None).run()
        assert await database.call(stock_rows) == {"sku": (0 + 1 + 2 + 3 + 4 + 100, 0)}


@in_loop
async def test_indexes_and_constraints_survive_swaps(address: str) -> None:
    log = await log_with_topic()
    history = History(log)

    def names(database: Database) -> list[str]:
        query = (
            "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
            if database.is_sqlite
            else "SELECT indexname FROM pg_indexes WHERE schemaname = 'public'"
        )
        with database.transaction(write=False) as connection:
            found = connection.exec_driver_sql(query).scalars().all()
            return sorted(name for name in found if not name.startswith("rk_"))

    async with database_at(address) as database:
        await history.commit("sku", Reserved(order="o", qty=1))
        for declared in (stock, orders):
            async with projecting(log, database, declared) as projector:
                await eventually(lambda projector=projector: projector.feed is not None)  # type: ignore[misc]
        before = await database.call(names)
        assert {"ix_stock_orders", "stock_by_orders"} <= set(before)
        for _ in range(3):
            for declared in (stock, orders):
                await Rebuilder(bound(declared), log, database, say=lambda _: None).run()
            assert await database.call(names) == before
        await rows_arrive(database, log)


@in_loop
async def test_a_rebuild_that_was_killed_leaves_the_old_tables_and_can_be_begun_again(address: str) -> None:
    log = await log_with_topic()
    async with database_at(address) as database:
        history = await stand_at(log, database, 10)

        def kill(_: Done) -> None:
            task.cancel()

        rebuilder = Rebuilder(bound(stock), log, database, say=lambda _: None, on_progress=kill)
        task = asyncio.create_task(rebuilder.run())
        with pytest.raises(asyncio.CancelledError):
            await task
        names = [report.name for report in await Views(log, database, [HOSTED]).report()]
        assert names == ["stock", "stock:rebuild"]
        await history.commit("sku", Received(qty=1))
        async with projecting(log, database):
            await rows_arrive(database, log)
        await Rebuilder(bound(stock), log, database, say=lambda _: None).run()
        assert [report.name for report in await Views(log, database, [HOSTED]).report()] == ["stock"]
        await rows_arrive(database, log)


@in_loop
async def test_a_rebuild_mends_what_was_not_confirmed(address: str) -> None:
    log = await log_with_topic()
    async with database_at(address) as database:
        await stand_at(log, database, 5)
        log.recreate(HOSTED.topic().name)
        again = History(log)
        await again.commit("other", Received(qty=7))
        await ended_with(PositionNotConfirmed, log, database)
        await Rebuilder(bound(stock), log, database, say=lambda _: None).run()
        assert await database.call(stock_rows) == {"other": (7, 0)}
        async with projecting(log, database):
            await again.commit("other", Received(qty=1))
            await rows_arrive(database, log)


@in_loop
async def test_poison_ends_a_rebuild_and_the_old_tables_serve_on(address: str) -> None:
    log = await log_with_topic()
    async with database_at(address) as database:
        async with projecting(log, database, parking):
            history = History(log)
            for qty in (1, POISON, 2):
                await history.commit("sku", Received(qty=qty))

            async def is_there() -> bool:
                return await database.call(stock_rows) == {"sku": (3, 0)}

            await holds(is_there)
        with pytest.raises(PoisonEvent):
            await Rebuilder(bound(stock), log, database, say=lambda _: None).run()
        assert await database.call(stock_rows) == {"sku": (3, 0)}
        assert (await report_of(database, log, "stock:rebuild")).state == books.STOPPED


@in_loop
async def test_a_new_version_is_put_in_place_by_a_rebuild_and_fences_the_old_build(address: str) -> None:
    log = await log_with_topic()
    async with database_at(address) as database, database_at(address) as another:
        history = await stand_at(log, database, 3)
        old = Projector(bound(stock), log, database, say=lambda _: None)
        running = asyncio.create_task(old.run())
        await eventually(lambda: old.feed is not None and old.feed.caught_up)
        newer = projection(StockRow, of=Stock, name="stock", version=2)(fold_stock)
        await Rebuilder(bound(newer), log, another, say=lambda _: None).run()
        await history.commit("sku", Received(qty=1))
        with pytest.raises(ProjectionFenced, match="of version 2 now, this build makes version 1"):
            await running
        async with projecting(log, another, newer):
            await rows_arrive(another, log)


@in_loop
async def test_what_others_may_do_with_a_table_survives_a_swap(postgres: Postgres, unique: str) -> None:
    log = await log_with_topic()

    def grant(database: Database) -> None:
        with database.transaction() as connection:
            connection.exec_driver_sql(f'CREATE ROLE "{unique}"')
            connection.exec_driver_sql(f'GRANT SELECT ON stock TO "{unique}"')

    def may_select(database: Database) -> bool:
        with database.transaction(write=False) as connection:
            found = connection.exec_driver_sql("SELECT has_table_privilege(%s, 'stock', 'SELECT')", (unique,))
            return bool(found.scalar())

    async with database_at(postgres.database(unique)) as database:
        await stand_at(log, database, 1)
        await database.call(grant)
        await Rebuilder(bound(stock), log, database, say=lambda _: None).run()
        assert await database.call(may_select)
