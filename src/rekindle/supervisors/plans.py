"""Plans as data: plan > phase > step, and the pure rules by which one goes on.

`advance` looks at a plan and at the world and says which steps change their state now; the controller writes that into
its log, and only then acts. So whoever leads next reads the plan where it stands; a step that was running is looked at
first (`is_done`), and acted on again only if the world does not show it yet. Actions say what is to be, not what is to
be done to get there: doing one twice is doing it once.

Invariants:
- A step runs only in a phase whose predecessors are over, and only if its guards hold (or an operator forced it).
- A step that is blocked says why, and which verb would unblock it.
- A plan ends: every step has a deadline and `ATTEMPTS_MAX` attempts, and again as many when an operator says `retry`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, Field

from rekindle.actors import Rejected
from rekindle.supervisors.world import World

STEP_DEADLINE_S: Final = 60.0
ATTEMPTS_MAX: Final = 3


class State(StrEnum):
    """Of a step."""

    PENDING = "pending"
    BLOCKED = "blocked"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


OVER: Final = frozenset({State.DONE, State.SKIPPED})


class Standing(StrEnum):
    """Of a plan."""

    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    SUPERSEDED = "superseded"


class Ordering(StrEnum):
    """In which order the steps of a phase run."""

    SERIAL = "serial"
    PARALLEL = "parallel"
    ROLLING = "rolling"
    """At most `at_once` of them at a time; with `by_zone` those of one zone only."""


# --- actions: what a step wants to be true ------------------------------------------------------------------------


class Own(BaseModel):
    """Shards belong to instances: [shard, incarnation | None]. None: to nobody, so its callers wait."""

    do: Literal["own"] = "own"
    service: str
    moves: list[tuple[int, str | None]]


class Follow(BaseModel):
    """Instances follow shards: [shard, incarnations], the complete list for each of these shards."""

    do: Literal["follow"] = "follow"
    service: str
    moves: list[tuple[int, list[str]]]


class Start(BaseModel):
    """There is one more instance of a service, on this node."""

    do: Literal["start"] = "start"
    service: str
    node: str


class Stop(BaseModel):
    """An instance is there no more."""

    do: Literal["stop"] = "stop"
    incarnation: str
    reason: str


class Refuse(BaseModel):
    """A shard is kept down, or (None) is not kept down any more."""

    do: Literal["refuse"] = "refuse"
    service: str
    shard: int
    reason: str | None


class Cordon(BaseModel):
    """Nothing new is put on a node, or (None) it may be again."""

    do: Literal["cordon"] = "cordon"
    node: str
    reason: str | None


class Perform(BaseModel):
    """An instance has carried out an operation of its own."""

    do: Literal["perform"] = "perform"
    incarnation: str
    operation: str
    args: dict[str, Any] = {}


class Place(BaseModel):
    """Every shard of a service that may be served is, wherever there is room when the step begins."""

    do: Literal["place"] = "place"
    service: str


Action: TypeAlias = Annotated[
    Own | Follow | Start | Stop | Refuse | Cordon | Perform | Place, Field(discriminator="do")
]


# --- guards: may it start? ----------------------------------------------------------------------------------------


class Served(BaseModel):
    """Every shard of the service that may be served is."""

    when: Literal["served"] = "served"
    service: str


class Enough(BaseModel):
    """So many instances of the service stay up without this one."""

    when: Literal["enough"] = "enough"
    service: str
    least: int
    without: str


class NotBefore(BaseModel):
    """A time has come."""

    when: Literal["not-before"] = "not-before"
    at_ms: int


class Ready(BaseModel):
    """An instance of the service is up."""

    when: Literal["ready"] = "ready"
    service: str


class LogThere(BaseModel):
    """The log can be reached."""

    when: Literal["log"] = "log"


class ByHand(BaseModel):
    """Never by itself: what it would do is an operator's to answer for. why: what there is to be known first."""

    when: Literal["by-hand"] = "by-hand"
    why: str


AnyGuard: TypeAlias = Served | Enough | NotBefore | Ready | LogThere | ByHand
Guard: TypeAlias = Annotated[AnyGuard, Field(discriminator="when")]


def why_not(guard: AnyGuard, world: World, ending: Collection[str] = ()) -> str | None:
    """Why the step may not start yet; None if it may. ending: instances that are being stopped, and are still seen up."""
    match guard:
        case Served(service=name):
            missing = world.services[name].unserved()
            return f"{len(missing)} shards of {name} are not served" if missing else None
        case Enough(service=name, least=least, without=without):
            left = [i for i in world.up(name) if i.name != without and i.name not in ending]
            return f"{len(left)} instances of {name} would be left, {least} must stay" if len(left) < least else None
        case NotBefore(at_ms=at_ms):
            return f"{at_ms - world.now_ms} ms to wait" if world.now_ms < at_ms else None
        case Ready(service=name):
            return None if world.up(name) else f"no instance of {name} is up"
        case LogThere():
            return None if world.log_there else "the log is away"
        case ByHand(why=why):
            return why


# --- step, phase, plan --------------------------------------------------------------------------------------------


class Step(BaseModel):
    """One thing that is to be true. result: what an operation gave. forced: an operator let it start without its guards.
    began_ms: when it ran first; since_ms: when it came into its state. attempt: counted on for as long as the step lives,
    so that each one has a name of its own; attempts_max: the last.
    """

    action: Action
    guards: list[Guard] = []
    deadline_s: float = STEP_DEADLINE_S
    state: State = State.PENDING
    attempt: int = 0
    attempts_max: int = ATTEMPTS_MAX
    began_ms: int = 0
    since_ms: int = 0
    why: str = ""
    forced: bool = False
    result: Any = None


class Phase(BaseModel):
    """Steps that belong together. after: the phases that must be over before; None: the one before it in the plan."""

    name: str
    steps: list[Step]
    ordering: Ordering = Ordering.PARALLEL
    at_once: int = 1
    by_zone: bool = False
    after: list[str] | None = None


class Plan(BaseModel):
    """What is done about an incident, or about a wish (`cause`).

    services: those that it speaks for; no other plan touches them meanwhile. is_own: a service's own policy has made it,
    so it stands in for the strategy of the supervisor above. basis: how often each of its services had been disturbed when
    the plan was made; one that is disturbed again is planned anew.
    """

    policy: str
    cause: str
    services: list[str]
    phases: list[Phase]
    id: int = 0
    incident: int | None = None
    is_own: bool = False
    made_ms: int = 0
    standing: Standing = Standing.RUNNING
    why: str = ""
    basis: dict[str, int] = {}
    ended_ms: int | None = None

    @property
    def is_active(self) -> bool:
        """Whether it goes on, or would if it were not paused."""
        return self.standing in (Standing.RUNNING, Standing.PAUSED)

    def steps(self) -> Iterator[tuple[int, Phase, Step]]:
        """All steps with their numbers, from 1."""
        number = 0
        for phase in self.phases:
            for step in phase.steps:
                number += 1
                yield number, phase, step

    def step(self, number: int) -> Step:
        """The step of this number. Raises `NoSuchStep`."""
        for found, _, step in self.steps():
            if found == number:
                return step
        raise NoSuchStep(plan=self.id, step=number, steps=sum(len(phase.steps) for phase in self.phases))


class NoSuchStep(Rejected):
    """The plan has fewer steps."""

    plan: int
    step: int
    steps: int


class Change(NamedTuple):
    """A step gets another state. attempt: the one that it is in now."""

    step: int
    state: State
    attempt: int
    why: str = ""


def changed(step: Step, change: Change, now_ms: int) -> Step:
    """The step after a change. One that is to begin again has all its attempts again."""
    allowed = change.attempt + ATTEMPTS_MAX if change.state is State.PENDING else step.attempts_max
    again = change.state is not step.state or change.attempt != step.attempt
    return step.model_copy(
        update={
            "state": change.state,
            "attempt": change.attempt,
            "attempts_max": allowed,
            "why": change.why,
            "began_ms": step.began_ms or (now_ms if change.state is State.RUNNING else 0),
            "since_ms": now_ms if again else step.since_ms,
        }
    )


# --- going on -----------------------------------------------------------------------------------------------------


Failures: TypeAlias = Mapping[tuple[int, int], str]
"""Why (step, attempt) cannot succeed any more, where whoever acts has learned it."""


def advance(plan: Plan, world: World, failures: Failures | None = None) -> list[Change]:
    """What changes now. Pure; the same plan and world, the same answer."""
    if plan.standing is not Standing.RUNNING:
        return []
    changes: list[Change] = []
    ending = {name for _, _, step in plan.steps() if step.state is State.RUNNING and (name := _ended_by(step))}
    over = set[str]()
    number, before = 0, None
    for phase in plan.phases:
        first, number = number + 1, number + len(phase.steps)
        needed = ([] if before is None else [before]) if phase.after is None else phase.after
        may_begin = over.issuperset(needed)
        finished = [_finish(n, step, world, failures or {}) for n, step in enumerate(phase.steps, first)]
        changes += [change for change in finished if change is not None]
        states = [s.state if c is None else c.state for s, c in zip(phase.steps, finished, strict=True)]
        if may_begin:
            changes += _begin_phase(phase, first, states, world, ending)
        if may_begin and all(state in OVER for state in states):
            over.add(phase.name)
        before = phase.name
    return changes


def _ended_by(step: Step) -> str | None:
    """The instance that a step ends."""
    return step.action.incarnation if isinstance(step.action, Stop) else None


def _begin_phase(phase: Phase, first: int, states: list[State], world: World, ending: set[str]) -> list[Change]:
    """The steps of a phase that begin, or wait for another reason; `states` and `ending` become what they then are.

    One after the other: of two steps that each leave enough instances behind, the second one must know of the first.
    """
    changes: list[Change] = []
    for at, step in enumerate(phase.steps):
        if states[at] not in (State.PENDING, State.BLOCKED) or not _has_room(phase, at, states, world):
            continue
        change = _begin(first + at, step, world, ending)
        if (change.state, change.why) != (step.state, step.why):
            changes.append(change)
        states[at] = change.state
        if change.state is State.RUNNING and (name := _ended_by(step)):
            ending.add(name)
    return changes


def _finish(number: int, step: Step, world: World, failures: Failures) -> Change | None:
    """A running step is done, tried again, or has failed; None: it goes on, or does not run."""
    if step.state is not State.RUNNING:
        return None
    if is_done(step, world):
        return Change(number, State.DONE, step.attempt)
    failure = failures.get((number, step.attempt))
    if failure is None and world.now_ms - step.since_ms > step.deadline_s * 1000:
        failure = f"not done within {step.deadline_s:g} s"
    if failure is None:
        return None
    if step.attempt < step.attempts_max:
        return Change(number, State.RUNNING, step.attempt + 1, f"tried again: {failure}")
    return Change(number, State.FAILED, step.attempt, failure)


def _begin(number: int, step: Step, world: World, ending: Collection[str]) -> Change:
    """A step that its phase lets start does so, is done already, or is blocked by its guards."""
    if is_done(step, world):
        return Change(number, State.DONE, step.attempt, "was so already")
    for guard in step.guards if not step.forced else ():
        reason = why_not(guard, world, ending)
        if reason is not None:
            return Change(number, State.BLOCKED, step.attempt, _blocked(guard, number, reason))
    return Change(number, State.RUNNING, step.attempt + 1)


def _blocked(guard: AnyGuard, number: int, reason: str) -> str:
    if isinstance(
        guard, NotBefore
    ):  # the same words for as long as it lasts: a record for each millisecond helps nobody
        return f"waits until {guard.at_ms}; `force` step {number} lets it begin at once"
    return f"{reason}; `force` or `skip` of step {number} would unblock it"


def _has_room(phase: Phase, at: int, states: Sequence[State], world: World) -> bool:
    """Whether the ordering of the phase lets a step start now."""
    match phase.ordering:
        case Ordering.PARALLEL:
            return True
        case Ordering.SERIAL:
            return all(state in OVER for state in states[:at])
        case Ordering.ROLLING:
            going = [i for i, state in enumerate(states) if state is State.RUNNING]
            zone = world.zone_of(phase.steps[at].action)
            others = {world.zone_of(phase.steps[i].action) for i in going}
            return len(going) < phase.at_once and (not phase.by_zone or others <= {zone})


def standing_of(plan: Plan) -> Standing:
    """What the states of its steps make of a plan."""
    states = [step.state for _, _, step in plan.steps()]
    if State.FAILED in states:
        return Standing.FAILED
    return Standing.DONE if all(state in OVER for state in states) else plan.standing


def is_done(step: Step, world: World) -> bool:
    """Whether what the step wants is true."""
    match step.action:
        case Own(service=name, moves=moves):
            return world.services[name].is_owned_as(moves)
        case Follow(service=name, moves=moves):
            return world.services[name].is_followed_as(moves, world.instances)
        case Start():
            return world.is_up(step.result)
        case Stop(incarnation=incarnation):
            return incarnation not in world.instances
        case Refuse(service=name, shard=shard, reason=reason):
            return world.services[name].shards[shard].refused == reason
        case Cordon(node=node, reason=reason):
            return world.cordoned.get(node) == reason
        case Perform():
            return step.result is not None
        case Place(service=name):
            return not world.services[name].unserved()
