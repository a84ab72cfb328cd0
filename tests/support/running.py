"""The application of the tests up and running, as child processes of this one, and a load on it that can be judged.

async with running(name, log) as shop:                  # topics, controller, instances, a client
    async with load(shop.client, shop.history):
        shop.cluster.signal(...)                        # whatever a test does to it
    verdict = await shop.verdict()
assert not verdict.faults
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Final

from rekindle import App, Client
from rekindle.supervisors import Controller, Launch, ProcessCluster, opened
from rekindle.supervisors.hosting import real_host
from rekindle.up import create_topics
from tests.support import REPOSITORY
from tests.support.judge import History, Verdict, judge, raw_log
from tests.support.service import LEDGER_SHARDS, STOCK_SHARDS, Ledger, Stock, app_of, keys_of_every_shard, target_of
from tests.support.watch import Watch

NODES: Final = ("a", "b", "c")
UP_MAX_S: Final = 90.0
CALL_MAX_S: Final = 100.0
"""The callers' deadline. Longer than any outage that a test makes: who gives up learns nothing."""

LANES: Final = 16
THINK_MAX_S: Final = 0.01
"""Between two calls of a lane. So a fast machine makes no more calls than a run can be judged by."""

CALLS_MAX: Final = 50_000
"""Of one lane, so that a load ends also if nobody ends it: some four minutes of nothing but thinking."""

QUERIES: Final = 0.2
DELIVERIES: Final = 0.3
STOCK_OF_A_DELIVERY: Final = 1_000

SERVICES: Final = ("stock", "ledger")
KEYS: Final = {
    "stock": keys_of_every_shard(STOCK_SHARDS, each=2),
    "ledger": keys_of_every_shard(LEDGER_SHARDS, each=2),
}


class Lines:
    """What a controller says, line by line, for those who wait for it to say something."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self._more = Watch()

    def say(self, line: str) -> None:
        """Take a line."""
        self.said.append(line)
        self._more.changed()

    def count(self, text: str) -> int:
        """In how many lines it is."""
        return sum(text in line for line in self.said)

    async def wait(self, text: str, times: int, within_s: float) -> None:
        """Until so many lines have this text in them."""
        await self._more.until(f"{text!r} is said {times} times", lambda: self.count(text) >= times, within_s)


@dataclass
class Running:
    """An application that runs."""

    app: App
    log: str
    cluster: ProcessCluster
    controller: Controller
    client: Client
    lines: Lines
    leading: asyncio.Task[str]
    history: History = field(default_factory=History)

    def instances_of(self, service: str) -> list[str]:
        """The instances that the controller takes for alive."""
        wards = self.controller.wards.values()
        return sorted(ward.incarnation for ward in wards if ward.alive and ward.running.service == service)

    async def verdict(self) -> Verdict:
        """Ask every key once more, then read the log and judge."""
        await ask_all(self.client, self.history)
        return await verdict_of(self.app, self.log, self.history)


def launch_of(name: str, log: str) -> Launch:
    """How the processes of the application are to be run."""
    return Launch(target_of(name), log=log, path=(str(REPOSITORY),))


@asynccontextmanager
async def running(name: str, log: str, cluster_of: type[ProcessCluster] = ProcessCluster) -> AsyncGenerator[Running]:
    """Bring the application up; take it down, also after a failure."""
    app, launch, lines = app_of(name, log), launch_of(name, log), Lines()
    await create_topics(app, log)
    cluster = cluster_of(launch, NODES)
    async with opened(log, app.snapshots, app.name) as (event_log, store):
        host = real_host(event_log, store, launch, lines.say)
        controller = Controller(app.name, app.tree, cluster, host, f"controller-of-{name}")
        leading = asyncio.get_running_loop().create_task(controller.run())
        try:
            await _wait_up(controller, leading)
            async with app.connect() as client:
                yield Running(app, log, cluster, controller, client, lines, leading)
        finally:
            leading.cancel()
            await asyncio.wait([leading])
            await cluster.close()


async def _wait_up(controller: Controller, leading: asyncio.Task[str]) -> None:
    up = asyncio.get_running_loop().create_task(controller.up.wait())
    done, _ = await asyncio.wait((up, leading), timeout=UP_MAX_S, return_when=asyncio.FIRST_COMPLETED)
    up.cancel()
    assert up in done, f"the application did not come up within {UP_MAX_S} s: {leading}"


async def verdict_of(app: App, log: str, history: History) -> Verdict:
    """The judge's word on a history, by the log of every service."""
    logs = {s.name: await raw_log(log, f"{app.name}.{s.name}", s.shards) for s in app.services}
    return judge(history, logs)


# --- the load ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def load(client: Client, history: History, services: Sequence[str] = SERVICES) -> AsyncGenerator[None]:
    """Callers in lanes, each with one call at a time to random keys of every shard, until the end of the block."""
    seed = secrets.randbelow(1 << 32)
    print(f"the load's seed is {seed}")
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for number in range(LANES):
            group.create_task(_Lane(client, history, services, number, Random(f"{seed}/{number}")).run(ended))
        try:
            yield
        finally:
            ended.set()


class _Lane:
    """One caller."""

    def __init__(self, client: Client, history: History, services: Sequence[str], number: int, random: Random) -> None:
        self.client = client
        self.history = history
        self.services = services
        self.names = (f"{number}.{turn}" for turn in count())
        self.quantities = count(STOCK_OF_A_DELIVERY + number, LANES)
        self.random = random

    async def run(self, ended: asyncio.Event) -> None:
        """Call after call."""
        for _ in range(CALLS_MAX):
            if ended.is_set():
                return
            await (self._ledger() if self.random.choice(self.services) == "ledger" else self._stock())
            await asyncio.sleep(self.random.uniform(0.0, THINK_MAX_S))

    async def _ledger(self) -> None:
        key, op = self.random.choice(KEYS["ledger"]), next(self.names)
        if self.random.random() < QUERIES:
            await ask(self.client, self.history, "ledger", key)
        else:
            append = self.client.get(Ledger, key, timeout=CALL_MAX_S).append
            await self.history.tell(f"ledger/{key}", f"append {op}", 1, append(op))

    async def _stock(self) -> None:
        key, order = self.random.choice(KEYS["stock"]), next(self.names)
        stock = self.client.get(Stock, key, timeout=CALL_MAX_S)
        if self.random.random() < QUERIES:
            await ask(self.client, self.history, "stock", key)
        elif self.random.random() < DELIVERIES:
            qty = next(self.quantities)  # no two of them deliver the same, so the log shows which one it was
            await self.history.tell(f"stock/{key}", f"receive {qty}", qty, stock.receive(qty))
        else:
            qty = self.random.randint(1, STOCK_OF_A_DELIVERY)
            await self.history.tell(f"stock/{key}", f"reserve {order}", -qty, stock.reserve(order, qty))


async def ask(client: Client, history: History, service: str, key: str) -> None:
    """A query of one key."""
    if service == "ledger":
        await history.ask(f"ledger/{key}", client.get(Ledger, key, timeout=CALL_MAX_S).count())
    else:
        await history.ask(f"stock/{key}", client.get(Stock, key, timeout=CALL_MAX_S).available())


async def ask_all(client: Client, history: History, services: Sequence[str] = SERVICES) -> None:
    """A query of every key, hence of every shard; back when all of them are answered."""
    await asyncio.gather(*(ask(client, history, service, key) for service in services for key in KEYS[service]))
