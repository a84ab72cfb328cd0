"""What supervision is measured on: real Ray nodes, real Kafka, an application brought up as a user does, and a load on it.

    async with on_stage(run, Setting("standby_app")) as stage:
        await stage.settle()                               # everything served, followed, balanced; nothing goes on
        blow = await stage.strike(victim, kill)            # and when which of its shards came how far again

The bench is outside of all of it: it types `rekindle up`, sends commands as a client, reads the control log, hears what
instances report, and kills processes by what the control log says of where they listen.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import psutil

import bench.stock
from bench import REPOSITORY, Run
from bench.filled import fill
from bench.pressure import CALL_MAX_S, Pressure, clock_ms, keys_of, until
from bench.rekindle import target
from bench.stock import Stock
from bench.watching import Chronicle, Reports
from rekindle import App
from rekindle.supervisors import opened
from rekindle.supervisors.hosting import spare_the_collector
from rekindle.up import create_topics
from tests.support.nodes import RayNodes

NODES = 5
"""The head and four more: when one of them dies, those that are left have room."""

EVENTS_PER_SHARD = 100_000
EVENTS_PER_SHARD_QUICK = 5_000
FILLS_AT_ONCE = 4

COMMAND_LINE_MAX_S = 180.0
"""How long `rekindle up` may take: with full replays of all that was filled in."""

SETTLED_MAX_S = 120.0
REPORTED_MAX_S = 10.0
"""How long after the last shard was served its records and reports may take to come here."""

STANDBY_MAX_S = 60.0
UNDISTURBED_S = 1.0
"""About so long the load runs on a settled stage before a blow: the window that disturbed ones are held against."""

UNHURRIED_S = 0.3
"""The same where nothing is held against it: blows come at any moment."""

APART_MAX = 2
"""Shards by which two instances may differ on a settled stage."""


@dataclass(frozen=True, slots=True)
class Setting:
    """app: of `bench.stock`. ray_defaults: whether Ray has its own settings, or those of `LocalNodes`."""

    app: str
    ray_defaults: bool = False


@dataclass(slots=True)
class Blow:
    """A death, and how far each shard that was hit had come when. All in milliseconds of the wall clock, by shard."""

    victim: str
    died_ms: float
    seen_ms: float = 0.0
    decided_ms: dict[int, float] = field(default_factory=dict[int, float])
    claimed_ms: dict[int, float] = field(default_factory=dict[int, float])
    replayed_ms: dict[int, float] = field(default_factory=dict[int, float])
    serving_ms: dict[int, float] = field(default_factory=dict[int, float])
    whole_ms: float = 0.0

    @property
    def took_ms(self) -> float:
        """From the death until the last shard has acknowledged a command."""
        return max(self.serving_ms.values()) - self.died_ms

    def __str__(self) -> str:
        phases = {
            "seen": self.seen_ms,
            "decided": max(self.decided_ms.values()),
            "claimed": max(self.claimed_ms.values()),
            "replayed": max(self.replayed_ms.values()),
            "serving": max(self.serving_ms.values()),
            "whole": self.whole_ms,
        }
        told = ", ".join(f"{phase} {at_ms - self.died_ms:.0f}" for phase, at_ms in phases.items())
        return f"{self.victim} with {len(self.serving_ms)} shards, ms: {told}"


class Stage:
    """See the module."""

    def __init__(self, app: App, nodes: RayNodes, pressure: Pressure, chronicle: Chronicle, reports: Reports) -> None:
        self.app = app
        self.service = app.services[0]
        self.nodes = nodes
        self.pressure = pressure
        self.chronicle = chronicle
        self.reports = reports
        self.random = Random(7)
        self.probes = [
            pressure.client.get(Stock, its[0], timeout=CALL_MAX_S) for its in keys_of(self.service.shards, 1)
        ]

    # --- who is where --------------------------------------------------------------------------------------------

    @property
    def shards(self) -> range:
        """All of them."""
        return range(self.service.shards)

    def owned_by(self, incarnation: str) -> list[int]:
        """The shards of an instance."""
        return [shard for shard, owned in enumerate(self.chronicle.shards) if owned.incarnation == incarnation]

    def hosts(self) -> dict[str, str]:
        """The node of each instance."""
        instances = self.chronicle.control.instances
        return {name: running.address.rpartition(":")[0] for name, running in instances.items()}

    @property
    def head(self) -> str:
        """The node of Ray's head."""
        return self.nodes.address.rpartition(":")[0]

    @property
    def leading_host(self) -> str:
        """The node of the controller that leads."""
        return self.chronicle.control.beacon.rpartition(":")[0]

    async def process_of(self, incarnation: str) -> psutil.Process:
        """The process of an instance."""
        address = self.chronicle.control.instances[incarnation].address
        return await asyncio.to_thread(self._listener, "ray::InstanceProcess", address)

    async def leader(self) -> psutil.Process:
        """The process of the controller that leads."""
        return await asyncio.to_thread(self._listener, "ray::ControllerProcess", self.chronicle.control.beacon)

    def _listener(self, title: str, address: str) -> psutil.Process:
        """Of the processes that Ray has given this title, the one that listens there: to ask all of them would take so long
        that the load would show it."""
        known = self.nodes.processes(title)
        found = [process for process in known if _has_end(process, address, psutil.CONN_LISTEN)]
        assert len(found) == 1, f"expected one of {known} to listen at {address}, found {found}"
        return found[0]

    # --- settled ---------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Until there is nothing left to be done. Raises `Overdue`."""
        await until(self._missing, SETTLED_MAX_S)

    def _missing(self) -> str | None:
        control = self.chronicle.control
        if len(control.instances) != self.service.instances:
            return f"{len(control.instances)} of {self.service.instances} instances are there"
        for shard in self.shards:
            missing = self._missing_of(shard)
            if missing is not None:
                return missing
        loads = [len(self.owned_by(name)) for name in control.instances]
        if max(loads) - min(loads) > APART_MAX:
            return f"the instances have {sorted(loads)} shards"
        going = [f"plan {p.id} ({p.policy}: {p.cause})" for p in control.active_plans()]
        going += [f"incident {i.id} ({i.kind})" for i in control.open_incidents()]
        return f"{', '.join(going)} not over" if going else None

    def _missing_of(self, shard: int) -> str | None:
        owned = self.chronicle.shards[shard]
        if self.reports.serving.get((owned.incarnation or "", shard)) != owned.number:
            return f"shard {shard} is not served by {owned.incarnation} under number {owned.number}"
        ready = [name for name in owned.standbys if self.reports.following.get((name, shard))]
        if len(ready) != self.service.standbys:
            return (
                f"{len(ready)} of {self.service.standbys} standbys have caught up with shard {shard}: {owned.standbys}"
            )
        return None

    async def calm(self, seconds: float = UNDISTURBED_S) -> float:
        """Settle, then let an undisturbed window of about this length pass; when it began."""
        await self.settle()
        began_ms = clock_ms()
        await asyncio.sleep(seconds * (0.5 + self.random.random()))
        await self.settle()
        return began_ms

    async def recover(self, blow: Blow) -> None:
        """Settle after a blow, and say how it went: a run of many takes its time."""
        await self.settle()
        blow.whole_ms = clock_ms()
        print(f"    {blow}", file=sys.stderr)

    # --- blows -----------------------------------------------------------------------------------------------------

    async def strike(self, victim: str, kill: Callable[[], object]) -> Blow:
        """Kill an instance in some way, and see each of its shards acknowledge a command. Raises `Overdue`."""
        shards = self.owned_by(victim)
        assert shards, f"{victim} owns no shard: its death would show nothing"
        before = {shard: self.chronicle.shards[shard].number for shard in shards}
        blow = Blow(victim, clock_ms())
        kill()
        await asyncio.gather(*(self._probe(shard, blow) for shard in shards))
        await until(lambda: self._unreported(blow, before), REPORTED_MAX_S)
        return blow

    async def _probe(self, shard: int, blow: Blow) -> None:
        await self.probes[shard].reserve("probe", 1)
        blow.serving_ms[shard] = clock_ms()

    def _unreported(self, blow: Blow, before: dict[int, int]) -> str | None:
        """Fill in what is known by now; what is missing."""
        evidence = [e for i in self.chronicle.control.incidents.values() for e in i.evidence]
        seen = [e.at_ms for e in evidence if e.incarnation == blow.victim]
        if not seen:
            return f"no evidence of the death of {blow.victim}"
        blow.seen_ms = min(seen)
        for move in reversed(self.chronicle.moves):
            if move.at_ms < blow.died_ms - 1:
                break
            takeover = self.reports.takeovers.get((move.shard, move.number))
            if move.number > before.get(move.shard, move.number) and takeover is not None:
                blow.decided_ms[move.shard] = move.at_ms  # the first one in the end
                blow.claimed_ms[move.shard], blow.replayed_ms[move.shard] = takeover.claimed_ms, takeover.at_ms
        missing = before.keys() - blow.decided_ms.keys()
        return f"no report of a takeover of shards {sorted(missing)}" if missing else None

    async def replace_node(self, host: str) -> None:
        """What is left of a dead node goes, another one comes."""
        await asyncio.to_thread(self.nodes.kill, host)
        await asyncio.to_thread(self.nodes.add)

    async def has_standby(self) -> None:
        """Until somebody watches the leader, to lead when it dies. Raises `Overdue`."""
        leader, beacon = await self.leader(), self.chronicle.control.beacon
        watched = partial(_has_end, leader, beacon, psutil.CONN_ESTABLISHED)
        await until(lambda: None if watched() else f"nobody watches {beacon}", STANDBY_MAX_S, 0.2)


def _has_end(process: psutil.Process, address: str, status: str) -> bool:
    """Whether the process has a connection in this state whose own end is there."""
    ends = [c.laddr for c in process.net_connections("tcp") if c.status == status and c.laddr]
    return address in [f"{end.ip.removeprefix('::ffff:')}:{end.port}" for end in ends]


# --- built and taken down -------------------------------------------------------------------------------------------


@asynccontextmanager
async def on_stage(run: Run, setting: Setting) -> AsyncGenerator[Stage]:
    """A settled stage, new or as the benchmark before has left it."""
    url = await log_url(run)
    stage = await run.staged(setting, lambda: _built(run, setting, url))
    await stage.settle()
    yield stage


async def log_url(run: Run) -> str:
    """The run's log."""
    return f"kafka://{await run.kafka()}?single_broker=true"


@asynccontextmanager
async def _built(run: Run, setting: Setting, url: str) -> AsyncGenerator[Stage]:
    app: App = getattr(bench.stock, setting.app)
    await create_topics(app, url)
    async with AsyncExitStack() as stack:
        await filled(app, url, EVENTS_PER_SHARD_QUICK if run.quick else EVENTS_PER_SHARD)
        nodes = await ray_nodes(stack, NODES, {} if setting.ray_defaults else None)
        await stack.enter_async_context(brought_up(setting.app, url, nodes.address))
        pressure, chronicle, reports = await watched(stack, app, url)
        spare_the_collector()
        await stack.enter_async_context(pressure.going())
        yield Stage(app, nodes, pressure, chronicle, reports)


async def filled(app: App, url: str, events: int) -> None:
    """Give every shard a history, unless it has one."""
    hosted = app.services[0].hosted(app.name)
    keys, turns = keys_of(hosted.shards), asyncio.Semaphore(FILLS_AT_ONCE)
    async with opened(url, "", app.name) as (log, _):

        async def fill_shard(shard: int) -> None:
            async with turns:
                if (await log.bounds(hosted.partition(shard))).end == 0:
                    await fill(log, hosted.partition(shard), keys[shard], events)

        await asyncio.gather(*map(fill_shard, range(hosted.shards)))


async def ray_nodes(stack: AsyncExitStack, count: int, settings: dict[str, Any] | None = None) -> RayNodes:
    """Ray nodes that end with the stack."""
    nodes = await asyncio.to_thread(RayNodes, count, settings)
    stack.push_async_callback(asyncio.to_thread, nodes.destroy)
    return nodes


@asynccontextmanager
async def brought_up(name: str, url: str, address: str) -> AsyncGenerator[None]:
    """The application up, as by hand; down at the end, so that the next one that comes up finds no dead to mourn."""
    await command_line("up", target(name), "--address", address, "--log", url, "--wait", f"{COMMAND_LINE_MAX_S / 2:g}")
    try:
        yield
    finally:
        await command_line("down", target(name), "--address", address)


async def command_line(*words: str) -> None:
    """Run `rekindle` in a process of its own. Raises `RuntimeError` with what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rekindle.cli", *words),
        cwd=REPOSITORY,
        env=dict(os.environ),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        async with asyncio.timeout(COMMAND_LINE_MAX_S):
            said, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        raise RuntimeError(f"rekindle {words[0]} ended with {process.returncode}: {said.decode()}{errors.decode()}")


async def watched(stack: AsyncExitStack, app: App, url: str) -> tuple[Pressure, Chronicle, Reports]:
    """A client's load, not begun yet, and the observers of a running application."""
    client = await stack.enter_async_context(app.connect(log=url))
    log, store = await stack.enter_async_context(opened(url, "", app.name))
    chronicle = Chronicle(app.name, app.services[0].name, log, store, quiet)
    reports = Reports(chronicle)
    for work in (chronicle.run(), reports.run()):
        task = asyncio.create_task(work)
        stack.push_async_callback(_ended, task)
    return Pressure(client, keys_of(app.services[0].shards)), chronicle, reports


def quiet(_: str) -> None:
    """What is odd in a log is not part of the table."""


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel it, unless it has failed: then that is what went wrong."""
    if task.done():
        task.result()
    task.cancel()
    await asyncio.wait([task])
