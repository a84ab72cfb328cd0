"""An example up and running as child processes of this one, on machines that a test may freeze and kill.

async with stage("examples.store.app:app", tmp_path) as store:
    store.machines.signal(...)                 # whatever a test does to it
    control = await store.until(is_healed)     # what the control log says of it then
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psutil

from rekindle import App, Client
from rekindle.supervisors import Control, Controller, Launch, Node, ProcessCluster, Spawned, decided, load, opened
from rekindle.supervisors.hosting import real_host
from rekindle.supervisors.plans import Plan
from rekindle.up import create_topics
from tests.support import REPOSITORY
from tests.support.loops import eventually
from tests.support.running import Lines

ZONES: Final = {"a1": "a", "a2": "a", "b1": "b", "b2": "b", "c1": "c", "c2": "c"}
"""By node. Two in each: who is replaced at once is not put back where it has just died."""

UP_MAX_S: Final = 50.0
STEP_MAX_S: Final = 50.0
CALL_MAX_S: Final = 50.0
"""Of callers who are to be answered, whatever happens meanwhile."""


class Machines(ProcessCluster):
    """Nodes in zones. A frozen instance stops with all its processes, and what is done to it waits until it thaws.

    story: which instance was starting, running, killed: in this order.
    """

    def __init__(self, launch: Launch, zones: Mapping[str, str]) -> None:
        super().__init__(launch, tuple(zones))
        self.zones = dict(zones)
        self.story: list[tuple[str, str]] = []
        self._frozen: dict[str, list[psutil.Process]] = {}
        self._doomed: set[str] = set()

    async def nodes(self) -> list[Node]:
        """See `Cluster`."""
        return [replace(node, zone=self.zones[node.name]) for node in await super().nodes()]

    async def spawn(self, service: str, incarnation: str, node: Node) -> Spawned:
        """See `Cluster`."""
        self.story.append((incarnation, "starting"))
        spawned = await super().spawn(service, incarnation, node)
        self.story.append((incarnation, "running"))
        return spawned

    async def kill(self, incarnation: str) -> None:
        """See `Cluster`. Of a machine that does not answer nobody knows when it will be done."""
        if incarnation in self._frozen:
            self._doomed.add(incarnation)
            return
        await super().kill(incarnation)
        self.story.append((incarnation, "killed"))

    def processes(self, incarnation: str) -> list[psutil.Process]:
        """Its process and all that this one has started."""
        first = psutil.Process(self._children[incarnation][1].pid)
        return [first, *first.children(recursive=True)]

    def freeze(self, incarnation: str, *, alone: bool = False) -> None:
        """SIGSTOP for all its processes; alone: only for the instance itself, what it has started runs on."""
        self._frozen[incarnation] = self.processes(incarnation)
        frozen = self._frozen[incarnation][: 1 if alone else None]
        _send(frozen, signal.SIGSTOP)
        # A thread that is in the kernel goes on until it leaves it, and may come back with a lock.
        deadline = time.monotonic() + STEP_MAX_S
        while not all(_is_stopped(process) for process in frozen):
            assert time.monotonic() < deadline, f"expected {frozen} to stop within {STEP_MAX_S} s"

    def is_doomed(self, incarnation: str) -> bool:
        """Whether it was killed while it was frozen."""
        return incarnation in self._doomed

    def thaw(self, incarnation: str) -> None:
        """SIGCONT for all its processes; it runs on as if nothing had happened, until `land`."""
        _send(self._frozen[incarnation], signal.SIGCONT)

    async def land(self, incarnation: str) -> None:
        """What was done to it while it was frozen happens now; back when all its processes are gone."""
        processes = self._frozen.pop(incarnation)
        assert incarnation in self._doomed, f"nobody has killed {incarnation}"
        await self.kill(incarnation)
        await eventually(lambda: not any(map(is_alive, processes)))

    async def close(self) -> None:
        """See `ProcessCluster`."""
        self._frozen.clear()
        await super().close()


def _is_stopped(process: psutil.Process) -> bool:
    """Whether none of its threads runs any more."""
    states = set[str]()
    for path in Path(f"/proc/{process.pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            states.add(path.read_text().rpartition(")")[2].split()[0])
    return states <= {"T", "t", "Z", "X"}


def _send(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    """A server's own children come and go."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def is_alive(process: psutil.Process) -> bool:
    """Whether it has not ended."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


@dataclass
class Stage:
    """An example that runs. read: reads the control log on, as anybody may."""

    app: App
    log: str
    machines: Machines
    controller: Controller
    client: Client
    lines: Lines
    read: Callable[[], Awaitable[Control]]

    async def decided(self) -> Control:
        """What is in the control log now; it stays as it is."""
        return deepcopy(await self.read())

    async def owner(self, service: str, shard: int = 0) -> str:
        """Who owns a shard."""
        owner = (await self.decided()).services[service][shard].incarnation
        assert owner is not None, f"{service}/{shard} belongs to nobody"
        return owner

    async def until(self, condition: Callable[[Control], object]) -> Control:
        """Once it is decided like this, and in the log; the controller itself is ahead of that."""
        await eventually(lambda: condition(self.controller.decisions.control))
        async with asyncio.timeout(STEP_MAX_S):
            while not condition(control := await self.decided()):  # noqa: ASYNC110 - nobody tells who only reads
                await asyncio.sleep(0)
        return control


def is_healed(control: Control) -> bool:
    """Whether something had happened, and all of it is over."""
    return bool(control.incidents) and not control.open_incidents() and not control.active_plans()


@asynccontextmanager
async def calling(callers: Sequence[Callable[[], Awaitable[None]]]) -> AsyncGenerator[None]:
    """Callers who call again and again until the end of the block, each of them at least once after that has begun to end."""
    ended = False

    async def call_on(call: Callable[[], Awaitable[None]]) -> None:
        is_last = False
        while not is_last:
            is_last = ended
            await call()

    async with asyncio.TaskGroup() as group:
        for caller in callers:
            group.create_task(call_on(caller))
        yield
        ended = True


def plans_of(control: Control, policy: str) -> list[Plan]:
    """The plans that a policy has made, the oldest first."""
    return [plan for _, plan in sorted(control.plans.items()) if plan.policy == policy]


@asynccontextmanager
async def stage(target: str, folder: Path, zones: Mapping[str, str] = ZONES) -> AsyncGenerator[Stage]:
    """Bring an example up; take it down, also after a failure."""
    app, log, lines = load(target, (str(REPOSITORY),)), str(folder / "log.sqlite"), Lines()
    assert isinstance(app, App)
    launch = Launch(target, log=log, path=(str(REPOSITORY),))
    await create_topics(app, log)
    machines = Machines(launch, zones)
    async with opened(log, app.snapshots, app.name) as (event_log, store):
        controller = Controller(app.name, app.tree, machines, real_host(event_log, store, launch, lines.say), "leader")
        leading = asyncio.get_running_loop().create_task(controller.run())
        try:
            async with asyncio.timeout(UP_MAX_S):
                await controller.up.wait()
            async with app.connect(log=log) as client:
                yield Stage(app, log, machines, controller, client, lines, decided(app.name, event_log, store))
        finally:
            print(*lines.said, leading, sep="\n")  # pytest shows it where a test has failed
            leading.cancel()
            await asyncio.wait([leading])
            await machines.close()
