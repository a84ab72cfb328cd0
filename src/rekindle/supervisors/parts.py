"""What plans are made of: functions of the world that give the phases for one purpose each.

Built-in policies are a few of them in a row; a user's policy puts them together as it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace as replace_fields
from typing import Final

from rekindle.supervisors.placement import Placement, Seat, balance, place
from rekindle.supervisors.plans import (
    Follow,
    Guard,
    Own,
    Phase,
    Place,
    Plan,
    Ready,
    Served,
    Start,
    Step,
    Stop,
)
from rekindle.supervisors.restarts import start_levels
from rekindle.supervisors.tree import dependencies
from rekindle.supervisors.world import InstanceView, NodeView, ServiceView, ShardView, World

DIED_HERE_MS: Final = 15_000
"""A cluster may need this long to notice that a node is gone: until then its other nodes are preferred for a start."""

START_DEADLINE_S: Final = 45.0
MOVE_DEADLINE_S: Final = 30.0
MOVES_AT_ONCE: Final = 4

GRAY_SHARE: Final = 0.1
"""At most this share of a service's instances (and at least one) is moved away from for being slow (Envoy's bound)."""


def seats_of(world: World, service: ServiceView, without: Iterable[str] = ()) -> list[Seat]:
    """Where shards of a service can be. Not open: instances on cordoned nodes, slow ones, and those named in `without`."""
    closed = {*without, *avoided(world, service)}
    return [
        Seat(i.name, i.node, i.zone, open=i.node not in world.cordoned and i.name not in closed)
        for i in world.up(service.name)
    ]


def avoided(world: World, service: ServiceView) -> list[str]:
    """The slow instances of a service that shards are kept away from: few at a time, and enough others must be there."""
    up = world.up(service.name)
    slow = [i.name for i in up if i.slow][: max(1, int(GRAY_SHARE * len(up)))]
    return slow if len(up) - len(slow) >= max(1, service.spec.min_active) else []


def placement_of(world: World, service: ServiceView) -> Placement:
    """Where its shards are now; the standbys of each, the most caught up first.

    One on the owner's node is none: it was to take the shard over, and that was given up.
    """
    standbys = tuple(
        tuple(sorted(_apart(world, shard), key=lambda name: _lag(shard.behind.get(name), name)))
        for shard in service.shards
    )
    return Placement(tuple(shard.owner for shard in service.shards), standbys)


def _apart(world: World, shard: ShardView) -> Iterable[str]:
    owner = world.instances.get(shard.owner or "")
    if owner is None or not shard.standbys:
        return shard.standbys
    return (name for name in shard.standbys if name not in world.instances or world.instances[name].node != owner.node)


def _lag(behind: int | None, name: str) -> tuple[bool, int, str]:
    return (behind is None, behind or 0, name)


def resting(service: ServiceView) -> set[int]:
    """Shards that are not to be served now: nothing is moved for them, or because of them."""
    return {number for number, shard in enumerate(service.shards) if not shard.may_be_served}


def homes(world: World, service: ServiceView) -> list[tuple[int, str]]:
    """Where shards without an owner go: to their most caught up standby, else to the survivors. Nothing else moves.

    Where every survivor is to be emptied, they serve all the same: a drain can wait, callers cannot.
    """
    seats = seats_of(world, service)
    if not any(seat.open for seat in seats):
        seats = [replace_fields(seat, open=True) for seat in seats]
    current = placement_of(world, service)
    placed = place(current, seats, pinned=resting(service))
    owners = zip(current.owners, placed.owners, strict=True)
    return [(number, to) for number, (was, to) in enumerate(owners) if to is not None and to != was]


def own_orphans(world: World, service: ServiceView) -> list[Phase]:
    """Shards without an owner get one (`homes`)."""
    by_target: dict[str, list[tuple[int, str | None]]] = {}
    for number, to in homes(world, service):
        by_target.setdefault(to, []).append((number, to))
    steps = [Step(action=Own(service=service.name, moves=moves)) for _, moves in sorted(by_target.items())]
    return [Phase(name=f"own {service.name}", steps=steps)] if steps else []


def replace(world: World, service: ServiceView) -> list[Phase]:
    """Start the instances that are missing, once all shards are served (or nobody is left to serve them); one more if all
    are so close together that standbys find no place: one of the others then is too many, and is stopped."""
    there = [i for i in world.of(service.name) if i.node not in world.cordoned]
    missing = service.wanted - len(there)
    if service.wanted and service.spec.standbys:
        apart = min(nodes_needed(service), service.wanted, len(world.open_nodes()))
        missing = max(missing, apart - len({i.node for i in there}))
    if missing <= 0 or not world.open_nodes():
        return []
    guards: list[Guard] = [Served(service=service.name)] if world.up(service.name) else []
    steps = [
        Step(action=Start(service=service.name, node=node.name), guards=guards, deadline_s=START_DEADLINE_S)
        for node in nodes_for(world, service, missing)
    ]
    return [Phase(name=f"replace {service.name}", steps=steps)]


def nodes_for(world: World, service: ServiceView, count: int) -> list[NodeView]:
    """Nodes for new instances: the fewest of the service first, zones in turn, then the fewest of all; one on which an
    instance has just died is the last choice, as long as the service is on as many nodes as it has to be."""
    own = dict.fromkeys(world.nodes, 0)
    every = dict.fromkeys(world.nodes, 0)
    zones: dict[str, int] = {}
    for instance in world.instances.values():
        if instance.node in every:
            every[instance.node] += 1
            own[instance.node] += instance.service == service.name
            zones[instance.zone] = zones.get(instance.zone, 0) + (instance.service == service.name)
    chosen: list[NodeView] = []
    candidates = world.open_nodes()
    for _ in range(count if candidates else 0):
        node = min(
            candidates,
            key=lambda n: (
                own[n.name] > 0 and sum(map(bool, own.values())) < nodes_needed(service),
                _just_died(n, world.now_ms),
                own[n.name],
                zones.get(n.zone, 0),
                every[n.name],
                n.host,
                n.name,
            ),
        )
        own[node.name] += 1
        every[node.name] += 1
        zones[node.zone] = zones.get(node.zone, 0) + 1
        chosen.append(node)
    return chosen


def nodes_needed(service: ServiceView) -> int:
    """On how many nodes its instances have to be, at least: for an owner and its standbys, and never all on one."""
    return max(min(2, service.wanted), service.spec.standbys + 1)


def _just_died(node: NodeView, now_ms: int) -> bool:
    return node.died_at_ms is not None and now_ms - node.died_at_ms < DIED_HERE_MS


def follow(world: World, service: ServiceView) -> list[Phase]:
    """Let standbys follow where some are missing, and no more where there are too many."""
    if not service.spec.standbys and not any(shard.standbys for shard in service.shards):
        return []
    seats, standbys = seats_of(world, service), service.spec.standbys
    placed = place(placement_of(world, service), seats, standbys=standbys, pinned=resting(service))
    moves = [
        (number, list(names))
        for number, names in enumerate(placed.standbys)
        if set(names) != set(service.shards[number].standbys) and service.shards[number].owner is not None
    ]
    step = Step(
        action=Follow(service=service.name, moves=moves), guards=[Served(service=service.name)], deadline_s=600.0
    )
    return [Phase(name=f"follow {service.name}", steps=[step])] if moves else []


def rebalance(
    world: World, service: ServiceView, without: Iterable[str] = (), moves_max: int = MOVES_AT_ONCE
) -> list[Phase]:
    """Healthy shards move: few at a time, each to an instance that follows it already when it takes over."""
    current = placement_of(world, service)
    seats, standbys = seats_of(world, service, without), service.spec.standbys
    placed = balance(current, seats, moves_max=moves_max, standbys=standbys, pinned=resting(service))
    owners = zip(current.owners, placed.owners, strict=True)
    moves = [(number, to) for number, (was, to) in enumerate(owners) if to is not None and to != was]
    return move(service, moves) if moves else []


def move(service: ServiceView, moves: Sequence[tuple[int, str]]) -> list[Phase]:
    """Shards move while they are served: the new owner follows first, then it takes over."""
    warm = [
        (number, [*service.shards[number].standbys, to])
        for number, to in moves
        if to not in service.shards[number].standbys
    ]
    name = service.name
    phases = [
        Phase(name=f"warm {name}", steps=[Step(action=Follow(service=name, moves=warm), deadline_s=MOVE_DEADLINE_S)])
    ]
    steps = [Step(action=Own(service=name, moves=[(number, to)]), deadline_s=MOVE_DEADLINE_S) for number, to in moves]
    return [*(phases if warm else []), Phase(name=f"move {name}", steps=steps)]


def mend(world: World, service: ServiceView) -> list[Phase]:
    """Orphans to the survivors at once, instances replaced; shards of which nothing survives wait for the new ones."""
    starting = replace(world, service)
    waiting = service.unserved() and not world.up(service.name) and (starting or world.of(service.name))
    step = Step(action=Place(service=service.name), guards=[Ready(service=service.name)])
    placing = [Phase(name=f"place {service.name}", steps=[step])]
    return [*own_orphans(world, service), *starting, *(placing if waiting else [])]


def recover(world: World, service: ServiceView) -> list[Phase]:
    """The whole way back: all that is missing is mended, then standbys follow."""
    return [*mend(world, service), *follow(world, service)]


def restart(world: World, stop: Sequence[str], start: Sequence[str], since_ms: Mapping[str, int]) -> list[Phase]:
    """Restart services together: quiesce in `stop` order, end their instances, start and serve in `start` order.

    A service that is quiesced belongs to nobody: its callers wait, nothing of it runs. Instances of a service that were
    started after its `since_ms` have been restarted already, by a plan before this one: they stay.
    """
    phases: list[Phase] = []
    for name in stop:
        service = world.services[name]
        old = {i.name for i in world.of(name) if i.started_ms <= since_ms[name]}
        moves: list[tuple[int, str | None]] = [(n, None) for n, s in enumerate(service.shards) if s.owner in old]
        ends = [Step(action=Stop(incarnation=name, reason="coordinated restart")) for name in sorted(old)]
        quiet = [Phase(name=f"quiesce {name}", steps=[Step(action=Own(service=name, moves=moves))])] if moves else []
        phases += [*quiet, *([Phase(name=f"stop {name}", steps=ends)] if ends else [])]
    for name in [name for name in start if world.services[name].wanted]:
        service = world.services[name]
        there = sum(i.started_ms > since_ms[name] for i in world.of(name))
        steps = [
            Step(action=Start(service=name, node=node.name), deadline_s=START_DEADLINE_S)
            for node in nodes_for(world, service, service.wanted - there)
        ]
        phases += [
            Phase(name=f"start {name}", steps=steps),
            Phase(name=f"serve {name}", steps=[Step(action=Place(service=name))]),
        ]
        world = with_starts(world, phases[-2:])
    return phases


def with_starts(world: World, phases: Iterable[Phase]) -> World:
    """The world with what these phases will have started: or the first instances of all services would share one node."""
    starts = [step.action for phase in phases for step in phase.steps if isinstance(step.action, Start)]
    nodes = world.nodes
    coming = {
        f"{start.service} to come {number}": InstanceView(
            "", start.service, start.node, nodes[start.node].zone, up=False
        )
        for number, start in enumerate(starts)
    }
    return replace_fields(world, instances={**world.instances, **coming}) if coming else world


def levelled(world: World, names: Iterable[str], phases_of: Callable[[World, ServiceView], list[Phase]]) -> list[Phase]:
    """The phases of several services, each service's behind those that make the services ready that it needs.

    A service is ready when its shards are served. Instances that are replaced and standbys that follow come later, and
    nobody waits for them.
    """
    phases: list[Phase] = []
    needs, ready = dependencies(world.root), dict[str, str]()
    for name in [n for level in start_levels(world.root) for n in level if n in set(names)]:
        service = world.services[name]
        before = [ready[needed] for needed in needs[name] if needed in ready]
        added = phases_of(world, service)
        world = with_starts(world, added)
        for phase in added:
            phases.append(phase.model_copy(update={"after": before}))
            before = [phase.name]
            if any(isinstance(step.action, Own | Place) for step in phase.steps):
                ready[name] = phase.name
    return phases


def plan_of(policy: str, cause: str, services: Iterable[str], phases: Sequence[Phase]) -> Plan | None:
    """A plan, if there is anything to do."""
    if not any(phase.steps for phase in phases):
        return None
    return Plan(policy=policy, cause=cause, services=sorted(services), phases=list(phases))
