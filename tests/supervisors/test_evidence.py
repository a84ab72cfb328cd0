"""Trouble that nobody dies of is noticed, too, and what is done about it waits for what it needs.

Goal: an operator finds overload and an unreachable log as incidents, with the numbers, and they end when the trouble does.
Method: the whole system in a simulated world (`tests.support.simulated`) whose log can keep a service's appends waiting, or
be away for that service only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any, Final

import pytest

from rekindle import Service
from rekindle.actors.client import DEADLINE_MAX_S
from rekindle.events import Bounds, Keyed, LogUnavailable, Partition
from rekindle.events.simulated import SimulatedLog
from rekindle.supervisors import Control, Controller
from rekindle.supervisors.incidents import Incident, Kind
from rekindle.supervisors.planning import OVERLOAD_REST_MS
from rekindle.supervisors.plans import Standing, State
from rekindle.supervisors.tree import Restart
from tests.support.service import Stock, keys_of_every_shard
from tests.support.simulated import APP, QuietWorld

TOPIC: Final = f"{APP}.stock"
UNVERIFIED: Final = 3
CALLERS: Final = 8
LOOKED_FOR_S: Final = 0.01
"""How long it takes to find that the log is away."""

LAST_FRAMES_S: Final = 0.1
"""An instance that ends takes its time: what it has sent before arrives."""


class MoodyLog(SimulatedLog):
    """While `held`, appends for the service wait; while `away`, it cannot be reached. The control log is as ever."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def append(self, partition: Partition, records: Sequence[Keyed]) -> int:
        """See `EventLog`."""
        await self._reach_it(partition)
        return await super().append(partition, records)

    async def bounds(self, partition: Partition) -> Bounds:
        """See `EventLog`."""
        await self._reach_it(partition)
        return await super().bounds(partition)

    async def _reach_it(self, partition: Partition) -> None:
        if partition.topic == TOPIC:
            await self.gate.wait()
            if self.away:
                await asyncio.sleep(LOOKED_FOR_S)
                raise LogUnavailable(f"{partition} is away")


def world_with_moods() -> tuple[QuietWorld, MoodyLog]:
    """One shard on two instances."""
    world = QuietWorld(Service("stock", Stock, shards=1, instances=2), kind=MoodyLog)
    assert isinstance(world.log, MoodyLog)
    return world, world.log


async def up(world: QuietWorld) -> Controller:
    await world.prepare()
    controller = world.lead()
    await controller.up.wait()
    await world.until("nothing goes on", lambda: not control_of(controller).active_plans())
    return controller


def control_of(controller: Controller) -> Control:
    return controller.decisions.control


def incident_of(controller: Controller, kind: Kind) -> Incident:
    (found,) = [incident for incident in control_of(controller).incidents.values() if incident.kind is kind]
    return found


def test_calls_that_are_turned_away_are_an_incident_until_none_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rekindle.actors.shard.UNVERIFIED_MAX", UNVERIFIED)
    world, log = world_with_moods()
    (key,) = keys_of_every_shard(1, each=1)

    async def main() -> None:
        controller = await up(world)
        async with world.client() as client:
            log.gate.clear()
            calls = [asyncio.ensure_future(client.get(Stock, key).receive(1)) for _ in range(CALLERS)]
            await world.until("an overload", lambda: control_of(controller).open_incidents())
            log.gate.set()
            assert sorted(await asyncio.gather(*calls)) == list(range(1, CALLERS + 1))
        incident = incident_of(controller, Kind.OVERLOAD)
        (evidence,) = incident.evidence
        assert evidence.incarnation == control_of(controller).services["stock"][0].incarnation
        turned_away = int(evidence.text.split()[0])
        assert turned_away >= CALLERS - UNVERIFIED
        await world.until("it is over", lambda: not control_of(controller).open_incidents())
        over = incident_of(controller, Kind.OVERLOAD)
        assert over.closed_ms is not None
        assert over.closed_ms - over.changed_ms > OVERLOAD_REST_MS
        assert list(control_of(controller).incidents) == [incident.id]

    world.run(main())


def test_a_shard_whose_log_is_away_waits_for_the_log() -> None:
    world, log = world_with_moods()
    (key,) = keys_of_every_shard(1, each=1)

    async def main() -> None:
        controller = await up(world)
        log.away = True

        def waiting() -> list[str]:
            return [
                step.why
                for plan in control_of(controller).active_plans()
                for _, _, step in plan.steps()
                if step.state is State.BLOCKED and "the log is away" in step.why
            ]

        async with world.client() as client:
            received = asyncio.ensure_future(client.get(Stock, key, timeout=DEADLINE_MAX_S).receive(1))
            await world.until("a step waits for the log", waiting)
            assert not controller.world().log_there
            log.away = False
            assert await received == 1
        assert controller.world().log_there
        await world.until("it is over", lambda: not control_of(controller).open_incidents())
        incident = incident_of(controller, Kind.LOG_UNAVAILABLE)
        (plan,) = [plan for plan in control_of(controller).plans.values() if plan.incident == incident.id]
        assert (plan.policy, plan.standing) == ("hold", Standing.DONE)

    world.run(main())


class Errand:
    """A `Sidecar` that ends when the test says so."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """See `Sidecar`."""

    async def stop(self) -> None:
        """See `Sidecar`."""

    async def wait(self) -> str:
        """See `Sidecar`."""
        return await self.ended

    async def perform(self, operation: str, args: dict[str, Any]) -> None:
        """See `Sidecar`."""


@pytest.mark.parametrize(
    ("restart", "reason", "left"),
    [
        (Restart.TRANSIENT, "", 1),
        (Restart.TRANSIENT, "it crashed", 2),
        (Restart.PERMANENT, "", 2),
        (Restart.TEMPORARY, "it crashed", 1),
    ],
)
def test_who_is_restarted_after_which_exit(restart: Restart, reason: str, left: int) -> None:
    errands: dict[str, Errand] = {}

    def sidecar(incarnation: str) -> Errand:
        errands[incarnation] = Errand()
        return errands[incarnation]

    world = QuietWorld(Service("stock", Stock, shards=1, instances=2, restart=restart, sidecar=sidecar))

    async def main() -> None:
        controller = await up(world)
        control = control_of(controller)
        victim = control.services["stock"][0].incarnation
        assert victim is not None
        errands[victim].ended.set_result(reason)
        await world.instances[victim].stopped.wait()
        await asyncio.sleep(LAST_FRAMES_S)
        world.process_of(victim).kill()
        await world.until(
            "the shard is another's", lambda: control.services["stock"][0].incarnation not in (None, victim)
        )
        await world.until("it is over", lambda: not control.open_incidents() and not control.active_plans())
        assert len(control.instances) == left
        assert victim not in control.instances

    world.run(main())
