"""What only a cluster or an instance can do: start, stop, kill, perform. Steps that run are carried out once an attempt.

Whatever comes of it is seen in the world (an instance is there, or is not), and that is what a step's `is_done` looks at;
only a failure has to be remembered, until the plan has taken note of it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from rekindle.events import RekindleError
from rekindle.supervisors.decided import Running
from rekindle.supervisors.plans import Perform, Plan, Standing, Start, State, Step, Stop
from rekindle.supervisors.world import InstanceView

if TYPE_CHECKING:
    from rekindle.supervisors.controller import Controller

SPAWNS_AT_ONCE: Final = 4
READY_MAX_S: Final = 2.0
"""How long an instance that listens may take to answer."""

Key = tuple[int, int, int]
"""Plan, step, attempt."""


class Acting:
    """The hands of a controller."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.starting: dict[str, InstanceView] = {}
        self._begun: dict[Key, None] = {}
        self._failures: dict[int, dict[tuple[int, int], str]] = {}
        self._killing: set[str] = set()
        self._spawns = asyncio.Semaphore(SPAWNS_AT_ONCE)
        self._starts: set[asyncio.Task[None]] = set()

    def failures(self, plan: int) -> dict[tuple[int, int], str]:
        """Why attempts of a plan's steps cannot succeed."""
        return self._failures.get(plan, {})

    async def wait_started(self, seconds: float) -> None:
        """Until nothing is being started any more."""
        if self._starts:
            await asyncio.wait(self._starts, timeout=seconds)

    def kill(self, incarnation: str) -> None:
        """Have it killed, whoever it was; once."""
        if incarnation not in self._killing:
            self._killing.add(incarnation)
            self.controller.spawn(self.controller.cluster.kill(incarnation))

    def carry_out(self, plan: Plan) -> None:
        """Act for the steps that run and were not acted for yet."""
        if plan.standing is not Standing.RUNNING:
            return
        for number, _, step in plan.steps():
            key = (plan.id, number, step.attempt)
            if step.state is State.RUNNING and key not in self._begun:
                self._begun[key] = None
                self._begin(key, step)

    def _begin(self, key: Key, step: Step) -> None:
        match step.action:
            case Start(service=service, node=node):
                start = self.controller.spawn(self._start(key, service, node))
                self._starts.add(start)
                start.add_done_callback(self._starts.discard)
            case Stop(incarnation=incarnation, reason=reason):
                self.controller.spawn(self._stop(incarnation, reason))
            case Perform():
                self.controller.spawn(self._perform(key, step.action))
            case _:  # decided with the step's change, and sent as orders
                pass

    def _fail(self, key: Key, text: str) -> None:
        plan, step, attempt = key
        self._failures.setdefault(plan, {})[step, attempt] = text

    async def _start(self, key: Key, service: str, node_name: str) -> None:
        controller = self.controller
        node = next((node for node in controller.nodes if node.name == node_name), None)
        incarnation = f"{service}-{controller.decisions.term}.{key[0]}.{key[1]}-{controller.host.random_hex(4)}"
        try:
            if node is None:
                self._fail(key, f"node {node_name} is gone")
                return
            self.starting[incarnation] = InstanceView(
                incarnation, service, node.name, node.zone, up=False, started_ms=controller.decisions.now_ms()
            )
            async with self._spawns:
                spawned = await controller.cluster.spawn(service, incarnation, node)
            running = Running(
                service=service,
                node=spawned.node,
                address=spawned.address,
                beacon=spawned.beacon,
                started_ms=controller.decisions.now_ms(),
            )
            await controller.decisions.decide("started", incarnation, running, key[0], key[1])
            controller.host.say(f"{incarnation} was started at {spawned.address}")
            ward = controller.watch(incarnation, running)
            if await ward.wait_ready(READY_MAX_S):
                controller.orders.tell([ward])
        except RekindleError as error:
            controller.host.say(f"no instance of {service} on {node_name}: {error}")
            self._fail(key, str(error))
        finally:
            self.starting.pop(incarnation, None)
            controller.changed.set()

    async def _stop(self, incarnation: str, reason: str) -> None:
        controller = self.controller
        ward = controller.wards.pop(incarnation, None)
        if ward is not None:
            controller.host.say(f"{incarnation} at {ward.running.address} is stopped: {reason}")
        await controller.cluster.kill(incarnation)
        await controller.decisions.decide("stopped", incarnation, reason)
        controller.changed.set()

    async def _perform(self, key: Key, action: Perform) -> None:
        controller = self.controller
        ward = controller.wards.get(action.incarnation)
        name = ".".join(map(str, (controller.decisions.term, *key)))
        try:
            if ward is None:
                self._fail(key, f"{action.incarnation} is gone")
                return
            result = await ward.perform(controller.decisions.term, name, action.operation, action.args)
            await controller.decisions.decide("perform", key[0], key[1], [result])
        except RekindleError as error:
            self._fail(key, f"{action.operation}: {error}")
        finally:
            controller.changed.set()
