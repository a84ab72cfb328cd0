"""Handlers that kill the process that runs them: each kills two instances at most, is named, and is not run again.

Goal: an infinite loop, `os._exit` and a memory hog, in commands and queries, plain, async and local, and an `apply` that
kills whoever replays it. None of them takes the service down: the callers of other entities are answered all the time,
what they were told counts exactly once, and the controller's lines say who it was. Method: instances are processes; a
crowd of callers counts on entities of every shard while one caller sets a killer off.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rekindle import Client, CommandFailed, RekindleError
from rekindle.events import shard_of
from rekindle.supervisors import Controller, Launch, ProcessCluster, opened
from rekindle.supervisors.hosting import real_host
from rekindle.up import create_topics
from tests.support import REPOSITORY
from tests.support.killers import HANG_S, INSTANCES, MEMORY_BYTES_MAX, SHARDS, TRAP, Bomb, app_of
from tests.support.loops import eventually, run
from tests.support.running import Lines
from tests.support.service import keys_of_every_shard

WAIT_S = 60.0
CALL_MAX_S = 50.0
DEATHS_MAX = 2


@dataclass
class Crowd:
    """Callers that count, each on an entity of its own; every shard has one."""

    client: Client
    ticks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(keys_of_every_shard(SHARDS, prefix="crowd"), 0))
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self, key: str) -> None:
        while not self.ended.is_set():
            bomb = self.client.get(Bomb, key, timeout=CALL_MAX_S)
            self.ticks[key] += 1
            assert await bomb.tick() == self.ticks[key]
            assert await bomb.ticked() == self.ticks[key]


@dataclass
class Show:
    """The application, and what its controller said."""

    controller: Controller
    cluster: ProcessCluster
    client: Client
    lines: Lines
    crowd: Crowd
    trap: Path

    def dead(self) -> list[str]:
        """The lines that report a dead instance."""
        return [line for line in self.lines.said if " is dead: " in line]

    async def wait_whole(self) -> None:
        """Until all instances are there, and all shards served that may be."""
        async with asyncio.timeout(WAIT_S):
            await self.controller.up.wait()
        await eventually(self._is_whole)

    def _is_whole(self) -> bool:
        owned = self.controller.decisions.control.services["bombs"]
        wards = {ward.incarnation: ward for ward in self.controller.wards.values() if ward.alive}
        return len(wards) >= INSTANCES and all(
            o.refused is not None or (o.incarnation in wards and wards[o.incarnation].serving.get(shard) == o.number)
            for shard, o in enumerate(owned)
        )


@asynccontextmanager
async def showing(folder: Path) -> AsyncGenerator[Show]:
    """The application, up, with a crowd that calls it until the end of the block."""
    app, log, lines, trap = app_of("killers-app"), str(folder / "log.sqlite"), Lines(), folder / "trap"
    launch = Launch(
        f"{app_of.__module__}:{app.name}", log=log, memory_bytes_max=MEMORY_BYTES_MAX, path=(str(REPOSITORY),)
    )
    await create_topics(app, log)
    cluster = ProcessCluster(launch, ("a", "b", "c"), {TRAP: str(trap)})
    async with opened(log, app.snapshots, app.name) as (event_log, store):
        controller = Controller(
            app.name, app.services, cluster, real_host(event_log, store, launch, lines.say), "controller"
        )
        leading = asyncio.create_task(controller.run())
        try:
            async with app.connect(log=log) as client:
                show = Show(controller, cluster, client, lines, Crowd(client), trap)
                await show.wait_whole()
                async with asyncio.TaskGroup() as callers:
                    for key in show.crowd.ticks:
                        callers.create_task(show.crowd.call(key))
                    yield show
                    show.crowd.ended.set()
        finally:
            leading.cancel()
            await asyncio.wait([leading])
            await cluster.close()


KILLERS = ["loop", "leave", "hog", "loop_async", "leave_async", "loop_in_query", "leave_in_query"]


@pytest.mark.parametrize("killer", KILLERS)
def test_a_handler_kills_two_instances_at_most_and_is_named(killer: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with showing(tmp_path) as show:
            key = next(key for key in keys_of_every_shard(SHARDS, prefix="bomb"))
            bomb = show.client.get(Bomb, key, timeout=CALL_MAX_S)
            await bomb.tick()
            with pytest.raises(
                CommandFailed, match=f"poison: two instances died while Bomb.{killer} of '{key}' was running"
            ):
                await getattr(bomb, killer)()
            assert await bomb.tick() == 2
            await show.wait_whole()
            print(*show.lines.said, sep="\n")
            assert 1 <= len(show.dead()) <= DEATHS_MAX
            assert any(f"Bomb.{killer} of '{key}'" in line for line in show.dead())

    run(main())
