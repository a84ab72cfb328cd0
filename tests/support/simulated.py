"""The whole system in a simulated world in which nothing goes wrong by itself: for who wants to see what happens, and when.

    world = QuietWorld(Service("stock", Stock, shards=32, instances=3, standbys=1))
    world.run(story(world))                                # a coroutine that does things to it and looks

Real are the controller, instances, owners, clients; simulated are the log, the wire, the cluster and time, so a test may
ask how long something has taken: the answer is the same on every machine. Faults by chance are `rekindle.chaos`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, Final, TypeVar

from rekindle import Client
from rekindle.actors import Host, Instance
from rekindle.chaos.loop import Process, SimLoop, new_loop
from rekindle.chaos.simcluster import SimCluster
from rekindle.chaos.simhost import host_of
from rekindle.chaos.simwire import Net
from rekindle.events.simulated import SimulatedLog
from rekindle.events.stores import LogStore
from rekindle.supervisors import Controller, Service, Supervisor, control_log, seeds

T = TypeVar("T")

APP: Final = "quiet"
COMES_TRUE_S: Final = 120.0
"""Virtual seconds within which whatever is waited for comes true."""

LOOK_S: Final = 0.001


class QuietWorld:
    """One service on as many nodes as it has instances, and one more. instances: those that were ever started, by name."""

    def __init__(self, service: Service, seed: int = 7, kind: type[SimulatedLog] = SimulatedLog) -> None:
        self.service = service
        self.root = Supervisor("root", children=[service])
        self.hosted = service.hosted(APP)
        self.loop: SimLoop = new_loop()
        self.random = Random(seed)
        self.net = Net(self.loop, self.random)
        self.log = kind(self.random)
        self.cluster = SimCluster(self.loop, self.net, self.random, self._launch)
        self.instances: dict[str, Instance] = {}
        self.said: list[str] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it; nothing may die of a bug meanwhile. The world ends with it."""
        try:
            result = self.loop.run_until_complete(work)
        finally:
            self.loop.close()
        assert not self.loop.failures, f"something died of a bug: {self.loop.failures[:3]}"
        return result

    async def prepare(self) -> None:
        """Topics and nodes."""
        for topic in (self.hosted.topic(), control_log(APP).topic()):
            await self.log.create(topic)
        await LogStore(self.log, APP, create=True).open()
        for number in range(self.service.instances + 1):
            self.cluster.add_node(f"node-{number:04}")

    def lead(self) -> Controller:
        """A controller begins to run the application, on a node of its own."""
        process = Process(self.loop, "controller", "elsewhere")
        controller = Controller(APP, self.root, self.cluster, self._host(process), process.name)
        process.start(controller.run())
        return controller

    def client(self) -> Client:
        """A client, to be opened."""
        host = self._host(Process(self.loop, "client", "elsewhere"))
        found = seeds(APP, host.log, host.snapshots)
        return Client(APP, [self.hosted], host.wire, found, host.now_ms, host.token, host.randomness)

    def process_of(self, incarnation: str) -> Process:
        """The process of an instance that lives: to be killed, or stopped."""
        return self.cluster.instances[incarnation]

    async def until(self, what: str, holds: Callable[[], object]) -> float:
        """Until the condition holds; the virtual time then."""
        deadline = self.loop.time() + COMES_TRUE_S
        while not holds():
            assert self.loop.time() < deadline, f"expected within {COMES_TRUE_S:g} s: {what}; said: {self.said[-5:]}"
            await asyncio.sleep(LOOK_S)
        return self.loop.time()

    def _host(self, process: Process) -> Host:
        return host_of(process, self.net, self.log, APP, self.random, 0, self.said.append)

    async def _launch(self, service: str, incarnation: str, process: Process) -> tuple[str, str]:
        instance = self.instances[incarnation] = Instance(self.hosted, incarnation, self._host(process))
        return await instance.start(f"{process.host}:0")
