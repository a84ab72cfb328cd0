"""Projectors as processes of their own, killed and stopped in the middle of what they do; and the command line.

Goal: whatever befalls a process, the rows are what the log says, and every event is in them once. Method: `rekindle projection
run` on the embedded log, on SQLite and PostgreSQL; SIGKILL while it catches up, SIGSTOP, a successor, SIGCONT.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import select

from rekindle.events import Event
from rekindle.projections import Database, DatabaseRefused, Views, books
from tests.support.child import start_child
from tests.support.inprocess import embedded, in_loop, key_in
from tests.support.loops import DEADLINE_S
from tests.support.postgres import Postgres
from tests.support.viewed import (
    HOSTED,
    POISON,
    SHARDS,
    TARGET,
    History,
    Received,
    Reserved,
    database_at,
    expected_stock,
    logs_of,
    sqlite_at,
    stock_rows,
)

KILLS: Final = 3
COMMITS: Final = 4_000
"""Of each shard: so many that a projector does not handle all of them between two looks at it."""

EVENTS: Final = 2 * COMMITS * SHARDS

APPENDED_TOGETHER: Final = 500
_LOOK_S: Final = 0.01


@dataclass
class Shop:
    """A log, a database, and the processes that a test has started."""

    history: History
    log: str
    database: Database
    address: str
    output: Path
    children: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])

    def start(self, verb: str = "run") -> subprocess.Popen[bytes]:
        """One more process that keeps `stock` up with the log, or builds it anew."""
        command = ("-m", "rekindle.cli", "projection", verb, "stock", "--app", TARGET)
        child = start_child([sys.executable, *command, "--log", self.log, "--database", self.address], self.output)
        self.children.append(child)
        return child

    async def fill(self, commits: int) -> None:
        """So many commits more in each shard, with a straggler now and then."""
        for shard in range(SHARDS):
            keys = [key_in(shard, SHARDS, prefix) for prefix in ("a", "b", "c")]
            for first in range(0, commits, APPENDED_TOGETHER):
                numbers = range(first, min(commits, first + APPENDED_TOGETHER))
                batch: list[tuple[str, list[Event]]] = [
                    (keys[n % 3], [Received(qty=n % POISON), Reserved(order=str(n), qty=1)]) for n in numbers
                ]
                await self.history.commit_all(batch)
                await self.history.void(keys[0], Received(qty=1), back=1)

    async def until(self, holds: Callable[[Database], Any]) -> Any:
        """What comes of a look at the database once it is something; as long as there is no table, it is nothing."""
        found = None
        async with asyncio.timeout(DEADLINE_S):
            while not found:
                with suppress(DatabaseRefused):
                    found = await self.database.call(holds)
                await asyncio.sleep(_LOOK_S)
        return found

    async def until_rows_are_right(self) -> None:
        """Until the rows are what the log says."""
        expected = expected_stock(await logs_of(self.history.log))
        await self.until(lambda database: stock_rows(database) == expected)

    async def ended(self, child: subprocess.Popen[bytes]) -> int:
        """The exit code of a process."""
        return await asyncio.to_thread(child.wait, DEADLINE_S)


@pytest.fixture(params=["sqlite", "postgres"])
def address(request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> str:
    """A database for read models."""
    if request.param == "sqlite":
        return sqlite_at(tmp_path)
    server: Postgres = request.getfixturevalue("postgres")
    return server.database(unique)


@asynccontextmanager
async def shop_at(folder: Path, address: str) -> AsyncGenerator[Shop]:
    """A shop with an empty log."""
    async with embedded(folder) as log, database_at(address) as database:
        await log.create(HOSTED.topic())
        shop = Shop(History(log), str(log.path), database, address, folder / "output")
        try:
            yield shop
        finally:
            for child in shop.children:
                child.kill()
                child.wait(DEADLINE_S)


def handled(database: Database, name: str = "stock") -> int:
    """How many events have been handled."""
    with database.transaction(write=False) as connection:
        found = connection.execute(select(books.PROJECTION.c.events).where(books.PROJECTION.c.name == name))
        return found.scalar() or 0


@in_loop
async def test_killed_in_the_middle_again_and_again(tmp_path: Path, address: str) -> None:
    async with shop_at(tmp_path, address) as shop:
        in_the_middle = 0
        for kills in range(KILLS):
            await shop.fill(COMMITS)
            done = await shop.database.call(handled)
            child = shop.start()
            await shop.until(lambda database, done=done: handled(database) > done)  # type: ignore[misc]
            child.kill()
            await shop.ended(child)
            in_the_middle += await shop.database.call(handled) < (kills + 1) * EVENTS
        assert in_the_middle, "the projector was always done before it was killed: nothing was tried"
        shop.start()
        await shop.until_rows_are_right()
        assert await shop.database.call(handled) == KILLS * EVENTS


@in_loop
async def test_stopped_replaced_and_continued_on_postgres(tmp_path: Path, postgres: Postgres, unique: str) -> None:
    async with shop_at(tmp_path, postgres.database(unique)) as shop:
        await shop.fill(COMMITS)
        stopped = shop.start()
        await shop.until(lambda database: handled(database) > 0)
        stopped.send_signal(signal.SIGSTOP)  # in the middle of a transaction, as likely as not
        shop.start()
        await shop.until_rows_are_right()
        stopped.send_signal(signal.SIGCONT)
        await shop.fill(50)
        assert await shop.ended(stopped) == 1
        assert "ProjectionFenced: projection 'stock' is fenced" in shop.output.read_text()
        await shop.until_rows_are_right()


@in_loop
async def test_stopped_replaced_and_continued_on_sqlite(tmp_path: Path) -> None:
    async with shop_at(tmp_path, sqlite_at(tmp_path)) as shop:
        await shop.fill(50)
        stopped = shop.start()
        await shop.until_rows_are_right()
        await asyncio.to_thread(stop_outside_of_a_transaction, stopped, tmp_path / "views.sqlite")
        await shop.fill(50)
        shop.start()
        await shop.until_rows_are_right()
        stopped.send_signal(signal.SIGCONT)
        assert await shop.ended(stopped) == 1  # it has read what the other one has written
        assert "ProjectionFenced: projection 'stock' is fenced" in shop.output.read_text()
        await shop.fill(50)
        await shop.until_rows_are_right()


def stop_outside_of_a_transaction(child: subprocess.Popen[bytes], path: Path) -> None:
    """SIGSTOP a process that does not hold the file just now: SQLite would keep everybody else out until it goes on."""
    while True:
        child.send_signal(signal.SIGSTOP)
        connection = sqlite3.connect(path, timeout=0.1, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            child.send_signal(signal.SIGCONT)
        else:
            return
        finally:
            connection.close()


@in_loop
async def test_sigterm_ends_one_and_it_says_so(tmp_path: Path, address: str) -> None:
    async with shop_at(tmp_path, address) as shop:
        await shop.fill(10)
        child = shop.start()
        await shop.until_rows_are_right()
        child.terminate()
        assert await shop.ended(child) == 0
        (report,) = await Views(shop.history.log, shop.database, [HOSTED]).report()
        assert (report.state, report.silent) == (books.ENDED, False)


@in_loop
async def test_a_rebuild_killed_in_the_middle_changes_nothing_and_is_begun_again(tmp_path: Path, address: str) -> None:
    async with shop_at(tmp_path, address) as shop:
        await shop.fill(COMMITS)
        running = shop.start()
        await shop.until_rows_are_right()
        killed = shop.start("rebuild")
        await shop.until(lambda database: handled(database, "stock:rebuild") > 0)
        killed.kill()
        await shop.ended(killed)
        assert 0 < await shop.database.call(handled, "stock:rebuild") < EVENTS, "it was done before it was killed"
        await shop.fill(50)
        await shop.until_rows_are_right()
        again = shop.start("rebuild")
        await shop.fill(50)
        assert await shop.ended(again) == 0, shop.output.read_text()
        await shop.fill(50)
        await shop.until_rows_are_right()
        assert running.poll() is None
        (report,) = await Views(shop.history.log, shop.database, [HOSTED]).report()
        assert (report.name, report.generation) == ("stock", 1)


# The command line


def rekindle(shop: Shop, *arguments: str) -> tuple[int, str, str]:
    """Run a command: its exit code and what it said."""
    options = ("--app", TARGET, "--log", shop.log, "--database", shop.address)
    command = [sys.executable, "-m", "rekindle.cli", "projection", *arguments, *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    return ended.returncode, ended.stdout, ended.stderr


@in_loop
async def test_list_and_rebuild_for_people_and_for_programs(tmp_path: Path, address: str) -> None:
    async with shop_at(tmp_path, address) as shop:
        code, out, _ = await asyncio.to_thread(rekindle, shop, "list", "--output", "json")
        assert (code, json.loads(out)) == (0, [])
        assert "No projection has run here yet." in (await asyncio.to_thread(rekindle, shop, "list"))[1]
        await shop.fill(10)
        child = shop.start()
        await shop.until_rows_are_right()
        code, out, err = await asyncio.to_thread(rekindle, shop, "rebuild", "stock")
        assert code == 0, err
        assert out == f"projection 'stock' is rebuilt, of {2 * 10 * SHARDS} events\n"
        assert "100 %" in err
        await shop.fill(10)
        await shop.until_rows_are_right()
        assert child.poll() is None
        code, out, _ = await asyncio.to_thread(rekindle, shop, "list", "--output", "json")
        (stock,) = json.loads(out)
        assert (stock["name"], stock["state"], stock["generation"], stock["error"]) == ("stock", "running", 1, "")
        assert [shard["service"] for shard in stock["shards"]] == ["stock"] * SHARDS
        code, out, _ = await asyncio.to_thread(rekindle, shop, "list")
        assert "stock" in out
        assert "running" in out


@in_loop
async def test_what_stops_a_projection_is_its_exit_and_is_listed(tmp_path: Path) -> None:
    async with shop_at(tmp_path, sqlite_at(tmp_path)) as shop:
        await shop.history.commit("sku", Received(qty=POISON))
        assert await shop.ended(shop.start()) == 1
        assert "PoisonEvent: projection 'stock' stands still before Received of stock 'sku'" in shop.output.read_text()
        code, out, _ = await asyncio.to_thread(rekindle, shop, "list", "--output", "json")
        (stock,) = json.loads(out)
        assert (code, stock["state"]) == (0, "stopped")
        assert stock["error"].startswith("PoisonEvent: ")


@in_loop
async def test_a_projection_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    async with shop_at(tmp_path, sqlite_at(tmp_path)) as shop:
        code, _, err = await asyncio.to_thread(rekindle, shop, "rebuild", "nothing")
        assert (code, err) == (
            2,
            "DeclarationError: app 'viewed' has no projection 'nothing'; it has ['orders', 'stock']\n",
        )


def test_who_needs_no_read_models_does_not_load_them() -> None:
    code = "import sys, rekindle.cli; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
