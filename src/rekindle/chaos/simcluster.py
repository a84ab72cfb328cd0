"""The simulated cluster: nodes that die, instances that are started on them, and what is said of the dead.

What it says is late, and may be wrong: a death is noticed after a while, and an instance that lives may be called dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, Final

from rekindle.chaos.loop import Process, SimLoop, outside
from rekindle.chaos.simwire import Net
from rekindle.events import RekindleError
from rekindle.supervisors.cluster import SPAWN_MAX_S, Node, Spawned, SpawnFailed

START_S: Final = 1.5
"""Starting an instance takes up to this."""

ANSWER_S: Final = 0.05
KILL_S: Final = 0.2
NOTICE_S: Final = 2.0
"""The death of an instance is known after at most this, that of a node after twice as much."""

Launch = Callable[[str, str, Process], Coroutine[Any, Any, tuple[str, str]]]
"""Bring an instance of a service up, in its process: the addresses of its frames and its pulses."""


class SimCluster:
    """A `Cluster`. `launch` makes instances; the world kills nodes and processes, and starts slanders."""

    def __init__(self, loop: SimLoop, net: Net, random: Random, launch: Launch) -> None:
        self.loop = loop
        self.net = net
        self.random = random
        self.launch = launch
        self.up: dict[str, Node] = {}
        self.instances: dict[str, Process] = {}
        self.processes: list[Process] = []
        self.away_until = 0.0
        self._listed: dict[str, Node] = {}
        self._verdicts: dict[str, asyncio.Future[str]] = {}

    # --- what the controller asks for ----------------------------------------------------------------------------

    async def nodes(self) -> list[Node]:
        """See `Cluster`."""
        return await outside(self._nodes())

    async def spawn(self, service: str, incarnation: str, node: Node) -> Spawned:
        """See `Cluster`."""
        return await outside(self._spawn(service, incarnation, node))

    async def kill(self, incarnation: str) -> None:
        """See `Cluster`."""
        await outside(self._kill(incarnation))

    async def watch(self, incarnation: str) -> str:
        """See `Cluster`."""
        return await asyncio.shield(self._verdict(incarnation))

    async def _nodes(self) -> list[Node]:
        await asyncio.sleep(self._draw(ANSWER_S))
        if self._is_away:
            raise RekindleError("the simulated cluster is away")
        return sorted(self._listed.values(), key=lambda node: node.name)

    async def _spawn(self, service: str, incarnation: str, node: Node) -> Spawned:
        await asyncio.sleep(self._draw(START_S))
        if self._is_away or node.name not in self.up:
            raise SpawnFailed(f"{node.name} does not answer")
        process = self.process(incarnation, node.name)
        self.instances[incarnation] = process
        try:
            async with asyncio.timeout(SPAWN_MAX_S / 10):
                address, beacon = await process.start(self.launch(service, incarnation, process))
        except TimeoutError:
            process.kill()
            raise SpawnFailed(f"{incarnation} did not come up") from None
        return Spawned(incarnation, node.name, address, beacon)

    async def _kill(self, incarnation: str) -> None:
        await asyncio.sleep(self._draw(KILL_S))
        if incarnation in self.instances and not self._is_away:
            self.instances[incarnation].kill()

    @property
    def _is_away(self) -> bool:
        return self.loop.time() < self.away_until

    def _draw(self, most_s: float) -> float:
        return self.random.random() * most_s

    # --- what happens to it --------------------------------------------------------------------------------------

    def add_node(self, name: str, zone: str = "") -> None:
        """A new machine."""
        self.up[name] = self._listed[name] = Node(name, name, zone)

    def kill_node(self, name: str) -> None:
        """A machine is gone, without a word, and everything on it."""
        node = self.up.pop(name)
        self.net.go_dark(node.name)
        for process in [process for process in self.processes if process.host == name]:
            process.kill()
        self.loop.call_later(self._draw(2 * NOTICE_S), lambda: self._listed.pop(name))

    def process(self, name: str, host: str) -> Process:
        """A new process."""
        process = Process(self.loop, name, host)
        self.processes.append(process)
        process.at_death.append(lambda: self._note_death(process))
        return process

    def _note_death(self, process: Process) -> None:
        self.processes.remove(process)
        if self.instances.pop(process.name, None) is not None:
            self.loop.call_later(self._draw(NOTICE_S), self.call_dead, process.name, "its process has ended")

    def call_dead(self, incarnation: str, reason: str) -> None:
        """Tell whoever watches; it need not be true."""
        verdict = self._verdict(incarnation)
        if not verdict.done():
            verdict.set_result(reason)

    def _verdict(self, incarnation: str) -> asyncio.Future[str]:
        if incarnation not in self._verdicts:
            self._verdicts[incarnation] = self.loop.create_future()
        return self._verdicts[incarnation]
