"""What must hold after every record of the control log, whatever failed before it: `Rules` looks at each one.

A rule that is broken is an `AssertionError` that says which record broke it. The rules know what was decided and what runs;
they do not ask the code that they judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Final

from rekindle.events import Event
from rekindle.supervisors import Control, Supervisor
from rekindle.supervisors import control as kept
from rekindle.supervisors.decided import Assigned, Counted, Proposed, Started, Stepped, Stood
from rekindle.supervisors.incidents import EVIDENCE_MAX, Kind
from rekindle.supervisors.plans import OVER, Enough, NotBefore, Own, Plan, Served, Standing, Start, State, Step, Stop
from tests.supervisors.ledger import Ledger, Record

OF_OPERATORS: Final = ("retry", "skip")
"""Commands that change steps without beginning any."""


class Rules:
    """Looks at every record of a ledger. up: the instances of a service that live, and serve or could; served: whether
    all of its shards are."""

    def __init__(
        self, root: Supervisor, ledger: Ledger, up: Callable[[str], list[str]], served: Callable[[str], bool]
    ) -> None:
        self.root = root
        self.ledger = ledger
        self.up = up
        self.served = served
        self.numbers: dict[tuple[str, int], int] = {}
        self.restarted: dict[str, list[int]] = {}
        self.started: Counter[tuple[int, int]] = Counter()
        self.ending: dict[int, set[str]] = {}
        self.over: set[int] = set()
        self.paused: set[int] = set()
        self.owners: dict[tuple[str, int], str | None] = {}
        for record in ledger.records:
            self._remember(record)
        ledger.on_record = self.look

    @property
    def control(self) -> Control:
        return self.ledger.control

    def _remember(self, record: Record) -> None:
        for event in record.events():
            match event:
                case Assigned():
                    self._numbers_only_grow(event)
                case Started(plan=plan, step=step):
                    self.started[plan, step] += 1
                case Stood(plan=number, standing=standing):
                    self._note_standing(number, standing)
                case Counted():
                    self._note_restarts(event, record.at_ms)
                case _:
                    pass

    def _note_standing(self, plan: int, standing: Standing) -> None:
        self.paused.discard(plan)
        if standing is Standing.PAUSED:
            self.paused.add(plan)
        elif standing is not Standing.RUNNING:
            self.over.add(plan)

    def look(self, record: Record) -> None:
        """Check everything that this record may have broken."""
        try:
            for event in record.events():
                self._check(event, record)
            self._check_state()
        except AssertionError as error:
            raise AssertionError(
                f"{error}\nbroken by {record.command} at {record.at_ms}: {[*record.events()]}"
            ) from error

    def _check(self, event: Event, record: Record) -> None:
        match event:
            case Assigned():
                self._numbers_only_grow(event)
                self._goes_to_the_living(event)
                self._goes_to_the_quick(event)
            case Proposed(plan=plan):
                self.ending[plan.id] = set()
            case Stood(plan=number, standing=standing):
                assert number not in self.over, f"plan {number} was over, and is {standing} now"
                self._note_standing(number, standing)
            case Stepped(plan=number, changes=changes):
                begun = [step for step, state, _, _ in changes if state is State.RUNNING]
                if record.command not in OF_OPERATORS and begun:
                    self._may_begin(self.control.plans[number], begun)
            case Started(plan=plan, step=step):
                self.started[plan, step] += 1
                self._was_attempted(plan, step)
            case Counted():
                self._note_restarts(event, record.at_ms)
                self._intensity_holds(record.at_ms)
            case _:
                pass

    # --- owners ----------------------------------------------------------------------------------------------------

    def _numbers_only_grow(self, assigned: Assigned) -> None:
        for shard, number, owner in assigned.moves:
            key = assigned.service, shard
            assert number > self.numbers.get(key, 0), f"{key} was given number {number} after {self.numbers[key]}"
            self.numbers[key] = number
            assert owner is None or owner != self.owners.get(key), f"{key} was taken from {owner} to give it to {owner}"
            self.owners[key] = owner

    def _goes_to_the_living(self, assigned: Assigned) -> None:
        for shard, _, owner in assigned.moves:
            known = owner is None or owner in self.control.instances
            assert known, f"{assigned.service}/{shard} was given to {owner}, which is dead"

    def _goes_to_the_quick(self, assigned: Assigned) -> None:
        """A slow instance is given nothing as long as there are enough others, on nodes that may be given something."""
        gray = {n for i in self.control.open_incidents() if i.kind is Kind.GRAY for n in i.instances}
        up = self.up(assigned.service)
        slow = [name for name in up if name in gray]
        others = [n for n in up if n not in gray and self.control.instances[n].node not in self.control.cordoned]
        spec = next(spec for spec in self.root.services() if spec.name == assigned.service)
        if len(slow) == 1 and len(others) >= max(1, spec.min_active):
            given = [shard for shard, _, owner in assigned.moves if owner == slow[0]]
            assert not given, (
                f"{given} of {assigned.service} were given to {slow[0]}, which is slow; there are {others}"
            )

    def _standbys_are_elsewhere(self) -> None:
        warming = {
            (step.action.service, shard, to)
            for plan in self.control.plans.values()
            for _, _, step in plan.steps()
            if isinstance(step.action, Own) and step.state not in OVER
            for shard, to in step.action.moves
        }
        nodes = {name: running.node for name, running in self.control.instances.items()}
        for service, owned in self.control.services.items():
            for shard, o in enumerate(owned):
                names = [n for n in o.standbys if (service, shard, n) not in warming]
                assert o.incarnation not in o.standbys, f"{service}/{shard} has its owner as a standby"
                for one, other in combinations([n for n in (o.incarnation, *names) if n in nodes], 2):
                    assert nodes[one] != nodes[other], f"{service}/{shard} is on {nodes[one]} twice: {one} and {other}"

    # --- plans -----------------------------------------------------------------------------------------------------

    def _may_begin(self, plan: Plan, begun: list[int]) -> None:
        assert plan.id not in self.over, f"plan {plan.id} is over, and begins steps {begun}"
        assert plan.id not in self.paused, f"plan {plan.id} is paused, and begins steps {begun}"
        for name, seen in plan.basis.items():
            known = self.control.disturbed.get(name, 0)
            assert known == seen, f"plan {plan.id} begins {begun}, but {name} was disturbed since it was made"
        over = {phase.name for phase in plan.phases if all(step.state in OVER for step in phase.steps)}
        before: list[str] = []
        number = 0
        for phase in plan.phases:
            for step in phase.steps:
                number += 1
                if number in begun:
                    missing = set(before if phase.after is None else phase.after) - over
                    assert not missing, f"step {number} of plan {plan.id} began before {missing} were over"
                    self._guards_hold(plan, number, step)
            before = [phase.name]

    def _guards_hold(self, plan: Plan, number: int, step: Step) -> None:
        where = step.action.node if isinstance(step.action, Start) else ""
        assert where not in self.control.cordoned, f"step {number} of plan {plan.id} starts something on {where}"
        name = step.action.incarnation if isinstance(step.action, Stop) else ""
        ending = self.ending.setdefault(plan.id, set())
        for guard in step.guards if not step.forced else ():
            match guard:
                case Enough(service=service, least=least):
                    left = [i for i in self.up(service) if i not in ending and i != name]
                    assert len(left) >= least, (
                        f"step {number} of plan {plan.id} leaves {left} of {service}, not {least}"
                    )
                case Served(service=service):
                    assert self.served(service), f"step {number} of plan {plan.id} began before {service} was served"
                case NotBefore(at_ms=at_ms):
                    assert self.control.now_ms >= at_ms, f"step {number} of plan {plan.id} began before {at_ms}"
                case _:
                    pass
        if name:
            ending.add(name)

    def _was_attempted(self, plan: int, step: int) -> None:
        known = self.control.plans.get(plan)
        if known is not None:
            count, attempts = self.started[plan, step], known.step(step).attempt
            assert count <= max(attempts, 1), (
                f"step {step} of plan {plan} has started {count} instances in {attempts} attempts"
            )

    def _plans_are_apart(self) -> None:
        for one, other in combinations(self.control.active_plans(), 2):
            both = set(one.services) & set(other.services)
            assert not both, f"plans {one.id} and {other.id} are both about {both}"

    # --- restarts --------------------------------------------------------------------------------------------------

    def _note_restarts(self, counted: Counted, at_ms: int) -> None:
        """Every restart, by supervisor; one that was restarted by a supervisor above it begins anew."""
        fresh = {name for name, times in counted.restarts.items() if times[-1:] == [at_ms]}
        below = {
            inner.name
            for supervisor in self.root.supervisors()
            if supervisor.name in fresh
            for inner in supervisor.supervisors()
            if inner is not supervisor
        }
        for name in below - counted.restarts.keys():
            self.restarted.pop(name, None)
        for name in fresh:
            known = self.restarted.setdefault(name, [])
            if Counter(counted.restarts[name])[at_ms] > Counter(known)[at_ms]:
                known.append(at_ms)

    def _intensity_holds(self, at_ms: int) -> None:
        for supervisor in self.root.supervisors():
            times = [at for at in self.restarted.get(supervisor.name, ()) if at_ms - at <= 1000 * supervisor.within]
            assert len(times) <= supervisor.max_restarts, (
                f"{supervisor.name} has restarted at {times} and did not give up"
            )

    # --- the state -------------------------------------------------------------------------------------------------

    def _check_state(self) -> None:
        self._plans_are_apart()
        self._standbys_are_elsewhere()
        for what, size, most in _sizes(self.control):
            assert size <= most, f"{size} {what} are kept, {most} are allowed"


def _sizes(control: Control) -> Iterator[tuple[str, int, int]]:
    over = sum(not plan.is_active for plan in control.plans.values())
    closed = sum(not incident.is_open for incident in control.incidents.values())
    yield "plans that are over", over, kept.PLANS_KEPT + 2 * len(control.services)
    yield "closed incidents", closed, kept.INCIDENTS_KEPT
    yield "sayings", len(control.sayings), kept.SAYINGS_KEPT
    for incident in control.incidents.values():
        yield f"pieces of evidence of incident {incident.id}", len(incident.evidence), EVIDENCE_MAX


def where(control: Control) -> Mapping[str, list[str | None]]:
    """The owners of all shards."""
    return {service: [o.incarnation for o in owned] for service, owned in control.services.items()}
