"""Why something is in its state: what caused it, which rule fired, and which verb would change it. Pure.

A target is a name, or a number: a service, `service/shard`, an instance (a dead one too, while an incident tells of it), a
node, a supervisor; an incident or a plan by its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rekindle.supervisors.control import DEATHS_MAX, Control, Unknown
from rekindle.supervisors.decided import Owned
from rekindle.supervisors.incidents import FLAP_WINDOW_MS, FLAPS_MIN, Incident, Kind, recent
from rekindle.supervisors.parts import DIED_HERE_MS
from rekindle.supervisors.plans import OVER, Plan, Standing, State, Step
from rekindle.supervisors.report import Explanation
from rekindle.supervisors.reporting import (
    KNOWN_MAX,
    incident_known,
    instance_state,
    noticed,
    plan_known,
    plans_for,
    ranges,
    restarts_in_window,
    shard_state,
    standing_text,
    state_of,
    what,
)
from rekindle.supervisors.tree import Supervisor, supervisors_of
from rekindle.supervisors.world import ServiceView, ShardView, World

STEPS_TOLD: Final = 10
EVIDENCE_TOLD: Final = 5
"""How many unfinished steps, and pieces of evidence, an explanation tells."""

_WHY: Final = "--reason WHY"


def explain(control: Control, world: World, target: str) -> Explanation:
    """Why the target is as it is. Raises `Unknown`, with what there is."""
    service, slash, shard = target.partition("/")
    supervisors = {supervisor.name: supervisor for supervisor in supervisors_of(world.root)}
    if target.isdecimal():
        return _numbered(control, world, int(target))
    if slash and shard.isdecimal() and service in world.services and int(shard) < len(world.services[service].shards):
        return _of_shard(control, world, world.services[service], int(shard))
    if target in world.services:
        return _of_service(control, world, world.services[target])
    if target in supervisors:
        return _of_supervisor(world, supervisors[target])
    if target in world.nodes or target in world.cordoned:
        return _of_node(control, world, target)
    if target in world.instances or _telling_of(control, target):
        return _of_instance(control, world, target)
    known = [*world.services, *supervisors, *sorted(world.nodes), *sorted(world.instances)]
    raise Unknown(what="target", name=target, known=known[:KNOWN_MAX])


def _numbered(control: Control, world: World, number: int) -> Explanation:
    if number in control.plans:
        return _of_plan(control, plan_known(control, number))
    return _of_incident(control, world, incident_known(control, number))


# --- services and shards --------------------------------------------------------------------------------------------


def _of_service(control: Control, world: World, service: ServiceView) -> Explanation:
    name = service.name
    plans = _plans_of(control, name)
    because = [
        *_missing_instances(control, world, service),
        *_missing_shards(service),
        *_waits(control, world, service),
    ]
    because += [line for plan in plans for line in _unfinished(plan)]
    kept_down = [number for number, shard in enumerate(service.shards) if shard.refused is not None]
    return Explanation(
        target=name,
        sort="service",
        state=standing_text(world, service),
        because=because or ["every shard is served by as many instances as are wanted"],
        rules=[*_rules(control, plans, _open_about(control, name)), *_intensity(world, name)],
        verbs=[
            f"rekindle scale {name} N {_WHY}",
            *(f"rekindle allow {name}/{number} {_WHY}" for number in kept_down[:STEPS_TOLD]),
            *(verb for plan in plans for verb in _verbs_of(plan)),
        ],
    )


def _missing_instances(control: Control, world: World, service: ServiceView) -> list[str]:
    name = service.name
    there, declared = world.of(name), control.declared.get(name, service.wanted)
    starting = [i.name for i in there if instance_state(control, i) == "starting"]
    silent = [i.name for i in there if instance_state(control, i) == "not answering"]
    found: list[str] = []
    if len(there) < service.wanted:
        found.append(f"{service.wanted - len(there)} of {service.wanted} instances are not there")
    if starting:
        found.append(f"being started: {', '.join(starting)}")
    if silent:
        found.append(f"started, and not answering: {', '.join(silent)}")
    if service.wanted != declared:
        found.append(
            f"{service.wanted} instances are wanted, not the {declared} that are declared: {_who_scaled(control, name)}"
        )
    return found


def _who_scaled(control: Control, service: str) -> str:
    for saying in reversed(control.sayings):
        if saying.verb == "scale" and saying.target.startswith(f"{service} to "):
            return f"{saying.who} said so: {saying.reason}"
    return "instances that ended by themselves were not replaced"


def _missing_shards(service: ServiceView) -> list[str]:
    by_state: dict[str, list[int]] = {}
    for number, shard in enumerate(service.shards):
        if (state := shard_state(shard)) != "served":
            by_state.setdefault(state, []).append(number)
    return [f"shards {ranges(numbers)} are {state}" for state, numbers in sorted(by_state.items())]


def _waits(control: Control, world: World, service: ServiceView) -> list[str]:
    """What keeps it from being healed right now."""
    found: list[str] = []
    held_ms = control.held.get(service.name, 0) - world.now_ms
    if held_ms > 0:
        found.append(f"its restarts are held back for another {held_ms} ms")
    if world.frozen:
        found.append("too much died lately: what can wait, waits")
    found += [
        f"it needs {needed}, which is {state_of(world, world.services[needed])}"
        for needed in service.spec.needs
        if world.services[needed].unserved()
    ]
    return found


def _of_shard(control: Control, world: World, service: ServiceView, number: int) -> Explanation:
    shard, owned = service.shards[number], control.services[service.name][number]
    plans = _plans_of(control, service.name)
    verbs = [verb for plan in plans for verb in _verbs_of(plan)]
    if shard.refused is not None:
        verbs.insert(0, f"rekindle allow {service.name}/{number} {_WHY}")
    return Explanation(
        target=f"{service.name}/{number}",
        sort="shard",
        state=f"{shard_state(shard)}, owner {shard.owner or 'nobody'}, assignment {shard.number}",
        because=[*_why_shard(shard, owned), *(line for plan in plans for line in _unfinished(plan))],
        rules=_rules(control, plans, _open_about(control, service.name)),
        verbs=verbs,
    )


def _why_shard(shard: ShardView, owned: Owned) -> list[str]:
    match shard_state(shard):
        case "kept down":
            text = f"it is kept down until an operator allows it: {shard.refused}"
        case "served":
            text = f"{shard.owner} has claimed it and serves it"
        case "held" if owned.deaths >= DEATHS_MAX:
            text = f"its replay was running at the death of {owned.deaths} instances"
        case "held":
            text = "its owner gave it up a moment ago; it is left alone for a while, each time for longer"
        case "replaying":
            text = f"{shard.owner} owns it by assignment {shard.number} and has not said yet that it serves it"
        case _ if owned.incarnation is not None:
            text = f"its owner, {owned.incarnation}, is not there any more"
        case _:
            text = "it was given up, or taken away, and given to nobody since"
    standbys = [f"{name} follows it, {_lag(shard.behind.get(name))}" for name in shard.standbys]
    return [text, *([f"{shard.waiting} calls wait for it"] if shard.waiting else []), *standbys]


def _lag(behind: int | None) -> str:
    return "and has not caught up" if behind is None else f"{behind} commits behind"


# --- instances and nodes --------------------------------------------------------------------------------------------


def _telling_of(control: Control, instance: str) -> list[Incident]:
    return [incident for _, incident in sorted(control.incidents.items()) if instance in incident.instances]


def _of_instance(control: Control, world: World, name: str) -> Explanation:
    view, incidents = world.instances.get(name), _telling_of(control, name)
    because = [f"started by {_started_by(control, name)}"]
    verbs: list[str] = []
    if view is not None:
        shards = {
            s.name: [n for n, shard in enumerate(s.shards) if shard.owner == name] for s in world.services.values()
        }
        because += [f"it owns {service}/{ranges(numbers)}" for service, numbers in shards.items() if numbers]
        because += (
            [f"nothing new is put on {view.node}: {world.cordoned[view.node]}"] if view.node in world.cordoned else []
        )
        verbs = [f"rekindle drain {view.node} {_WHY}", f"rekindle scale {view.service} N {_WHY}"]
    for incident in incidents:
        told = [piece for piece in incident.evidence if piece.incarnation == name]
        because += [f"incident {incident.id}: {noticed(piece)}" for piece in told[:EVIDENCE_TOLD]]
    return Explanation(
        target=name,
        sort="instance",
        state="dead" if view is None else f"{instance_state(control, view)} on {view.node}",
        because=because,
        rules=[_kind_rule(incident) for incident in incidents],
        verbs=verbs,
    )


def _started_by(control: Control, instance: str) -> str:
    for plan in reversed(control.plans.values()):
        for number, _, step in plan.steps():
            if step.result == instance:
                return f"step {number} of plan {plan.id} ({plan.policy}): {plan.cause}"
    return "a plan that is not kept any more"


def _of_node(control: Control, world: World, name: str) -> Explanation:
    node, reason = world.nodes.get(name), world.cordoned.get(name)
    taken = len(recent(control.flaps.get(name, ()), world.now_ms))
    crowd = [instance.name for instance in world.on([name])]
    because = [f"its instances: {', '.join(crowd)}" if crowd else "no instance is on it"]
    if node is None:
        because.append("the cluster does not list it")
    if reason is not None:
        because.append(f"nothing new is put on it: {reason}")
    rules: list[str] = []
    if taken:
        rules.append(
            f"taken for dead {taken} times in {FLAP_WINDOW_MS // 60_000} minutes; from {FLAPS_MIN} on it flaps"
        )
    if node is not None and node.died_at_ms is not None and world.now_ms - node.died_at_ms < DIED_HERE_MS:
        rules.append(
            f"an instance died on it less than {DIED_HERE_MS // 1000} s ago: other nodes are preferred for a start"
        )
    about = [incident for incident in control.open_incidents() if name in incident.nodes]
    plans = [plan for incident in about for plan in plans_for(control, incident.id) if plan.is_active]
    verb = "drain" if reason is None else "undrain"
    return Explanation(
        target=name,
        sort="node",
        state="gone" if node is None else "open" if reason is None else "cordoned",
        because=[*because, *(line for plan in plans for line in _unfinished(plan))],
        rules=[*rules, *_rules(control, plans, about)],
        verbs=[f"rekindle {verb} {name} {_WHY}", *(verb for plan in plans for verb in _verbs_of(plan))],
    )


# --- plans and incidents --------------------------------------------------------------------------------------------


def _of_plan(control: Control, plan: Plan) -> Explanation:
    about = [] if plan.incident not in control.incidents else [control.incidents[plan.incident]]
    return Explanation(
        target=str(plan.id),
        sort="plan",
        state=f"{plan.standing}{f': {plan.why}' if plan.why else ''}",
        because=[f"made for: {plan.cause}", *_unfinished(plan)],
        rules=_rules(control, [plan], about),
        verbs=_verbs_of(plan),
    )


def _of_incident(control: Control, world: World, incident: Incident) -> Explanation:
    plans = [plan for plan in plans_for(control, incident.id) if plan.is_active]
    told = [noticed(piece) for piece in incident.evidence[:EVIDENCE_TOLD]]
    if incident.count > len(told):
        told.append(f"and {incident.count - len(told)} more pieces of evidence")
    verbs = [verb for plan in plans for verb in _verbs_of(plan)]
    if incident.is_open:
        told += _why_open(world, incident)
        told += [line for plan in plans for line in _unfinished(plan)]
        told += [] if plans else ["no plan is active for it"]
        verbs += [f"rekindle undrain {n} {_WHY}" for n in incident.nodes if incident.kind is Kind.PLANNED_DRAIN]
    return Explanation(
        target=str(incident.id),
        sort="incident",
        state=f"{incident.kind}, {'open' if incident.is_open else incident.outcome}",
        because=told,
        rules=_rules(control, plans, [incident]),
        verbs=verbs,
    )


def _why_open(world: World, incident: Incident) -> list[str]:
    named = [world.services[name] for name in incident.services if name in world.services]
    return [
        f"{service.name} is {standing_text(world, service)}"
        for service in named
        if state_of(world, service) != "served"
    ]


# --- supervisors ----------------------------------------------------------------------------------------------------


def _of_supervisor(world: World, supervisor: Supervisor) -> Explanation:
    services = [world.services[service.name] for service in supervisor.services()]
    ill = [service for service in services if state_of(world, service) != "served"]
    return Explanation(
        target=supervisor.name,
        sort="supervisor",
        state="not whole" if ill else "whole",
        because=[f"{service.name} is {standing_text(world, service)}" for service in ill or services],
        rules=[_intensity_of(world, supervisor)],
        verbs=[f"rekindle explain {service.name}" for service in ill],
    )


def _intensity(world: World, service: str) -> list[str]:
    """The restarts of every supervisor above a service that counts some now."""
    above = [s for s in supervisors_of(world.root) if any(below.name == service for below in s.services())]
    return [_intensity_of(world, supervisor) for supervisor in above if restarts_in_window(world, supervisor)]


def _intensity_of(world: World, supervisor: Supervisor) -> str:
    count = len(restarts_in_window(world, supervisor))
    return (
        f"supervisor {supervisor.name} ({supervisor.strategy.value}): {count} of {supervisor.max_restarts} restarts "
        f"within {supervisor.within:g} s; one more than that, and what is above it decides"
    )


# --- what they have in common ---------------------------------------------------------------------------------------


def _plans_of(control: Control, service: str) -> list[Plan]:
    return [plan for plan in control.active_plans() if service in plan.services]


def _open_about(control: Control, service: str) -> list[Incident]:
    return [incident for incident in control.open_incidents() if service in incident.services]


def _rules(control: Control, plans: Sequence[Plan], incidents: Iterable[Incident]) -> list[str]:
    about = {incident.id: incident for incident in incidents}
    about |= {plan.incident: control.incidents[plan.incident] for plan in plans if plan.incident in control.incidents}
    return [
        *map(_kind_rule, about.values()),
        *(f"policy {plan.policy} made plan {plan.id}: {plan.cause}" for plan in plans),
    ]


def _kind_rule(incident: Incident) -> str:
    signals = dict.fromkeys(piece.signal.value for piece in incident.evidence)
    services = f" of {', '.join(incident.services)}" if incident.services else ""
    return f"incident {incident.id}{services} looks like {incident.kind}: {', '.join(signals)}"


def _unfinished(plan: Plan) -> list[str]:
    if not plan.is_active:
        return []
    steps = [(number, step) for number, _, step in plan.steps() if step.state not in OVER]
    told = [f"plan {plan.id}, step {number} is {_stands(step)}: {what(step.action)}" for number, step in steps]
    more = [f"and {len(told) - STEPS_TOLD} more steps"] if len(told) > STEPS_TOLD else []
    paused = [f"plan {plan.id} is paused: {plan.why}"] if plan.standing is Standing.PAUSED else []
    return [*paused, *told[:STEPS_TOLD], *more]


def _stands(step: Step) -> str:
    return f"{step.state} ({step.why})" if step.why else step.state


def _verbs_of(plan: Plan) -> list[str]:
    """The verbs that change something about a plan now."""
    if not plan.is_active:
        return []
    verbs = [f"rekindle {'resume' if plan.standing is Standing.PAUSED else 'pause'} {plan.id} {_WHY}"]
    for number, _, step in plan.steps():
        match step.state:
            case State.BLOCKED:
                verbs += [f"rekindle {verb} {plan.id} {number} {_WHY}" for verb in ("force", "skip")]
            case State.RUNNING | State.FAILED:
                verbs += [f"rekindle {verb} {plan.id} {number} {_WHY}" for verb in ("retry", "skip")]
            case _:
                pass
    return verbs[: 1 + STEPS_TOLD]
