"""What is decided and what is seen, put together for people and programs: pure functions to the shapes in `report`.

Whatever grows with the cluster is a part that has to be asked for, and whatever grows with time is bounded before it
gets here (`PLANS_KEPT`, `INCIDENTS_KEPT`, `SAYINGS_KEPT`, `EVIDENCE_MAX`), so that an answer fits a frame on the worst day too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from rekindle.supervisors.control import Control, Unknown
from rekindle.supervisors.incidents import Evidence, Incident
from rekindle.supervisors.plans import (
    Cordon,
    Follow,
    Own,
    Perform,
    Place,
    Plan,
    Refuse,
    Standing,
    Start,
    State,
    Step,
    Stop,
)
from rekindle.supervisors.report import (
    PARTS,
    IncidentReport,
    InstanceReport,
    InstanceState,
    Line,
    Moment,
    NodeReport,
    NodeState,
    PhaseReport,
    PlanReport,
    Report,
    ServiceReport,
    ServiceState,
    ShardReport,
    ShardState,
    StandbyReport,
    StepReport,
    Story,
    TreeReport,
)
from rekindle.supervisors.tree import Child, Service, Supervisor
from rekindle.supervisors.world import InstanceView, ServiceView, ShardView, World

MOMENTS: Final = ("died", "seen", "decided", "assigned", "fenced", "claimed", "replayed", "serving", "closed")
"""What an incident goes through, in this order. `Incident.marks` may name any of them; of the others those are told that
evidence and plans show."""

RANGES_MAX: Final = 8
GROUPS_MAX: Final = 4
KNOWN_MAX: Final = 20
"""How many ranges of shards, groups of moves, and names of what there is, a text enumerates before it only counts."""


@dataclass(frozen=True, slots=True)
class Head:
    """Who reports: the application, its leader, the term of the leader's claim."""

    app: str
    leader: str
    term: int


def report_of(head: Head, control: Control, world: World, parts: Collection[str] = PARTS) -> Report:
    """The parts of the report that are asked for. Raises `Unknown` for a part that there is not."""
    if unknown := sorted(set(parts) - set(PARTS)):
        raise Unknown(what="part of a report", name=unknown[0], known=list(PARTS))
    report = Report(app=head.app, at_ms=world.now_ms, leader=head.leader, term=head.term, frozen=world.frozen)
    if "tree" in parts:
        report.tree = tree_of(world)
    if "services" in parts:
        report.services = services_of(control, world)
    if "instances" in parts:
        report.instances = instances_of(control, world)
    if "nodes" in parts:
        report.nodes = nodes_of(world)
    if "shards" in parts:
        report.shards = [_shard(v.name, n, s) for v in world.services.values() for n, s in enumerate(v.shards)]
    if "incidents" in parts:
        report.incidents = [_incident(control, known) for _, known in sorted(control.incidents.items(), reverse=True)]
    if "plans" in parts:
        report.plans = [plan_report(plan) for plan in control.active_plans()]
    if "sayings" in parts:
        report.sayings = control.sayings[::-1]
    return report


# --- what there is --------------------------------------------------------------------------------------------------


def tree_of(world: World) -> TreeReport:
    """The supervision tree with how each part of it stands."""
    return _branch(world, world.root)


def _branch(world: World, child: Child) -> TreeReport:
    if isinstance(child, Service):
        return TreeReport(
            name=child.name,
            sort="service",
            rule=child.restart.value,
            state=standing_text(world, world.services[child.name]),
        )
    children = [_branch(world, below) for below in child.children]
    ill = [below.name for below in child.services() if state_of(world, world.services[below.name]) != "served"]
    return TreeReport(
        name=child.name,
        sort="supervisor",
        rule=child.strategy.value,
        state=f"not whole: {', '.join(ill)}" if ill else "whole",
        restarts=len(restarts_in_window(world, child)),
        max_restarts=child.max_restarts,
        within_s=child.within,
        children=children,
    )


def restarts_in_window(world: World, supervisor: Supervisor) -> list[int]:
    """When the supervisor has restarted something, as far as it counts against its intensity now."""
    return [at for at in world.restarts.get(supervisor.name, ()) if world.now_ms - at <= 1000 * supervisor.within]


def standing_text(world: World, service: ServiceView) -> str:
    """How a service stands, for people."""
    served = sum(shard.served for shard in service.shards)
    up = len(world.up(service.name))
    return f"{state_of(world, service)}: {up} of {service.wanted} instances up, {served} of {len(service.shards)} shards served"


def state_of(world: World, service: ServiceView) -> ServiceState:
    """In one word; see `ServiceReport`."""
    served = sum(shard.served for shard in service.shards)
    if not served:
        return "down"
    if served < len(service.shards):
        return "unserved"
    short = len(world.up(service.name)) < service.wanted or caught_up(service) < standbys_declared(service)
    return "short" if short else "served"


def standbys_declared(service: ServiceView) -> int:
    """How many standbys all shards of a service have together, as declared."""
    return service.spec.standbys * len(service.shards)


def caught_up(service: ServiceView) -> int:
    """How many of them have caught up."""
    return sum(behind is not None for shard in service.shards for behind in shard.behind.values())


def services_of(control: Control, world: World) -> list[ServiceReport]:
    """All services, in the order of the tree."""
    planned = {name: plan.id for plan in control.active_plans() for name in plan.services}
    return [
        ServiceReport(
            name=name,
            state=state_of(world, view),
            wanted=view.wanted,
            up=len(world.up(name)),
            shards=len(view.shards),
            served=sum(shard.served for shard in view.shards),
            kept_down=sum(shard.refused is not None for shard in view.shards),
            standbys=standbys_declared(view),
            caught_up=caught_up(view),
            needs=list(view.spec.needs),
            plan=planned.get(name),
        )
        for name, view in world.services.items()
    ]


def instances_of(control: Control, world: World) -> list[InstanceReport]:
    """All instances that are not known to be dead, by name."""
    shards = [shard for view in world.services.values() for shard in view.shards]
    owns = Counter(shard.owner for shard in shards)
    follows = Counter(name for shard in shards for name in shard.standbys)
    return [
        InstanceReport(
            name=name,
            service=instance.service,
            node=instance.node,
            zone=instance.zone,
            state=instance_state(control, instance),
            started_ms=instance.started_ms,
            shards=owns[name],
            follows=follows[name],
        )
        for name, instance in sorted(world.instances.items())
    ]


def instance_state(control: Control, instance: InstanceView) -> InstanceState:
    """In a word; see `InstanceReport`."""
    if instance.name not in control.instances:
        return "starting"
    return "up" if instance.up else "not answering"


def nodes_of(world: World) -> list[NodeReport]:
    """All nodes, also those that are gone and still cordoned."""
    crowd = Counter(instance.node for instance in world.instances.values())
    reports: list[NodeReport] = []
    for name in sorted({*world.nodes, *world.cordoned}):
        node = world.nodes.get(name)
        state: NodeState = "gone" if node is None else "cordoned" if name in world.cordoned else "open"
        reports.append(
            NodeReport(
                name=name,
                host=node.host if node is not None else "",
                zone=node.zone if node is not None else "",
                state=state,
                why=world.cordoned.get(name, ""),
                instances=crowd[name],
            )
        )
    return reports


def _shard(service: str, number: int, shard: ShardView) -> ShardReport:
    return ShardReport(
        service=service,
        shard=number,
        state=shard_state(shard),
        owner=shard.owner,
        number=shard.number,
        why=shard.refused or "",
        waiting=shard.waiting,
        standbys=[StandbyReport(instance=name, behind=shard.behind.get(name)) for name in shard.standbys],
    )


def shard_state(shard: ShardView) -> ShardState:
    """In a word; see `ShardReport`."""
    if shard.refused is not None:
        return "kept down"
    if shard.served:
        return "served"
    if shard.held:
        return "held"
    return "nobody's" if shard.owner is None else "replaying"


# --- what is being done ---------------------------------------------------------------------------------------------


def plan_report(plan: Plan) -> PlanReport:
    """A plan with all of its steps."""
    first, before = 1, list[str]()
    phases: list[PhaseReport] = []
    for phase in plan.phases:
        steps = [_step(number, step) for number, step in enumerate(phase.steps, first)]
        after = before if phase.after is None else phase.after
        phases.append(PhaseReport(name=phase.name, ordering=phase.ordering, after=after, steps=steps))
        first, before = first + len(steps), [phase.name]
    return PlanReport(
        id=plan.id,
        policy=plan.policy,
        cause=plan.cause,
        incident=plan.incident,
        services=plan.services,
        standing=plan.standing,
        why=plan.why,
        made_ms=plan.made_ms,
        ended_ms=plan.ended_ms,
        phases=phases,
    )


def _step(number: int, step: Step) -> StepReport:
    return StepReport(
        number=number,
        what=what(step.action),
        state=step.state,
        attempt=step.attempt,
        began_ms=step.began_ms,
        since_ms=step.since_ms,
        why=step.why,
        forced=step.forced,
    )


def plan_known(control: Control, number: int) -> Plan:
    """A plan that is kept. Raises `Unknown`."""
    if number not in control.plans:
        raise Unknown(what="plan", name=str(number), known=_newest(control.plans))
    return control.plans[number]


def incident_known(control: Control, number: int) -> Incident:
    """An incident that is kept. Raises `Unknown`."""
    if number not in control.incidents:
        raise Unknown(what="incident", name=str(number), known=_newest(control.incidents))
    return control.incidents[number]


def _newest(numbers: Iterable[int]) -> list[str]:
    return [str(number) for number in sorted(numbers)[-KNOWN_MAX:]]


def _incident(control: Control, incident: Incident) -> IncidentReport:
    return IncidentReport(
        id=incident.id,
        kind=incident.kind,
        opened_ms=incident.opened_ms,
        changed_ms=incident.changed_ms,
        closed_ms=incident.closed_ms,
        outcome=incident.outcome,
        services=incident.services,
        instances=incident.instances,
        nodes=incident.nodes,
        zones=incident.zones,
        evidence=incident.count,
        plans=[plan.id for plan in plans_for(control, incident.id)],
    )


def plans_for(control: Control, incident: int) -> list[Plan]:
    """The plans about an incident that are kept, the oldest first."""
    return [plan for _, plan in sorted(control.plans.items()) if plan.incident == incident]


# --- the story of an incident ---------------------------------------------------------------------------------------


def story_of(control: Control, number: int) -> Story:
    """Everything that is kept of one incident. Raises `Unknown`."""
    incident = incident_known(control, number)
    plans = plans_for(control, number)
    timeline = timeline_of(incident, plans)
    return Story(
        incident=_incident(control, incident),
        timeline=timeline,
        took_ms=timeline[-1].at_ms - timeline[0].at_ms,
        evidence=incident.evidence,
        plans=[plan_report(plan) for plan in plans],
        lines=sorted(_lines(control, incident, plans), key=lambda line: line.at_ms),
    )


def timeline_of(incident: Incident, plans: Sequence[Plan]) -> list[Moment]:
    """When it got how far: as it was marked, else as far as evidence and plans show it."""
    shown = {"seen": incident.opened_ms, "closed": incident.closed_ms, **_shown_by(plans)}
    known = {name: at_ms for name, at_ms in {**shown, **incident.marks}.items() if at_ms is not None}
    order = sorted(known, key=lambda name: (known[name], MOMENTS.index(name) if name in MOMENTS else 0))
    before = [known[order[0]], *(known[name] for name in order)]
    return [
        Moment(name=name, at_ms=known[name], took_ms=known[name] - was)
        for name, was in zip(order, before, strict=False)
    ]


def _shown_by(plans: Sequence[Plan]) -> dict[str, int | None]:
    """What plans tell: when it was decided what to do, when shards were assigned, and when all of those were served."""
    placing = [
        step
        for plan in plans
        if plan.standing is not Standing.SUPERSEDED
        for _, _, step in plan.steps()
        if isinstance(step.action, (Own, Place))
    ]
    served = placing and all(step.state is State.DONE for step in placing)
    return {
        "decided": min((plan.made_ms for plan in plans), default=None),
        "assigned": min((step.began_ms for step in placing if step.began_ms), default=None),
        "serving": max(step.since_ms for step in placing) if served else None,
    }


def _lines(control: Control, incident: Incident, plans: Sequence[Plan]) -> Iterator[Line]:
    """Everything that is kept of what happened, in no order."""
    for piece in incident.evidence:
        yield Line(at_ms=piece.at_ms, text=noticed(piece))
    if incident.count > len(incident.evidence):
        more = incident.count - len(incident.evidence)
        yield Line(at_ms=incident.changed_ms, text=f"and {more} more pieces of evidence, up to now")
    for plan in plans:
        yield from _lines_of_plan(plan)
    targets = {f"plan {plan.id}" for plan in plans}
    for saying in control.sayings:
        if saying.target in targets or (saying.verb == "drain" and saying.target in incident.nodes):
            text = f"{saying.who} says {saying.verb} {saying.target}: {saying.reason}"
            yield Line(at_ms=saying.at_ms, text=text)
    if incident.closed_ms is not None:
        yield Line(at_ms=incident.closed_ms, text=f"the incident is closed: {incident.outcome}")


def _lines_of_plan(plan: Plan) -> Iterator[Line]:
    yield Line(at_ms=plan.made_ms, text=f"plan {plan.id} ({plan.policy}) is made: {plan.cause}")
    for number, _, step in plan.steps():
        if step.state is not State.PENDING:
            why = f" ({step.why})" if step.why else ""
            yield Line(
                at_ms=step.since_ms, text=f"plan {plan.id}, step {number} is {step.state}: {what(step.action)}{why}"
            )
    if plan.ended_ms is not None:
        why = f": {plan.why}" if plan.why else ""
        yield Line(at_ms=plan.ended_ms, text=f"plan {plan.id} is {plan.standing}{why}")


def noticed(piece: Evidence) -> str:
    """A piece of evidence: of what, and what."""
    of = piece.incarnation or piece.node or piece.service
    where = f" on {piece.node}" if piece.node and piece.node != of else ""
    shard = "" if piece.shard is None else f"/{piece.shard}"
    return (
        f"{of}{shard}{where}: {piece.text if piece.text.startswith(piece.signal) else f'{piece.signal}: {piece.text}'}"
    )


# --- in words -------------------------------------------------------------------------------------------------------


def what(action: Any) -> str:
    """What an action wants to be true."""
    match action:
        case Own(service=service, moves=moves):
            return f"{service}: {_grouped(moves, 'owned by')}"
        case Follow(service=service, moves=moves):
            return f"{service}: {_grouped([(n, ', '.join(names) or None) for n, names in moves], 'followed by')}"
        case Start(service=service, node=node):
            return f"{service}: one more instance on {node}"
        case Stop(incarnation=incarnation, reason=reason):
            return f"{incarnation} is stopped: {reason}"
        case Refuse(service=service, shard=shard, reason=reason):
            return f"{service}/{shard} " + ("may be served" if reason is None else f"is kept down: {reason}")
        case Cordon(node=node, reason=reason):
            return f"{node} " + ("may be used" if reason is None else f"gets nothing new: {reason}")
        case Perform(incarnation=incarnation, operation=operation):
            return f"{incarnation} performs {operation}"
        case Place(service=service):
            return f"{service}: every shard is served"
        case _:
            return str(action)


def _grouped(moves: Iterable[tuple[int, str | None]], verb: str) -> str:
    groups: dict[str | None, list[int]] = {}
    for number, to in moves:
        groups.setdefault(to, []).append(number)
    texts = [f"{ranges(numbers)} {verb} {to or 'nobody'}" for to, numbers in islice(groups.items(), GROUPS_MAX)]
    more = sum(len(numbers) for numbers in islice(groups.values(), GROUPS_MAX, None))
    return "; ".join([*texts, *([f"and {more} more"] if more else [])])


def ranges(numbers: Sequence[int]) -> str:
    """Numbers, as short as can be: `0-3, 7`."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in found[:RANGES_MAX]]
    return ", ".join([*texts, *([f"... ({len(numbers)} in all)"] if len(found) > RANGES_MAX else [])])
