"""A small application that operators work on: up and running beside the test, on a loop and a thread of its own.

with operated(name, folder) as shop:
    shop.kill("stock")                       # whatever happens to it
    code = main(["incidents", "--app", shop.target, ...])

Its services have so few shards that nothing needs to be balanced, and their supervisors wait long before the second restart
in a row, so that there is a step that waits for somebody to force it. Starts of instances can be held at a gate.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from rekindle import App, Backoff, Rejected, Service, Supervisor
from rekindle.actors import WebsocketWire
from rekindle.events import EventLog, SnapshotStore
from rekindle.supervisors import (
    Candidate,
    Console,
    Control,
    Controller,
    Launch,
    Node,
    Operator,
    ProcessCluster,
    Spawned,
    leader,
    opened,
)
from rekindle.supervisors.hosting import real_host
from rekindle.supervisors.plans import Start, State
from rekindle.up import create_topics
from tests.support import REPOSITORY
from tests.support.loops import DEADLINE_S, eventually
from tests.support.running import Lines
from tests.support.service import Ledger, Stock

T = TypeVar("T")

NODES: Final = ("a", "b", "c")
BIND: Final = "127.0.0.1:0"
SECOND_RESTART_S: Final = 120.0
"""Far longer than a test: nobody waits for it, somebody forces it."""


def app_of(name: str, log: str | None = None) -> App:
    """The application of that name."""
    stock = Service("stock", Stock, shards=1, instances=2)
    ledger = Service("ledger", Ledger, shards=1, instances=1, needs=["stock"])
    backoff = Backoff(first_s=SECOND_RESTART_S, max_s=2 * SECOND_RESTART_S)
    children = [
        Supervisor(f"{child.name}-supervisor", children=[child], max_restarts=100, backoff=backoff)
        for child in (stock, ledger)
    ]
    return App(name, log=log, tree=Supervisor(f"{name}-root", children=children))


def target_of(name: str) -> str:
    """The application of that name, for another process."""
    return f"{__name__}:{name}"


if not TYPE_CHECKING:  # a type checker would take any name for an application

    def __getattr__(name: str) -> App:
        if "-" not in name:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return app_of(name)


class GatedCluster(ProcessCluster):
    """Processes whose starts a test can hold."""

    gate: asyncio.Event | None = None

    async def spawn(self, service: str, incarnation: str, node: Node) -> Spawned:
        if self.gate is not None:
            await self.gate.wait()
        return await super().spawn(service, incarnation, node)


class Loop:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_S)

    def call(self, function: Callable[[], object]) -> None:
        """Have it called on the loop."""
        self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        """End what is left on it, and stop it."""
        self.run(_end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()


@dataclass
class Process:
    """What a controller's process is made of: a candidate and its console. Killed, it is gone without a word."""

    console: Console
    running: asyncio.Task[str]

    async def kill(self) -> None:
        """End it."""
        self.running.cancel()
        await asyncio.wait([self.running])
        await self.console.close()


@dataclass
class Operated:
    """An application that runs, with a controller and another one that stands by."""

    app: App
    target: str
    log: str
    loop: Loop
    cluster: GatedCluster
    event_log: EventLog
    store: SnapshotStore
    launch: Launch
    processes: list[Process] = field(default_factory=list[Process])
    begun: int = 0
    lines: Lines = field(default_factory=Lines)

    @property
    def control(self) -> Control:
        """What is decided."""
        leading = self.leading()
        assert leading is not None, "nobody leads"
        return leading.decisions.control

    def leading(self) -> Controller | None:
        """The controller that leads; None for a moment when it has been killed."""
        found = [process.console.controller for process in self.processes]
        return next((controller for controller in found if controller is not None and controller.leads), None)

    def is_up(self) -> bool:
        """Whether somebody leads and every shard is served."""
        leading = self.leading()
        return leading is not None and leading.up.is_set()

    async def begin(self) -> None:
        """Have controllers, and wait until every shard is served."""
        for _ in range(2):
            await self.add_process()
        await eventually(self.is_up)

    async def add_process(self) -> Process:
        """One more process that leads, or stands by to lead."""
        host = real_host(self.event_log, self.store, self.launch, self.lines.say)
        console = Console(host, self.app.name)
        address = await console.start(BIND)

        def leads(controller: Controller) -> None:
            console.controller = controller

        self.begun += 1
        name = f"controller-{self.begun}"  # never again: whoever has the leader's name takes its lead for its own
        candidate = Candidate(self.app.name, self.app.tree, self.cluster, host, name, console=address, on_leading=leads)
        process = Process(console, asyncio.get_running_loop().create_task(candidate.run(BIND)))
        self.processes.append(process)
        return process

    async def kill_leader(self) -> None:
        """Have the other one lead; back once every shard is served."""
        before = self.leading()
        process = next(process for process in self.processes if process.console.controller is before)
        self.processes.remove(process)
        await process.kill()
        await eventually(self.is_up)

    def operator(self, deadline_s: float = 20.0) -> Operator:
        """An operator of this application; to be entered."""
        found = leader(self.app.name, self.event_log, self.store)
        return Operator(self.app.name, found, WebsocketWire(), deadline_s=deadline_s)

    def kill(self, service: str) -> str:
        """SIGKILL the owner of the service's shard, and wait until an incident tells of it; its name."""
        return self.loop.run(self._kill(service))

    async def _kill(self, service: str) -> str:
        name = self.control.services[service][0].incarnation
        assert name is not None, f"nobody owns the shard of {service}"
        assert self.cluster.signal(name, signal.SIGKILL)
        await eventually(lambda: any(name in incident.instances for incident in self.control.incidents.values()))
        return name

    def wait(self, holds: Callable[[Control], object]) -> None:
        """Until this holds of what is decided."""
        self.loop.run(eventually(lambda: self.leading() is not None and holds(self.control)))

    def wait_whole(self) -> None:
        """Until nothing is left to be done."""
        self.loop.run(eventually(self._is_whole))

    def _is_whole(self) -> bool:
        leading = self.leading()
        if leading is None or self.control.active_plans() or self.control.open_incidents():
            return False
        world = leading.world()
        return all(len(world.of(name)) == s.wanted and not s.unserved() for name, s in world.services.items())

    def heal(self) -> None:
        """Until nothing is left to be done; restarts that are held back are forced."""
        while True:
            self.wait(lambda control: self._is_whole() or blocked_start(control))
            found = blocked_start(self.control)
            if found is None:
                return
            self.loop.run(self._force(*found))

    async def _force(self, plan: int, step: int) -> None:
        async with self.operator() as operator:
            with contextlib.suppress(Rejected):  # its time may just have come
                await operator.say("force", "a test", "it does not wait", plan, step)

    def hold_starts(self) -> None:
        """Let no instance be started until `let_start`."""
        self.cluster.gate = self.loop.run(_new_event())

    def let_start(self) -> None:
        """Let instances be started, also those that wait for it."""
        gate, self.cluster.gate = self.cluster.gate, None
        if gate is not None:
            self.loop.call(gate.set)

    async def close(self) -> None:
        """Kill everything."""
        for process in self.processes:
            await process.kill()
        await self.cluster.close()


def blocked_start(control: Control) -> tuple[int, int] | None:
    """A step that waits to start an instance: the numbers of its plan and of itself."""
    for plan in control.active_plans():
        for number, _, step in plan.steps():
            if isinstance(step.action, Start) and step.state is State.BLOCKED:
                return plan.id, number
    return None


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _new_event() -> asyncio.Event:
    return asyncio.Event()


@contextmanager
def operated(name: str, folder: Path) -> Generator[Operated]:
    """Bring the application up; take it down, also after a failure."""
    loop = Loop()
    log = str(folder / "log.sqlite")
    app, launch = app_of(name, log), Launch(target_of(name), log=log, path=(str(REPOSITORY),))
    try:
        loop.run(create_topics(app, log))
        files = opened(log, app.snapshots, app.name)
        event_log, store = loop.run(files.__aenter__())
        cluster = GatedCluster(launch, NODES)
        shop = Operated(app, target_of(name), log, loop, cluster, event_log, store, launch)
        try:
            loop.run(shop.begin())
            yield shop
        finally:
            loop.run(shop.close())
            loop.run(files.__aexit__(None, None, None))
    finally:
        loop.close()
