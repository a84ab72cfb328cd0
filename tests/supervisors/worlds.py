"""Worlds made up by tests: a few words for what is there.

    world = made(of("a", "a1", "a1", None), at("a1", "n1"), nodes={"n1": "z1", "n2": "z2"})

is a world with a service `a` of three shards, the last of which nobody owns, and one instance. The service of an instance
is its first letter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from rekindle import Service, Supervisor
from rekindle.supervisors.incidents import Evidence, Ground, Incident, Kind, Signal, begin, grown
from rekindle.supervisors.plans import Change, Plan, changed
from rekindle.supervisors.world import InstanceView, NodeView, ServiceView, ShardView, World
from tests.support.inprocess import Tally

NODES = {"n1": "z1", "n2": "z2", "n3": "z3"}


def of(name: str, *owners: str | None, wanted: int | None = None, disturbed: int = 0, **spec: Any) -> ServiceView:
    """A service; each shard is served by its owner, if it has one."""
    shards = [ShardView(owner, number=1, served=owner is not None) for owner in owners or (None,)]
    spec = {"instances": len({*owners} - {None}) or 1, "min_active": 0, **spec}
    declared = Service(name, Tally, shards=len(shards), **spec)
    return ServiceView(declared, shards, declared.instances if wanted is None else wanted, disturbed)


def where(service: ServiceView, number: int, **fields: Any) -> ServiceView:
    """The same service, with one shard that is different."""
    shards = list(service.shards)
    shards[number] = replace(shards[number], **fields)
    return replace(service, shards=shards)


def at(name: str, node: str, **fields: Any) -> InstanceView:
    """An instance on a node."""
    usual: dict[str, Any] = {"zone": NODES.get(node, "")}
    return InstanceView(name, name[0], node, **usual | fields)


def made(
    *parts: ServiceView | InstanceView, nodes: Mapping[str, str] = NODES, root: Supervisor | None = None, **fields: Any
) -> World:
    """A world of these services and instances."""
    services = {part.name: part for part in parts if isinstance(part, ServiceView)}
    instances = {part.name: part for part in parts if isinstance(part, InstanceView)}
    tree = root or Supervisor("top", children=[service.spec for service in services.values()])
    views = {name: NodeView(name, f"host-{name}", zone) for name, zone in nodes.items()}
    return World(fields.pop("now_ms", 10_000), tree, services, instances, views, **fields)


def after(plan: Plan, changes: Iterable[Change], now_ms: int) -> Plan:
    """The plan with these changes, as the log would have it."""
    by_number = {change.step: change for change in changes}
    numbers = iter(range(1, 10_000))
    phases = [
        phase.model_copy(
            update={
                "steps": [
                    changed(step, by_number[number], now_ms) if (number := next(numbers)) in by_number else step
                    for step in phase.steps
                ]
            }
        )
        for phase in plan.phases
    ]
    return plan.model_copy(update={"phases": phases})


def evidence(signal: Signal, instance: str = "", node: str = "", at_ms: int = 10_000, **fields: Any) -> Evidence:
    """One thing that was noticed, by default of an instance on a node."""
    usual: dict[str, Any] = {"text": str(signal), "service": instance[:1], "zone": NODES.get(node, "")}
    return Evidence(at_ms=at_ms, signal=signal, incarnation=instance, node=node, **usual | fields)


def ground(alive: Iterable[str] = NODES, zones: Mapping[str, str] = NODES, **fields: Any) -> Ground:
    """What patterns are seen against."""
    return Ground(zones=dict(zones), alive=list(alive), **fields)


def incident(kind: Kind, *pieces: Evidence, number: int = 1, **fields: Any) -> Incident:
    """An incident of this kind, whatever its evidence looks like."""
    first, *others = pieces or (evidence(Signal.CLOSED, "a1", "n1"),)
    found = begin(number, first, ground())
    for piece in others:
        found = grown(found, piece, ground())
    return found.model_copy(update={"kind": kind, **fields})
