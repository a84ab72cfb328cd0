"""The `Cluster` seam: nodes, and instances as processes on them. Real: Ray. For tests and benches: plain processes.

What an implementation promises:
- `spawn` returns when the instance listens, or raises `SpawnFailed` within `SPAWN_MAX_S`; then it has been killed.
- Instances outlive whoever spawned them, and are never restarted by the cluster itself: two healers would race.
- A kill names one incarnation, so it never meets a later one.

What it does not promise: that an instance it calls dead has stopped. The claims fence it (rule 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from rekindle.events import RekindleError

SPAWN_MAX_S: Final = 30.0
KILL_MAX_S: Final = 6.0


class SpawnFailed(RekindleError):
    """An instance did not come up; the message says what it said last."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that instances can run on. zone: what fails together."""

    name: str
    host: str
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Spawned:
    """An instance that listens. beacon: the address of its pulses."""

    incarnation: str
    node: str
    address: str
    beacon: str


class Cluster(Protocol):
    """Where instances run."""

    async def nodes(self) -> list[Node]:
        """The nodes that are there now, in a fixed order. May raise `RekindleError` while the cluster is away."""
        ...

    async def spawn(self, service: str, incarnation: str, node: Node) -> Spawned:
        """Start an instance of the service on the node."""
        ...

    async def kill(self, incarnation: str) -> None:
        """Kill this one; nothing happens if it is gone. Bounded by `KILL_MAX_S`."""
        ...

    async def watch(self, incarnation: str) -> str:
        """Return, with the cluster's reason, when the cluster says that it is dead; never, if it does not know it."""
        ...
