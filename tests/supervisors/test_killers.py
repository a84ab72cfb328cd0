"""Handlers that kill the process that runs them: each kills two instances at most, is named, and is not run again.

Goal: an infinite loop, `os._exit` and a memory hog, in commands and queries, plain, async and local, and an `apply` that
kills whoever replays it. None of them takes the service down: the callers of other entities are answered all the time,
what they were told counts exactly once, and the controller's lines say who it was. Method: instances are processes; a
crowd of callers counts on entities of every shard while one caller sets a killer off.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from rekindle import Client, CommandFailed
from rekindle.actors import ShardRefused
from rekindle.events import shard_of
from rekindle.supervisors import Controller, Launch, ProcessCluster, opened
from rekindle.supervisors.control import DEATHS_MAX
from rekindle.supervisors.hosting import real_host
from rekindle.up import create_topics
from tests.support import REPOSITORY
from tests.support.inprocess import in_loop
from tests.support.killers import HANG_S, INSTANCES, MEMORY_BYTES_MAX, SHARDS, TRAP, Bomb, app_of
from tests.support.loops import eventually
from tests.support.running import Lines
from tests.support.service import keys_of_every_shard

UP_MAX_S: Final = 50.0
CALL_MAX_S: Final = 50.0
"""Of callers who are to be answered, whatever happens to instances meanwhile."""

KEYS: Final = keys_of_every_shard(SHARDS, prefix="bomb")
CROWD: Final = keys_of_every_shard(SHARDS, prefix="crowd")
"""One key of each shard, in the order of the shards."""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has other things to do may keep a pulse waiting; here nobody is to be taken for dead for that."""
    monkeypatch.setattr("rekindle.supervisors.ward.SUSPECT_S", UP_MAX_S)


@dataclass
class Show:
    """The application, its crowd, and what its controller said."""

    controller: Controller
    cluster: ProcessCluster
    client: Client
    lines: Lines
    trap: Path
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def count(self, key: str) -> None:
        """One caller of the crowd: everything that it is answered is the number of its own commands."""
        bomb = self.client.get(Bomb, key, timeout=CALL_MAX_S)
        ticks = 0
        while not self.ended.is_set():
            ticks += 1
            assert await bomb.tick() == ticks
            assert await bomb.ticked() == ticks

    def dead(self) -> list[str]:
        """The lines that report a dead instance."""
        return [line for line in self.lines.said if " is dead: " in line]

    async def wait_whole(self) -> None:
        """Until all instances are there, and all shards served that may be."""
        async with asyncio.timeout(UP_MAX_S):
            await self.controller.up.wait()
        await eventually(self._is_whole)

    def _is_whole(self) -> bool:
        wards = {ward.incarnation: ward for ward in self.controller.wards.values() if ward.alive}
        return len(wards) >= INSTANCES and all(
            owned.refused is not None
            or (owned.incarnation in wards and wards[owned.incarnation].serving.get(shard) == owned.number)
            for shard, owned in enumerate(self.controller.decisions.control.services["bombs"])
        )


@asynccontextmanager
async def showing(folder: Path, crowd: Sequence[str] = CROWD) -> AsyncGenerator[Show]:
    """The application, up, and a crowd that calls it until the end of the block."""
    app, log, trap, lines = app_of("killers-app"), str(folder / "log.sqlite"), folder / "trap", Lines()
    target = f"{app_of.__module__}:{app.name}"
    launch = Launch(target, log=log, memory_bytes_max=MEMORY_BYTES_MAX, path=(str(REPOSITORY),))
    cluster = ProcessCluster(launch, ("a", "b", "c"), {TRAP: str(trap)})
    await create_topics(app, log)
    async with opened(log, app.snapshots, app.name) as (event_log, store):
        host = real_host(event_log, store, launch, lines.say)
        controller = Controller(app.name, app.tree, cluster, host, "controller")
        leading = asyncio.create_task(controller.run())
        try:
            async with app.connect(log=log) as client:
                show = Show(controller, cluster, client, lines, trap)
                await show.wait_whole()
                async with asyncio.TaskGroup() as callers:
                    for key in crowd:
                        callers.create_task(show.count(key))
                    yield show
                    show.ended.set()
        finally:
            leading.cancel()
            await asyncio.wait([leading])
            await cluster.close()


@pytest.mark.parametrize(
    ("killer", "max_staleness"),
    [
        ("loop", None),
        ("leave", None),
        ("hog", None),
        ("loop_async", None),
        ("leave_async", None),
        ("loop_in_query", None),
        ("leave_in_query", None),
        ("leave_in_query", CALL_MAX_S),
    ],
)
@in_loop
async def test_a_handler_kills_two_instances_at_most_and_is_named(
    killer: str, max_staleness: float | None, tmp_path: Path
) -> None:
    """Who leaves at once leaves no word of who it was; at its second time it was announced."""
    async with showing(tmp_path) as show:
        bomb = show.client.get(Bomb, KEYS[0], timeout=CALL_MAX_S, max_staleness=max_staleness)
        assert await bomb.tick() == 1
        culprit = f"Bomb.{killer} of '{KEYS[0]}'"
        with pytest.raises(CommandFailed, match=f"poison: two instances died while {culprit} was running"):
            await getattr(bomb, killer)()
        assert await bomb.tick() == 2
        await show.wait_whole()
        named = [culprit in line for line in show.dead()]
        assert named == ([True, True] if "leave" not in killer else [False, True])
        assert show.lines.count(f"poison: {culprit} is not run again, 2 instances died of it") == 1


@in_loop
async def test_an_apply_that_kills_stops_its_shard_and_no_other(tmp_path: Path) -> None:
    """At its first death every shard of the instance may have been it. At the second one it is known, and then refused."""
    async with showing(tmp_path, CROWD[1:]) as show:
        trapped, shard = show.client.get(Bomb, KEYS[0], timeout=CALL_MAX_S), shard_of(KEYS[0], SHARDS)
        await trapped.trap()
        show.trap.touch()
        owner = show.controller.decisions.control.services["bombs"][shard].incarnation
        assert owner is not None
        await show.cluster.kill(owner)
        await show.lines.wait(
            f"bombs/{shard} is kept down: poison: its replay was running at the death of 2", 1, UP_MAX_S
        )
        await show.wait_whole()
        assert len(show.dead()) == 1 + DEATHS_MAX
        assert f"while it ran the replay of shard {shard}" in show.dead()[-1]
        for key in KEYS[1:]:
            assert await show.client.get(Bomb, key, timeout=CALL_MAX_S).tick() == 1
        with pytest.raises(ShardRefused, match=f"shard {shard} of bombs is kept down: poison: its replay was running"):
            await trapped.tick()


@in_loop
async def test_a_long_computation_is_nobodys_death(tmp_path: Path) -> None:
    """It holds the loop, and the pulse names it. That is all, as long as it is shorter than the service allows."""
    async with showing(tmp_path) as show:
        bomb = show.client.get(Bomb, KEYS[0], timeout=CALL_MAX_S)
        for _ in range(2):
            await bomb.hold(HANG_S / 2)
        assert await bomb.ticked() == 2
        assert show.dead() == []
