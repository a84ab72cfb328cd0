"""What a policy may know: the cluster and the application at one moment, as plain data that nobody changes.

Policies, plans and placement are functions of it, so each can be tried on a world that a test, a simulation or
`rekindle plan` has made up.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from rekindle.supervisors.tree import Service, Supervisor


class Told(BaseModel):
    """An operation that an instance's sidecar has performed, and what that gave."""

    incarnation: str
    operation: str
    args: dict[str, Any] = {}
    result: Any = None


def latest(told: Sequence[Told], living: Container[str]) -> list[Told]:
    """What has to be known of what was performed, the latest last: of each instance and operation the last one; and of who
    is gone, what nobody has performed since."""
    found: list[Told] = []
    for one in reversed(told):
        later = [other.incarnation for other in found if other.operation == one.operation]
        if not later or (one.incarnation in living and one.incarnation not in later):
            found.append(one)
    return found[::-1]


@dataclass(frozen=True, slots=True)
class NodeView:
    """A machine. died_at_ms: when an instance died on it last."""

    name: str
    host: str = ""
    zone: str = ""
    died_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class InstanceView:
    """An instance that was started and is not known to be dead. up: it is connected and nothing speaks against it.
    slow: it was found to be far slower than its peers a short while ago."""

    name: str
    service: str
    node: str
    zone: str = ""
    up: bool = True
    started_ms: int = 0
    slow: bool = False


@dataclass(frozen=True, slots=True)
class ShardView:
    """A shard. served: its owner says so. behind: of each standby, how many commits it is behind; None: it has not caught up.

    held: it was given up a moment ago, and is left alone for a while. waiting: calls that came for it since it is not served. events: about how many a replay of it has to read.
    """

    owner: str | None = None
    number: int = 0
    served: bool = False
    standbys: tuple[str, ...] = ()
    behind: Mapping[str, int | None] = field(default_factory=dict[str, "int | None"])
    refused: str | None = None
    held: bool = False
    waiting: int = 0
    events: int = 0

    @property
    def may_be_served(self) -> bool:
        """Whether somebody is to serve it now."""
        return self.refused is None and not self.held


@dataclass(frozen=True, slots=True)
class ServiceView:
    """A service. wanted: instances that it is to have. disturbed: how often something has happened to it. told: what its
    sidecars have performed (`latest`): decided facts, which outlive plans, incidents and controllers."""

    spec: Service
    shards: Sequence[ShardView] = ()
    wanted: int = 1
    disturbed: int = 0
    told: Sequence[Told] = ()

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    def unserved(self) -> list[int]:
        """Shards that may be served and are not."""
        return [n for n, shard in enumerate(self.shards) if not shard.served and shard.may_be_served]

    def is_whole(self, instances: int) -> bool:
        """Whether nothing is missing of it, if so many of its instances are up: not even a shard that is left alone for a
        while. One that is to have no instances is to serve nothing."""
        missing = any(not shard.served and shard.refused is None for shard in self.shards)
        return instances >= self.wanted and not (self.wanted and missing)

    def is_owned_as(self, moves: Iterable[tuple[int, str | None]]) -> bool:
        """Whether these shards are where they are to be, and served."""
        return all(
            not (shard := self.shards[number]).may_be_served or (shard.owner == to and (shard.served or to is None))
            for number, to in moves
        )

    def is_followed_as(self, moves: Iterable[tuple[int, Sequence[str]]], instances: Mapping[str, InstanceView]) -> bool:
        """Whether exactly these standbys follow and have caught up; one that has died, or owns the shard, cannot."""
        return all(_follow(self.shards[number], [n for n in names if n in instances]) for number, names in moves)


def _follow(shard: ShardView, names: Iterable[str]) -> bool:
    wanted = {name for name in names if name != shard.owner}
    return wanted == set(shard.standbys) and all(shard.behind.get(name) is not None for name in wanted)


@dataclass(frozen=True, slots=True)
class World:
    """Everything at `now_ms`. chance: a number from 0 to 1 for jitter, drawn by whoever made this world."""

    now_ms: int
    root: Supervisor
    services: Mapping[str, ServiceView]
    instances: Mapping[str, InstanceView] = field(default_factory=dict[str, InstanceView])
    nodes: Mapping[str, NodeView] = field(default_factory=dict[str, NodeView])
    cordoned: Mapping[str, str] = field(default_factory=dict[str, str])
    restarts: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])
    log_there: bool = True
    frozen: bool = False
    """Too much died lately: what can wait, waits."""
    chance: float = 0.5

    def of(self, service: str) -> list[InstanceView]:
        """The service's instances, sorted by name."""
        return [i for _, i in sorted(self.instances.items()) if i.service == service]

    def up(self, service: str) -> list[InstanceView]:
        """Those that can be given shards."""
        return [instance for instance in self.of(service) if instance.up]

    def on(self, nodes: Iterable[str]) -> list[InstanceView]:
        """The instances on these nodes."""
        chosen = set(nodes)
        return [i for _, i in sorted(self.instances.items()) if i.node in chosen]

    def open_nodes(self) -> list[NodeView]:
        """Nodes that may be given something new."""
        return [node for name, node in sorted(self.nodes.items()) if name not in self.cordoned]

    def zone_of(self, action: Any) -> str:
        """The zone in which an action happens, as far as it has one."""
        instance = self.instances.get(getattr(action, "incarnation", ""))
        name = getattr(action, "node", "") if instance is None else instance.node
        return self.nodes[name].zone if name in self.nodes else ""

    def is_up(self, incarnation: Any) -> bool:
        """Whether this instance can be given shards."""
        instance = self.instances.get(incarnation)
        return instance is not None and instance.up

    def dependents(self, service: str) -> Iterator[str]:
        """Services that need this one, at first or second hand, nearest first."""
        seen, todo = {service}, [service]
        while todo:
            current = todo.pop(0)
            for name, view in self.services.items():
                if current in view.spec.needs and name not in seen:
                    seen.add(name)
                    todo.append(name)
                    yield name
