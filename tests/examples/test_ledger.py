"""The ledger: the most caught up standby is promoted, and at any time there is one writer.

Method: callers book on accounts all the time; the owner is killed while one of its standbys is behind, or frozen until long
after its successor has taken over. Each booking is answered with its number: two owners that both acknowledged would give
one number twice. The log is then read from its beginning, and has every acknowledged booking once.
"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from examples.ledger.app import Account, app, main
from rekindle.events import Commit, Fold, decode
from rekindle.supervisors import Control
from tests.examples.stage import CALL_MAX_S, ZONES, Stage, calling, is_healed, plans_of, stage
from tests.support.judge import raw_log
from tests.support.loops import eventually, run
from tests.support.watch import Watch

ACCOUNTS: Final = ("anna", "bert", "carl")
LANES: Final = 2
"""Callers of each account."""

LOCK_MAX_S: Final = 0.2
"""Nobody who runs holds the lock for longer."""

BOOKINGS: Final = 100
STEP_MAX_S: Final = 50.0
SUSPECT_S: Final = 2.0
"""Of a frozen one; a machine that has other things to do keeps pulses waiting, too."""


class Bookings:
    """What was acknowledged: by account, the numbers of its bookings."""

    def __init__(self, ledger: Stage) -> None:
        self.ledger = ledger
        self.numbers: dict[str, list[int]] = {name: [] for name in ACCOUNTS}
        self._more = Watch()

    async def book(self, name: str) -> None:
        """Once."""
        account = self.ledger.client.get(Account, name, timeout=CALL_MAX_S)
        self.numbers[name].append(await account.deposit(1))
        self._more.changed()

    async def more(self, count: int = BOOKINGS) -> None:
        """Until so many more are acknowledged."""
        target = self._count() + count
        await self._more.until(f"{target} bookings", lambda: self._count() >= target, STEP_MAX_S)

    def _count(self) -> int:
        return sum(map(len, self.numbers.values()))

    async def check(self) -> list[str]:
        """Every acknowledged booking is in the log once, under its number; who has written, one after the other."""
        (records,) = await raw_log(self.ledger.log, f"{app.name}.ledger", 1)
        fold, counted, owners = Fold(), Counter[str](), list[str]()
        for offset, value in records:
            record = decode(value)
            counts = fold.feed(offset, record)
            if counts and isinstance(record, Commit) and record.events:
                counted[record.entity] += 1
                owners += [fold.incarnation] if fold.incarnation not in owners[-1:] else []
        for name, numbers in self.numbers.items():
            assert sorted(numbers) == list(range(1, len(numbers) + 1))
            assert counted[name] == len(numbers)
        return owners


def is_whole(control: Control) -> bool:
    """Whether two standbys follow the shard, and they and the owner are in three zones."""
    (owned,) = control.services["ledger"]
    there = [control.instances.get(name or "") for name in (owned.incarnation, *owned.standbys)]
    return len({ZONES[running.node] for running in there if running is not None}) == 3


def is_whole_again(control: Control) -> bool:
    """Whether it is, after something had happened."""
    return is_healed(control) and is_whole(control)


def behind(ledger: Stage) -> dict[str, int | None]:
    """How many commits each standby is behind, as the controller knows it."""
    return dict(ledger.controller.world().services["ledger"].shards[0].behind)


async def freeze_between_appends(ledger: Stage, owner: str) -> None:
    """Who is frozen in the middle of an append has the embedded log's one lock, and holds up everybody (not with Kafka)."""
    ledger.machines.freeze(owner)
    while not _can_append(ledger.log):
        ledger.machines.thaw(owner)
        await asyncio.sleep(0)
        ledger.machines.freeze(owner)


def _can_append(log: str) -> bool:
    with closing(sqlite3.connect(log, timeout=LOCK_MAX_S)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        return True


def test_the_most_caught_up_standby_is_promoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def kill() -> None:
        async with stage("examples.ledger.app:app", tmp_path) as ledger:
            (owned,) = (await ledger.until(is_whole)).services["ledger"]
            owner, (slow, other) = await ledger.owner("ledger"), sorted(owned.standbys)
            bookings = Bookings(ledger)
            async with calling([partial(bookings.book, name) for name in ACCOUNTS * LANES]):
                await bookings.more()
                ledger.machines.freeze(slow)
                await eventually(lambda: (behind(ledger)[slow] or 0) > 2 * BOOKINGS > (behind(ledger)[other] or 0))
                assert ledger.machines.signal(owner, signal.SIGKILL)
                await bookings.more()
                assert await ledger.owner("ledger") == other
                ledger.machines.thaw(slow)
                control = await ledger.until(is_whole_again)
            assert await bookings.check() == [owner, other]
            balance = len(bookings.numbers["anna"])
            await main(ledger.log)
        assert f"there are {balance + 100}\nnow there are {balance + 70}" in capsys.readouterr().out
        assert [plan.services for plan in plans_of(control, "promote_standby")] == [["ledger"]]

    run(kill())


def test_an_owner_that_was_frozen_acknowledges_nothing_when_it_wakes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rekindle.supervisors.ward.SUSPECT_S", SUSPECT_S)

    async def freeze() -> None:
        async with stage("examples.ledger.app:app", tmp_path) as ledger:
            standbys = (await ledger.until(is_whole)).services["ledger"][0].standbys
            owner, bookings = await ledger.owner("ledger"), Bookings(ledger)
            async with calling([partial(bookings.book, name) for name in ACCOUNTS * LANES]):
                await bookings.more()
                await freeze_between_appends(ledger, owner)
                await bookings.more()
                promoted = await ledger.owner("ledger")
                assert promoted in standbys
                ledger.machines.thaw(owner)
                await bookings.more()
                await ledger.machines.land(owner)
                await ledger.until(is_whole_again)
            assert await bookings.check() == [owner, promoted]

    run(freeze())
