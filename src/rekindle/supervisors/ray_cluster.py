"""The `Cluster` seam on Ray; the only module that imports it.

Ray places, starts and watches instances; commands do not travel through it. Instances are named, detached actors that
Ray never restarts (`max_restarts=0`). Every Ray call runs off the loop with a deadline, for Ray's own calls block
without limit while its head is away. Ray is disposable: what runs, runs on without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import ray
from ray.cluster_utils import Cluster as NodesOfThisMachine
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rekindle.events import RekindleError
from rekindle.supervisors.cluster import KILL_MAX_S, SPAWN_MAX_S, Node, Spawned, SpawnFailed
from rekindle.supervisors.hosting import ControllerThread, InstanceThread, Launch

T = TypeVar("T")

RAY_CALL_MAX_S: Final = 5.0
CALLS_AT_ONCE: Final = 16
CONTROLLER_CALLS: Final = 8
ZONE_LABEL: Final = "zone"
_ACTOR_CPUS: Final = 0.01
"""Not 0: with no resources at all Ray ignores where an actor is asked to be."""


class RayAway(RekindleError):
    """Ray does not answer. What runs, runs on; starting and placing must wait."""


class InstanceProcess:
    """The Ray actor that is an instance's process. Its methods are few: the wire is the way to talk to it."""

    def __init__(self, launch: dict[str, Any], service: str, incarnation: str) -> None:
        self.thread = InstanceThread(Launch(**launch), service, incarnation)

    def start(self) -> tuple[str, str, int]:
        """Bring it up: its addresses and its pid."""
        address, beacon = self.thread.start()
        threading.Thread(target=self._end_with_it, name="rekindle-end", daemon=True).start()
        return address, beacon, os.getpid()

    def _end_with_it(self) -> None:
        """A process whose instance has ended is of no use; Ray alone would keep it."""
        self.thread.wait()
        os._exit(0 if self.thread.error is None else 1)

    def wait(self) -> str:
        """Return when it has ended by itself; raises in the caller when the process dies."""
        self.thread.wait()
        return f"it ended: {self.thread.error!r}"


def connect(address: str | None, namespace: str, node_ip: str | None = None) -> None:
    """Be a driver of the Ray cluster at `address` (None: the one this process is in, or the local one)."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    extra = {} if node_ip is None else {"_node_ip_address": node_ip}
    try:
        ray.init(address=address or "auto", namespace=namespace, log_to_driver=False, logging_level="ERROR", **extra)
    except (ConnectionError, RayError, RuntimeError, OSError) as error:
        raise RayAway(f"no Ray cluster at {address or 'this machine'}: {error}") from error


def disconnect() -> None:
    """Leave the Ray cluster; detached actors stay."""
    ray.shutdown()


class RayCluster:
    """Instances as detached Ray actors. Use it in a process that is part of a Ray cluster."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self._actors: dict[str, Any] = {}
        self._pool = ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="rekindle-ray")

    async def _call(self, function: Callable[[], T], seconds: float = RAY_CALL_MAX_S) -> T:
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(self._pool, function)
        except TimeoutError as error:
            raise RayAway(f"Ray did not answer within {seconds} s") from error
        except (RayError, ConnectionError, RuntimeError, ValueError) as error:
            raise RayAway(f"Ray says: {error}") from error

    async def nodes(self) -> list[Node]:
        found = await self._call(ray.nodes)
        alive = [
            Node(n["NodeID"], n["NodeManagerAddress"], n.get("Labels", {}).get(ZONE_LABEL, ""))
            for n in found
            if n["Alive"]
        ]
        return sorted(alive, key=lambda node: (node.host, node.name))

    async def spawn(self, service: str, incarnation: str, node: Node) -> Spawned:
        launch = self.launch.dump() | {"bind": f"{node.host}:0"}
        try:
            actor = await self._call(lambda: self._create(launch, service, incarnation, node))
            self._actors[incarnation] = actor
            address, beacon, _ = await self._call(
                lambda: ray.get(actor.start.remote(), timeout=SPAWN_MAX_S), SPAWN_MAX_S
            )
        except RayAway as error:
            await self.kill(incarnation)
            raise SpawnFailed(f"{incarnation} on {node.host} did not come up: {error}") from error
        return Spawned(incarnation, node.name, address, beacon)

    def _create(self, launch: dict[str, Any], service: str, incarnation: str, node: Node) -> Any:
        options = ray.remote(InstanceProcess).options(
            name=incarnation,
            lifetime="detached",
            max_restarts=0,
            max_concurrency=4,
            num_cpus=_ACTOR_CPUS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node.name, soft=False),
        )
        return options.remote(launch, service, incarnation)

    async def _actor(self, incarnation: str) -> Any:
        if incarnation not in self._actors:
            self._actors[incarnation] = await self._call(lambda: ray.get_actor(incarnation))
        return self._actors[incarnation]

    async def kill(self, incarnation: str) -> None:
        with contextlib.suppress(RayAway):
            actor = await self._actor(incarnation)
            await self._call(lambda: ray.kill(actor, no_restart=True), KILL_MAX_S)
        self._actors.pop(incarnation, None)

    async def watch(self, incarnation: str) -> str:
        """One call that never ends is Ray's push notice of death."""
        try:
            actor = await self._actor(incarnation)
        except RayAway:
            return await _never()
        try:
            return str(await actor.wait.remote())
        except RayActorError as error:
            return f"Ray says that it died: {str(error).splitlines()[0]}"
        except RayError:
            return await _never()


async def _never() -> str:
    """Ray has no word on this one: the connections and the pulses have to do."""
    return str(await asyncio.get_running_loop().create_future())


class ControllerProcess:
    """The Ray actor that is one of a controller's two processes; the claim on the control log decides which one leads."""

    def __init__(self, launch: dict[str, Any]) -> None:
        here = replace(Launch(**launch), bind=f"{ray.util.get_node_ip_address()}:0")
        self.thread = ControllerThread(here, lambda: RayCluster(here))
        self.thread.start()

    def pid(self) -> int:
        """Its process."""
        return os.getpid()

    def leads(self) -> bool:
        """Whether it leads, rather than stands by."""
        return self.thread.leads

    def wait_up(self, seconds: float) -> bool:
        """Whether it led, and every shard was served, within this time."""
        return self.thread.wait_up(seconds)

    def said(self) -> list[str]:
        """What it said last, newest last."""
        return self.thread.said()

    def stop(self) -> str:
        """Stop the application if it leads it, else only leave; the reason why it ended."""
        return self.thread.stop()


def controller_names(app: str) -> list[str]:
    """The names of an application's two controller processes among Ray's actors."""
    return [f"rekindle-controller-{app}-{which}" for which in ("a", "b")]


class ControllerHandle:
    """The controller of an application, for whoever started it or found it: whichever of its processes leads."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = list(actors)

    def _ask(self, method: str, *args: Any, seconds: float = RAY_CALL_MAX_S) -> list[Any]:
        """What each process answers; one that is away has no answer."""
        calls = [getattr(actor, method).remote(*args) for actor in self._actors]
        answers: list[Any] = []
        for call in calls:
            with contextlib.suppress(RayError):
                answers.append(ray.get(call, timeout=seconds))
        return answers

    def pids(self) -> dict[int, bool]:
        """The processes that are there, and whether each leads."""
        return dict(zip(self._ask("pid"), self._ask("leads"), strict=True))

    def wait_up(self, seconds: float) -> bool:
        """Whether every shard was served within this time."""
        calls = [actor.wait_up.remote(seconds) for actor in self._actors]
        until = time.monotonic() + seconds + RAY_CALL_MAX_S
        while calls and (left := until - time.monotonic()) > 0:
            done, calls = ray.wait(calls, timeout=left)
            for call in done:
                with contextlib.suppress(RayError):
                    if ray.get(call):
                        return True
        return False

    def said(self) -> list[str]:
        """What its processes said last, who leads last."""
        ranked = sorted(zip(self._ask("leads"), self._ask("said"), strict=True), key=lambda answer: answer[0])
        return [line for _, lines in ranked for line in lines]

    def stop(self) -> str:
        """Stop the application and its controller."""
        reasons = self._ask("stop", seconds=SPAWN_MAX_S)
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        return "; ".join(dict.fromkeys(map(str, reasons)))


def start_controller(app: str, launch: Launch) -> ControllerHandle:
    """Start the application's controller as two detached actors, on two nodes if there are two, or find those that run."""
    here = ray.get_runtime_context().get_node_id()
    others = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here)
    nodes = [here, (others or [here])[0]]
    actors = [_start_candidate(*at, launch) for at in zip(controller_names(app), nodes, strict=True)]
    return ControllerHandle(actors)


def _start_candidate(name: str, node: str, launch: Launch) -> Any:
    try:
        options = ray.remote(ControllerProcess).options(
            name=name,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_concurrency=CONTROLLER_CALLS,
            num_cpus=_ACTOR_CPUS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=True),
        )
        return options.remote(launch.dump())
    except (RayError, ValueError) as error:
        raise RayAway(f"{name} could not be started: {error}") from error


def find_controller(app: str) -> ControllerHandle:
    """The controller that runs. Raises `RayAway`."""
    found: list[Any] = []
    for name in controller_names(app):
        with contextlib.suppress(ValueError):
            found.append(ray.get_actor(name))
    if not found:
        raise RayAway(f"no controller of {app!r} runs in this Ray cluster")
    return ControllerHandle(found)


# --- several Ray nodes on this machine: for the demo, tests and benches ---------------------------------------------

RAY_SETTINGS: Final = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
    "raylet_death_check_interval_milliseconds": 100,
    "kill_worker_timeout_milliseconds": 500,
    "worker_niceness": 0,
}
"""So that a new node table is not many seconds old. Detecting death does not depend on them: sockets and pulses do that."""

_OBJECT_STORE_BYTES: Final = 80 << 20
_NODE_CPUS: Final = 4


class LocalNodes:
    """Real Ray nodes on this machine, each with a loopback address of its own; the first is the head.

    settings: Ray's, instead of `RAY_SETTINGS`; empty: Ray's own defaults. Nodes end when this process does, also when it
    is killed (Ray's processes share its fate).
    """

    def __init__(self, count: int, settings: dict[str, Any] | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._net = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250) + 1}"
        common = {"num_cpus": _NODE_CPUS, "object_store_memory": _OBJECT_STORE_BYTES, "include_log_monitor": False}
        head = common | {"node_ip_address": self._ip(0), "include_dashboard": False, "dashboard_host": self._ip(0)}
        self._cluster = NodesOfThisMachine(
            initialize_head=True,
            head_node_args=head | {"_system_config": RAY_SETTINGS if settings is None else settings},
        )
        self._common = common
        self._count = 1
        self.workers: dict[str, Any] = {}
        for _ in range(count - 1):
            self.add()

    def _ip(self, index: int) -> str:
        return f"{self._net}.{10 + index}"

    @property
    def address(self) -> str:
        """The cluster's address, for `connect` and `rekindle up --address`."""
        return str(self._cluster.address)

    @property
    def head(self) -> str:
        """The head's loopback address."""
        return self._ip(0)

    def add(self) -> str:
        """One more node; its host."""
        host = self._ip(self._count)
        self._count += 1
        self.workers[host] = self._cluster.add_node(node_ip_address=host, **self._common)
        return host

    def connect(self, namespace: str) -> None:
        """Be a driver on the head."""
        connect(self.address, namespace, self.head)

    def kill(self, host: str) -> None:
        """SIGKILL a node: its raylet and every process below it, at once."""
        node = self.workers.pop(host)
        raylet = node.all_processes["raylet"][0].process
        for pid in (raylet.pid, *_below(raylet.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        raylet.wait()  # a raylet that nobody waited for still counts as alive with its workers
        self._cluster.worker_nodes.discard(node)
        node.kill_all_processes(check_alive=False, allow_graceful=False)

    def close(self) -> None:
        """End all nodes."""
        disconnect()
        self._cluster.shutdown()


def _below(pid: int) -> Iterator[int]:
    """All descendants of a process."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, children.read_text().split()):
                yield from (child, *_below(child))
