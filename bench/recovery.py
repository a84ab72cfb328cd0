"""What a recovery costs: replay, start from a snapshot, takeover after a SIGKILL."""

from __future__ import annotations

import asyncio
import random
import signal
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from bench import Run, benchmark
from bench.baseline import IN_MEMORY, replayed
from bench.filled import fill
from bench.pressure import keys_of
from bench.rekindle import target
from bench.stock import Stock, one_shard_app, takeover_app
from bench.table import Row, judged
from rekindle import CallError, Client
from rekindle.actors import Assignment, Hosted, Owner, Replica, Surroundings
from rekindle.actors.requests import Request
from rekindle.events import EventLog, SnapshotStore
from rekindle.supervisors import Controller, Launch, ProcessCluster, opened
from rekindle.supervisors.hosting import real_host, spare_the_collector
from rekindle.supervisors.placement import DEADBAND
from rekindle.up import create_topics, launch_of

EVENTS = 1_000_000
EVENTS_QUICK = 100_000
ENTITIES = 10_000
ROUNDS = 3
REPLAY_SHARE = 0.4
SNAPSHOT_TIMES = 10.0

KILLS = 20
KILLS_QUICK = 2
EVENTS_PER_SHARD = 100_000
EVENTS_PER_SHARD_QUICK = 5_000
COMMANDS_PER_S = 2_000
MEDIAN_S = 1.0
WORST_S = 2.0
SETTLED_MAX_S = 120.0


def quiet(_: str) -> None:
    """The lines of the controller are not part of the table."""


@benchmark("recovery")
async def recovery(run: Run) -> AsyncIterator[Row]:
    """Replay of one shard against the raw replay of its topic, and the start from a snapshot of it."""
    spare_the_collector()  # as every process of ours does
    url = f"kafka://{await run.kafka()}?single_broker=true"
    hosted = one_shard_app.services[0].hosted(one_shard_app.name)
    await create_topics(one_shard_app, url)
    events = EVENTS_QUICK if run.quick else EVENTS
    async with opened(url, "", one_shard_app.name) as (log, store):
        await fill(log, hosted.partition(0), [f"sku-{number}" for number in range(ENTITIES)], events)
        ratios: list[float] = []
        rates: list[float] = []
        fulls: list[float] = []
        for _ in range(1 if run.quick else ROUNDS):
            raw = await replayed(await run.kafka(), hosted.partition(0).topic, 0)
            fulls.append(await _load(hosted, log, None, events))
            rates.append(events / fulls[-1])
            ratios.append(rates[-1] / raw)
        rate, ratio = statistics.median(rates), statistics.median(ratios)
        name = f"replay of {events:,} events into {ENTITIES:,} entities"
        yield judged(name, rate, "events/s", durable=IN_MEMORY, baseline=rate / ratio, at_least=REPLAY_SHARE)
        await _take_snapshot(hosted, log, store)
        start = statistics.median([await _load(hosted, log, store, events) for _ in range(ROUNDS)])
        full = statistics.median(fulls)
        yield Row("start of that shard by full replay", full, "s", durable=IN_MEMORY)
        yield Row("start of that shard from a snapshot", start, "s", durable=IN_MEMORY)
        name = "full replay / start from a snapshot"
        yield judged(name, full / start, "times", durable=IN_MEMORY, at_least=SNAPSHOT_TIMES)


async def _load(hosted: Hosted, log: EventLog, store: SnapshotStore | None, events: int) -> float:
    """Seconds until the whole shard is there."""
    replica = Replica(hosted, 0, log, store, quiet)
    began = time.perf_counter()
    await replica.load()
    await replica.read()
    took = time.perf_counter() - began
    assert replica.fold.sequence >= events, f"{replica.fold.sequence} of {events} commits were replayed"
    assert len(replica.entities) == ENTITIES, f"{len(replica.entities)} of {ENTITIES} entities are there"
    return took


async def _take_snapshot(hosted: Hosted, log: EventLog, store: SnapshotStore) -> None:
    """Own the shard until its first snapshot is stored."""
    async with asyncio.TaskGroup() as group:
        host = real_host(log, store, Launch(""), quiet)
        around = Surroundings(log, store, host.now_ms, host.spawn, host.offload, _Nobody(), quiet, snapshot_every=1)
        owner = Owner(hosted.partition(0), hosted.kind, Assignment(0, 2), "bench", around)
        task = group.create_task(owner.run(lambda owner: owner.shard.snapshot("bench")))
        while not await store.pointers(hosted.partition(0)):  # noqa: ASYNC110 - a store has no bell to wait for
            await asyncio.sleep(0.05)
        owner.stop("done")
        await task


class _Nobody:
    """A witness of nothing."""

    executing: Request | None = None

    def began(self, session: bytes, number: int, text: str) -> None: ...

    def ended(self, session: bytes, number: int) -> None: ...


@dataclass
class Takeover:
    """The two instances, their client, and what goes on between them."""

    cluster: ProcessCluster
    controller: Controller
    client: Client
    keys: list[list[str]]
    random: random.Random = field(default_factory=lambda: random.Random(7))
    problems: int = 0
    pending: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    async def load(self) -> None:
        """`COMMANDS_PER_S` on random keys, in bursts of 20 ms."""
        burst = COMMANDS_PER_S // 50
        while True:
            for _ in range(burst):
                task = asyncio.get_running_loop().create_task(self._one(self.random.choice(self.keys)))
                self.pending.add(task)
                task.add_done_callback(self.pending.discard)
            await asyncio.sleep(0.02)

    async def finish(self, loading: asyncio.Task[None]) -> None:
        """No more commands; wait for the last answers."""
        loading.cancel()
        await asyncio.gather(*self.pending)

    async def _one(self, keys: list[str]) -> None:
        try:
            await self.client.get(Stock, self.random.choice(keys), timeout=30.0).reserve("load", 1)
        except CallError:
            self.problems += 1

    async def kill(self) -> float:
        """SIGKILL one instance; seconds until every shard it had has acknowledged a command."""
        victim = self.random.choice(self.cluster.running())
        owned = self.controller.decisions.control.services["stock"]
        shards = [shard for shard, o in enumerate(owned) if o.incarnation == victim]
        began = time.perf_counter()
        self.cluster.signal(victim, signal.SIGKILL)
        await asyncio.gather(
            *(self.client.get(Stock, self.keys[s][0], timeout=60.0).reserve("probe", 1) for s in shards)
        )
        return time.perf_counter() - began

    async def settled(self) -> None:
        """Until two instances share the shards again, as evenly as placement makes them."""
        async with asyncio.timeout(SETTLED_MAX_S):
            while not self._is_settled():  # noqa: ASYNC110 - many things have to come true, none of them rings
                await asyncio.sleep(0.05)

    def _is_settled(self) -> bool:
        owners = [o.incarnation for o in self.controller.decisions.control.services["stock"]]
        alive = self.cluster.running()
        counts = [owners.count(name) for name in alive]
        if len(alive) != 2 or max(counts) > (1 + DEADBAND) * len(owners) / 2:
            return False
        world = self.controller.world()
        return not world.services["stock"].unserved() and not self.controller.decisions.control.active_plans()


@benchmark("takeover")
async def takeover(run: Run) -> AsyncIterator[Row]:
    """SIGKILL of a process with 32 shards under load: until each of them has acknowledged a command again."""
    url = f"kafka://{await run.kafka()}?single_broker=true"
    service = takeover_app.services[0]
    keys = keys_of(service.shards)
    await create_topics(takeover_app, url)
    launch = launch_of(target("takeover_app"), takeover_app, url)
    async with AsyncExitStack() as stack:
        log, store = await stack.enter_async_context(opened(url, "", takeover_app.name))
        events = EVENTS_PER_SHARD_QUICK if run.quick else EVENTS_PER_SHARD
        hosted = service.hosted(takeover_app.name)
        for shard in range(service.shards):
            await fill(log, hosted.partition(shard), keys[shard], events)
        cluster = ProcessCluster(launch, ["a", "b"])
        stack.push_async_callback(cluster.close)
        controller = Controller(
            takeover_app.name, takeover_app.tree, cluster, real_host(log, store, launch, quiet), "bench"
        )
        leading = asyncio.create_task(controller.run())
        client = await stack.enter_async_context(takeover_app.connect(log=url))
        bench = Takeover(cluster, controller, client, keys)
        async with asyncio.timeout(SETTLED_MAX_S):
            await controller.up.wait()
        loading = asyncio.create_task(bench.load())
        times: list[float] = []
        for _ in range(KILLS_QUICK if run.quick else KILLS):
            await bench.settled()
            await asyncio.sleep(bench.random.uniform(1.0, 3.0))  # a random moment between two snapshots
            times.append(await bench.kill())
        await bench.finish(loading)
        controller.stop()
        await leading
    for row in _takeover_rows(times, bench.problems):
        yield row


def _takeover_rows(times: list[float], problems: int) -> list[Row]:
    durable = IN_MEMORY
    what = f"SIGKILL of 32 shards to all acknowledging, {len(times)} kills"
    return [
        judged(f"{what}, median", statistics.median(times), "s", durable=durable, at_most=MEDIAN_S),
        judged(f"{what}, worst", max(times), "s", durable=durable, at_most=WORST_S),
        judged(f"{what}, commands without an outcome", problems, "commands", durable=durable, at_most=0),
    ]
