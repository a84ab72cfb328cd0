"""What would happen: a failure that is only supposed, and what the plans about it would cost. Pure; nothing is touched.

    suppose(world, "node-dead:a") -> the incident and the world as if it had happened -> policies plan -> predict -> what it costs

A prediction rehearses plans on a world of its own, by the very rules that carry them out (`plans.advance`), in which every
action takes as long as the named rates below say. Replays of one process share it; processes replay in parallel.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import ceil
from typing import Any, Final, NamedTuple

from rekindle.actors import Rejected
from rekindle.supervisors.control import Unknown
from rekindle.supervisors.incidents import Evidence, Ground, Incident, Kind, Signal, begin, grown
from rekindle.supervisors.parts import own_orphans
from rekindle.supervisors.plans import (
    OVER,
    Cordon,
    Follow,
    NotBefore,
    Own,
    Perform,
    Phase,
    Place,
    Plan,
    Refuse,
    Standing,
    Start,
    State,
    Step,
    Stop,
    advance,
    changed,
    standing_of,
)
from rekindle.supervisors.reporting import KNOWN_MAX, what
from rekindle.supervisors.restarts import on_exit
from rekindle.supervisors.world import InstanceView, ServiceView, ShardView, World

REPLAY_EVENTS_PER_S: Final = 100_000
"""What one process replays. Below what is measured (163,000 events/s), because the machine has other things to do then."""

CLAIM_S: Final = 0.01
"""A claim, its answer, and the new table on its way to the callers; all that a warm standby needs."""

START_S: Final = 1.5
"""A new process until it listens: mostly Python's imports."""

PERFORM_S: Final = 1.0
"""An operation of a service's own, of which nothing is known."""

TICK_MS: Final = 10
"""Whatever ends within one of these ends together; so ten thousand shards are rehearsed in seconds."""

TICKS_MAX: Final = 100_000
STEPS_TOLD: Final = 10


class Supposition(NamedTuple):
    """A failure as if it had happened. delay_ms: how long its supervisor would wait before it starts anything."""

    incident: Incident
    world: World
    delay_ms: int = 0


class NotSupposable(Rejected):
    """Such an incident cannot be supposed. expected: what can."""

    asked: str
    expected: list[str]


# --- supposing ------------------------------------------------------------------------------------------------------


class _Sort(NamedTuple):
    """What a kind of incident is about, how it is noticed, and whether it kills."""

    about: str
    signal: Signal
    kills: bool = False
    ends_nodes: bool = False


_SORTS: Final[Mapping[Kind, _Sort]] = {
    Kind.INSTANCE_CRASH: _Sort("instance", Signal.CLOSED, kills=True),
    Kind.INSTANCE_HANG: _Sort("instance", Signal.HUNG, kills=True),
    Kind.GRAY: _Sort("instance", Signal.SLOW),
    Kind.NODE_SUSPECT: _Sort("node", Signal.SILENT, kills=True),
    Kind.NODE_DEAD: _Sort("node", Signal.NODE_GONE, kills=True, ends_nodes=True),
    Kind.FLAPPING: _Sort("node", Signal.CLOSED, kills=True),
    Kind.PLANNED_DRAIN: _Sort("node", Signal.ASKED),
    Kind.MASS_FAILURE: _Sort("nodes", Signal.NODE_GONE, kills=True, ends_nodes=True),
    Kind.ZONE_DOWN: _Sort("zone", Signal.NODE_GONE, kills=True, ends_nodes=True),
    Kind.POISON: _Sort("shard", Signal.POISON),
    Kind.OVERLOAD: _Sort("service", Signal.BUSY),
    Kind.LOG_UNAVAILABLE: _Sort("service", Signal.LOG_AWAY),
}

SUPPOSABLE: Final = tuple(f"{kind}:{sort.about.upper()}" for kind, sort in _SORTS.items())
"""What can be asked for: a kind and what it is about. `NODES` are names with commas, a `SHARD` is `service/number`."""


def parsed(asked: str) -> tuple[Kind, str]:
    """Kind and target of `node-dead:a`. Raises `NotSupposable`."""
    name, colon, target = asked.partition(":")
    kind = next((kind for kind in _SORTS if kind == name), None)
    if kind is None or not (colon and target):
        raise NotSupposable(asked=asked, expected=list(SUPPOSABLE))
    return kind, target


def suppose(world: World, kind: Kind, target: str) -> Supposition:
    """The incident, and the world, as if this had happened just now. Raises `NotSupposable`, `Unknown`."""
    if kind not in _SORTS:
        raise NotSupposable(asked=f"{kind}:{target}", expected=list(SUPPOSABLE))
    sort = _SORTS[kind]
    evidence = list(_evidence(world, sort, target))
    ground = Ground(zones={}, alive=[])
    incident = begin(0, evidence[0], ground)
    for piece in evidence[1:]:
        incident = grown(incident, piece, ground)
    incident = incident.model_copy(update={"kind": kind})
    after = _after(world, sort, incident)
    if kind not in (Kind.INSTANCE_CRASH, Kind.INSTANCE_HANG):  # others do not count as restarts: see the controller
        return Supposition(incident, after)
    service = incident.services[0]
    verdict = on_exit(world.root, world.restarts, service, abnormal=True, now_ms=world.now_ms)
    if verdict.is_final:
        return Supposition(incident, after, round(1000 * world.root.backoff.max_s))
    restart_ms = dict.fromkeys(verdict.stop, world.now_ms)
    restarting = incident.model_copy(update={"restart": verdict.stop, "restart_ms": restart_ms})
    return Supposition(restarting, replace(after, restarts=verdict.history), verdict.delay_ms)


def _evidence(world: World, sort: _Sort, target: str) -> Iterator[Evidence]:
    def piece(**fields: Any) -> Evidence:
        return Evidence(at_ms=world.now_ms, signal=sort.signal, text="supposed", **fields)

    match sort.about:
        case "service":
            yield piece(service=_known(target, "service", world.services))
        case "shard":
            service, _, number = target.partition("/")
            shards = len(world.services[_known(service, "service", world.services)].shards)
            _known(number, f"shard of {service}", map(str, range(shards)))
            yield piece(service=service, shard=int(number))
        case "instance":
            one = world.instances[_known(target, "instance", world.instances)]
            yield piece(service=one.service, incarnation=one.name, node=one.node, zone=one.zone)
        case _:
            nodes = _nodes(world, sort.about, target)
            for one in world.on(nodes):
                yield piece(service=one.service, incarnation=one.name, node=one.node, zone=one.zone)
            for name in nodes:
                yield piece(node=name, zone=world.nodes[name].zone)


def _nodes(world: World, about: str, target: str) -> list[str]:
    if about == "zone":
        _known(target, "zone", {node.zone for node in world.nodes.values()})
        return [name for name, node in sorted(world.nodes.items()) if node.zone == target]
    return [_known(name, "node", world.nodes) for name in (target.split(",") if about == "nodes" else [target])]


def _known(name: str, sort: str, names: Iterable[str]) -> str:
    if name not in (known := sorted(names)):
        raise Unknown(what=sort, name=name, known=known[:KNOWN_MAX])
    return name


def _after(world: World, sort: _Sort, incident: Incident) -> World:
    """The world once what the incident is about has died."""
    dead = set(incident.instances) if sort.kills else set[str]()
    ended = set(incident.nodes) if sort.ends_nodes else set[str]()
    died_on = {world.instances[name].node for name in dead}
    nodes = {
        name: replace(node, died_at_ms=world.now_ms) if name in died_on else node
        for name, node in world.nodes.items()
        if name not in ended
    }
    services = {
        name: replace(view, shards=[_bereaved(shard, dead) for shard in view.shards])
        for name, view in world.services.items()
    }
    return replace(
        world,
        services=services,
        instances={name: one for name, one in world.instances.items() if name not in dead},
        nodes=nodes,
        log_there=world.log_there and incident.kind is not Kind.LOG_UNAVAILABLE,
        frozen=world.frozen or incident.kind is Kind.MASS_FAILURE,
    )


def _bereaved(shard: ShardView, dead: set[str]) -> ShardView:
    """The shard without those who have died."""
    if shard.owner not in dead and dead.isdisjoint(shard.standbys):
        return shard
    standbys = tuple(name for name in shard.standbys if name not in dead)
    behind = {name: lag for name, lag in shard.behind.items() if name not in dead}
    if shard.owner not in dead:
        return replace(shard, standbys=standbys, behind=behind)
    return replace(shard, owner=None, served=False, standbys=standbys, behind=behind)


# --- predicting -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prediction:
    """What plans cost. See `Forecast`; world: as it is when they are over, or as far as they get."""

    shards_moved: int
    recovery_s: float | None
    over_s: float
    lowest_availability: float
    blocked: list[str]
    world: World


def predict(plan: Plan, world: World) -> Prediction:
    """What one plan costs in this world."""
    return predict_all([plan], world)


def predict_all(plans: Sequence[Plan], world: World) -> Prediction:
    """What plans that run beside each other cost together."""
    rehearsal = _Rehearsal(plans, world)
    rehearsal.run()
    return rehearsal.prediction()


class _Rehearsal:
    """Plans on a world of their own, in which time passes by jumps to the next thing that ends."""

    def __init__(self, plans: Sequence[Plan], world: World) -> None:
        self.plans = [plan.model_copy(update={"standing": Standing.RUNNING}) for plan in plans]
        self.began_ms = world.now_ms
        self.shards = {name: list(view.shards) for name, view in world.services.items()}
        self.instances = dict(world.instances)
        self.cordoned = dict(world.cordoned)
        services = {name: replace(view, shards=self.shards[name]) for name, view in world.services.items()}
        self.world = replace(world, services=services, instances=self.instances, cordoned=self.cordoned)
        self.touched = [self.shards[name] for name in sorted(_touched(plans)) if name in self.shards]
        self.lowest = self._availability()
        self.whole_at: int | None = None
        self.moved = 0
        self._names = count(1)
        self._ends: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()
        self._busy_until: dict[str, float] = {}

    def run(self) -> None:
        """Until the plans are over, or nothing ends any more."""
        for _ in range(TICKS_MAX):
            while self._advance():
                pass
            self._look()
            if not self._pass_time():
                return

    def prediction(self) -> Prediction:
        """What came of it."""
        recovered = None if self.whole_at is None else (self.whole_at - self.began_ms) / 1000
        over_s = (self.world.now_ms - self.began_ms) / 1000
        return Prediction(self.moved, recovered, over_s, self.lowest, list(self._blocked()), self.world)

    def _blocked(self) -> Iterator[str]:
        for plan in self.plans:
            for number, _, step in plan.steps():
                if step.state not in OVER and plan.standing is not Standing.DONE:
                    why = f" ({step.why})" if step.why else ""
                    yield f"step {number} is {step.state}: {what(step.action)}{why}"

    # --- time -------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Note how many shards are served, and since when all of them are."""
        availability = self._availability()
        self.lowest = min(self.lowest, availability)
        if any(not s.served and s.may_be_served for shards in self.touched for s in shards):
            self.whole_at = None
        elif self.whole_at is None:
            self.whole_at = self.world.now_ms

    def _availability(self) -> float:
        """The share that is served, of the shards of all services that the plans speak for."""
        total = sum(map(len, self.touched))
        return sum(s.served for shards in self.touched for s in shards) / total if total else 1.0

    def _pass_time(self) -> bool:
        """Go on to what ends next, and let it end; whether there was anything."""
        ends_ms = self._ends[0][0] if self._ends else None
        times = [at_ms for at_ms in (ends_ms, self._next_guard_ms()) if at_ms is not None]
        if not times:
            return False
        self.world = replace(self.world, now_ms=min(times))
        while self._ends and self._ends[0][0] <= self.world.now_ms:
            heapq.heappop(self._ends)[2]()
        return True

    def _next_guard_ms(self) -> int | None:
        """When a step that waits for a time may begin."""
        guards = [
            guard.at_ms
            for plan in self.plans
            for _, _, step in plan.steps()
            if step.state is State.BLOCKED
            for guard in step.guards
            if isinstance(guard, NotBefore) and guard.at_ms > self.world.now_ms
        ]
        return min(guards, default=None)

    def _in(self, seconds: float, end: Callable[[], None]) -> None:
        """Have something end after a while."""
        ticks = ceil((self.world.now_ms - self.began_ms + seconds * 1000) / TICK_MS)
        heapq.heappush(self._ends, (self.began_ms + ticks * TICK_MS, next(self._order), end))

    # --- plans ------------------------------------------------------------------------------------------------------

    def _advance(self) -> bool:
        """Let every plan go on as it does in the controller; whether any step changed."""
        again = False
        for at, plan in enumerate(self.plans):
            changes = advance(plan, self.world)
            self._put(at, {c.step: changed(plan.step(c.step), c, self.world.now_ms) for c in changes})
            self.plans[at] = self.plans[at].model_copy(update={"standing": standing_of(self.plans[at])})
            for change in changes:
                if change.state is State.RUNNING:
                    self._begin(at, change.step)
            again = again or bool(changes)
        return again

    def _put(self, at: int, steps: Mapping[int, Step]) -> None:
        """Have these steps in the place of those with their numbers."""
        phases: list[Phase] = []
        first = 1
        for phase in self.plans[at].phases:
            changed_steps = [steps.get(number, step) for number, step in enumerate(phase.steps, first)]
            phases.append(phase.model_copy(update={"steps": changed_steps}))
            first += len(changed_steps)
        self.plans[at] = self.plans[at].model_copy(update={"phases": phases})

    def _begin(self, at: int, number: int) -> None:
        """Have happen what a step wants, as fast as the rates allow."""
        step = self.plans[at].step(number)
        match step.action:
            case Own(service=service, moves=moves):
                self._own(service, moves)
            case Place(service=service):
                self._place(self.world.services[service])
            case Follow(service=service, moves=moves):
                for shard, names in moves:
                    self._follow(self.shards[service], shard, names)
            case Start(service=service, node=node):
                self._put(at, {number: step.model_copy(update={"result": self._start(service, node)})})
            case Stop(incarnation=incarnation):
                self._stop(incarnation)
            case Refuse(service=service, shard=shard, reason=reason):
                self._change(self.shards[service], shard, refused=reason, served=False, owner=None)
            case Cordon(node=node, reason=reason):
                self.cordoned.pop(node, None)
                self.cordoned |= {} if reason is None else {node: reason}
            case Perform():
                done = step.model_copy(update={"result": True})
                self._in(PERFORM_S, lambda: self._put(at, {number: done}))

    def _own(self, service: str, moves: Iterable[tuple[int, str | None]]) -> None:
        shards = self.shards[service]
        for number, to in moves:
            shard = shards[number]
            if shard.owner == to or (to is not None and to not in self.instances):
                continue
            self.moved += to is not None
            behind = None if to is None else shard.behind.get(to)
            if to is not None and behind is not None and shard.served:
                self._in(CLAIM_S + self._replay_s(to, behind), self._handed_over(shards, number, to))
                continue
            self._change(shards, number, served=False, **_owned_by(shard, to))
            if to is not None:
                self._serve(shards, number, to, shard.events if behind is None else behind)

    def _handed_over(self, shards: list[ShardView], number: int, to: str) -> Callable[[], None]:
        """A shard that moves warm is served by its old owner until the new one has claimed it."""

        def end() -> None:
            if to in self.instances:
                self._change(shards, number, **_owned_by(shards[number], to), served=True)

        return end

    def _serve(self, shards: list[ShardView], number: int, owner: str, events: int) -> None:
        """Served once its owner has replayed it, if it is still the owner's then."""
        assignment = shards[number].number

        def end() -> None:
            if (shards[number].owner, shards[number].number) == (owner, assignment):
                self._change(shards, number, served=True)

        self._in(CLAIM_S + self._replay_s(owner, events), end)

    def _replay_s(self, instance: str, events: int) -> float:
        """Seconds from now until this instance has replayed so much more than it already has to."""
        now_s = self.world.now_ms / 1000
        until_s = max(now_s, self._busy_until.get(instance, 0.0)) + events / REPLAY_EVENTS_PER_S
        self._busy_until[instance] = until_s
        return until_s - now_s

    def _place(self, service: ServiceView) -> None:
        for phase in own_orphans(self.world, service):
            for step in phase.steps:
                assert isinstance(step.action, Own), f"orphans are owned, not {step.action}"
                self._own(service.name, step.action.moves)

    def _follow(self, shards: list[ShardView], number: int, names: Sequence[str]) -> None:
        shard = shards[number]
        behind = {name: shard.behind.get(name) for name in names}
        self._change(shards, number, standbys=tuple(names), behind=behind)
        for name in names:
            if behind[name] is None:
                self._in(self._replay_s(name, shard.events), self._caught_up(shards, number, name))

    def _caught_up(self, shards: list[ShardView], number: int, name: str) -> Callable[[], None]:
        def end() -> None:
            if name in shards[number].standbys:
                self._change(shards, number, behind={**shards[number].behind, name: 0})

        return end

    def _start(self, service: str, node: str) -> str:
        name = f"{service}-new-{next(self._names)}"
        zone = self.world.nodes[node].zone if node in self.world.nodes else ""
        self.instances[name] = InstanceView(name, service, node, zone, up=False)

        def end() -> None:
            self.instances[name] = replace(self.instances[name], up=True, started_ms=self.world.now_ms)

        self._in(START_S, end)
        return name

    def _stop(self, incarnation: str) -> None:
        self.instances.pop(incarnation, None)
        for shards in self.shards.values():
            for number, shard in enumerate(shards):
                if (bereaved := _bereaved(shard, {incarnation})) is not shard:
                    shards[number] = bereaved

    @staticmethod
    def _change(shards: list[ShardView], at: int, **fields: Any) -> None:
        shards[at] = replace(shards[at], **fields)


def _owned_by(shard: ShardView, to: str | None) -> dict[str, Any]:
    """What changes of a shard that is assigned to somebody."""
    return {"owner": to, "number": shard.number + 1, "standbys": tuple(name for name in shard.standbys if name != to)}


def _touched(plans: Iterable[Plan]) -> set[str]:
    """The services that plans speak for, or that one of their steps is about."""
    about = {getattr(step.action, "service", "") for plan in plans for _, _, step in plan.steps()}
    return about.union(*(plan.services for plan in plans))
