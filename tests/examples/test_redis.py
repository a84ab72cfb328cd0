"""Redis servers, a real external process each, supervised: no write that `WAIT 1` has acknowledged is lost.

Goal: the policy of `examples.redis`. Method: real servers and real processes; writers that note what was acknowledged; the
primary is killed while one of its replicas is behind, or frozen, with its server or without, until long after its successor
has taken over; then the successor is asked for every write. What was done, in which order, is read from the control log.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from examples.redis.app import app
from examples.redis.client import connect
from examples.redis.failover import SERVICE, primary_of
from examples.redis.resp import Connection, RedisError, ask
from examples.redis.server import NOBODY
from rekindle.supervisors import Control
from rekindle.supervisors.plans import Perform, Plan
from rekindle.supervisors.world import Told
from tests.examples.stage import Stage, is_alive, is_healed, plans_of, stage
from tests.support.loops import run
from tests.support.watch import Watch

WRITERS: Final = 4
WRITES: Final = 200
STEP_MAX_S: Final = 50.0
SUSPECT_S: Final = 2.0
"""Of a frozen one; a machine that has other things to do keeps pulses waiting, too."""

pytestmark = pytest.mark.usefixtures("redis_server")


class Writers:
    """Callers of the database, each with one write at a time. acknowledged: by key, what counts."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, str] = {}
        self._more = Watch()
        self.ended = False

    async def run(self, number: int, log: str) -> None:
        """Write after write."""
        async with connect(app, log=log) as database:
            for turn in range(1_000_000):
                if self.ended:
                    return
                key = f"{number}.{turn}"
                await database.set(key, f"value-{key}")
                self.acknowledged[key] = f"value-{key}"
                self._more.changed()

    async def more(self, writes: int) -> None:
        """Until so many more are acknowledged."""
        target = len(self.acknowledged) + writes
        await self._more.until(f"{target} writes", lambda: len(self.acknowledged) >= target, STEP_MAX_S)


@asynccontextmanager
async def writing(redis: Stage) -> AsyncGenerator[Writers]:
    """Writers, until the end of the block."""
    writers = Writers()
    async with asyncio.TaskGroup() as group:
        for number in range(WRITERS):
            group.create_task(writers.run(number, redis.log))
        try:
            yield writers
        finally:
            writers.ended = True


def primary_in(control: Control) -> Told | None:
    """The last promotion."""
    return primary_of(control.told.get(SERVICE, ()))


def is_replicated(control: Control) -> bool:
    """Whether there is a primary, and everybody else was told to follow it, and does."""
    last = {one.incarnation: one for one in control.told.get(SERVICE, ())}
    primary = primary_in(control)
    followers = [i for i in control.instances if (told := last.get(i)) is not None and told.operation == "follow"]
    return primary is not None and {primary.incarnation, *followers} == set(control.instances) and len(followers) == 2


def is_healed_and_replicated(control: Control) -> bool:
    """Both."""
    return is_healed(control) and is_replicated(control)


def roles_in(control: Control) -> tuple[Told, list[str]]:
    """The primary, and the names of the others."""
    primary = primary_in(control)
    assert primary is not None
    return primary, sorted(name for name in control.instances if name != primary.incarnation)


async def fall_behind(replica: str, control: Control) -> None:
    """A replica gets nothing from its primary any more, and nobody knows."""
    address = next(one.result["address"] for one in control.told[SERVICE] if one.incarnation == replica)
    assert await ask(address, "REPLICAOF", *NOBODY) == "OK"


async def missing_from(address: str, written: dict[str, str]) -> list[str]:
    """The keys that a server does not have as they were written."""
    connection = await Connection.open(address)
    try:
        return [key for key, value in written.items() if await connection.call("GET", key) != value]
    finally:
        connection.close()


def performed(plan: Plan) -> list[tuple[str, str]]:
    """The operations of a plan: what, and by whom."""
    return [(s.action.operation, s.action.incarnation) for _, _, s in plan.steps() if isinstance(s.action, Perform)]


def check_failover(after: Control, left: list[str]) -> Told:
    """First all are detached, then the most advanced is promoted, then the other one follows it; the new primary."""
    new = primary_in(after)
    assert new is not None
    detaching, electing = plans_of(after, "failover")
    assert sorted(performed(detaching)) == [("detach", name) for name in left]
    offsets = {
        s.action.incarnation: s.result[0]["offset"] for _, _, s in detaching.steps() if isinstance(s.action, Perform)
    }
    assert offsets[new.incarnation] == max(offsets.values()), offsets
    (other,) = (name for name in left if name != new.incarnation)
    assert performed(electing) == [("promote", new.incarnation), ("follow", other)]
    assert detaching.ended_ms is not None
    assert detaching.ended_ms <= electing.made_ms
    return new


def test_a_killed_primary_is_replaced_by_the_most_advanced_replica(tmp_path: Path) -> None:
    async def kill() -> None:
        async with stage("examples.redis.app:app", tmp_path) as redis:
            async with writing(redis) as writers:
                old, left = roles_in(await redis.until(is_replicated))
                await fall_behind(left[-1], await redis.decided())
                await writers.more(WRITES)
                processes = redis.machines.processes(old.incarnation)
                assert {process.name() for process in processes[1:]} == {"redis-server"}
                assert redis.machines.signal(old.incarnation, signal.SIGKILL)
                await writers.more(WRITES)
                new = check_failover(await redis.until(is_healed_and_replicated), left)
                assert not any(map(is_alive, processes))
            assert await missing_from(new.result["address"], writers.acknowledged) == []

    run(kill())


@pytest.mark.parametrize("alone", [False, True], ids=["with its server", "without its server"])
def test_a_primary_that_was_taken_for_dead_acknowledges_nothing_that_is_lost(
    alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen whole, it goes on when its successor is long there. Where its server runs on, it is written to all the time."""
    monkeypatch.setattr("rekindle.supervisors.ward.SUSPECT_S", SUSPECT_S)

    async def freeze() -> None:
        async with stage("examples.redis.app:app", tmp_path) as redis:
            async with writing(redis) as writers:
                old, left = roles_in(await redis.until(is_replicated))
                await writers.more(WRITES)
                early = await Connection.open(old.result["address"])
                redis.machines.freeze(old.incarnation, alone=alone)
                await writers.more(WRITES)
                new = check_failover(await redis.until(is_healed_and_replicated), left)
                redis.machines.thaw(old.incarnation)
                late = await Connection.open(old.result["address"])
                for connection in (early, late):
                    assert await is_unacknowledged(connection)
                    connection.close()
                await redis.machines.land(old.incarnation)
            assert await missing_from(new.result["address"], writers.acknowledged) == []

    run(freeze())


async def is_unacknowledged(connection: Connection) -> bool:
    """Whether a write is refused, or at least not acknowledged."""
    try:
        await connection.call("SET", "stale", "value")
        return await connection.call("WAIT", "1", "100") == 0
    except RedisError as refusal:
        return str(refusal).startswith("NOREPLICAS")
