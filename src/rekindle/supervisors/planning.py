"""Which policy plans for what: incidents first, each by the first policy that has an answer; then what is merely missing.

A user's policy is somebody else's code: what it raises, a plan that makes no sense, or one that takes too long to make
is an incident of its own, and the next policy is asked.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Final

from rekindle.actors import Host
from rekindle.events import RekindleError
from rekindle.supervisors.checks import BadPlan, checked
from rekindle.supervisors.control import Control
from rekindle.supervisors.incidents import Evidence, Incident, Kind, Signal
from rekindle.supervisors.plans import Plan, Standing, is_done
from rekindle.supervisors.policies import BUILT_IN, Policy, delayed, is_restarted, missing, upkeep
from rekindle.supervisors.world import World

PLAN_MAX_S: Final = 2.0
"""A user's policy that takes longer is passed over."""

POLICY_REST_MS: Final = 60_000
"""What goes wrong in a policy is said again after this time, not every time that it is asked."""

UPKEEP_AGAIN_MS: Final = 60_000
"""A service's own upkeep that has failed is left alone for so long: nothing has happened that it would be urgent for."""

TEXT_MAX: Final = 500
"""Characters that are kept of what went wrong in a policy."""


GRAY_REST_MS: Final = 60_000
"""An instance that was slow is given shards again when it was not found slow for this long: else they would come and go."""

OVERLOAD_REST_MS: Final = 30_000
"""An overload is over when no call was turned away for this long."""

BESIDE: Final = frozenset({Kind.POISON})
"""Incidents whose plans touch no instance, so they speak for no service, and run beside all others."""

NOT_DEATHS: Final = frozenset(
    {Kind.GRAY, Kind.POISON, Kind.LOG_UNAVAILABLE, Kind.OVERLOAD, Kind.PLANNED_DRAIN, Kind.POLICY_FAILED}
)


class TooSlow(RekindleError):
    """A policy takes too long."""


class PolicyRaised(RekindleError):
    """A policy has raised something; the message says what."""


class Planning:
    """Asks policies. Decides nothing: its plans still have to be proposed."""

    def __init__(self, host: Host, policies: Iterable[Policy] = BUILT_IN) -> None:
        self.host = host
        self.policies = tuple(policies)
        self._thinking: set[int] = set()
        self._failed: dict[str, int] = {}

    async def plans(self, control: Control, world: World, notice: Callable[[Evidence], Any]) -> list[Plan]:
        """A plan for each incident, and for each service, that has none and needs one."""
        active = control.active_plans()
        busy = {name for plan in active for name in plan.services}
        beside = {plan.incident for plan in active if not plan.services}
        found: list[Plan] = []
        for incident in sorted(control.open_incidents(), key=_urgency):
            if incident.id in beside or incident.kind is Kind.POLICY_FAILED:
                continue
            for plan in await self.answers(incident, control, world, busy, notice):
                found.append(_finished(plan, control, world, incident.id))
                busy.update(plan.services)
        for plan in await self._upkeep(control, world, busy, notice):
            found.append(_finished(plan, control, world, None))
            busy.update(plan.services)
        return found

    async def answers(
        self,
        incident: Incident,
        control: Control,
        world: World,
        busy: set[str],
        notice: Callable[[Evidence], Any],
    ) -> list[Plan]:
        """Plans for the services of an incident that no plan speaks for; a policy may answer for some of them only."""
        plans: list[Plan] = []
        taken = set(busy)
        for _ in range(1 + len(incident.services)):
            left = [name for name in incident.services if name in world.services and name not in taken]
            if incident.services and not left and incident.kind not in BESIDE:
                break
            restricted = incident if incident.kind in BESIDE else incident.model_copy(update={"services": left})
            plan = await self._first(restricted, control, world, taken, notice)
            if plan is None:
                break
            plans.append(plan)
            taken.update(plan.services)
            if not plan.services:
                break
        return plans

    async def _first(
        self,
        incident: Incident,
        control: Control,
        world: World,
        taken: set[str],
        notice: Callable[[Evidence], Any],
    ) -> Plan | None:
        known = [world.services[name] for name in incident.services if name in world.services]
        own = [(service.name, policy) for service in known for policy in service.spec.on_failure]
        for service, policy in [*own, *((None, policy) for policy in self.policies)]:
            is_own = service is not None
            try:
                plan = await self._asked(policy, incident, world, is_own=is_own)
            except Exception as error:  # noqa: BLE001 - a policy is the user's code; it must not end the controller
                self._on_failed(f"policy {_name_of(policy)}: ", service or "", error, control, world, notice)
                continue
            if plan is None or not taken.isdisjoint(plan.services) or not _wants_something(plan, world):
                continue
            if not (is_own and _has_failed(plan, incident, control)):
                return plan.model_copy(update={"is_own": is_own})
        return None

    async def _asked(self, policy: Policy, incident: Incident, world: World, *, is_own: bool) -> Plan | None:
        if is_own:
            return await self._ask(id(policy), world, lambda: policy.plan(incident, world))
        return policy.plan(incident, world)

    async def _ask(self, key: int, world: World, function: Callable[[], Plan | None]) -> Plan | None:
        """Ask a function of the user's, in a thread: it may take its time, but nobody waits for more than `PLAN_MAX_S`.

        A thread cannot be stopped: until it is back, what has the same key is passed over, or one after the other would be
        stuck. Raises `TooSlow`, `PolicyRaised`, `BadPlan`.
        """
        if key in self._thinking:
            raise TooSlow("it was asked before and has not answered yet")
        answers: list[object] = []

        def ask() -> bytes:
            self._thinking.add(key)
            try:
                answers.append(function())
            except BaseException as error:  # noqa: BLE001 - a SystemExit that comes out of a thread would end the loop
                answers.append(error)
            finally:
                self._thinking.discard(key)
            return b""

        try:
            async with asyncio.timeout(PLAN_MAX_S):
                await self.host.offload(ask)
        except TimeoutError:
            raise TooSlow(f"no answer within {PLAN_MAX_S:g} s") from None
        if isinstance(answers[0], BaseException):
            raise PolicyRaised(_in_one_line(answers[0])) from answers[0]
        return None if answers[0] is None else checked(answers[0], world)

    def _on_failed(
        self,
        whose: str,
        service: str,
        error: Exception,
        control: Control,
        world: World,
        notice: Callable[[Evidence], Any],
    ) -> None:
        """What a policy did wrong is an incident of its own; said once for as long as that goes on."""
        text = whose + (_writable(str(error)) if isinstance(error, RekindleError) else _in_one_line(error))
        told = [e for i in control.open_incidents() if i.kind is Kind.POLICY_FAILED for e in i.evidence]
        if not any(e.service == service and e.text.startswith(whose) for e in told):
            self.host.say(f"{service or 'built in'}: {text}")
            notice(Evidence(at_ms=world.now_ms, signal=Signal.POLICY_FAILED, text=text, service=service))

    async def _upkeep(
        self, control: Control, world: World, busy: set[str], notice: Callable[[Evidence], Any]
    ) -> list[Plan]:
        """What is missing comes first; then what a service needs in its own words; then balance."""
        free = [name for name in world.services if name not in busy]
        first = missing(world, free)
        plans = [first]
        for name in free if not world.frozen else ():
            if first is None or name not in first.services:
                own = await self._own_upkeep(control, world, name, notice)
                plans.append(own if own is not None else upkeep(world, name))
        return [plan for plan in plans if plan is not None and _wants_something(plan, world)]

    async def _own_upkeep(
        self, control: Control, world: World, name: str, notice: Callable[[Evidence], Any]
    ) -> Plan | None:
        """What it needs in its own words; one that has failed is not asked again at once."""
        function = world.services[name].spec.upkeep
        if function is None:
            return None
        failed_ms = max(self._failed.get(name, -UPKEEP_AGAIN_MS), _upkeep_failed_ms(control, name))
        if world.now_ms - failed_ms < UPKEEP_AGAIN_MS:
            return None
        try:
            plan = await self._ask(id(function), world, lambda: function(world, name))
            if plan is not None and plan.services != [name]:
                raise BadPlan(f"the upkeep of {name} speaks for {plan.services}")
        except Exception as error:  # noqa: BLE001 - as for a policy
            self._failed[name] = world.now_ms
            self._on_failed("upkeep: ", name, error, control, world, notice)
            return None
        return plan.model_copy(update={"is_own": True}) if plan is not None and _wants_something(plan, world) else None

    def outcome_of(self, incident: Incident, world: World) -> str | None:
        """How an incident has ended; None: it has not."""
        took = f"{world.now_ms - incident.opened_ms} ms"
        match incident.kind:
            case Kind.POISON:
                kept = all(_is_kept_down(evidence, world) for evidence in incident.evidence)
                return "kept down until an operator allows it" if kept else None
            case Kind.POLICY_FAILED:
                rested_ms = world.now_ms - incident.changed_ms
                return "the next policy was asked" if rested_ms > POLICY_REST_MS else None
            case Kind.PLANNED_DRAIN:
                left = world.on(incident.nodes)
                done = not left and all(n in world.cordoned or n not in world.nodes for n in incident.nodes)
                return f"drained in {took}" if done else None
            case Kind.OVERLOAD if world.instances.keys() & set(incident.instances):
                rested_ms = world.now_ms - incident.changed_ms
                return f"no call was turned away for {rested_ms} ms" if rested_ms > OVERLOAD_REST_MS else None
            case Kind.GRAY:
                is_gone = world.instances.keys().isdisjoint(incident.instances)
                rested_ms = world.now_ms - incident.changed_ms
                return f"left alone for {rested_ms} ms" if is_gone or rested_ms > GRAY_REST_MS else None
            case _:
                healed = not world.frozen and _is_whole(world, incident) and _is_restarted(world, incident)
                return f"healed in {took}" if healed else None


def _urgency(incident: Incident) -> tuple[int, int]:
    """Deaths before what is only slow, away or asked for: the plan of the first speaks for a service."""
    return (incident.kind in NOT_DEATHS, incident.id)


def _is_kept_down(evidence: Evidence, world: World) -> bool:
    service = world.services.get(evidence.service)
    return service is None or evidence.shard is None or service.shards[evidence.shard].refused is not None


def _is_whole(world: World, incident: Incident) -> bool:
    return all(
        world.services[name].is_whole(len(world.up(name))) for name in incident.services if name in world.services
    )


def _is_restarted(world: World, incident: Incident) -> bool:
    """Whether all was restarted that supervisors have decided to restart: an incident does not end before. In a mass
    failure that is left undone: it could wait, and what has not died since has lasted."""
    return incident.kind is Kind.MASS_FAILURE or all(
        is_restarted(world, name, at) for name, at in incident.restart_ms.items() if name in world.services
    )


def _name_of(policy: Any) -> str:
    try:
        return str(getattr(policy, "name", type(policy).__name__))[:TEXT_MAX]
    except Exception:  # noqa: BLE001 - the name, too, is the user's code
        return type(policy).__name__


def _in_one_line(error: BaseException) -> str:
    """What an error says, whatever that is."""
    return _writable("".join(traceback.format_exception_only(error)))


def _writable(text: str) -> str:
    """In one line, and as it can be kept in the log."""
    return " ".join(text.split()).encode("utf-8", "replace").decode()[:TEXT_MAX]


def _has_failed(plan: Plan, incident: Incident, control: Control) -> bool:
    """Whether the same policy's plan for this incident has failed before: then it is the next one's turn."""
    return any(
        known.standing is Standing.FAILED and known.is_own and known.policy == plan.policy
        for known in control.plans.values()
        if known.incident == incident.id
    )


def _finished(plan: Plan, control: Control, world: World, incident: int | None) -> Plan:
    """With what the controller knows of it: its incident, what it takes into account, when instances may be started."""
    basis = {name: world.services[name].disturbed for name in plan.services if name in world.services}
    held = max((control.held.get(name, 0) for name in plan.services), default=0)
    plan = delayed(plan, held) if held > world.now_ms else plan
    return plan.model_copy(update={"incident": incident, "basis": basis, "standing": Standing.RUNNING})


def _upkeep_failed_ms(control: Control, name: str) -> int:
    """When a plan of the service's own upkeep failed last."""
    own = [plan for plan in control.plans.values() if plan.is_own and plan.incident is None and plan.services == [name]]
    return max((plan.ended_ms or 0 for plan in own if plan.standing is Standing.FAILED), default=-UPKEEP_AGAIN_MS)


def _wants_something(plan: Plan, world: World) -> bool:
    """Whether not all that it wants is so already: a plan that is done when it begins would be made again and again."""
    return not all(is_done(step, world) for _, _, step in plan.steps())
