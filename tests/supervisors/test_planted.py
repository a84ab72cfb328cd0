"""Bugs that are planted in the real code, each of which the rules or a story's end must see.

Goal: to know that `test_recovery` and `test_takeover` do not hold only because they see nothing. Method: one patch at a
time, and the story in which it does harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Final

import pytest

from rekindle.supervisors import Control, controller, parts, plans, restarts
from rekindle.supervisors.decided import Assigned, Gone, Proposed
from rekindle.supervisors.placement import Placement, Seat, place
from rekindle.supervisors.planning import Planning
from rekindle.supervisors.plans import Plan, Standing
from rekindle.supervisors.policies import CoordinatedRestart, Guarded, QuarantineGray
from rekindle.supervisors.restarts import Verdict
from rekindle.supervisors.world import ServiceView, World
from tests.supervisors import leader_model
from tests.supervisors.ledger import KIND
from tests.supervisors.test_takeover import AT_MS, CASES, Case, end_of, fault, of, told_again, tree, undisturbed
from tests.support.loops import run

Patch = Callable[[pytest.MonkeyPatch], None]


def command(patch: pytest.MonkeyPatch, name: str, function: Callable[..., Any]) -> None:
    """Have the ledger run another function for a command of `Control`."""
    patch.setitem(KIND.handlers, name, replace(KIND.handlers[name], function=function))


def always(answer: Any) -> Callable[..., Any]:
    """A function that answers this, whatever it is asked."""

    def function(*_: Any, **__: Any) -> Any:
        return answer

    return function


# The bugs


def a_guard_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plans, "why_not", always(None))


def steps_that_end_together_do_not_know_of_each_other(patch: pytest.MonkeyPatch) -> None:
    real = plans.why_not

    def alone(guard: Any, world: World, ending: Any) -> str | None:
        return real(guard, world)

    patch.setattr(plans, "why_not", alone)
    patch.setattr(plans, "_has_room", always(True))


def phases_do_not_wait(patch: pytest.MonkeyPatch) -> None:
    real = plans.advance
    free: dict[str, list[str]] = {"after": []}

    def eager(plan: Plan, *args: Any) -> Any:
        return real(plan.model_copy(update={"phases": [p.model_copy(update=free) for p in plan.phases]}), *args)

    patch.setattr(leader_model, "advance", eager)


def a_step_acts_twice(patch: pytest.MonkeyPatch) -> None:
    """Whoever has a shard already loses it to himself, under a new number."""

    def move(self: Control, service: str, moves: Sequence[tuple[int, str | None]]) -> None:
        self._assign(service, list(moves))  # pyright: ignore[reportPrivateUsage]

    patch.setattr(Control, "_move", move)


def a_start_is_carried_out_twice(patch: pytest.MonkeyPatch) -> None:
    real = leader_model.Leader.act

    def act(self: leader_model.Leader) -> None:
        real(self)
        self.begun = {key for key in self.begun if key[2] != 1}

    def do(self: leader_model.Leader, key: Any, step: Any) -> None:
        once(self, (*key[:2], key[2] + 10 * len(self.starting)), step)

    once = leader_model.Leader._do  # pyright: ignore[reportPrivateUsage]
    patch.setattr(leader_model.Leader, "act", act)
    patch.setattr(leader_model.Leader, "_do", do)


def a_superseded_plan_goes_on(patch: pytest.MonkeyPatch) -> None:
    def stand(self: Control, plan: int, standing: Standing, why: str) -> None:
        if standing is not Standing.SUPERSEDED:
            real(self, plan, standing, why)

    real = Control._stand  # pyright: ignore[reportPrivateUsage]
    patch.setattr(Control, "_stand", stand)


def two_plans_speak_for_one_service(patch: pytest.MonkeyPatch) -> None:
    def propose(self: Control, plan: Plan) -> int:
        self.emit(Proposed(plan=plan.model_copy(update={"id": self.numbered + 1, "made_ms": self.now_ms})))
        return self.numbered

    async def ask(self: Planning, control: Control, *args: Any) -> list[Plan]:
        idle = SimpleNamespace(
            active_plans=list, open_incidents=control.open_incidents, held=control.held, plans=control.plans
        )
        return await real(self, idle, *args)  # type: ignore[arg-type]

    real = Planning.plans
    command(patch, "propose", propose)
    patch.setattr(Planning, "plans", ask)


def a_paused_plan_goes_on(patch: pytest.MonkeyPatch) -> None:
    def act_as_running(plan: Plan, *args: Any) -> Any:
        running = plan.standing is Standing.PAUSED
        return real(plan.model_copy(update={"standing": Standing.RUNNING}) if running else plan, *args)

    def advance(self: Control, plan: int, *args: Any) -> None:
        known = self.plans[plan]
        if known.standing is Standing.PAUSED:
            self.plans[plan] = known.model_copy(update={"standing": Standing.RUNNING})
        REAL_ADVANCE(self, plan, *args)

    real = plans.advance
    patch.setattr(leader_model, "advance", act_as_running)
    command(patch, "advance", advance)


REAL_ADVANCE: Final = KIND.handlers["advance"].function


def a_disturbed_plan_goes_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(controller, "_why_stale", always(None))
    patch.setattr(Control, "_is_up_to_date", always(True))


def an_orphan_goes_to_the_dead(patch: pytest.MonkeyPatch) -> None:
    """To one that is only being started, and to whoever a plan names."""

    def move(self: Control, service: str, moves: Sequence[tuple[int, str | None]]) -> None:
        owned = self.services[service]
        needed = [(shard, to) for shard, to in moves if owned[shard].incarnation != to]
        if needed:
            self._assign(service, needed)  # pyright: ignore[reportPrivateUsage]

    patch.setattr(Control, "_move", move)
    patch.setattr(World, "up", World.of)


def numbers_do_not_grow(patch: pytest.MonkeyPatch) -> None:
    def assign(self: Control, service: str, moves: list[tuple[int, str | None]], above: int = 0) -> list[Any]:
        numbered = [(shard, max(self.services[service][shard].number, 1), to) for shard, to in moves]
        self.emit(Assigned(service=service, moves=numbered))
        return numbered

    patch.setattr(Control, "_assign", assign)


def a_standby_shares_the_owners_node(patch: pytest.MonkeyPatch) -> None:
    def careless(current: Placement, seats: Sequence[Seat], **options: Any) -> Placement:
        apart = [replace(seat, node=seat.name, zone=seat.name) for seat in seats]
        return place(current, apart, **options)

    patch.setattr(parts, "place", careless)


def restarts_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    """Every exit looks like the first one: nothing ever escalates."""
    real = restarts.on_exit

    def forgetful(root: Any, history: Any, *args: Any, **named: Any) -> Verdict:
        return real(root, {}, *args, **named)

    patch.setattr(leader_model, "on_exit", forgetful)


def an_escalation_is_not_in_the_log(patch: pytest.MonkeyPatch) -> None:
    def count(self: Control, counted: Any, incident: int | None, stop: list[str]) -> None:
        self.restarts = counted.restarts

    patch.setattr(Control, "_count", count)


def a_group_is_forgotten_when_the_controller_dies_over_it(patch: pytest.MonkeyPatch) -> None:
    """The death is one record, what follows from it another: whoever reads only the first replaces one instance."""

    def bury(self: Control, gone: Gone, incident: Any, counted: Any, stop: list[str]) -> None:
        self.emit(gone.model_copy(update={"at_ms": self.now_ms}))

    class Leader(leader_model.Leader):
        def decide(self, command: str, *args: Any) -> Any:
            result = super().decide(command, *args)
            if command == "bury":
                _, incident, counted, stop = args
                number = super().decide("notice", incident)
                super().decide("count_restarts", counted.restarts, counted.held, number, stop)
            return result

    command(patch, "bury", bury)
    patch.setattr("tests.supervisors.stories.Leader", Leader)


def poison_is_served_on(patch: pytest.MonkeyPatch) -> None:
    def noticed(self: Control, service: str, shard: int) -> None:
        self.services[service][shard].deaths = 0

    patch.setattr(Control, "_notice_poison", noticed)


def a_slow_instance_is_given_its_shards_back(patch: pytest.MonkeyPatch) -> None:
    """Once they have left it, it is just an empty one."""
    leaving: list[bool] = []

    def plan(self: QuarantineGray, *args: Any) -> Plan | None:
        leaving.append(True)
        try:
            return real_plan(self, *args)
        finally:
            leaving.clear()

    def avoided(world: World, service: ServiceView) -> list[str]:
        return real(world, service) if leaving else []

    real_plan, real = QuarantineGray.plan, parts.avoided
    patch.setattr(QuarantineGray, "plan", plan)
    patch.setattr(parts, "avoided", avoided)


def an_incident_never_ends(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Planning, "outcome_of", always(None))


def nothing_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def notice(self: Control, incident: Any) -> None:
        self.incidents[incident.id] = incident
        self.numbered = max(self.numbered, incident.id)

    patch.setattr("rekindle.supervisors.control.INCIDENTS_KEPT", 0)
    patch.setattr(Control, "_notice", notice)


# Where they do harm

CROWDED: Final = Case(tree(of("a", instances=4, standbys=1)), fault("crash"), nodes=2)
STALLED: Final = Case(tree(of("a")), [*fault("stall"), *fault("crash")])
PAUSED: Final = Case(tree(of("a")), fault("crash"), [(AT_MS + 100, "pause", 0), (AT_MS + 9_000, "resume", 0)])
TWICE: Final = Case(tree(of("a", instances=3)), [*fault("crash"), *fault("crash", after_ms=700)])
SOON: Final = Case(TWICE.root, [*fault("crash"), *fault("crash", after_ms=200)])
LATER: Final = Case(tree(of("a", instances=3)), [*fault("crash"), *fault("crash", after_ms=9_000)])
INTENSE: Final = Case(tree(of("a"), max_restarts=1), LATER.faults)
QUORUM: Final = Case(
    tree(of("a", instances=5, on_failure=[Guarded(CoordinatedRestart())])), fault("crash"), nodes=5, lasts_ms=30_000
)

PLANTED: Final[dict[Patch, tuple[Case, str]]] = {
    a_guard_is_ignored: (LATER, "began before 30000"),
    steps_that_end_together_do_not_know_of_each_other: (QUORUM, "leaves .* of a, not 3"),
    phases_do_not_wait: (CASES["one_for_all"], "began before {'replace a'} were over"),
    a_step_acts_twice: (STALLED, "was taken from a-1.1.2.1 to give it to a-1.1.2.1"),
    a_start_is_carried_out_twice: (CASES["start"], "has started 2 instances in 1 attempts"),
    a_superseded_plan_goes_on: (SOON, "it never becomes whole"),
    two_plans_speak_for_one_service: (CASES["reshuffle"], "plans 1 and 2 are both about"),
    a_paused_plan_goes_on: (PAUSED, "is paused, and begins steps"),
    a_disturbed_plan_goes_on: (SOON, "but a was disturbed since it was made"),
    an_orphan_goes_to_the_dead: (TWICE, "which is dead"),
    numbers_do_not_grow: (CASES["reshuffle"], "was given number 1 after 1"),
    a_standby_shares_the_owners_node: (CROWDED, "is on n1 twice"),
    restarts_are_not_counted: (INTENSE, "and did not give up"),
    an_escalation_is_not_in_the_log: (CASES["escalation"], "the log, read again, adds up to something else|'ab'"),
    a_group_is_forgotten_when_the_controller_dies_over_it: (CASES["one_for_all"], "the last one bury"),
    poison_is_served_on: (CASES["quarantine_poison"], "it never becomes whole"),
    a_slow_instance_is_given_its_shards_back: (CASES["quarantine_gray"], "which is slow"),
    an_incident_never_ends: (CASES["reshuffle"], "incident 2 goes on"),
    nothing_is_forgotten: (CASES["reshuffle"], "1 closed incidents are kept, 0 are allowed"),
}


async def judged(case: Case) -> None:
    """All that can be seen of a case: the rules, its end, and the same from each point at which a controller dies."""
    story = await undisturbed(case)
    if not case.lasts_ms:
        assert case.renewed in ("", end_of(story, case.at_ms).renewed)
        await told_again(case, story)


@pytest.mark.parametrize(
    "case", [CROWDED, STALLED, PAUSED, TWICE, SOON, LATER, INTENSE, QUORUM], ids=lambda case: case.faults
)
def test_without_a_bug_nothing_is_seen(case: Case) -> None:
    """In the stories that `test_takeover` does not tell."""
    run(judged(case))


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_seen(bug: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    case, seen = PLANTED[bug]
    with pytest.raises(AssertionError, match=seen):
        run(judged(case))
