"""The world as the controller sees it now: what is decided, and what its wards report, put together for policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from rekindle.supervisors.cluster import Node
from rekindle.supervisors.control import DEATHS_MAX, Control
from rekindle.supervisors.decided import Owned
from rekindle.supervisors.incidents import Ground, Kind
from rekindle.supervisors.tree import Service, Supervisor
from rekindle.supervisors.ward import Ward
from rekindle.supervisors.world import InstanceView, NodeView, ServiceView, ShardView, World

SNAPSHOT_LAG: Final = 2
"""A replay begins at a snapshot: it reads about this many intervals between two of them at most."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What the controller has before its eyes besides its decisions. held: shards that are left alone for a while.
    starting: instances that are being started, and do not listen yet. log_there: whether logs that were given up answer."""

    root: Supervisor
    wards: Mapping[str, Ward]
    nodes: list[Node]
    died_on: Mapping[str, int]
    held: Iterable[tuple[str, int]] = ()
    starting: Mapping[str, InstanceView] = field(default_factory=dict[str, InstanceView])
    log_there: bool = True


def world_of(control: Control, sight: Sight, now_ms: int, *, frozen: bool, chance: float) -> World:
    """Everything a policy may know."""
    zones = {node.name: node.zone for node in sight.nodes}
    slow = {name for incident in control.open_incidents() if incident.kind is Kind.GRAY for name in incident.instances}
    instances = {
        name: InstanceView(
            name,
            running.service,
            running.node,
            zones.get(running.node, ""),
            _is_up(sight.wards.get(name)),
            running.started_ms,
            slow=name in slow,
        )
        for name, running in control.instances.items()
    }
    instances = {**sight.starting, **instances}
    nodes = {n.name: NodeView(n.name, n.host, n.zone, sight.died_on.get(n.name)) for n in sight.nodes}
    held = set(sight.held)
    services = {spec.name: _service(control, spec, sight.wards, held) for spec in sight.root.services()}
    return World(
        now_ms,
        sight.root,
        services,
        instances,
        nodes,
        cordoned=dict(control.cordoned),
        restarts=dict(control.restarts),
        log_there=sight.log_there,
        frozen=frozen,
        chance=chance,
    )


def _is_up(ward: Ward | None) -> bool:
    return ward is not None and ward.alive


def _service(control: Control, spec: Service, wards: Mapping[str, Ward], held: set[tuple[str, int]]) -> ServiceView:
    mine = {name: ward for name, ward in wards.items() if ward.running.service == spec.name}
    asked = sum_of(ward.asked for ward in mine.values())
    shards = [
        _shard(n, o, spec, mine, (spec.name, n) in held, asked.get(n, 0))
        for n, o in enumerate(control.services[spec.name])
    ]
    wanted = control.wanted.get(spec.name, spec.instances)
    told = tuple(control.told.get(spec.name, ()))
    return ServiceView(spec, shards, wanted, control.disturbed.get(spec.name, 0), told)


def _shard(number: int, owned: Owned, spec: Service, wards: Mapping[str, Ward], held: bool, asked: int) -> ShardView:
    ward = wards.get(owned.incarnation or "")
    served = ward is not None and ward.alive and ward.serving.get(number) == owned.number
    behind = _behind(number, ward, {name: wards.get(name) for name in owned.standbys}) if owned.standbys else _NOBODY
    return ShardView(
        owned.incarnation if ward is not None else None,
        owned.number,
        served,
        tuple(owned.standbys),
        behind,
        owned.refused,
        held or owned.deaths >= DEATHS_MAX,
        asked if not served else 0,
        min(owned.position.sequence if owned.position else 0, spec.snapshot_every * SNAPSHOT_LAG),
    )


def sum_of(counts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """What several have counted, together."""
    total: dict[int, int] = {}
    for counted in counts:
        for what, count in counted.items():
            total[what] = total.get(what, 0) + count
    return total


_NOBODY: Final[dict[str, int | None]] = {}


def _behind(shard: int, owner: Ward | None, standbys: Mapping[str, Ward | None]) -> dict[str, int | None]:
    """How many commits each standby is behind what is known of the shard; None: it has not caught up.

    What the other standbys have read is known, too: when the owner is dead, that is what one of them is promoted by.
    """
    read = {n: w.followed[shard] for n, w in standbys.items() if w is not None and w.alive and shard in w.followed}
    owned = owner.positions.get(shard) if owner is not None else None
    last = max([owned.sequence if owned is not None else 0, *(position.sequence for position, _ in read.values())])
    return {name: last - read[name][0].sequence if name in read and read[name][1] else None for name in standbys}


def ground_of(control: Control, sight: Sight) -> Ground:
    """What patterns of failures are seen against."""
    running: dict[str, int] = {}
    for name, instance in control.instances.items():
        ward = sight.wards.get(name)
        if ward is not None and ward.dead is None:
            running[instance.node] = running.get(instance.node, 0) + 1
    related: dict[str, list[str]] = {}
    for service in sight.root.services():
        for needed in service.needs:
            related.setdefault(service.name, []).append(needed)
            related.setdefault(needed, []).append(service.name)
    return Ground(
        zones={node.name: node.zone for node in sight.nodes},
        alive=[node.name for node in sight.nodes] or list(running),  # where the cluster has not answered yet
        running=running,
        flaps=dict(control.flaps),
        related=related,
    )
