"""Makes the faults of a plan happen to a world. Each says whether it met anything; only those that did are counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from math import inf
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar

from rekindle.chaos.loop import Process
from rekindle.chaos.plan import INSTANCES, Fault, Plan
from rekindle.chaos.simhost import LOG_HOST
from rekindle.chaos.simwire import WireFaults
from rekindle.events.simulated import LogFaults
from rekindle.supervisors import Control
from rekindle.supervisors.plans import Standing

if TYPE_CHECKING:
    from rekindle.chaos.world import World

T = TypeVar("T")
Verb = tuple[str, list[Any]]
"""A verb of an operator, and what it is about."""

SERVICE: Final = "ledger"

NODES_MIN: Final = 2
"""So many machines are left standing; a new one comes for each that falls."""

NEW_NODE_S: Final = 3.0
MAKE_UP_S: Final = 0.5
MAKE_UP_MAX_S: Final = 60.0
SLOW_S: Final = 0.01
"""What each callback of a slow process may take."""

HARMLESS: Final = ("slow_append", "slow_ack", "slow_frame")
"""Not counted as faults: they are only late."""


class Weather:
    """What goes wrong in one world."""

    def __init__(self, world: World, plan: Plan, random: Random) -> None:
        self.world = world
        self.plan = plan
        self.random = random
        self.took: Counter[str] = Counter()
        self._nodes = 0
        self._acts: dict[str, Callable[[Fault], bool]] = {
            "kill an instance": self._kill_instance,
            "stop an instance": self._stop_instance,
            "slow an instance": self._slow_instance,
            "kill a node": self._kill_node,
            "kill the controller": self._kill_controller,
            "stop the controller": self._stop_controller,
            "stop a client": self._stop_client,
            "cut two hosts": self._cut_hosts,
            "cut a host from the log": self._cut_log,
            "break connections": self._break_connections,
            "slander an instance": self._slander,
            "send the cluster away": self._send_cluster_away,
            "send the log away": self._send_log_away,
            "let the log refuse": self._let_log_refuse,
            "scale": self._scale,
            "drain a node": self._drain_node,
            "pause the plans": self._pause_plans,
        }

    def begin(self) -> None:
        """From now on the log and the wire have their faults, and the plan's come one after the other."""
        self.world.log.faults, self.world.net.faults = self.plan.log, self.plan.wire
        for fault in self.plan.faults:
            self.world.loop.call_later(fault.at_s, self._strike, fault)

    async def make_up(self, least: int) -> None:
        """Where the plan's faults have met too little, more follow: kills, which always find somebody in the end."""
        until = self.world.loop.time() + MAKE_UP_MAX_S
        while self.count < least and self.world.loop.time() < until:
            self._strike(Fault(self.world.loop.time(), "kill an instance", self.random.random(), 0.0))
            await asyncio.sleep(MAKE_UP_S)

    def end(self) -> None:
        """Everything heals; what was stopped goes on."""
        self.world.log.faults, self.world.net.faults = LogFaults(), WireFaults()
        self.world.net.heal()
        self.world.cluster.away_until = 0.0
        for process in self.world.processes():
            process.set_pace(0)
        self.world.operate(self.tidy_up)

    @property
    def count(self) -> int:
        """How many faults took effect."""
        others = self.world.log.took + self.world.net.took
        return self.took.total() + sum(count for name, count in others.items() if name not in HARMLESS)

    def _strike(self, fault: Fault) -> None:
        if self._acts[fault.kind](fault):
            self.took[fault.kind] += 1
            self.world.note("!", f"{fault.kind}, for {fault.for_s:.2f} s")

    def _later(self, fault: Fault, act: Callable[[], object]) -> None:
        self.world.loop.call_later(fault.for_s, act)

    # --- processes ---------------------------------------------------------------------------------------------

    def _instances(self) -> list[Process]:
        instances = self.world.cluster.instances
        return [instances[name] for name in sorted(instances) if instances[name].runs]

    def _kill_instance(self, fault: Fault) -> bool:
        process = _pick(self._instances(), fault)
        if process is not None:
            process.kill()
        return process is not None

    def _stop_instance(self, fault: Fault) -> bool:
        return self._pace(_pick(self._instances(), fault), inf, fault)

    def _slow_instance(self, fault: Fault) -> bool:
        return self._pace(_pick(self._instances(), fault), SLOW_S * fault.pick, fault)

    def _stop_client(self, fault: Fault) -> bool:
        return self._pace(_pick([c for c in self.world.clients if c.runs], fault), inf, fault)

    def _pace(self, process: Process | None, pace_s: float, fault: Fault) -> bool:
        if process is None:
            return False
        process.set_pace(pace_s)
        self._later(fault, lambda: process.set_pace(0))
        return True

    def _controllers(self) -> list[Process]:
        return [process for process in self.world.controllers if process.runs]

    def _kill_controller(self, fault: Fault) -> bool:
        process = _pick(self._controllers(), fault)
        if process is not None:
            process.kill()
        return process is not None

    def _stop_controller(self, fault: Fault) -> bool:
        """It is taken for dead, another one leads; then it wakes up."""
        return self._pace(_pick(self._controllers(), fault), inf, fault)

    # --- machines and what is between them -----------------------------------------------------------------------

    def add_node(self) -> None:
        """A new machine."""
        self._nodes += 1
        self.world.cluster.add_node(f"node-{self._nodes}", f"zone-{self._nodes % self.plan.zones}")

    def _kill_node(self, fault: Fault) -> bool:
        up = sorted(self.world.cluster.up)
        if len(up) <= NODES_MIN:
            return False
        self.world.cluster.kill_node(up[int(fault.pick * len(up))])
        self.world.loop.call_later(NEW_NODE_S, self.add_node)
        return True

    def _cut_hosts(self, fault: Fault) -> bool:
        hosts = sorted({process.host for process in self.world.processes()})
        one, other = self.random.sample(hosts, 2)
        self.world.net.cut(one, other)
        self._later(fault, self.world.net.heal)
        return True

    def _cut_log(self, fault: Fault) -> bool:
        host = _pick(sorted(self.world.cluster.up), fault)
        if host is not None:
            self.world.net.cut(host, LOG_HOST)
            self._later(fault, self.world.net.heal)
        return host is not None

    def _break_connections(self, fault: Fault) -> bool:
        return self.world.net.break_some(fault.pick) > 0

    # --- what is said, and what everything stands on -------------------------------------------------------------

    def _slander(self, fault: Fault) -> bool:
        """The cluster says of one that lives that it is dead."""
        process = _pick(self._instances(), fault)
        if process is not None:
            self.world.cluster.call_dead(process.name, "so they say")
        return process is not None

    def _send_cluster_away(self, fault: Fault) -> bool:
        self.world.cluster.away_until = self.world.loop.time() + fault.for_s
        return True

    def _send_log_away(self, fault: Fault) -> bool:
        self.world.log.go_away(fault.for_s / 3)
        return True

    def _let_log_refuse(self, fault: Fault) -> bool:
        """Appends are refused for good, as when a disk is full or an account may not write any more."""
        self.world.log.refuses_until = self.world.loop.time() + fault.for_s / 10
        return True

    # --- an operator's doing ---------------------------------------------------------------------------------------

    def _scale(self, fault: Fault) -> bool:
        few, many = INSTANCES
        instances = few + int(fault.pick * (many - few + 1))
        return self.world.operate(lambda _: [("scale", [SERVICE, instances])])

    def _drain_node(self, fault: Fault) -> bool:
        """And let it be used again, later."""
        node = _pick(sorted(self.world.cluster.up.values(), key=lambda node: node.name), fault)
        if node is None:
            return False
        self._later(fault, lambda: self.world.operate(lambda _: [("uncordon", [node.name])]))
        return self.world.operate(lambda _: [("drain", [node.name, node.zone])])

    def _pause_plans(self, fault: Fault) -> bool:
        self._later(fault, lambda: self.world.operate(resumed))
        return self.world.operate(lambda control: [("pause", [plan.id]) for plan in control.active_plans()])

    def tidy_up(self, control: Control) -> list[Verb]:
        """As it was declared: all nodes may be used, nothing is paused or kept down."""
        uncordoned: list[Verb] = [("uncordon", [node]) for node in sorted(control.cordoned)]
        refused = [shard for shard, owned in enumerate(control.services[SERVICE]) if owned.refused is not None]
        allowed: list[Verb] = [("allow", [SERVICE, shard]) for shard in refused]
        return [*uncordoned, *allowed, *resumed(control), ("scale", [SERVICE, max(INSTANCES) - 1])]


def resumed(control: Control) -> list[Verb]:
    """Plans that are paused are to go on."""
    return [("resume", [plan.id]) for plan in control.active_plans() if plan.standing is Standing.PAUSED]


def _pick(candidates: list[T], fault: Fault) -> T | None:
    return candidates[int(fault.pick * len(candidates))] if candidates else None
