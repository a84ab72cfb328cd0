"""Services and supervisors as data: what is to run, how much of it, and who restarts whom (OTP's words).

A tree is only declared here. What follows from it when a child exits is decided in `restarts`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final, TypeAlias, cast

from rekindle.actors import Entity, Hosted, Sidecar
from rekindle.actors.owner import SNAPSHOT_EVERY
from rekindle.events import RekindleError

SHARDS_MAX: Final = 10_000
RESERVED: Final = frozenset({"control", "snapshots", "snapshot-index"})

HANG_S: Final = 5.0
"""Default of `Service.hang_s`: a handler that holds its instance's loop for longer has hung it."""

RESTARTS_MAX: Final = 1_000
"""The most that `Supervisor.max_restarts` may be: so many times are kept in the controller's state."""

PAUSES_MAX: Final = 64
"""A backoff has reached its `max_s` after at most this many restarts."""


class DeclarationError(RekindleError):
    """The tree cannot be run as declared; the message says what was expected and what was found."""


class Strategy(Enum):
    """What a supervisor restarts when one of its children exits.

    ONE_FOR_ONE: that child. ONE_FOR_ALL: all of its children. REST_FOR_ONE: that child and those after it, because
    each child stands on those before it; so it is not started before they are ready, either.
    """

    ONE_FOR_ONE = "one_for_one"
    ONE_FOR_ALL = "one_for_all"
    REST_FOR_ONE = "rest_for_one"


ONE_FOR_ONE: Final = Strategy.ONE_FOR_ONE
ONE_FOR_ALL: Final = Strategy.ONE_FOR_ALL
REST_FOR_ONE: Final = Strategy.REST_FOR_ONE


class Restart(Enum):
    """When a supervisor restarts a child that exited.

    PERMANENT: always. TRANSIENT: only after an abnormal exit; a normal one is that of a sidecar whose work is done.
    TEMPORARY: never, not even when the strategy restarts its siblings; it is back when its supervisor starts anew, which
    starts all of its children.
    """

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


PERMANENT: Final = Restart.PERMANENT
TRANSIENT: Final = Restart.TRANSIENT
TEMPORARY: Final = Restart.TEMPORARY


@dataclass(frozen=True)
class Backoff:
    """How long a supervisor waits before a restart, by the number of restarts in a row before it.

    The first restart is immediate. Elsewhere that would be rash: what was taken for dead may still be alive. Here the
    log fences it, so a wrong or early restart is harmless. The second waits `first_s` seconds, each one after it
    `factor` times as long, up to `max_s`; all of that give or take the part `jitter`, so that many do not come back
    in step. After `reset_after_s` seconds without a restart the row is over, and the next one is a first again.
    """

    first_s: float = 1.0
    factor: float = 2.0
    max_s: float = 60.0
    jitter: float = 0.2
    reset_after_s: float = 300.0

    def __post_init__(self) -> None:
        longest_s = self.max_s * (1 + self.jitter)
        _require(0 < self.first_s < math.inf, f"a backoff's first_s must be more than 0, got {self.first_s}")
        _require(1 <= self.factor < math.inf, f"a backoff's factor must be at least 1, got {self.factor}")
        _require(
            self.first_s <= self.max_s < math.inf,
            f"a backoff's max_s must be at least first_s, {self.first_s}, got {self.max_s}",
        )
        _require(0 <= self.jitter < 1, f"a backoff's jitter must be at least 0 and less than 1, got {self.jitter}")
        _require(
            longest_s < self.reset_after_s < math.inf,
            "a backoff's reset_after_s must be more than its longest pause, which would count as health otherwise: "
            f"{longest_s} s, got {self.reset_after_s}",
        )
        _require(
            self.pauses_s[-1] == self.max_s,
            f"a backoff must reach max_s, {self.max_s}, within {PAUSES_MAX} restarts; with first_s {self.first_s} and "
            f"factor {self.factor} it comes to {self.pauses_s[-1]}",
        )

    @property
    def pauses_s(self) -> list[float]:
        """Seconds before the first restart in a row, the second and so on; the last one holds from there on."""
        pauses = [0.0, self.first_s]
        while len(pauses) < PAUSES_MAX and pauses[-1] < self.max_s:
            pauses.append(min(pauses[-1] * self.factor, self.max_s))
        return pauses

    def delay_ms(self, restarts: int, chance: float) -> int:
        """Milliseconds to wait after this many restarts in a row. chance: a number in [0, 1), 0.5 for no jitter."""
        assert 0 <= chance < 1, f"a chance in [0, 1) was expected, got {chance}"
        pauses = self.pauses_s
        pause_s = pauses[min(restarts, len(pauses) - 1)]
        return round(1000 * pause_s * (1 + self.jitter * (2 * chance - 1)))


@dataclass(frozen=True)
class Service:
    """An entity type that runs: how many shards (for ever), how many instances (now).

    snapshot_every: commits of a shard between two snapshots. retention: delete records below the second-newest
    snapshot; without it events stay for ever. hang_s: seconds that one handler may hold an instance. standbys: how
    many follow each shard's log without owning it. needs: names of services, anywhere in the tree, that must be ready
    before this one starts. restart: whether it is restarted when it exits. priority: the higher recovers first.
    min_active: instances below which no planned step may go. on_failure: policies, tried in order. upkeep: what else the
    service needs, also when nothing has failed: a pure function `(world, name) -> Plan | None`, asked when no instance,
    owner or standby is missing. sidecar: makes what an instance of this name has beside its shards.
    """

    name: str
    entity: type[Entity]
    shards: int
    instances: int
    snapshot_every: int = SNAPSHOT_EVERY
    retention: bool = False
    hang_s: float = HANG_S
    standbys: int = 0
    needs: Sequence[str] = ()
    restart: Restart = PERMANENT
    priority: int = 0
    min_active: int = 1
    on_failure: Sequence[Any] = ()
    upkeep: Callable[[Any, str], Any] | None = None
    sidecar: Callable[[str], Sidecar] | None = None

    def __post_init__(self) -> None:
        _require_name("service", self.name)
        _require(
            self.name not in RESERVED,
            f"a service cannot be called {self.name!r}: the application's own topics are {sorted(RESERVED)}",
        )
        whose = f"service {self.name!r}:"
        _require(1 <= self.shards <= SHARDS_MAX, f"{whose} shards must be 1 to {SHARDS_MAX}, got {self.shards}")
        _require(self.instances >= 1, f"{whose} instances must be at least 1, got {self.instances}")
        _require(self.snapshot_every >= 1, f"{whose} snapshot_every must be at least 1, got {self.snapshot_every}")
        _require(self.hang_s > 0, f"{whose} hang_s must be more than 0, got {self.hang_s}")
        _require(self.standbys >= 0, f"{whose} standbys must be at least 0, got {self.standbys}")
        _require(_is_list(self.needs, str), f"{whose} needs must be a list of services' names, got {self.needs!r}")
        _require(len(set(self.needs)) == len(self.needs), f"{whose} needs must be different names, got {[*self.needs]}")
        _require(_is_a(self.restart, Restart), f"{whose} restart must be {_one_of(Restart)}, got {self.restart!r}")
        _require(
            0 <= self.min_active <= self.instances,
            f"{whose} min_active must be 0 to {self.instances}, its instances, got {self.min_active}",
        )
        _require(
            _is_list(self.on_failure, object), f"{whose} on_failure must be a list of policies, got {self.on_failure!r}"
        )

    def hosted(self, app: str) -> Hosted:
        """The service as its instances and clients need it. Raises `EntityDefinitionError`."""
        kind = self.entity.describe()
        return Hosted(app, self.name, kind, self.shards, self.snapshot_every, self.retention, self.sidecar)


@dataclass(frozen=True)
class Supervisor:
    """A node of the tree: starts its children in their order, stops them in the reverse order, restarts them.

    children: services and supervisors, to any depth. If more than `max_restarts` restarts become necessary within
    `within` seconds, it gives up: it stops its children and itself, and the supervisor above it restarts it, like any
    permanent child, by its own strategy. backoff: how long it waits before a restart.
    """

    name: str
    strategy: Strategy = ONE_FOR_ONE
    children: Sequence[Service | Supervisor] = field(default_factory=tuple)
    max_restarts: int = 3
    within: float = 60.0
    backoff: Backoff = field(default_factory=Backoff)

    def __post_init__(self) -> None:
        _require_name("supervisor", self.name)
        whose = f"supervisor {self.name!r}:"
        _require(_is_a(self.strategy, Strategy), f"{whose} strategy must be {_one_of(Strategy)}, got {self.strategy!r}")
        _require(
            _is_list(self.children, (Service, Supervisor)),
            f"{whose} children must be a list of services and supervisors, got {self.children!r}",
        )
        _require(
            0 <= self.max_restarts <= RESTARTS_MAX,
            f"{whose} max_restarts must be 0 to {RESTARTS_MAX}, got {self.max_restarts}",
        )
        _require(0 < self.within < math.inf, f"{whose} within must be a number of seconds above 0, got {self.within}")
        _require(_is_a(self.backoff, Backoff), f"{whose} backoff must be a Backoff, got {self.backoff!r}")

    def services(self) -> Iterator[Service]:
        """All services below, in start order."""
        for child in self.children:
            yield from services_of(child)

    def supervisors(self) -> Iterator[Supervisor]:
        """Itself and all supervisors below, in start order."""
        yield self
        for child in self.children:
            yield from supervisors_of(child)


Child: TypeAlias = Service | Supervisor
"""What a supervisor has below it."""


def services_of(child: Child) -> Iterator[Service]:
    """The services that a child stands for, in start order: a service for itself, a supervisor for all below it."""
    return iter((child,)) if isinstance(child, Service) else child.services()


def supervisors_of(child: Child) -> Iterator[Supervisor]:
    """The supervisors that a child stands for: none if it is a service, else itself and all below it."""
    return iter(()) if isinstance(child, Service) else child.supervisors()


def dependencies(root: Supervisor) -> dict[str, list[str]]:
    """All services in start order, each with those that must be ready before it starts.

    These are its own `needs` and, below a REST_FOR_ONE supervisor, the services of the child before.
    """
    found = {service.name: list(service.needs) for service in root.services()}
    for supervisor in root.supervisors():
        before: list[str] = []
        for child in supervisor.children if supervisor.strategy is REST_FOR_ONE else ():
            names = [service.name for service in services_of(child)]
            for name in names:
                found[name] += before
            before = names or before
    return found


def check_tree(root: Supervisor) -> None:
    """Refuse a tree in which names or needs do not fit together, with a `DeclarationError`."""
    services = [service.name for service in root.services()]
    counted = Counter([*(supervisor.name for supervisor in root.supervisors()), *services])
    if twice := [name for name, count in counted.items() if count > 1]:
        raise DeclarationError(f"supervisors and services must all have different names; more than once: {twice}")
    for service in root.services():
        if unknown := [name for name in service.needs if name not in services]:
            raise DeclarationError(f"service {service.name!r} needs {unknown}; the services of the tree are {services}")
    try:
        TopologicalSorter(dependencies(root)).prepare()
    except CycleError as error:
        cycle = cast("list[str]", error.args[1])  # graphlib goes from what is needed to what needs it
        raise DeclarationError(
            f"services need each other in a circle, so none can start first: {' needs '.join(reversed(cycle))} "
            "(below a rest_for_one supervisor every child needs the one before it)"
        ) from None


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise DeclarationError(problem)


def _require_name(what: str, name: str) -> None:
    letters = name.replace("-", "").replace("_", "")
    _require(name.isascii() and letters.isalnum(), f"a {what}'s name has ASCII letters, digits, - and _; got {name!r}")


def _is_a(value: object, kind: type) -> bool:
    return isinstance(value, kind)


def _is_list(value: object, kinds: type | tuple[type, ...]) -> bool:
    """Whether it is a sequence of these. A string is none: `needs="stock"` would need five services of one letter."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    return all(isinstance(item, kinds) for item in cast("Sequence[object]", value))


def _one_of(kind: type[Enum]) -> str:
    return " or ".join(kind.__members__)
