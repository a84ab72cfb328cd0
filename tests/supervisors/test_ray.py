"""The command line on a real Ray: `rekindle up`, then everything that can die dies, one after the other; `state`, `down`.

Goal: an instance, a node, the controller, at last all of Ray with its head: whatever dies, what was acknowledged is
there, once, and every shard is served again by itself, or, without Ray, after `rekindle up` on a new cluster.

Method: several Ray nodes on this machine, in processes of their own (`tests.support.nodes`), the embedded log, the
commands as a user types them, and SIGKILL. The load does not pause; the judge reads the log.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import psutil
import pytest
from typer.testing import CliRunner

from rekindle import Client
from rekindle.cli import cli
from rekindle.supervisors import Control, decided, opened
from tests.support import REPOSITORY
from tests.support.judge import End, History, Reading, raw_log
from tests.support.listeners import listener_at, listeners
from tests.support.nodes import RayNodes
from tests.support.running import ask_all, load, verdict_of
from tests.support.service import LEDGER_SHARDS, app_of, target_of

pytestmark = pytest.mark.ray

NODES: Final = 3
INSTANCES: Final = sum(service.instances for service in app_of("every-app").services)
STEP_MAX_S: Final = 120.0
ACKNOWLEDGED_BETWEEN: Final = 200
OFFSETS_LOOKED_AT: Final = 5


class Shared:
    """One Ray cluster for all tests of this module; a new one when a test has destroyed it."""

    def __init__(self) -> None:
        self._nodes: RayNodes | None = None

    def get(self) -> RayNodes:
        """The cluster, with all its nodes."""
        if self._nodes is None or not self._nodes.alive:
            self._nodes = RayNodes(NODES)
        while len(self._nodes.workers) < NODES - 1:
            self._nodes.add()
        return self._nodes

    def close(self) -> None:
        """Nothing is left of it."""
        if self._nodes is not None:
            self._nodes.destroy()


@pytest.fixture(scope="module")
def shared() -> Generator[Shared]:
    """A Ray cluster is started when the first test asks for it."""
    shared = Shared()
    yield shared
    shared.close()


def rekindle(*arguments: str) -> str:
    """Run the command in a process of its own; what it printed."""
    command = [sys.executable, "-m", "rekindle.cli", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=STEP_MAX_S, check=False)
    print(done.stdout)
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}: {done.stderr}"
    return done.stdout


def state_at(name: str, log: str, key: str, offset: int | None = None) -> dict[str, Any]:
    """What `rekindle state` prints of a ledger."""
    at = [] if offset is None else ["--offset", str(offset)]
    result = CliRunner().invoke(cli, ["state", "Ledger", key, "--app", target_of(name), "--log", log, *at])
    assert result.exit_code == 0, result.output
    printed: dict[str, Any] = json.loads(result.stdout)
    return printed


@dataclass
class Shop:
    """An application that runs on a Ray cluster, a client of it, and a load on it."""

    client: Client
    history: History
    control: Callable[[], Awaitable[Control]]

    async def see_healed(self) -> None:
        """Every shard answers, the load goes on, and no instance is missing."""
        async with asyncio.timeout(STEP_MAX_S):
            await ask_all(self.client, self.history)
            while not await self._is_complete():
                await self.history.wait_acknowledged(ACKNOWLEDGED_BETWEEN, STEP_MAX_S)

    async def _is_complete(self) -> bool:
        known = {running.address for running in (await self.control()).instances.values()}
        listening = await asyncio.to_thread(listeners)
        return len(known) == INSTANCES and listening.keys() >= known

    async def kill_instance(self, service: str) -> None:
        """SIGKILL the owner of a service's first shard."""
        route = self.client.table.owner(service, 0)
        assert route is not None, f"{service}/0 is served, and nobody knows by whom"
        (await asyncio.to_thread(listener_at, route.address)).kill()

    async def freeze_and_kill_controllers(self) -> None:
        """Freeze who leads: the other takes the lead, services serve on. Wake it: it stands by. Kill the new leader: it leads again."""
        frozen = await self._leader()
        await self._is_replaced(frozen.suspend)
        frozen.resume()
        await self._is_replaced((await self._leader()).kill)

    async def _leader(self) -> psutil.Process:
        """The process of who has claimed the control log."""
        return await asyncio.to_thread(listener_at, (await self.control()).beacon)

    async def _is_replaced(self, strike: Callable[[], None]) -> None:
        """Strike; then the load goes on, and a table of a higher term comes without being asked for."""
        term, _ = self.client.table.version
        strike()
        await ask_all(self.client, self.history)
        async with asyncio.timeout(STEP_MAX_S):
            while self.client.table.version[0] == term:
                await self.history.wait_acknowledged(1, STEP_MAX_S)


@asynccontextmanager
async def loaded(name: str, log: str, history: History) -> AsyncGenerator[Shop]:
    """See `Shop`."""
    app = app_of(name, log)
    async with (
        opened(log, app.snapshots, name) as (event_log, store),
        app.connect() as client,
        load(client, history),
    ):
        await history.wait_acknowledged(ACKNOWLEDGED_BETWEEN, STEP_MAX_S)
        yield Shop(client, history, decided(name, event_log, store))


def see_down(name: str, nodes: RayNodes) -> None:
    """`rekindle down` leaves no process behind."""
    processes = nodes.processes("ray::InstanceProcess") + nodes.processes("ray::ControllerProcess")
    assert len(processes) == INSTANCES + 2, f"expected {INSTANCES} instances and two controllers, found {processes}"
    assert "stopped" in rekindle("down", target_of(name), "--address", nodes.address)
    _, left = psutil.wait_procs(processes, STEP_MAX_S)
    assert left == []


def see_states(name: str, log: str, history: History) -> None:
    """`rekindle state` says of a ledger what its callers were answered, now and at any time before."""
    shards = asyncio.run(raw_log(log, f"{name}.ledger", LEDGER_SHARDS))
    ledgers = {key: its for records in shards for key, its in Reading("ledger", records).effects.items()}
    key, effects = max(ledgers.items(), key=lambda ledger: len(ledger[1]))
    answered = {o.effect: o.seen for o in history.operations if o.key == f"ledger/{key}" and o.end is End.OK}
    now = json.loads(rekindle("state", "ledger", key, "--app", target_of(name), "--log", log))
    assert now["state"] == {"entries": len(effects), "last": effects[-1].name.removeprefix("append ")}
    for effect in Random(name).sample([effect for effect in effects if effect.name in answered], OFFSETS_LOOKED_AT):
        then, before = (state_at(name, log, key, offset) for offset in (effect.offset, effect.offset - 1))
        assert then["state"] == {"entries": answered[effect.name], "last": effect.name.removeprefix("append ")}
        assert before["version"] == then["version"] - 1


def test_an_instance_a_node_and_the_controller_die(shared: Shared, unique: str, tmp_path: Path) -> None:
    nodes, log, history = shared.get(), str(tmp_path / "log.sqlite"), History()
    up = rekindle("up", target_of(unique), "--address", nodes.address, "--log", log)
    assert f"{unique} is up: stock (4 shards, 2 instances), ledger (8 shards, 3 instances)" in up

    async def run() -> None:
        async with loaded(unique, log, history) as shop:
            await shop.kill_instance("ledger")
            await shop.see_healed()
            await asyncio.to_thread(nodes.kill, nodes.workers[0])
            await shop.see_healed()
            await shop.freeze_and_kill_controllers()
            await shop.kill_instance("stock")
            await shop.see_healed()
        await see_clean(unique, log, history)

    asyncio.run(run())
    see_down(unique, nodes)
    see_states(unique, log, history)


def test_all_of_ray_is_lost_and_everything_is_there_on_a_new_one(shared: Shared, unique: str, tmp_path: Path) -> None:
    nodes, log, history = shared.get(), str(tmp_path / "log.sqlite"), History()
    rekindle("up", target_of(unique), "--address", nodes.address, "--log", log)

    async def run() -> None:
        async with loaded(unique, log, history) as shop:
            await asyncio.to_thread(nodes.destroy)
            anew = await asyncio.to_thread(shared.get)
            await asyncio.to_thread(rekindle, "up", target_of(unique), "--address", anew.address, "--log", log)
            await shop.see_healed()
        await see_clean(unique, log, history)

    asyncio.run(run())
    rekindle("down", target_of(unique), "--address", shared.get().address)


async def see_clean(name: str, log: str, history: History) -> None:
    """A client that comes now finds everything that others were told."""
    async with app_of(name, log).connect() as client:
        await ask_all(client, history)
    verdict = await verdict_of(app_of(name), log, history)
    print(verdict)
    assert verdict.faults == []
