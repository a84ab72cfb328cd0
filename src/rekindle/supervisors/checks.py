"""What a user's policy answers is somebody else's data: here it becomes a plan that can be carried out, or a `BadPlan`.

The plan that goes on is the one that every later controller will read from the log, not the object that the policy may
still hold: what the log would not give back as it was, no controller could lead with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from pydantic import ValidationError

from rekindle.events import RekindleError, pack, unpack
from rekindle.supervisors.plans import (
    Cordon,
    Enough,
    Follow,
    Own,
    Perform,
    Phase,
    Place,
    Plan,
    Refuse,
    Served,
    Start,
    State,
    Step,
    Stop,
)
from rekindle.supervisors.world import World

STEPS_MAX: Final = 10_000
PLAN_BYTES_MAX: Final = 500_000
"""Encoded; a plan is one record of the control log."""

DEADLINE_MAX_S: Final = 3_600.0


class BadPlan(RekindleError):
    """A policy's plan cannot be carried out; the message says what is wrong with it."""


def checked(answer: object, world: World) -> Plan:
    """The plan that a policy has answered. Raises `BadPlan`, or `Unencodable` where it holds what the log cannot."""
    data = pack(answer)
    if len(data) > PLAN_BYTES_MAX:
        raise BadPlan(f"a plan of {len(data)} bytes, {PLAN_BYTES_MAX} are allowed")
    try:
        plan = Plan.model_validate(unpack(data))
    except ValidationError as error:
        raise BadPlan(f"a {type(answer).__name__} that is no plan: {error.errors()[0]['loc']}: {error}") from error
    check(plan, world)
    return plan


def check(plan: Plan, world: World) -> None:
    """Raises `BadPlan` if the plan names what is not there, could not begin or not end, or breaks a rule of placement."""
    unknown = [name for name in plan.services if name not in world.services]
    if unknown:
        raise BadPlan(f"the plan speaks for {unknown}, the services are {sorted(world.services)}")
    count = sum(len(phase.steps) for phase in plan.phases)
    if not 1 <= count <= STEPS_MAX:
        raise BadPlan(f"a plan of {count} steps, 1 to {STEPS_MAX} are allowed")
    _check_phases(plan.phases)
    taking = {move for step in _steps(plan) if isinstance(step.action, Own) for move in step.action.moves}
    for step in _steps(plan):
        _check_step(step)
        _check_guards(step, world)
        _check_action(step.action, plan, world, taking)


def _steps(plan: Plan) -> Iterator[Step]:
    return (step for _, _, step in plan.steps())


def _check_phases(phases: Iterable[Phase]) -> None:
    known: set[str] = set()
    for phase in phases:
        unknown = [name for name in phase.after or () if name not in known]
        if unknown:
            raise BadPlan(f"phase {phase.name!r} is to come after {unknown}, which do not come before it")
        if phase.name in known:
            raise BadPlan(f"two phases are called {phase.name!r}")
        if phase.at_once < 1:
            raise BadPlan(f"phase {phase.name!r} lets {phase.at_once} steps run at once")
        known.add(phase.name)


def _check_step(step: Step) -> None:
    if step.state is not State.PENDING or step.attempt or step.forced or step.result is not None:
        raise BadPlan(f"a step that has begun already: {step.state}, attempt {step.attempt}")
    if not 0 < step.deadline_s <= DEADLINE_MAX_S:
        raise BadPlan(f"a deadline of {step.deadline_s} s, it must be above 0 and at most {DEADLINE_MAX_S:g} s")


def _check_guards(step: Step, world: World) -> None:
    for guard in step.guards:
        if isinstance(guard, Served | Enough) and guard.service not in world.services:
            raise BadPlan(f"a guard is about {guard.service!r}, the services are {sorted(world.services)}")


def _check_action(action: Any, plan: Plan, world: World, taking: set[tuple[int, str | None]]) -> None:
    match action:
        case Stop(incarnation=name) | Perform(incarnation=name):
            if name not in world.instances:
                raise BadPlan(f"there is no instance {name!r}")
            _check_speaks_for(plan, world.instances[name].service)
        case Start(service=service, node=node):
            _check_speaks_for(plan, service)
            if node not in world.nodes:
                raise BadPlan(f"there is no node {node!r}")
        case Own(service=service, moves=moves):
            _check_speaks_for(plan, service)
            _check_moves(service, dict(moves), len(moves), [to for _, to in moves if to is not None], world)
        case Follow(service=service, moves=moves):
            _check_speaks_for(plan, service)
            _check_moves(service, dict(moves), len(moves), [name for _, names in moves for name in names], world)
            _check_apart(service, moves, world, taking)
        case Refuse(service=service, shard=shard):
            _check_shards(service, [shard], world)
        case Place(service=service):
            _check_speaks_for(plan, service)
        case Cordon(node=node) if node not in world.nodes:
            raise BadPlan(f"there is no node {node!r}")
        case _:
            pass


def _check_speaks_for(plan: Plan, service: str) -> None:
    if service not in plan.services:
        raise BadPlan(f"a step is about service {service!r}, the plan speaks for {plan.services}")


def _check_shards(service: str, numbers: Iterable[int], world: World) -> None:
    if service not in world.services:
        raise BadPlan(f"there is no service {service!r}")
    shards = len(world.services[service].shards)
    wrong = [number for number in numbers if not 0 <= number < shards]
    if wrong:
        raise BadPlan(f"{service} has shards 0 to {shards - 1}, not {wrong}")


def _check_moves(service: str, moves: Mapping[int, Any], count: int, targets: Iterable[str], world: World) -> None:
    _check_shards(service, moves, world)
    if len(moves) != count:
        raise BadPlan(f"a step wants two things of one shard of {service}")
    strangers = [name for name in targets if name not in world.instances or world.instances[name].service != service]
    if strangers:
        raise BadPlan(f"{strangers} are no instances of {service}")


def _check_apart(
    service: str, moves: Iterable[tuple[int, list[str]]], world: World, taking: set[tuple[int, str | None]]
) -> None:
    """Copies of a shard are on different nodes, but for one that follows it to take it over."""
    for number, names in moves:
        owner = world.services[service].shards[number].owner
        staying = [name for name in (owner, *names) if name in world.instances and (number, name) not in taking]
        nodes = [world.instances[name].node for name in staying if name is not None]
        if len(set(nodes)) < len(nodes):
            raise BadPlan(f"copies of shard {number} of {service} would share a node: {staying}")
