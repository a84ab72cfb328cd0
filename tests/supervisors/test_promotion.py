"""Standbys are there without being asked for, and what they have followed is what an owner goes on with.

Goal: a death costs the time to notice it, a claim and the tail of the log, and no more. Method: the whole system in a
simulated world in which nothing else goes wrong (`tests.support.simulated`), so times are virtual, and the same in every run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from typing import Final

from rekindle import Client, Service
from rekindle.actors.peer import QUIET_S
from rekindle.supervisors import Control, Controller
from rekindle.supervisors.ward import SUSPECT_S
from tests.support.service import Stock, keys_of_every_shard
from tests.support.simulated import QuietWorld

SHARDS: Final = 8
KEYS: Final = keys_of_every_shard(SHARDS, each=1)
TAKEOVER_S: Final = 0.1
"""A claim and the tail of a simulated log take a few milliseconds; a call, a few more."""

Story = Callable[[QuietWorld, Controller, Client], Awaitable[None]]


def play(story: Story) -> None:
    """Bring the application up, with all its standbys; then the story."""
    world = QuietWorld(Service("stock", Stock, shards=SHARDS, instances=3, standbys=1))

    async def main() -> None:
        controller = await up_with_standbys(world)
        async with world.client() as client:
            await asyncio.gather(*(client.get(Stock, key).receive(5) for key in KEYS))
            await story(world, controller, client)

    world.run(main())


async def up_with_standbys(world: QuietWorld) -> Controller:
    """The application with everything that was declared, and nothing going on."""
    await world.prepare()
    controller = world.lead()
    await controller.up.wait()

    def has_standbys() -> bool:
        followed = [up for ward in controller.wards.values() for _, up in ward.followed.values()]
        return sum(followed) == world.service.shards and not control_of(controller).active_plans()

    await world.until("every shard has a standby", has_standbys)
    return controller


def control_of(controller: Controller) -> Control:
    """What it has decided."""
    return controller.decisions.control


def victim_of(controller: Controller) -> tuple[str, list[int]]:
    """Some instance, and its shards."""
    owned = control_of(controller).services["stock"]
    victim = owned[0].incarnation
    assert victim is not None, "an application that is up has an owner for every shard"
    return victim, [shard for shard, o in enumerate(owned) if o.incarnation == victim]


def inherited(world: QuietWorld) -> int:
    """How often an owner went on with what a follower had."""
    return sum(instance.around.counters.get("inherited", 0) for instance in world.instances.values())


async def ask(client: Client, shards: list[int]) -> float:
    """Command every one of these shards; the virtual seconds until all have answered."""
    began = asyncio.get_running_loop().time()
    for stock in await asyncio.gather(*(client.get(Stock, KEYS[shard]).reserve("o", 1) for shard in shards)):
        assert stock == 4, f"5 were delivered, 1 was reserved, {stock} are left"
    return asyncio.get_running_loop().time() - began


def test_standbys_follow_before_anything_has_died() -> None:
    """Of a single shard: the end of the plan that has it served is the last thing that happens by itself."""
    world = QuietWorld(Service("stock", Stock, shards=1, instances=2, standbys=1))

    async def main() -> None:
        control = control_of(await up_with_standbys(world))
        (owned,) = control.services["stock"]
        assert {owned.incarnation, *owned.standbys} == set(control.instances)
        assert control.incidents == {}

    world.run(main())


def test_whoever_is_promoted_goes_on_with_what_it_has_followed() -> None:
    async def story(world: QuietWorld, controller: Controller, client: Client) -> None:
        victim, shards = victim_of(controller)
        world.process_of(victim).kill()
        assert await ask(client, shards) < TAKEOVER_S
        assert inherited(world) == len(shards)

    play(story)


def test_a_client_leaves_an_instance_that_is_stopped_as_soon_as_its_shards_are_served_elsewhere() -> None:
    async def story(world: QuietWorld, controller: Controller, client: Client) -> None:
        victim, shards = victim_of(controller)
        world.process_of(victim).set_pace(inf)
        assert QUIET_S < await ask(client, shards) < SUSPECT_S + TAKEOVER_S

    play(story)


def test_an_incident_tells_when_its_shards_were_claimed_and_replayed() -> None:
    async def story(world: QuietWorld, controller: Controller, client: Client) -> None:
        victim, shards = victim_of(controller)
        world.process_of(victim).kill()
        await ask(client, shards)
        await world.until("the incident is over", lambda: not control_of(controller).open_incidents())
        (incident,) = control_of(controller).incidents.values()
        marks = incident.marks
        assert incident.opened_ms <= marks["claimed"] <= marks["replayed"] < incident.opened_ms + TAKEOVER_S * 1_000

    play(story)
