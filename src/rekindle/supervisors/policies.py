"""Policies: what is to be done about an incident, each a pure function `plan(incident, world) -> Plan | None`.

    class SeedFirst:
        name = "seed-first"

        def plan(self, incident: Incident, world: World) -> Plan | None:
            return None            # not mine: the next one is asked

A service's own come first (`Service(on_failure=[...])`), then the strategy of the supervisor above it, then the built-in
ones, in the order of `BUILT_IN`. None of them does I/O or looks at a clock (the world has the time), so each can be tried
on any world: `rekindle plan` does. A policy is asked again when its plan is over and the incident goes on, and whenever
what it planned for has changed: it plans what remains.

"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from rekindle.supervisors.incidents import Incident, Kind
from rekindle.supervisors.parts import (
    MOVES_AT_ONCE,
    START_DEADLINE_S,
    avoided,
    levelled,
    nodes_for,
    own_orphans,
    plan_of,
    rebalance,
    recover,
    replace,
    restart,
)
from rekindle.supervisors.plans import (
    Cordon,
    Enough,
    Guard,
    LogThere,
    NotBefore,
    Ordering,
    Phase,
    Place,
    Plan,
    Refuse,
    Served,
    Start,
    Step,
    Stop,
)
from rekindle.supervisors.restarts import start_levels
from rekindle.supervisors.world import InstanceView, ServiceView, World


class Policy(Protocol):
    """What to do about an incident. name: what the plan says of where it comes from."""

    @property
    def name(self) -> str: ...

    def plan(self, incident: Incident, world: World) -> Plan | None:
        """What remains to be done; None: nothing, or nothing that this policy knows of."""
        ...


# --- the built-in policies ------------------------------------------------------------------------------------------


def _about(incident: Incident) -> str:
    where = ", ".join(incident.nodes if incident.kind in _OF_NODES else incident.instances) or ", ".join(
        incident.services
    )
    return f"{incident.kind} of {where}"


_OF_NODES: Final = frozenset(
    {Kind.NODE_DEAD, Kind.NODE_SUSPECT, Kind.ZONE_DOWN, Kind.MASS_FAILURE, Kind.FLAPPING, Kind.PLANNED_DRAIN}
)
_DEATHS: Final = frozenset(
    {Kind.INSTANCE_CRASH, Kind.INSTANCE_HANG, Kind.NODE_SUSPECT, Kind.NODE_DEAD, Kind.ZONE_DOWN, Kind.FLAPPING}
)


@dataclass(frozen=True)
class PromoteStandby:
    """Orphans go to their most caught up standbys, which read the tail of the log and serve; then what is missing is replaced."""

    name: str = "promote_standby"

    def plan(self, incident: Incident, world: World) -> Plan | None:
        """See `Policy`. For services of which every orphan has a living standby."""
        names = [n for n in incident.services if n in world.services and _all_have_standbys(world, world.services[n])]
        if incident.kind not in _DEATHS or not names:
            return None
        return plan_of(self.name, _about(incident), names, levelled(world, names, _recovery))


def _all_have_standbys(world: World, service: ServiceView) -> bool:
    orphans = [s for s in service.shards if s.owner is None or s.owner not in world.instances]
    return bool(orphans) and all(any(world.is_up(name) for name in shard.standbys) for shard in orphans)


@dataclass(frozen=True)
class Reshuffle:
    """The survivors take the orphaned shards at once; instances are replaced; healthy shards move later, and little."""

    name: str = "reshuffle"

    def plan(self, incident: Incident, world: World) -> Plan | None:
        """See `Policy`."""
        if incident.kind not in _DEATHS:
            return None
        names = [n for n in incident.services if n in world.services]
        return plan_of(self.name, _about(incident), names, levelled(world, names, _recovery))


@dataclass(frozen=True)
class Replace:
    """Only start what is missing: for services whose shards wait for a new instance rather than crowd the survivors."""

    name: str = "replace"

    def plan(self, incident: Incident, world: World) -> Plan | None:
        """See `Policy`."""
        if incident.kind not in _DEATHS:
            return None
        names = [n for n in incident.services if n in world.services]
        return plan_of(self.name, _about(incident), names, levelled(world, names, _replace_and_place))


def _replace_and_place(world: World, service: ServiceView) -> list[Phase]:
    starts = [
        phase.model_copy(update={"steps": [step.model_copy(update={"guards": []}) for step in phase.steps]})
        for phase in replace(world, service)
    ]
    placing = Phase(name=f"place {service.name}", steps=[Step(action=Place(service=service.name))])
    return [*starts, *([placing] if service.unserved() else [])]


@dataclass(frozen=True)
class CoordinatedRestart:
    """A service and everything that needs it restart together: dependents are quiesced first, and resume last."""

    name: str = "coordinated_restart"

    def plan(self, incident: Incident, world: World) -> Plan | None:
        """See `Policy`."""
        if incident.kind not in _DEATHS:
            return None
        hit = {n for n in incident.services if n in world.services}
        names = hit | {dependent for name in hit for dependent in world.dependents(name)}
        return _restart_of(self.name, incident, world, dict.fromkeys(names, incident.died_ms))


def _restart_of(policy: str, incident: Incident, world: World, since_ms: Mapping[str, int]) -> Plan | None:
    """A restart of these services, in the order of their needs; None once all of them were restarted and are whole, or
    while there is no node to start anything on."""
    order = [n for level in start_levels(world.root) for n in level if n in since_ms]
    if not world.open_nodes() or all(is_restarted(world, name, since_ms[name]) for name in order):
        return None
    return plan_of(policy, _about(incident), order, restart(world, order[::-1], order, since_ms))


def is_restarted(world: World, name: str, since_ms: int) -> bool:
    """Whether nothing of a service has been running since then, and it is whole."""
    service, there = world.services[name], world.of(name)
    is_there = len(there) >= service.wanted and not (service.wanted and service.unserved())
    return is_there and all(i.started_ms > since_ms for i in there)


@dataclass(frozen=True)
class TreeStrategy:
    """What the supervisors above a service do (OTP): its own recovery, or a restart of what the strategy names."""

    name: str = "strategy"

    def plan(self, incident: Incident, world: World) -> Plan | None:
        """See `Policy`. None where only an instance is concerned (one_for_one): the built-in policies heal that."""
        if incident.kind not in _DEATHS:
            return None
        since_ms = {name: incident.restart_ms[name] for name in incident.restart if name in world.services}
        return _restart_of(self.name, incident, world, since_ms) if since_ms else None


@dataclass(frozen=True)
class MassFreeze:
    """Too much died at once: orphans go to the survivors, nothing else is touched until it is over."""

    name: str = "mass_freeze"

    def plan(self, incident: Incident, world: World) -> Plan | None:
        """See `Policy`."""
        if incident.kind is not Kind.MASS_FAILURE:
            return None
        names = [n for n in world.services if n in incident.services]
        return plan_of(self.name, _about(incident), names, levelled(world, names, _at_once))


def _recovery(world: World, service: ServiceView) -> list[Phase]:
    """All that a service needs to be whole, or, while what can wait has to, what cannot."""
    return _at_once(world, service) if world.frozen else recover(world, service)


def _at_once(world: World, service: ServiceView) -> list[Phase]:
    """What cannot wait: orphans to the survivors; a service of which nothing is left has to be started."""
    return own_orphans(world, service) if world.up(service.name) else recover(world, service)


@dataclass(frozen=True)
class QuarantinePoison:
    """A shard whose replay has killed `DEATHS_MAX` instances is kept down until an operator has had a look."""

    name: str = "quarantine_poison"

    def plan(self, incident: Incident, world: World) -> Plan | None:
        """See `Policy`."""
        if incident.kind is not Kind.POISON:
            return None
        steps = [
            Step(action=Refuse(service=e.service, shard=e.shard, reason=e.text))
            for e in incident.evidence
            if e.shard is not None
            and e.service in world.services
            and world.services[e.service].shards[e.shard].refused is None
        ]
        return plan_of(self.name, _about(incident), [], [Phase(name="keep down", steps=steps)])


@dataclass(frozen=True)
class QuarantineGray:
    """Shards move away from an instance that is far slower than its peers; few instances at a time, none is killed."""

    name: str = "quarantine_gray"

    def plan(self, incident: Incident, world: World) -> Plan | None:
        """See `Policy`."""
        if incident.kind is not Kind.GRAY or world.frozen:
            return None
        names = [name for name in incident.services if name in world.services]
        phases: list[Phase] = []
        for service in map(world.services.__getitem__, names):
            owned = sum(shard.owner in incident.instances for shard in service.shards)
            if owned and not set(avoided(world, service)).isdisjoint(incident.instances):
                phases += rebalance(world, service, moves_max=owned)
        return plan_of(self.name, _about(incident), names, phases)


@dataclass(frozen=True)
class Drain:
    """A node is emptied: nothing new is put on it, its instances get successors, shards move warm, then they end."""

    name: str = "drain"

    def plan(self, incident: Incident, world: World) -> Plan | None:
        """See `Policy`."""
        if incident.kind is not Kind.PLANNED_DRAIN or world.frozen:
            return None
        nodes = [node for node in incident.nodes if node in world.nodes]
        cordons = [
            Step(action=Cordon(node=node, reason=incident.evidence[0].text))
            for node in nodes
            if node not in world.cordoned
        ]
        leaving = world.on(incident.nodes)
        names = sorted({instance.service for instance in leaving})
        phases = [Phase(name="cordon", steps=cordons)] if cordons else []
        if not cordons:  # what comes next depends on where nothing may be put any more: it is planned once that is so
            phases = levelled(world, names, _leave)
        return plan_of(self.name, _about(incident), names, phases)


def _leave(world: World, service: ServiceView) -> list[Phase]:
    first = recover(world, service)
    if first:
        return first
    moving = rebalance(world, service, moves_max=MOVES_AT_ONCE)
    if moving:
        return moving
    leaving = [i for i in world.of(service.name) if i.node in world.cordoned]
    left = {s.owner for s in service.shards}
    least = min(service.spec.min_active, service.wanted)
    ends = [
        Step(
            action=Stop(incarnation=i.name, reason="drained"),
            guards=[Enough(service=service.name, least=least, without=i.name)],
        )
        for i in leaving
        if i.name not in left
    ]
    return [Phase(name=f"stop {service.name}", steps=ends, ordering=Ordering.ROLLING)] if ends else []


@dataclass(frozen=True)
class Hold:
    """While the log is away nothing is moved: without it nobody could own anything."""

    name: str = "hold"

    def plan(self, incident: Incident, world: World) -> Plan | None:
        """See `Policy`."""
        if incident.kind is not Kind.LOG_UNAVAILABLE:
            return None
        waiting = [n for n in incident.services if n in world.services and world.services[n].unserved()]
        names = [n for n in waiting if world.up(n)]
        steps = [Step(action=Place(service=n), guards=[LogThere()]) for n in names]
        return plan_of(self.name, _about(incident), names, [Phase(name="serve again", steps=steps)])


@dataclass(frozen=True)
class Guarded:
    """Another policy's plan, of which no step that ends something starts while too few would be left (`quorum_guard`)."""

    policy: Policy
    name: str = "quorum_guard"

    def plan(self, incident: Incident, world: World) -> Plan | None:
        """See `Policy`."""
        plan = self.policy.plan(incident, world)
        if plan is None:
            return None
        phases = [p.model_copy(update={"steps": [_with_quorum(s, world) for s in p.steps]}) for p in plan.phases]
        return plan.model_copy(update={"phases": phases, "policy": f"{self.name}({plan.policy})"})


def _with_quorum(step: Step, world: World) -> Step:
    instance = world.instances.get(getattr(step.action, "incarnation", ""))
    if not isinstance(step.action, Stop) or instance is None:
        return step
    quorum = world.services[instance.service].wanted // 2 + 1
    guard = Enough(service=instance.service, least=quorum, without=instance.name)
    return step.model_copy(update={"guards": [*step.guards, guard]})


BUILT_IN: Final[tuple[Policy, ...]] = (
    MassFreeze(),
    Hold(),
    QuarantinePoison(),
    QuarantineGray(),
    Drain(),
    TreeStrategy(),
    PromoteStandby(),
    Reshuffle(),
)


def rolling_by_zone(world: World, name: str) -> Plan | None:
    """Every instance of a service is replaced by a new one: for a new build. Zone by zone, and one after the other.

    In each zone the new ones start first; then the old ones end, each when the shards of the one before it are served by
    their standbys, or by who is new.
    """
    service, open_nodes = world.services[name], {node.name for node in world.open_nodes()}
    phases: list[Phase] = []
    for zone in sorted({i.zone for i in world.of(name)}):
        leaving = [i for i in world.of(name) if i.zone == zone]
        nodes = [i.node for i in leaving if i.node in open_nodes]
        nodes += [node.name for node in nodes_for(world, service, len(leaving) - len(nodes))]
        starts = [Step(action=Start(service=name, node=node), deadline_s=START_DEADLINE_S) for node in nodes]
        ends = [step for instance in leaving for step in _ended_and_placed(service, instance)]
        phases += [
            Phase(name=f"start in {zone or 'the zone'}", steps=starts),
            Phase(name=f"end in {zone or 'the zone'}", steps=ends, ordering=Ordering.SERIAL),
        ]
    return plan_of("rolling_by_zone", f"roll {name}", [name], phases) if open_nodes else None


def _ended_and_placed(service: ServiceView, instance: InstanceView) -> list[Step]:
    guards: list[Guard] = [
        Served(service=service.name),
        Enough(service=service.name, least=service.spec.min_active, without=instance.name),
    ]
    return [
        Step(action=Stop(incarnation=instance.name, reason="rolled"), guards=guards),
        Step(action=Place(service=service.name)),
    ]


# --- who decides ------------------------------------------------------------------------------------------------------


def delayed(plan: Plan, at_ms: int) -> Plan:
    """The same plan; none of its instances is started before this time."""
    guard = NotBefore(at_ms=at_ms)
    phases = [
        phase.model_copy(
            update={
                "steps": [
                    step.model_copy(update={"guards": [guard, *step.guards]})
                    if isinstance(step.action, Start)
                    else step
                    for step in phase.steps
                ]
            }
        )
        for phase in plan.phases
    ]
    return plan.model_copy(update={"phases": phases})


def missing(world: World, names: Iterable[str]) -> Plan | None:
    """What these services need to be as they were declared, each behind those that it needs: instances, owners, standbys."""
    needy = [name for name in names if _recovery(world, world.services[name])]
    return plan_of("upkeep", f"{', '.join(needy)}: what is missing", needy, levelled(world, needy, _recovery))


def upkeep(world: World, name: str) -> Plan | None:
    """What a service of which nothing is missing needs: fewer instances, or balance."""
    service = world.services[name]
    surplus = _surplus(world, service)
    phases = rebalance(world, service, without=[i.name for i in surplus])
    if not phases and surplus:
        least = min(service.spec.min_active, service.wanted)
        ends = [
            Step(
                action=Stop(incarnation=i.name, reason="scaled down"),
                guards=[Enough(service=name, least=least, without=i.name)],
            )
            for i in surplus
            if not service.wanted or all(shard.owner != i.name for shard in service.shards)
        ]
        phases = [Phase(name=f"stop {name}", steps=ends, ordering=Ordering.ROLLING)]
    return plan_of("upkeep", f"{name}: {'fewer instances' if surplus else 'balance'}", [name], phases)


def _surplus(world: World, service: ServiceView) -> list[InstanceView]:
    """The instances above those that are wanted: on cordoned nodes all, once they are replaced; of the others first slow ones,
    then those on the fullest nodes with the fewest shards."""
    there = [i for i in world.up(service.name) if i.node not in world.cordoned]
    extra = len(there) - service.wanted
    loads: dict[str | None, int] = {}
    for shard in service.shards:
        loads[shard.owner] = loads.get(shard.owner, 0) + 1
    crowd: dict[str, int] = {}
    for instance in there:
        crowd[instance.node] = crowd.get(instance.node, 0) + 1
    ranked = sorted(there, key=lambda i: (not i.slow, -crowd[i.node], loads.get(i.name, 0), i.name))
    leaving = [i for i in world.up(service.name) if i.node in world.cordoned] if extra >= 0 else []
    return [*leaving, *ranked[: max(0, extra)]]
