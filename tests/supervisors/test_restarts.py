"""OTP's restart rules: what is restarted, by whom, in which order, when, and what is remembered of it.

Goal: a reader who knows `supervisor.erl` finds it again. Method: examples that follow the words of OTP's documentation,
then hypothesis: random trees and exits, compared with a tree that runs as OTP runs it (`otp`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings

from rekindle import (
    ONE_FOR_ALL,
    ONE_FOR_ONE,
    PERMANENT,
    REST_FOR_ONE,
    TEMPORARY,
    TRANSIENT,
    Backoff,
    Restart,
    Strategy,
    Supervisor,
)
from rekindle.supervisors import DeclarationError, History, Verdict, on_exit, start_levels
from rekindle.supervisors.tree import Child, dependencies
from tests.supervisors.otp import Exit, exits, service, tell, trees


def family(strategy: Strategy, *children: Child, name: str = "root", max_restarts: int = 3) -> Supervisor:
    return Supervisor(name, strategy, children, max_restarts)


def crash(tree: Supervisor, child: str, history: History | None = None, now_ms: int = 0) -> Verdict:
    """An abnormal exit."""
    return on_exit(tree, history or {}, child, abnormal=True, now_ms=now_ms)


def crashes(tree: Supervisor, child: str, times_ms: Iterable[int]) -> list[Verdict]:
    """Abnormal exits of one child, one after the other."""
    verdicts: list[Verdict] = []
    history: History = {}
    for now_ms in times_ms:
        verdicts.append(crash(tree, child, history, now_ms))
        history = verdicts[-1].history
    return verdicts


A, B, C = service("a"), service("b"), service("c")
PAIR = family(ONE_FOR_ONE, service("x"), service("y"), name="pair")

# Strategies: "if one child process terminates and is to be restarted, ..."


def test_one_for_one_affects_only_that_child() -> None:
    """Its other instances serve on: nothing is stopped."""
    verdict = crash(family(ONE_FOR_ONE, A, B, C), "b", now_ms=7)
    assert verdict == Verdict({"root": [7]}, "root", start=["b"])


def test_one_for_all_terminates_all_other_children_and_then_restarts_all() -> None:
    """In reverse start order, and in start order; those of nested supervisors, too."""
    verdict = crash(family(ONE_FOR_ALL, A, PAIR, B), "b", now_ms=7)
    assert verdict == Verdict({"root": [7]}, "root", stop=["b", "y", "x", "a"], start=["a", "x", "y", "b"])


def test_rest_for_one_terminates_those_after_the_child_and_restarts_it_and_them() -> None:
    tree = family(REST_FOR_ONE, A, PAIR, B, C)
    assert crash(tree, "b", now_ms=7) == Verdict({"root": [7]}, "root", stop=["c", "b"], start=["b", "c"])
    assert crash(tree, "a").stop == ["c", "b", "y", "x", "a"]
    assert crash(tree, "c").stop == crash(tree, "c").start == ["c"]


def test_a_supervisor_restarts_its_own_children_and_nobody_elses() -> None:
    tree = family(ONE_FOR_ALL, A, family(ONE_FOR_ONE, B, C, name="inner"))
    assert crash(tree, "b", now_ms=7) == Verdict({"inner": [7]}, "inner", start=["b"])


# Restart: "a permanent child process is always restarted ..."


@pytest.mark.parametrize(
    ("restart", "abnormal", "is_restarted"),
    [
        (PERMANENT, True, True),
        (PERMANENT, False, True),
        (TRANSIENT, True, True),
        (TRANSIENT, False, False),
        (TEMPORARY, True, False),
        (TEMPORARY, False, False),
    ],
)
@pytest.mark.parametrize("strategy", Strategy)
def test_whether_a_child_is_restarted_at_all(
    strategy: Strategy, restart: Restart, abnormal: bool, is_restarted: bool
) -> None:
    """One that is not restarted counts for nothing, and its siblings never notice."""
    tree = family(strategy, A, service("b", restart), C, max_restarts=1)
    verdict = on_exit(tree, {"root": [0]}, "a", abnormal=True, now_ms=99_000)
    verdict = on_exit(tree, verdict.history, "b", abnormal=abnormal, now_ms=199_000)
    assert ("b" in verdict.start) == is_restarted
    assert verdict == Verdict({"root": [0, 99_000]}) or is_restarted


def test_a_temporary_child_is_not_restarted_even_when_a_siblings_death_terminates_it() -> None:
    temporary = service("b", TEMPORARY)
    verdict = crash(family(ONE_FOR_ALL, A, temporary, C), "c")
    assert (verdict.stop, verdict.start) == (["c", "b", "a"], ["a", "c"])


def test_a_supervisor_that_starts_anew_starts_its_temporary_children_too() -> None:
    inner = family(ONE_FOR_ONE, service("b", TEMPORARY), name="inner")
    verdict = crash(family(ONE_FOR_ALL, A, inner), "a")
    assert (verdict.stop, verdict.start) == (["b", "a"], ["a", "b"])


def test_a_transient_child_that_has_finished_is_started_again_with_its_siblings() -> None:
    verdict = crash(family(ONE_FOR_ALL, A, service("b", TRANSIENT)), "a")
    assert verdict.start == ["a", "b"]


# Intensity: "if more than MaxR restarts occur within MaxT seconds, the supervisor terminates all child processes and
# then itself"


def test_as_many_restarts_as_allowed_are_made_and_one_more_is_not() -> None:
    verdicts = crashes(family(ONE_FOR_ONE, A, B), "a", [0, 1_000, 2_000, 60_000])
    assert [verdict.by for verdict in verdicts] == ["root", "root", "root", None]
    assert [verdict.is_final for verdict in verdicts] == [False, False, False, True]
    assert verdicts[-1].history == {}


def test_a_restart_that_is_older_than_the_window_does_not_count() -> None:
    """At 60,000 ms the first one is exactly 60 s old, which OTP still counts."""
    assert not crashes(family(ONE_FOR_ONE, A), "a", [0, 1_000, 2_000, 60_001])[-1].is_final


def test_all_children_of_a_supervisor_count_together() -> None:
    tree = family(ONE_FOR_ONE, A, B, max_restarts=1)
    assert crash(tree, "b", crash(tree, "a").history).is_final


def test_no_restarts_allowed_means_none() -> None:
    assert crash(family(ONE_FOR_ALL, A, B, max_restarts=0), "a") == Verdict({}, gave_up=["root"], stop=["b", "a"])


def test_when_the_root_gives_up_everything_is_stopped_and_nothing_started() -> None:
    tree = family(ONE_FOR_ONE, A, PAIR, B, max_restarts=0)
    assert crash(tree, "a") == Verdict({}, None, ["root"], stop=["b", "y", "x", "a"])


# Escalation: the supervisor is a child, too


@pytest.mark.parametrize(
    ("strategy", "restarted"),
    [(ONE_FOR_ONE, ["b", "c"]), (REST_FOR_ONE, ["b", "c", "d"]), (ONE_FOR_ALL, ["a", "b", "c", "d"])],
)
def test_a_supervisor_that_gives_up_is_restarted_whole_by_the_one_above(
    strategy: Strategy, restarted: list[str]
) -> None:
    inner = family(ONE_FOR_ONE, B, C, name="inner", max_restarts=1)
    first, second = crashes(family(strategy, A, inner, service("d")), "b", [1, 2])
    assert first == Verdict({"inner": [1]}, "inner", start=["b"])
    assert second == Verdict({"root": [2]}, "root", ["inner"], stop=restarted[::-1], start=restarted)


def test_a_supervisor_that_was_restarted_may_restart_as_often_again() -> None:
    """Its history died with it; the one above counts one restart for all of that."""
    inner = family(ONE_FOR_ONE, B, name="inner", max_restarts=1)
    verdicts = crashes(family(ONE_FOR_ONE, inner, max_restarts=2), "b", range(6))
    assert [verdict.by for verdict in verdicts] == ["inner", "root", "inner", "root", "inner", None]
    assert [verdict.gave_up for verdict in verdicts[1::2]] == [["inner"], ["inner"], ["inner", "root"]]
    assert [verdict.history for verdict in verdicts[1:4]] == [
        {"root": [1]},
        {"root": [1], "inner": [2]},
        {"root": [1, 3]},
    ]


def test_siblings_that_are_restarted_begin_with_an_empty_history() -> None:
    left, right = (family(ONE_FOR_ONE, child, name=f"of-{child.name}") for child in (A, B))
    tree = family(REST_FOR_ONE, left, C, right)
    verdict = crash(tree, "c", {"of-a": [1], "of-b": [2]}, now_ms=3)
    assert verdict.history == {"of-a": [1], "root": [3]}


def test_giving_up_goes_up_as_far_as_it_must() -> None:
    innermost = family(ONE_FOR_ONE, A, name="innermost", max_restarts=0)
    inner = family(ONE_FOR_ALL, innermost, B, name="inner", max_restarts=0)
    verdict = crash(family(ONE_FOR_ONE, C, inner), "a", now_ms=5)
    assert verdict == Verdict({"root": [5]}, "root", ["innermost", "inner"], ["b", "a"], ["a", "b"])


def test_a_supervisor_can_be_given_up_from_outside() -> None:
    """A policy that can do no more says so: supervisors are permanent children, whatever the reason."""
    tree = family(ONE_FOR_ONE, A, PAIR)
    verdict = on_exit(tree, {"pair": [1]}, "pair", abnormal=False, now_ms=2)
    assert verdict == Verdict({"root": [2]}, "root", stop=["y", "x"], start=["x", "y"])


@pytest.mark.parametrize("child", ["z", "root"])
def test_what_is_no_child_cannot_exit(child: str) -> None:
    with pytest.raises(DeclarationError, match=f"expected a child of the tree 'root', got '{child}'"):
        crash(family(ONE_FOR_ONE, A), child)


# Order: dependency order, each level ready before the next


def test_without_needs_all_services_are_on_one_level_in_the_trees_order() -> None:
    assert start_levels(family(ONE_FOR_ALL, A, PAIR, B)) == [["a", "x", "y", "b"]]


def test_a_service_starts_behind_all_that_it_needs_anywhere_in_the_tree() -> None:
    inner = family(ONE_FOR_ONE, service("b", needs=["d"]), C, name="inner")
    tree = family(ONE_FOR_ONE, service("a", needs=["b", "c"]), inner, service("d"))
    assert start_levels(tree) == [["c", "d"], ["b"], ["a"]]


def test_children_of_rest_for_one_start_one_behind_the_other() -> None:
    """Also behind a supervisor, and over one that has no services."""
    tree = family(REST_FOR_ONE, A, PAIR, Supervisor("empty"), B)
    assert start_levels(family(ONE_FOR_ONE, tree, C, name="top")) == [["a", "c"], ["x", "y"], ["b"]]


def test_a_restart_keeps_to_the_order_of_needs() -> None:
    verdict = crash(family(ONE_FOR_ALL, service("a", needs=["b"]), B, service("c", needs=["a"])), "c")
    assert (verdict.stop, verdict.start) == (["c", "a", "b"], ["b", "a", "c"])


def test_whoever_needs_a_service_is_not_restarted_with_it() -> None:
    """A strategy says who is; `needs` says only in which order."""
    assert crash(family(ONE_FOR_ONE, A, service("b", needs=["a"])), "a").start == ["a"]


# Backoff

OFTEN = Supervisor("root", children=[A], max_restarts=100)


def test_the_first_restart_is_immediate_and_each_one_after_it_waits_longer() -> None:
    delays_ms = [verdict.delay_ms for verdict in crashes(OFTEN, "a", range(0, 1_000_000, 100_000))]
    assert delays_ms == [0, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]


def test_five_healthy_minutes_end_the_row() -> None:
    almost, whole = 299_999, 300_000
    assert [v.delay_ms for v in crashes(OFTEN, "a", [0, almost, 2 * almost])] == [0, 1_000, 2_000]
    assert [v.delay_ms for v in crashes(OFTEN, "a", [0, almost, almost + whole])] == [0, 1_000, 0]


@pytest.mark.parametrize(("chance", "delay_ms"), [(0.0, 1_600), (0.25, 1_800), (0.5, 2_000), (0.75, 2_200)])
def test_jitter_is_where_the_caller_puts_it(chance: float, delay_ms: int) -> None:
    verdict = on_exit(OFTEN, {"root": [1, 2]}, "a", abnormal=True, now_ms=3, chance=chance)
    assert verdict.delay_ms == delay_ms


def test_the_one_that_restarts_says_how_long_to_wait() -> None:
    slow = Backoff(first_s=10.0, factor=3.0, max_s=100.0, jitter=0.0, reset_after_s=101.0)
    inner = family(ONE_FOR_ONE, A, name="inner", max_restarts=0)
    tree = Supervisor("root", children=[inner], max_restarts=100, backoff=slow)
    verdicts = crashes(tree, "a", range(0, 500_000, 100_000))
    assert [verdict.delay_ms for verdict in verdicts] == [0, 10_000, 30_000, 90_000, 100_000]


# What is remembered


def test_what_cannot_matter_any_more_is_forgotten_also_of_the_others() -> None:
    tree = family(ONE_FOR_ONE, A, family(ONE_FOR_ONE, B, name="inner"))
    history = {"root": [0, 300_000], "inner": [1, 2], "no-more-in-the-tree": [600_000]}
    assert crash(tree, "a", history, now_ms=600_000).history == {"root": [600_000]}


def test_a_window_longer_than_the_backoffs_memory_is_remembered_whole() -> None:
    tree = Supervisor("root", children=[A], max_restarts=2, within=3_600.0)
    verdicts = crashes(tree, "a", [0, 1_000_000, 2_000_000])
    assert [verdict.by for verdict in verdicts] == ["root", "root", None]
    assert [verdict.delay_ms for verdict in verdicts] == [0, 0, 0]


def test_a_clock_that_was_set_back_does_not_make_restarts_last() -> None:
    """They count as made now, and grow old from there."""
    tree = family(ONE_FOR_ONE, A)
    verdict = crash(tree, "a", {"root": [9_000_000, 9_000_001]}, now_ms=1_000)
    assert verdict.history == {"root": [1_000, 1_000, 1_000]}
    assert not crash(tree, "a", verdict.history, now_ms=61_001).is_final


# Any tree, any exits


@settings(deadline=None)
@given(trees(), exits)
def test_any_exit_leads_to_what_it_leads_to_in_otp(tree: Supervisor, exits: list[Exit]) -> None:
    """Strategy, restart type, intensity and escalation: `agree` compares them at every step."""
    assert len(list(tell(tree, exits))) == len(exits)


@settings(deadline=None)
@given(trees(), exits)
def test_nobody_restarts_more_often_than_allowed_before_somebody_above_has_restarted_it(
    tree: Supervisor, exits: list[Exit]
) -> None:
    supervisors = {supervisor.name: supervisor for supervisor in tree.supervisors()}
    made: dict[str, list[int]] = {name: [] for name in supervisors}
    for told in tell(tree, exits):
        if told.verdict.is_final:
            made = {name: [] for name in supervisors}
        if told.verdict.by is not None:
            by = supervisors[told.verdict.by]
            made[by.name].append(told.now_ms)
            made.update((below.name, []) for below in by.supervisors() if below is not by)
            assert sum(at >= told.now_ms - 1000 * by.within for at in made[by.name]) <= by.max_restarts


@settings(deadline=None)
@given(trees(), exits)
def test_what_was_forgotten_would_have_changed_nothing(tree: Supervisor, exits: list[Exit]) -> None:
    """And what is remembered is bounded, sorted, and only of supervisors that there are."""
    bounds = {s.name: max(s.max_restarts, len(s.backoff.pauses_s) - 1) for s in tree.supervisors()}
    for told in tell(tree, exits):
        assert told.again(tree, told.complete) == told.verdict
        for name, times in told.verdict.history.items():
            assert 0 < len(times) <= bounds[name]
            assert times == sorted(times)
            assert times[-1] <= told.now_ms


@settings(deadline=None)
@given(trees(), exits)
def test_the_same_exit_after_the_same_history_is_judged_the_same(tree: Supervisor, exits: list[Exit]) -> None:
    """Whoever judges: the history may have gone through a log, and is not changed by being read."""
    for told in tell(tree, exits):
        stored = json.dumps(told.remembered)
        assert told.again(tree, json.loads(stored)) == told.verdict
        assert json.dumps(told.remembered) == stored


@settings(deadline=None)
@given(trees(), exits)
def test_the_pause_is_that_of_the_restarts_in_a_row(tree: Supervisor, exits: list[Exit]) -> None:
    backoffs = {supervisor.name: supervisor.backoff for supervisor in tree.supervisors()}
    for told in tell(tree, exits):
        if told.verdict.by is not None:
            backoff, times = backoffs[told.verdict.by], [*told.complete[told.verdict.by], told.now_ms]
            gaps = [later - earlier for earlier, later in pairwise(times)]
            healthy = [number for number, gap in enumerate(gaps, 1) if gap >= 1000 * backoff.reset_after_s]
            before = len(gaps) - max(healthy, default=0)
            pause_s = min(backoff.first_s * backoff.factor ** (before - 1), backoff.max_s) if before else 0
            assert told.verdict.delay_ms == 1000 * pause_s


@settings(deadline=None)
@given(trees(), exits)
def test_services_start_after_what_they_need_and_stop_before_it(tree: Supervisor, exits: list[Exit]) -> None:
    order = [name for level in start_levels(tree) for name in level]
    for told in tell(tree, exits):
        assert told.verdict.start == [name for name in order if name in told.verdict.start]
        assert told.verdict.stop == [name for name in reversed(order) if name in told.verdict.stop]


@settings(deadline=None)
@given(trees())
def test_every_service_starts_as_early_as_its_needs_allow(tree: Supervisor) -> None:
    levels = start_levels(tree)
    level_of = {name: number for number, level in enumerate(levels) for name in level}
    in_order = [service.name for service in tree.services()]
    assert sorted(level_of) == sorted(in_order)
    assert all(level == [name for name in in_order if name in level] for level in levels)
    behind = {name: [level_of[need] for need in needs] for name, needs in dependencies(tree).items()}
    assert all(level_of[name] == max(needs, default=-1) + 1 for name, needs in behind.items())
