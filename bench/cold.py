"""A cold start: everything is to be served, nothing runs. 1,000 real partitions; 10,000 simulated ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from random import Random

from bench import Run, benchmark
from bench.baseline import IN_MEMORY
from bench.filled import fill
from bench.pressure import CALL_MAX_S, clock_ms, keys_of, until
from bench.rekindle import target
from bench.stage import NODES, command_line, filled, log_url, ray_nodes, watched
from bench.stock import Stock, cold_app, cold_quick_app
from bench.table import Row
from rekindle.actors import Instance
from rekindle.chaos.loop import Process, SimLoop, new_loop
from rekindle.chaos.simcluster import SimCluster
from rekindle.chaos.simhost import host_of
from rekindle.chaos.simwire import Net
from rekindle.events.simulated import SimulatedLog
from rekindle.events.stores import LogStore
from rekindle.supervisors import Controller, Service, Supervisor, control_log
from rekindle.up import create_topics

EVENTS = 10
"""Of each shard: what is measured is what every shard costs, not what is in it."""

UP_MAX_S = 120.0
LEADS_MAX_S = 60.0

SIMULATED = 10_000
SIMULATED_QUICK = 500
SHARDS_PER_INSTANCE = 100
SIMULATED_LOG = "nothing is stored; an append takes up to 1 ms of virtual time"


@benchmark("supervision-cold")
async def cold(run: Run) -> AsyncIterator[Row]:
    """`rekindle up` of an application with a log and without a process, real and simulated."""
    app, name = (cold_quick_app, "cold_quick_app") if run.quick else (cold_app, "cold_app")
    await run.strike()
    url = await log_url(run)
    await create_topics(app, url)
    await filled(app, url, EVENTS)
    async with AsyncExitStack() as stack:
        nodes = await ray_nodes(stack, NODES)
        pressure, chronicle, _ = await watched(stack, app, url)
        shards = app.services[0].shards
        stocks = [pressure.client.get(Stock, its[0], timeout=CALL_MAX_S * 2) for its in keys_of(shards, 1)]
        asked = [asyncio.ensure_future(stock.available()) for stock in stocks]
        await command_line("up", target(name), "--address", nodes.address, "--log", url, "--wait", f"{UP_MAX_S:g}")
        await until(lambda: None if chronicle.leads else "nobody leads", LEADS_MAX_S)
        await asyncio.gather(*asked)
        answered_ms = clock_ms()
        started_ms = max(running.started_ms for running in chronicle.control.instances.values())
        await command_line("down", target(name), "--address", nodes.address)
    what = f"cold start of {shards:,} shards on {app.services[0].instances} instances"
    yield Row(f"{what}: lead to all answering", (answered_ms - chronicle.leads[0][0]) / 1000, "s", durable=IN_MEMORY)
    yield Row(f"{what}: last instance to all answering", (answered_ms - started_ms) / 1000, "s", durable=IN_MEMORY)
    for row in await asyncio.to_thread(list[Row], simulated(SIMULATED_QUICK if run.quick else SIMULATED)):
        yield row


def simulated(shards: int) -> Iterator[Row]:
    """The same in a simulated world, of the whole system in one thread: how long it takes there, and to compute."""
    world = ColdWorld(shards)
    began = time.perf_counter()
    try:
        seconds = world.run()
    finally:
        world.loop.close()
    what = f"cold start of {shards:,} simulated shards on {world.service.instances} instances"
    yield Row(f"{what}: virtual time", seconds, "s", durable=SIMULATED_LOG)
    yield Row(f"{what}: time to compute it", time.perf_counter() - began, "s", durable=SIMULATED_LOG)


class ColdWorld:
    """Nodes, a log with a history, and nothing else."""

    def __init__(self, shards: int) -> None:
        instances = max(2, shards // SHARDS_PER_INSTANCE)
        self.service = Service("stock", Stock, shards=shards, instances=instances)
        self.root = Supervisor("bench", children=[self.service])
        self.hosted = self.service.hosted("bench-simulated")
        self.loop: SimLoop = new_loop()
        self.random = Random(7)
        self.net = Net(self.loop, self.random)
        self.log = SimulatedLog(self.random)
        self.cluster = SimCluster(self.loop, self.net, self.random, self._launch)

    def run(self) -> float:
        """Bring it up; virtual seconds until every shard is served."""
        seconds = self.loop.run_until_complete(self._come_up())
        assert not self.loop.failures, f"something died of a bug: {self.loop.failures[:3]}"
        return seconds

    async def _come_up(self) -> float:
        for topic in (self.hosted.topic(), control_log(self.hosted.app).topic()):
            await self.log.create(topic)
        await LogStore(self.log, self.hosted.app, create=True).open()
        for shard, keys in enumerate(keys_of(self.hosted.shards, 1)):
            await fill(self.log, self.hosted.partition(shard), keys, EVENTS)
        for number in range(self.service.instances):
            self.cluster.add_node(f"node-{number:04}")
        process = self.cluster.process("controller", "node-0000")
        host = host_of(process, self.net, self.log, self.hosted.app, self.random, 0, lambda _: None)
        controller = Controller(self.hosted.app, self.root, self.cluster, host, process.name)
        began = self.loop.time()
        process.start(controller.run())
        async with asyncio.timeout(UP_MAX_S):
            await controller.up.wait()
        return self.loop.time() - began

    async def _launch(self, service: str, incarnation: str, process: Process) -> tuple[str, str]:
        host = host_of(process, self.net, self.log, self.hosted.app, self.random, 0, lambda _: None)
        return await Instance(self.hosted, incarnation, host).start(f"{process.host}:0")
