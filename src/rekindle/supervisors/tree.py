"""Services and supervisors as data: what is to run, how much of it, and who restarts whom (OTP's words)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from rekindle.actors import Entity, Hosted
from rekindle.actors.owner import SNAPSHOT_EVERY
from rekindle.events import RekindleError

SHARDS_MAX: Final = 10_000
RESERVED: Final = frozenset({"control", "snapshots", "snapshot-index"})

HANG_S: Final = 5.0
"""Default of `Service.hang_s`: a handler that holds its instance's loop for longer has hung it."""


class DeclarationError(RekindleError):
    """The tree cannot be run as declared; the message says what was expected and what was found."""


class Strategy(Enum):
    """What a supervisor restarts when one of its children ends."""

    ONE_FOR_ONE = "one_for_one"


ONE_FOR_ONE: Final = Strategy.ONE_FOR_ONE


@dataclass(frozen=True)
class Service:
    """An entity type that runs: how many shards (for ever), how many instances (now).

    snapshot_every: commits of a shard between two snapshots. retention: delete records below the second-newest
    snapshot; without it events stay for ever. hang_s: seconds that one handler may hold an instance.
    """

    name: str
    entity: type[Entity]
    shards: int
    instances: int
    snapshot_every: int = SNAPSHOT_EVERY
    retention: bool = False
    hang_s: float = HANG_S

    def __post_init__(self) -> None:
        if not (self.name.isascii() and self.name.replace("-", "").replace("_", "").isalnum()):
            raise DeclarationError(f"a service's name has ASCII letters, digits, - and _; got {self.name!r}")
        if self.name in RESERVED:
            raise DeclarationError(
                f"a service cannot be called {self.name!r}: the application's own topics are {sorted(RESERVED)}"
            )
        if not 1 <= self.shards <= SHARDS_MAX:
            raise DeclarationError(f"service {self.name!r}: shards must be 1 to {SHARDS_MAX}, got {self.shards}")
        if self.instances < 1:
            raise DeclarationError(f"service {self.name!r}: instances must be at least 1, got {self.instances}")
        if self.snapshot_every < 1:
            raise DeclarationError(
                f"service {self.name!r}: snapshot_every must be at least 1, got {self.snapshot_every}"
            )
        if not self.hang_s > 0:
            raise DeclarationError(f"service {self.name!r}: hang_s must be more than 0, got {self.hang_s}")

    def hosted(self, app: str) -> Hosted:
        """The service as its instances and clients need it. Raises `EntityDefinitionError`."""
        kind = self.entity.describe()
        return Hosted(app, self.name, kind, self.shards, self.snapshot_every, self.retention)


@dataclass(frozen=True)
class Supervisor:
    """A node of the tree."""

    name: str
    strategy: Strategy = ONE_FOR_ONE
    children: Sequence[Service | Supervisor] = field(default_factory=tuple)

    def services(self) -> Iterator[Service]:
        """All services below, in start order."""
        for child in self.children:
            if isinstance(child, Service):
                yield child
            else:
                yield from child.services()
