"""Which policy plans for what: incidents first, each by the first policy that has an answer; then what is merely missing.

A user's policy is somebody else's code: what it raises, a plan that makes no sense, or one that takes too long to make
is an incident of its own, and the next policy is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from rekindle.actors import Host
from rekindle.events import RekindleError
from rekindle.supervisors.control import Control
from rekindle.supervisors.incidents import Evidence, Incident, Kind, Signal
from rekindle.supervisors.plans import Follow, Own, Perform, Plan, Standing, Start, Stop
from rekindle.supervisors.policies import BUILT_IN, Policy, delayed, missing, upkeep
from rekindle.supervisors.world import World

PLAN_MAX_S: Final = 2.0
"""A user's policy that takes longer is passed over."""

UPKEEP_AGAIN_MS: Final = 60_000
"""A service's own upkeep that has failed is left alone for so long: nothing has happened that it would be urgent for."""

STEPS_MAX: Final = 10_000


BESIDE: Final = frozenset({Kind.POISON})
"""Incidents whose plans touch no instance, so they speak for no service, and run beside all others."""

NOT_DEATHS: Final = frozenset(
    {Kind.GRAY, Kind.POISON, Kind.LOG_UNAVAILABLE, Kind.OVERLOAD, Kind.PLANNED_DRAIN, Kind.POLICY_FAILED}
)


class BadPlan(RekindleError):
    """A policy's plan cannot be carried out; the message says what is wrong with it."""


class Planning:
    """Asks policies. Decides nothing: its plans still have to be proposed."""

    def __init__(self, host: Host, policies: Iterable[Policy] = BUILT_IN) -> None:
        self.host = host
        self.policies = tuple(policies)
        self._failed: dict[str, int] = {}

    async def plans(self, control: Control, world: World, notice: Callable[[Evidence], Any]) -> list[Plan]:
        """A plan for each incident, and for each service, that has none and needs one."""
        active = control.active_plans()
        busy = {name for plan in active for name in plan.services}
        beside = {plan.incident for plan in active if not plan.services}
        found: list[Plan] = []
        for incident in sorted(control.open_incidents(), key=_urgency):
            if incident.id in beside:
                continue
            for plan in await self._answers(incident, world, busy, notice):
                found.append(_finished(plan, control, world, incident.id))
                busy.update(plan.services)
        for plan in await self._upkeep(world, busy, notice):
            found.append(_finished(plan, control, world, None))
            busy.update(plan.services)
        return found

    async def _answers(
        self, incident: Incident, world: World, busy: set[str], notice: Callable[[Evidence], Any]
    ) -> list[Plan]:
        """Plans for the services of an incident that no plan speaks for; a policy may answer for some of them only."""
        plans: list[Plan] = []
        taken = set(busy)
        for _ in range(1 + len(incident.services)):
            left = [name for name in incident.services if name in world.services and name not in taken]
            if incident.services and not left and incident.kind not in BESIDE:
                break
            restricted = incident if incident.kind in BESIDE else incident.model_copy(update={"services": left})
            plan = await self._first(restricted, world, taken, notice)
            if plan is None:
                break
            plans.append(plan)
            taken.update(plan.services)
            if not plan.services:
                break
        return plans

    async def _first(
        self, incident: Incident, world: World, taken: set[str], notice: Callable[[Evidence], Any]
    ) -> Plan | None:
        known = [world.services[name] for name in incident.services if name in world.services]
        own = [(service.name, policy) for service in known for policy in service.spec.on_failure]
        for service, policy in [*own, *((None, policy) for policy in self.policies)]:
            try:
                plan = await self._asked(policy, incident, world, is_own=service is not None)
            except Exception as error:  # noqa: BLE001 - a policy is the user's code; it must not end the controller
                self._on_raised(f"policy {_name_of(policy)}", error, world, service or "", notice)
                continue
            if plan is not None and taken.isdisjoint(plan.services):
                return plan
        return None

    async def _asked(self, policy: Policy, incident: Incident, world: World, *, is_own: bool) -> Plan | None:
        if is_own:
            return await self._ask(world, lambda: policy.plan(incident, world))
        return policy.plan(incident, world)

    async def _ask(self, world: World, function: Callable[[], Plan | None]) -> Plan | None:
        """What a function of the user's answers; off the loop, in time, and checked. Raises whatever it raises."""
        answer: list[Plan | None] = []

        def ask() -> bytes:
            answer.append(function())
            return b""

        async with asyncio.timeout(PLAN_MAX_S):
            await self.host.offload(ask)
        if answer[0] is not None:
            check(answer[0], world)
        return answer[0]

    def _on_raised(
        self, what: str, error: Exception, world: World, service: str, notice: Callable[[Evidence], Any]
    ) -> None:
        text = f"{what}: {type(error).__name__}: {error}"
        self.host.say(f"{service or 'built in'}: {text}")
        notice(Evidence(at_ms=world.now_ms, signal=Signal.POLICY_FAILED, text=text, service=service))

    async def _upkeep(self, world: World, busy: set[str], notice: Callable[[Evidence], Any]) -> list[Plan]:
        """What is missing comes first; then what a service needs in its own words; then balance."""
        free = [name for name in world.services if name not in busy]
        first = missing(world, free)
        plans = [first] if first is not None else []
        for name in free if not world.frozen else ():
            if first is None or name not in first.services:
                plan = await self._own_upkeep(world, name, notice) or upkeep(world, name)
                plans += [plan] if plan is not None else []
        return plans

    async def _own_upkeep(self, world: World, name: str, notice: Callable[[Evidence], Any]) -> Plan | None:
        """What it needs in its own words; one that has failed is not asked again at once."""
        function = world.services[name].spec.upkeep
        if function is None or world.now_ms - self._failed.get(name, -UPKEEP_AGAIN_MS) < UPKEEP_AGAIN_MS:
            return None
        try:
            plan = await self._ask(world, lambda: function(world, name))
            if plan is not None and plan.services != [name]:
                raise BadPlan(f"the upkeep of {name} speaks for {plan.services}")
        except Exception as error:  # noqa: BLE001 - as for a policy
            self._failed[name] = world.now_ms
            self._on_raised("upkeep", error, world, name, notice)
            return None
        return plan

    def outcome_of(self, incident: Incident, world: World) -> str | None:
        """How an incident has ended; None: it has not."""
        took = f"{world.now_ms - incident.opened_ms} ms"
        match incident.kind:
            case Kind.POISON:
                kept = [e for e in incident.evidence if e.shard is not None and _is_kept_down(e, world)]
                return "kept down until an operator allows it" if kept else None
            case Kind.POLICY_FAILED:
                return "the next policy was asked"
            case Kind.PLANNED_DRAIN:
                left = world.on(incident.nodes)
                done = not left and all(n in world.cordoned or n not in world.nodes for n in incident.nodes)
                return f"drained in {took}" if done else None
            case Kind.GRAY:
                owners = {shard.owner for name in incident.services for shard in world.services[name].shards}
                return f"nothing is left on it, {took}" if owners.isdisjoint(incident.instances) else None
            case _:
                whole = all(_is_whole(world, name) for name in incident.services if name in world.services)
                return f"healed in {took}" if whole and not world.frozen else None


def _urgency(incident: Incident) -> tuple[int, int]:
    """Deaths before what is only slow, away or asked for: the plan of the first speaks for a service."""
    return (incident.kind in NOT_DEATHS, incident.id)


def _is_kept_down(evidence: Evidence, world: World) -> bool:
    assert evidence.shard is not None
    return world.services[evidence.service].shards[evidence.shard].refused is not None


def _is_whole(world: World, name: str) -> bool:
    service = world.services[name]
    return not service.unserved() and len(world.up(name)) >= service.wanted


def _name_of(policy: Any) -> str:
    return str(getattr(policy, "name", type(policy).__name__))


def _finished(plan: Plan, control: Control, world: World, incident: int | None) -> Plan:
    """With what the controller knows of it: its incident, what it takes into account, when instances may be started."""
    basis = {name: world.services[name].disturbed for name in plan.services if name in world.services}
    held = max((control.held.get(name, 0) for name in plan.services), default=0)
    plan = delayed(plan, held) if held > world.now_ms else plan
    return plan.model_copy(update={"incident": incident, "basis": basis, "standing": Standing.RUNNING})


def check(plan: Plan, world: World) -> None:
    """Raises `BadPlan` if the plan names what is not there, or orders its phases in a circle."""
    known: set[str] = set()
    count = 0
    for phase in plan.phases:
        unknown = [name for name in phase.after or () if name not in known]
        if unknown:
            raise BadPlan(f"phase {phase.name!r} is to come after {unknown}, which do not come before it")
        known.add(phase.name)
        count += len(phase.steps)
        for step in phase.steps:
            _check_action(step.action, plan, world)
    if count > STEPS_MAX:
        raise BadPlan(f"a plan of {count} steps, {STEPS_MAX} are allowed")


def _check_action(action: Any, plan: Plan, world: World) -> None:
    service = getattr(action, "service", None)
    incarnation = getattr(action, "incarnation", None)
    if incarnation is not None:
        if incarnation not in world.instances:
            raise BadPlan(f"there is no instance {incarnation!r}")
        service = world.instances[incarnation].service
    if service is not None and service not in plan.services:
        raise BadPlan(f"a step is about service {service!r}, the plan speaks for {plan.services}")
    match action:
        case Own(moves=moves):
            _check_moves(service, moves, {to for _, to in moves if to is not None}, world)
        case Follow(moves=moves):
            _check_moves(service, moves, {name for _, names in moves for name in names}, world)
        case Start(node=node) if node not in world.nodes:
            raise BadPlan(f"there is no node {node!r}")
        case Stop() | Perform() | _:
            pass


def _check_moves(service: Any, moves: Iterable[tuple[int, Any]], targets: Iterable[str], world: World) -> None:
    shards = len(world.services[service].shards)
    wrong = [number for number, _ in moves if not 0 <= number < shards]
    if wrong:
        raise BadPlan(f"{service} has shards 0 to {shards - 1}, not {wrong}")
    instances: Mapping[str, Any] = world.instances
    strangers = [name for name in targets if name not in instances or instances[name].service != service]
    if strangers:
        raise BadPlan(f"{strangers} are no instances of {service}")
