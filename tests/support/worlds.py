"""Small worlds by hand, for what is a pure function of one: policies' plans, predictions, reports.

world = world_of([service("stock", shards=4)], nodes={"a": "east", "b": "west"}, instances={"s1": "a", "s2": "b"})

An instance belongs to the service whose name begins with the same letter. Shards go to a service's instances in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from rekindle import Service, Supervisor
from rekindle.supervisors.control import KEY, Control
from rekindle.supervisors.decided import Assigned, Decided, Declared, Followed, Started
from rekindle.supervisors.decided import Running as Runs
from rekindle.supervisors.world import InstanceView, NodeView, ServiceView, ShardView, World
from tests.support.service import Stock

NOW_MS: Final = 1_700_000_000_000
STARTED_MS: Final = NOW_MS - 60_000


def service(name: str, shards: int = 4, instances: int = 2, **fields: Any) -> Service:
    """A service. Which entity it runs is nobody's concern here."""
    return Service(name, Stock, shards=shards, instances=instances, **fields)


def world_of(
    services: Sequence[Service],
    nodes: Mapping[str, str],
    instances: Mapping[str, str],
    *,
    root: Supervisor | None = None,
    events: int = 0,
    follow: bool = False,
) -> World:
    """A world in which all is well. nodes: name to zone. instances: name to node. events: of each shard, to be replayed.
    follow: the instance after the owner follows each shard, and has caught up."""
    views = {
        name: InstanceView(
            name, next(s.name for s in services if s.name[0] == name[0]), node, nodes[node], True, STARTED_MS
        )
        for name, node in instances.items()
    }
    return World(
        NOW_MS,
        root or Supervisor("root", children=services),
        {
            s.name: _view(s, [n for n, i in sorted(views.items()) if i.service == s.name], events, follow)
            for s in services
        },
        views,
        {name: NodeView(name, f"host-{name}", zone) for name, zone in nodes.items()},
    )


def _view(spec: Service, names: list[str], events: int, follow: bool) -> ServiceView:
    shards: list[ShardView] = []
    for number in range(spec.shards):
        owner, after = names[number % len(names)], names[(number + 1) % len(names)]
        standbys = (after,) if follow and after != owner else ()
        behind: dict[str, int | None] = dict.fromkeys(standbys, 0)
        shards.append(ShardView(owner, 1, True, standbys, behind, events=events))
    return ServiceView(spec, shards, spec.instances)


def with_shard(world: World, name: str, number: int, **fields: Any) -> World:
    """The same world with one shard that is different."""
    view = world.services[name]
    shards = [replace(shard, **fields) if at == number else shard for at, shard in enumerate(view.shards)]
    return replace(world, services={**world.services, name: replace(view, shards=shards)})


def control_of(world: World, *events: Decided) -> Control:
    """What must have been decided for this world to be, and then these events."""
    control = Control.describe().new(KEY)
    assert isinstance(control, Control)
    for view in world.services.values():
        control.apply(Declared(service=view.name, shards=len(view.shards), instances=view.wanted))
    for name, instance in world.instances.items():
        runs = Runs(service=instance.service, node=instance.node, address="", beacon="", started_ms=instance.started_ms)
        control.apply(Started(incarnation=name, running=runs))
    for view in world.services.values():
        owned = [(number, shard.number, shard.owner) for number, shard in enumerate(view.shards)]
        control.apply(Assigned(service=view.name, moves=owned))
        followed = [(number, list(shard.standbys)) for number, shard in enumerate(view.shards)]
        control.apply(Followed(service=view.name, moves=followed))
    for event in events:
        control.apply(event)
    return control
