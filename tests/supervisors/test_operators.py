"""What operators say to plans, and what the controller makes of deaths: commands of `Control`, each one record.

Method: the commands run on a ledger; whoever reads its records again knows the same.
"""

from __future__ import annotations

from typing import Any

import pytest

from rekindle.supervisors import Control
from rekindle.supervisors.control import DEATHS_MAX, NoSuchPlan, NotNow, Unknown
from rekindle.supervisors.decided import Counted, Gone, Running
from rekindle.supervisors.incidents import CORRELATE_MS, Incident, Kind, Signal, begin
from rekindle.supervisors.plans import (
    ATTEMPTS_MAX,
    Change,
    Cordon,
    Follow,
    NoSuchStep,
    NotBefore,
    Own,
    Phase,
    Place,
    Plan,
    Standing,
    Start,
    State,
    Step,
    Stop,
)
from tests.supervisors.ledger import Ledger
from tests.supervisors.worlds import evidence, ground

ANN = ("ann", "it is late")


class Desk:
    """A ledger with a service of two shards and two instances on two nodes, one plan of three steps, and a clock."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.now_ms = 10_000
        for name in ("a", "b"):
            self.run("declare", name, 2, 2)
        for name, node in {"a1": "n1", "a2": "n2"}.items():
            self.start(name, node)
        self.plan = self.propose(
            Step(action=Start(service="a", node="n1"), guards=[NotBefore(at_ms=99_000)]),
            Step(action=Own(service="a", moves=[(0, "a1"), (1, "a2")])),
            Step(action=Stop(incarnation="a2", reason="test")),
        )

    @property
    def control(self) -> Control:
        return self.ledger.control

    def run(self, command: str, *args: Any) -> Any:
        return self.ledger.run(self.now_ms, command, *args)

    def start(self, name: str, node: str, *of: int) -> None:
        self.run("started", name, Running(service=name[0], node=node, address="", beacon=""), *of)

    def propose(self, *steps: Step, service: str = "a", **fields: Any) -> int:
        phases = [Phase(name="do", steps=list(steps))]
        plan = Plan(policy="test", cause="a test", services=[service], phases=phases, **fields)
        return int(self.run("propose", plan))

    def advance(self, *changes: Change, plan: int = 0, places: Any = None) -> None:
        self.run("advance", plan or self.plan, list(changes), places or {})

    def begin(self, step: int, attempt: int = 1) -> None:
        self.advance(Change(step, State.RUNNING, attempt))

    def step(self, number: int) -> Step:
        return self.control.plans[self.plan].step(number)

    def standing(self, plan: int = 0) -> Standing:
        return self.control.plans[plan or self.plan].standing

    def owners(self, service: str = "a") -> list[tuple[int, str | None]]:
        return [(o.number, o.incarnation) for o in self.control.services[service]]


@pytest.fixture
def desk() -> Any:
    found = Desk()
    yield found
    assert vars(Ledger(found.ledger.records).control) == vars(found.control), "read again, the log says something else"


# Pause, resume, retry, skip, force


def test_a_paused_plan_begins_nothing_until_it_is_resumed(desk: Desk) -> None:
    desk.run("pause", *ANN, desk.plan)
    assert (desk.standing(), desk.control.plans[desk.plan].why) == (Standing.PAUSED, "ann: it is late")
    desk.begin(2)
    assert desk.owners() == [(0, None), (0, None)]
    desk.run("resume", *ANN, desk.plan)
    desk.begin(2)
    assert desk.owners() == [(1, "a1"), (1, "a2")]


def test_a_retried_step_has_all_its_attempts_again_under_new_numbers(desk: Desk) -> None:
    """The old numbers may still be in the hands of whoever acts: what they come to would count as the new ones' outcome."""
    desk.begin(1, ATTEMPTS_MAX)
    desk.run("retry", *ANN, desk.plan, 1)
    step = desk.step(1)
    assert (step.state, step.attempt, step.attempts_max) == (State.PENDING, ATTEMPTS_MAX, 2 * ATTEMPTS_MAX)
    assert step.why == "ann: it is late"


def test_a_skipped_step_is_over_and_so_is_a_plan_of_skipped_steps(desk: Desk) -> None:
    for number in (1, 2, 3):
        assert desk.standing() is Standing.RUNNING
        desk.run("skip", *ANN, desk.plan, number)
    assert (desk.standing(), desk.step(2).state) == (Standing.DONE, State.SKIPPED)


def test_a_forced_step_may_begin_without_its_guards(desk: Desk) -> None:
    desk.run("force", *ANN, desk.plan, 1)
    assert desk.step(1).forced


def test_what_operators_say_is_kept_with_their_name_and_reason(desk: Desk) -> None:
    desk.run("pause", *ANN, desk.plan)
    desk.run("skip", "bob", "no need", desk.plan, 3)
    assert [(s.who, s.verb, s.target, s.reason) for s in desk.control.sayings] == [
        ("ann", "pause", f"plan {desk.plan}", "it is late"),
        ("bob", "skip", f"plan {desk.plan}", "step 3: no need"),
    ]
    assert [s.at_ms for s in desk.control.sayings] == [desk.now_ms] * 2


@pytest.mark.parametrize("verb", ["pause", "resume", "retry", "skip", "force"])
def test_a_verb_that_does_not_fit_changes_nothing(desk: Desk, verb: str) -> None:
    step: list[int] = [] if verb in ("pause", "resume") else [2]
    refused = [(("", "it is late"), desk.plan, NotNow), (("ann", ""), desk.plan, NotNow), (ANN, 99, NoSuchPlan)]
    for said, plan, error in refused:
        known = len(desk.ledger.records)
        with pytest.raises(error):
            desk.run(verb, *said, plan, *step)
        assert len(desk.ledger.records) == known
    desk.advance(Change(2, State.DONE, 1))
    if step:
        with pytest.raises(NotNow, match="it is done"):
            desk.run(verb, *ANN, desk.plan, 2)
        with pytest.raises(NoSuchStep, match="steps=3"):
            desk.run(verb, *ANN, desk.plan, 4)
    desk.run("end_plan", desk.plan, Standing.SUPERSEDED, "over")
    with pytest.raises(NoSuchPlan, match=r"active=\[\]"):
        desk.run(verb, *ANN, desk.plan, *step)


def test_only_what_waits_can_be_forced_and_only_what_is_paused_resumed(desk: Desk) -> None:
    desk.begin(3)
    with pytest.raises(NotNow, match="it is not waiting"):
        desk.run("force", *ANN, desk.plan, 3)
    with pytest.raises(NotNow, match="it is not paused"):
        desk.run("resume", *ANN, desk.plan)


def test_scale_drain_uncordon_and_allow_name_what_there_is(desk: Desk) -> None:
    unknown: dict[str, list[Any]] = {"scale": ["z", 1], "uncordon": ["n9"], "allow": ["z", 0]}
    for verb, args in unknown.items():
        with pytest.raises(Unknown):
            desk.run(verb, *ANN, *args)
    with pytest.raises(Unknown):
        desk.run("allow", *ANN, "a", 2)


def test_a_drain_is_an_incident_of_all_services_on_the_node(desk: Desk) -> None:
    drained = desk.control.incidents[desk.run("drain", *ANN, "n1", "z1")]
    assert (drained.kind, drained.nodes, drained.services) == (Kind.PLANNED_DRAIN, ["n1"], ["a"])
    assert drained.evidence[0].text == "ann: it is late"


def test_who_was_to_start_something_on_a_cordoned_node_plans_anew(desk: Desk) -> None:
    cordon = desk.propose(Step(action=Cordon(node="n1", reason="x")), service="b")
    before = desk.control.disturbed.get("a", 0)
    desk.advance(Change(1, State.RUNNING, 1), plan=cordon)
    assert desk.control.disturbed["a"] == before + 1


def test_a_drain_that_is_called_off_does_not_go_on(desk: Desk) -> None:
    drain = desk.run("drain", *ANN, "n1", "z1")
    plan = desk.propose(Step(action=Cordon(node="n1", reason="x")), service="b", incident=drain)
    desk.run("uncordon", *ANN, "n1")
    assert desk.control.incidents[drain].outcome == "called off by ann"
    assert (desk.standing(plan), desk.standing()) == (Standing.SUPERSEDED, Standing.RUNNING)
    other = desk.run("drain", *ANN, "n2", "z2")
    desk.advance(
        Change(1, State.RUNNING, 1), plan=desk.propose(Step(action=Cordon(node="n1", reason="x")), service="b")
    )
    desk.run("uncordon", *ANN, "n1")
    assert desk.control.cordoned == {}
    assert desk.control.incidents[other].is_open, "that is another node's"


# Plans


def test_a_step_and_what_it_decides_are_one_record(desk: Desk) -> None:
    known = len(desk.ledger.records)
    desk.begin(2)
    assert len(desk.ledger.records) == known + 1
    assert (desk.step(2).state, desk.owners()) == (State.RUNNING, [(1, "a1"), (1, "a2")])


def test_a_step_that_is_acted_on_again_takes_nothing_from_who_has_it(desk: Desk) -> None:
    desk.begin(2)
    desk.begin(2, 2)
    assert desk.owners() == [(1, "a1"), (1, "a2")]


def test_no_shard_goes_to_the_dead(desk: Desk) -> None:
    desk.run("stopped", "a2", "x")
    desk.begin(2)
    assert desk.owners() == [(1, "a1"), (0, None)]


def test_a_plan_that_is_over_does_not_go_on(desk: Desk) -> None:
    other = desk.propose(Step(action=Place(service="a")))
    assert (desk.standing(), desk.standing(other)) == (Standing.SUPERSEDED, Standing.RUNNING)
    assert desk.control.plans[desk.plan].why == f"by plan {other}"
    known = len(desk.ledger.records)
    desk.begin(2)
    assert len(desk.ledger.records) == known
    beside = desk.propose(Step(action=Place(service="b")), service="b")
    assert desk.standing(other) is desk.standing(beside) is Standing.RUNNING


def test_a_plan_that_does_not_know_what_has_happened_does_not_go_on(desk: Desk) -> None:
    desk.plan = desk.propose(Step(action=Own(service="a", moves=[(0, "a1")])), basis={"a": 0})
    desk.run("disturb", "a")
    desk.begin(1)
    assert (desk.step(1).state, desk.owners()[0]) == (State.PENDING, (0, None))


def test_a_plan_fails_with_the_first_of_its_steps(desk: Desk) -> None:
    desk.advance(Change(1, State.DONE, 1), Change(2, State.FAILED, 3, "not done within 60 s"))
    assert (desk.standing(), desk.control.plans[desk.plan].why) == (Standing.FAILED, "not done within 60 s")


def test_what_was_started_for_a_step_is_its_result_even_if_it_comes_late(desk: Desk) -> None:
    desk.start("a3", "n1", desk.plan, 1)
    assert desk.step(1).result == "a3"
    desk.start("a4", "n1", 99, 1)
    assert "a4" in desk.control.instances


def test_owners_and_standbys_are_never_on_one_node(desk: Desk) -> None:
    desk.start("a3", "n1")
    desk.propose(Step(action=Follow(service="a", moves=[(0, ["a1", "a2", "a9"])])))
    desk.plan = max(desk.control.plans)
    desk.begin(1)
    assert desk.control.services["a"][0].standbys == ["a1", "a2"], "those that are there"
    desk.run("assign", "a", [(0, "a3")])
    assert desk.control.services["a"][0].standbys == ["a2"], "a1 would die with a3"
    desk.run("assign", "a", [(0, "a2")])
    assert desk.control.services["a"][0].standbys == []


def test_a_shard_that_was_given_up_disturbs_who_has_planned_without_that(desk: Desk) -> None:
    desk.begin(2)
    before = desk.control.disturbed.get("a", 0)
    desk.run("lose", "a", 1, 7)
    assert (desk.owners()[1], desk.control.disturbed["a"]) == ((8, None), before + 1)


# Deaths


def death(desk: Desk, name: str = "a2", **fields: Any) -> tuple[Gone, Incident]:
    node = desk.control.instances[name].node
    piece = evidence(Signal.CLOSED, name, node, at_ms=desk.now_ms)
    return Gone(incarnation=name, reason="killed", signal=Signal.CLOSED, **fields), begin(0, piece, ground())


def test_a_death_and_what_follows_from_it_are_one_record(desk: Desk) -> None:
    known = len(desk.ledger.records)
    counted = Counted(restarts={"top": [10_000]}, held={"a": 11_000})
    desk.run("bury", *death(desk), counted, ["b", "a"])
    assert len(desk.ledger.records) == known + 1
    [found] = desk.control.open_incidents()
    assert (found.id, found.restart, found.restart_ms) == (desk.plan + 1, ["b", "a"], {"b": 10_000, "a": 10_000})
    assert "a2" not in desk.control.instances
    assert (desk.control.restarts, desk.control.held) == ({"top": [10_000]}, {"a": 11_000})
    assert desk.control.wanted["a"] == 2


def test_who_stands_or_falls_with_the_dead_is_disturbed_and_planned_for_anew(desk: Desk) -> None:
    before = dict(desk.control.disturbed)
    desk.run("bury", *death(desk), Counted(restarts={}), ["b", "a"])
    assert {name: desk.control.disturbed[name] > before.get(name, 0) for name in "ab"} == {"a": True, "b": True}


def test_one_that_is_not_restarted_is_wanted_no_more(desk: Desk) -> None:
    desk.run("bury", *death(desk), None, [])
    assert desk.control.wanted["a"] == 1


def test_the_dead_are_buried_once(desk: Desk) -> None:
    again = death(desk)
    desk.run("bury", *again, None, [])
    known = len(desk.ledger.records)
    desk.run("bury", *again, None, [])
    assert len(desk.ledger.records) == known


def test_a_shard_that_has_killed_is_poison_with_the_death_that_shows_it(desk: Desk) -> None:
    for name in [f"a{number}" for number in range(1, DEATHS_MAX + 1)]:
        assert not any(i.kind is Kind.POISON for i in desk.control.open_incidents())
        desk.run("bury", *death(desk, name, replaying=[1]), Counted(restarts={}), [])
    [poison] = [i for i in desk.control.open_incidents() if i.kind is Kind.POISON]
    assert (poison.services, poison.evidence[0].shard) == (["a"], 1)


def test_what_an_operator_allows_is_not_kept_down_again(desk: Desk) -> None:
    for name in ("a1", "a2"):
        desk.run("bury", *death(desk, name, replaying=[1]), Counted(restarts={}), [])
    desk.run("refuse", "a", 1, "poison")
    desk.run("allow", *ANN, "a", 1)
    assert (desk.control.services["a"][1].refused, desk.control.services["a"][1].deaths) == (None, 0)
    poison = next(i for i in desk.control.incidents.values() if i.kind is Kind.POISON)
    assert poison.outcome == "allowed by ann"


def test_a_services_own_plan_stands_in_for_the_strategy_of_its_supervisor(desk: Desk) -> None:
    desk.run("bury", *death(desk), Counted(restarts={}), ["b", "a"])
    number = desk.control.open_incidents()[0].id
    desk.propose(Step(action=Place(service="a")), incident=number)
    assert desk.control.incidents[number].restart == ["b", "a"]
    desk.propose(Step(action=Place(service="a")), incident=number, is_own=True)
    assert (desk.control.incidents[number].restart, desk.control.incidents[number].restart_ms) == ([], {})


def test_what_dies_with_a_node_makes_it_flap_once(desk: Desk) -> None:
    for number in range(6):
        desk.start(f"a{number}", "n7")
        silent = {"signal": Signal.SILENT}
        desk.now_ms += 0 if number % 2 else CORRELATE_MS + 1
        gone, found = death(desk, f"a{number}")
        desk.run("bury", gone.model_copy(update=silent), found, None, [])
    assert len(desk.control.flaps["n7"]) == 3


def test_what_goes_wrong_in_a_policy_disturbs_nobody(desk: Desk) -> None:
    before = dict(desk.control.disturbed)
    desk.run("notice", begin(0, evidence(Signal.POLICY_FAILED, "a1", "n1"), ground()))
    assert desk.control.disturbed == before
    desk.run("notice", begin(0, evidence(Signal.SLOW, "a1", "n1"), ground()))
    assert desk.control.disturbed != before
