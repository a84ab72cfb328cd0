"""How a plan goes on: which steps begin, which wait and say why, which are done, tried again or given up.

Method: a plan, a world, and what changes; what is written down of it is put into the plan (`worlds.after`) for the next look.
"""

from __future__ import annotations

from typing import Any

import pytest

from rekindle.supervisors.plans import (
    ATTEMPTS_MAX,
    Change,
    Cordon,
    Enough,
    Follow,
    Guard,
    LogThere,
    NoSuchStep,
    NotBefore,
    Ordering,
    Own,
    Perform,
    Phase,
    Place,
    Plan,
    Refuse,
    Served,
    Standing,
    Start,
    State,
    Step,
    Stop,
    advance,
    changed,
    is_done,
    standing_of,
)
from rekindle.supervisors.world import World
from tests.supervisors.worlds import after, at, made, of, where

THREE = made(of("a", "a1", "a2", "a3"), at("a1", "n1"), at("a2", "n2"), at("a3", "n3"))
EMPTY = made(of("a", wanted=3))


def plan_of(*phases: Phase) -> Plan:
    return Plan(policy="test", cause="a test", services=["a"], phases=list(phases), id=1)


def starting(*nodes: str, **fields: Any) -> Phase:
    return Phase(name="start", steps=[Step(action=Start(service="a", node=node)) for node in nodes], **fields)


def ending(*names: str, least: int | None = None, **fields: Any) -> Phase:
    guards: dict[str, list[Guard]] = {
        name: [] if least is None else [Enough(service="a", least=least, without=name)] for name in names
    }
    steps = [Step(action=Stop(incarnation=name, reason="test"), guards=guards[name]) for name in names]
    return Phase(name=fields.pop("name", "end"), steps=steps, **fields)


def states(plan: Plan, world: World) -> dict[int, State]:
    return {change.step: change.state for change in advance(plan, world)}


def went_on(plan: Plan, world: World) -> Plan:
    return after(plan, advance(plan, world), world.now_ms)


def at_time(world: World, now_ms: int) -> World:
    return World(now_ms, world.root, world.services, world.instances, world.nodes)


# In which order steps begin


def test_parallel_steps_begin_at_once() -> None:
    assert states(plan_of(starting("n1", "n2", "n3")), EMPTY) == dict.fromkeys((1, 2, 3), State.RUNNING)


def test_serial_steps_begin_one_after_the_other() -> None:
    plan = went_on(plan_of(ending("a1", "a2", ordering=Ordering.SERIAL)), THREE)
    assert [step.state for _, _, step in plan.steps()] == [State.RUNNING, State.PENDING]
    without = made(of("a", None, "a2", "a3"), at("a2", "n2"), at("a3", "n3"))
    assert states(plan, without) == {1: State.DONE, 2: State.RUNNING}


def test_rolling_steps_begin_a_few_at_a_time() -> None:
    plan = went_on(plan_of(ending("a1", "a2", "a3", ordering=Ordering.ROLLING, at_once=2)), THREE)
    assert [step.state for _, _, step in plan.steps()] == [State.RUNNING, State.RUNNING, State.PENDING]
    assert advance(plan, THREE) == []
    without = made(of("a", "a1", None, "a3"), at("a1", "n1"), at("a3", "n3"))
    assert states(plan, without) == {2: State.DONE, 3: State.RUNNING}


def test_rolling_by_zone_touches_one_zone_at_a_time() -> None:
    world = made(of("a", "a1"), at("a1", "n1"), at("a2", "n1"), at("a3", "n3"))
    rolling = ending("a1", "a3", "a2", ordering=Ordering.ROLLING, at_once=3, by_zone=True)
    assert states(plan_of(rolling), world) == {1: State.RUNNING, 3: State.RUNNING}


def test_a_phase_begins_when_the_one_before_it_is_over() -> None:
    plan = went_on(plan_of(ending("a1"), starting("n1")), THREE)
    assert [step.state for _, _, step in plan.steps()] == [State.RUNNING, State.PENDING]
    without = made(of("a", None, "a2", "a3"), at("a2", "n2"), at("a3", "n3"))
    assert states(plan, without) == {1: State.DONE, 2: State.RUNNING}


def test_a_phase_that_names_those_before_it_waits_for_them_only() -> None:
    plan = plan_of(ending("a1"), starting("n1", after=[]), ending("a2", name="later", after=["start"]))
    assert states(plan, THREE) == {1: State.RUNNING, 2: State.RUNNING}


def test_a_phase_without_steps_is_over() -> None:
    assert states(plan_of(Phase(name="nothing", steps=[]), starting("n1")), EMPTY) == {1: State.RUNNING}


# Guards


@pytest.mark.parametrize(
    ("guard", "why"),
    [
        (Served(service="a"), "1 shards of a are not served; `force` or `skip` of step 1 would unblock it"),
        (
            Enough(service="a", least=2, without="a1"),
            "1 instances of a would be left, 2 must stay; `force` or `skip` of step 1 would unblock it",
        ),
        (NotBefore(at_ms=12_000), "waits until 12000; `force` step 1 lets it begin at once"),
        (LogThere(), "the log is away; `force` or `skip` of step 1 would unblock it"),
    ],
)
def test_a_blocked_step_says_why_and_names_the_verb_that_unblocks_it(guard: Guard, why: str) -> None:
    world = made(of("a", "a1", None), at("a1", "n1"), at("a2", "n2"), log_there=False)
    plan = plan_of(Phase(name="start", steps=[Step(action=Start(service="a", node="n1"), guards=[guard])]))
    assert advance(plan, world) == [Change(1, State.BLOCKED, 0, why)]
    blocked = went_on(plan, world)
    assert advance(blocked, world) == [], "it says so once"
    forced = Step(action=Start(service="a", node="n1"), guards=[guard], state=State.BLOCKED, forced=True)
    assert states(plan_of(Phase(name="start", steps=[forced])), world) == {1: State.RUNNING}


def test_a_blocked_step_begins_when_its_guards_hold() -> None:
    guarded = Step(action=Start(service="a", node="n1"), guards=[Served(service="a"), NotBefore(at_ms=9_000)])
    plan = went_on(plan_of(Phase(name="start", steps=[guarded])), made(of("a", "a1", None), at("a1", "n1")))
    assert states(plan, made(of("a", "a1", "a1"), at("a1", "n1"))) == {1: State.RUNNING}


def test_steps_that_begin_together_leave_enough_behind_all_of_them() -> None:
    """Each alone would leave two; the guard of each next one knows of those before it."""
    plan = plan_of(ending("a1", "a2", "a3", least=2))
    assert states(plan, THREE) == {1: State.RUNNING, 2: State.BLOCKED, 3: State.BLOCKED}
    assert advance(went_on(plan, THREE), THREE) == []


def test_an_instance_that_is_still_being_ended_is_not_left() -> None:
    plan = plan_of(ending("a1"), ending("a2", least=2, name="then", after=[]))
    assert states(plan, THREE) == {1: State.RUNNING, 2: State.BLOCKED}
    assert states(plan_of(ending("a2", least=2)), THREE) == {1: State.RUNNING}


# Looking before acting, deadlines, attempts


def test_what_is_so_already_is_not_done_again() -> None:
    plan = plan_of(Phase(name="own", steps=[Step(action=Own(service="a", moves=[(0, "a1")]))]))
    assert advance(plan, THREE) == [Change(1, State.DONE, 0, "was so already")]
    running = Step(action=Own(service="a", moves=[(0, "a1")]), state=State.RUNNING, attempt=1)
    assert advance(plan_of(Phase(name="own", steps=[running])), THREE) == [Change(1, State.DONE, 1)]


def test_a_step_that_is_not_done_in_time_is_tried_again_and_then_given_up() -> None:
    step = Step(action=Stop(incarnation="a1", reason="test"), deadline_s=2.0)
    plan = went_on(plan_of(Phase(name="end", steps=[step])), at_time(THREE, 10_000))
    now_ms = 10_000
    for attempt in range(2, ATTEMPTS_MAX + 1):
        assert advance(plan, at_time(THREE, now_ms + 2_000)) == [], "it has time until then"
        now_ms += 2_001
        again = Change(1, State.RUNNING, attempt, "tried again: not done within 2 s")
        assert advance(plan, at_time(THREE, now_ms)) == [again]
        plan = went_on(plan, at_time(THREE, now_ms))
    failed = advance(plan, at_time(THREE, now_ms + 2_001))
    assert failed == [Change(1, State.FAILED, ATTEMPTS_MAX, "not done within 2 s")]
    assert standing_of(after(plan, failed, now_ms)) is Standing.FAILED


def test_an_attempt_that_cannot_succeed_is_not_waited_for() -> None:
    plan = went_on(plan_of(starting("n1")), EMPTY)
    failures = {(1, 1): "node n1 is gone"}
    assert advance(plan, EMPTY, failures) == [Change(1, State.RUNNING, 2, "tried again: node n1 is gone")]
    assert advance(went_on(plan, EMPTY), EMPTY, {}) == []


def test_a_step_that_is_to_begin_again_counts_on_and_has_all_its_attempts() -> None:
    """So no attempt has the name of one that somebody may still be carrying out."""
    step = Step(action=Start(service="a", node="n1"), state=State.RUNNING, attempt=ATTEMPTS_MAX)
    again = changed(step, Change(1, State.PENDING, step.attempt), 0)
    assert (again.attempt, again.attempts_max) == (ATTEMPTS_MAX, 2 * ATTEMPTS_MAX)
    assert states(plan_of(Phase(name="start", steps=[again])), EMPTY) == {1: State.RUNNING}


def test_the_time_of_a_step_begins_anew_with_each_attempt_only() -> None:
    step = changed(Step(action=Start(service="a", node="n1")), Change(1, State.RUNNING, 1), 5_000)
    assert changed(step, Change(1, State.RUNNING, 1, "another word"), 6_000).since_ms == 5_000
    assert changed(step, Change(1, State.RUNNING, 2), 7_000).since_ms == 7_000


# Plans


@pytest.mark.parametrize("standing", [Standing.PAUSED, Standing.DONE, Standing.FAILED, Standing.SUPERSEDED])
def test_only_a_running_plan_goes_on(standing: Standing) -> None:
    plan = plan_of(starting("n1")).model_copy(update={"standing": standing})
    assert advance(plan, EMPTY) == []


def test_a_plan_is_done_when_all_its_steps_are_or_were_skipped() -> None:
    plan = plan_of(starting("n1", "n2"))
    done = after(plan, [Change(1, State.DONE, 1), Change(2, State.SKIPPED, 0)], 0)
    assert standing_of(plan) is Standing.RUNNING
    assert standing_of(done) is Standing.DONE


def test_a_plan_has_no_other_steps_than_those_it_has() -> None:
    plan = plan_of(starting("n1", "n2"), ending("a1"))
    assert plan.step(3).action == Stop(incarnation="a1", reason="test")
    with pytest.raises(NoSuchStep, match="steps=3"):
        plan.step(4)


# What each action wants


@pytest.mark.parametrize(
    ("action", "so", "not_so"),
    [
        (Own(service="a", moves=[(0, "a1")]), THREE, made(of("a", "a2"), at("a2", "n1"))),
        (Own(service="a", moves=[(0, None)]), made(of("a", None)), THREE),
        (Stop(incarnation="a1", reason="x"), EMPTY, THREE),
        (Refuse(service="a", shard=0, reason="x"), made(where(of("a", "a1"), 0, refused="x")), THREE),
        (Cordon(node="n1", reason="x"), made(of("a"), cordoned={"n1": "x"}), THREE),
        (Cordon(node="n1", reason=None), THREE, made(of("a"), cordoned={"n1": "x"})),
        (Place(service="a"), THREE, made(of("a", "a1", None), at("a1", "n1"))),
        (Perform(incarnation="a1", operation="x"), None, THREE),
        (Start(service="a", node="n1"), None, THREE),
    ],
)
def test_an_action_is_done_when_what_it_wants_is_so(action: Any, so: World | None, not_so: World) -> None:
    assert so is None or is_done(Step(action=action), so)
    assert not is_done(Step(action=action), not_so)


def test_a_start_is_done_when_what_was_started_is_up_and_an_operation_when_it_gave_something() -> None:
    assert is_done(Step(action=Start(service="a", node="n1"), result="a1"), THREE)
    assert not is_done(Step(action=Start(service="a", node="n1"), result="a1"), made(of("a"), at("a1", "n1", up=False)))
    assert is_done(Step(action=Perform(incarnation="a1", operation="x"), result=[None]), THREE)


def test_a_shard_that_is_not_to_be_served_now_is_where_it_is_to_be() -> None:
    refused, held = (
        made(where(of("a", None), 0, **state), at("a1", "n1")) for state in ({"refused": "x"}, {"held": True})
    )
    for world in (refused, held):
        assert is_done(Step(action=Own(service="a", moves=[(0, "a1")])), world)
        assert is_done(Step(action=Place(service="a")), world)


def test_standbys_follow_when_exactly_these_have_caught_up() -> None:
    follow = Step(action=Follow(service="a", moves=[(0, ["a2"])]))

    def follows(**state: Any) -> bool:
        return is_done(follow, made(where(of("a", "a1"), 0, **state), at("a1", "n1"), at("a2", "n2"), at("a3", "n3")))

    assert follows(standbys=("a2",), behind={"a2": 7})
    assert not follows(standbys=("a2",), behind={"a2": None}), "it has not caught up"
    assert not follows()
    assert not follows(standbys=("a2", "a3"), behind={"a2": 0, "a3": 0}), "one too many follows"
    assert is_done(follow, made(of("a", "a1"), at("a1", "n1"))), "one that has died cannot"
    assert follows(owner="a2"), "nor can one that owns it by now"
