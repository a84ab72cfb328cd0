"""What each policy plans, in the situation that it is for, and what it leaves to others.

Method: a world of a few instances, an incident, and the plan as short lines: `own a: 0->a2` or `start a on n2`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rekindle import ONE_FOR_ALL, REST_FOR_ONE, Service, Supervisor
from rekindle.supervisors.incidents import Incident, Kind, Signal
from rekindle.supervisors.parts import MOVES_AT_ONCE
from rekindle.supervisors.plans import (
    Cordon,
    Enough,
    Follow,
    LogThere,
    NotBefore,
    Ordering,
    Own,
    Phase,
    Place,
    Plan,
    Ready,
    Refuse,
    Served,
    Start,
    Step,
    Stop,
)
from rekindle.supervisors.policies import (
    BUILT_IN,
    CoordinatedRestart,
    Drain,
    Guarded,
    Hold,
    MassFreeze,
    Policy,
    PromoteStandby,
    QuarantineGray,
    QuarantinePoison,
    Replace,
    Reshuffle,
    TreeStrategy,
    delayed,
    missing,
    rolling_by_zone,
    upkeep,
)
from rekindle.supervisors.world import World
from tests.supervisors.worlds import at, evidence, incident, made, of, where
from tests.support.inprocess import Tally

CRASH = incident(Kind.INSTANCE_CRASH, evidence(Signal.CLOSED, "a1", "n1"))


def lines(plan: Plan | None) -> list[str]:
    """What a plan wants, phase by phase."""
    return [] if plan is None else [line for phase in plan.phases for line in map(told, phase.steps)]


def told(step: Step) -> str:
    match step.action:
        case Own(service=name, moves=moves):
            return f"own {name}: {', '.join(f'{shard}->{to}' for shard, to in moves)}"
        case Follow(service=name, moves=moves):
            followers = [f"{shard}->{'+'.join(names)}" for shard, names in moves]
            return f"follow {name}: {', '.join(followers)}"
        case Start(service=name, node=node):
            return f"start {name} on {node}"
        case Stop(incarnation=name):
            return f"stop {name}"
        case Refuse(service=name, shard=shard):
            return f"refuse {name}/{shard}"
        case Cordon(node=node):
            return f"cordon {node}"
        case Place(service=name):
            return f"place {name}"
        case other:
            raise AssertionError(f"no built-in policy plans {other}")


def phase(plan: Plan | None, name: str) -> Phase:
    assert plan is not None
    return next(phase for phase in plan.phases if phase.name == name)


def planned(policy: Policy, what: Incident, world: World) -> list[str]:
    return lines(policy.plan(what, world))


# promote_standby, reshuffle, replace


def test_orphans_go_to_the_standby_that_has_caught_up_most() -> None:
    orphan = where(of("a", None, "a3", standbys=2, wanted=3), 0, standbys=("a2", "a3"), behind={"a2": 9, "a3": 2})
    world = made(orphan, at("a2", "n2"), at("a3", "n3"))
    assert planned(PromoteStandby(), CRASH, world)[:2] == ["own a: 0->a3", "start a on n1"]


def test_a_standby_that_has_not_caught_up_comes_last() -> None:
    orphan = where(of("a", None, standbys=2, wanted=2), 0, standbys=("a2", "a3"), behind={"a2": 9, "a3": None})
    assert planned(PromoteStandby(), CRASH, made(orphan, at("a2", "n2"), at("a3", "n3")))[0] == "own a: 0->a2"


def test_promote_standby_leaves_a_service_to_others_of_which_an_orphan_has_no_standby() -> None:
    world = made(where(of("a", None, None), 0, standbys=("a2",)), at("a2", "n2"))
    assert PromoteStandby().plan(CRASH, world) is None
    assert planned(Reshuffle(), CRASH, world) == ["own a: 0->a2, 1->a2"]


def test_survivors_take_orphans_at_once_and_the_rest_comes_when_all_are_served() -> None:
    world = made(of("a", None, "a2", None, "a3", wanted=3), at("a2", "n2"), at("a3", "n3"))
    plan = Reshuffle().plan(CRASH, world)
    assert lines(plan) == ["own a: 0->a2", "own a: 2->a3", "start a on n1"]
    assert phase(plan, "replace a").steps[0].guards == [Served(service="a")]
    assert phase(plan, "replace a").after == ["own a"]


def test_where_nothing_survives_the_new_ones_take_all() -> None:
    plan = Reshuffle().plan(CRASH, made(of("a", None, None, wanted=2)))
    assert lines(plan) == ["start a on n1", "start a on n2", "place a"]
    assert phase(plan, "replace a").steps[0].guards == []


def test_missing_standbys_follow_last_and_not_on_the_owners_node() -> None:
    world = made(of("a", "a1", "a2", standbys=1), at("a1", "n1"), at("a2", "n2"), at("a3", "n2"))
    assert planned(Reshuffle(), CRASH, world) in (
        ["follow a: 0->a2, 1->a1"],
        ["follow a: 0->a3, 1->a1"],
    )


def test_an_instance_is_started_elsewhere_than_where_one_has_just_died() -> None:
    world = made(of("a", "a2", wanted=2), at("a2", "n2"))
    nodes = {**world.nodes, "n1": replace(world.nodes["n1"], died_at_ms=9_000)}
    assert planned(Reshuffle(), CRASH, replace(world, nodes=nodes)) == ["start a on n3"]


def test_a_service_is_not_put_all_on_one_node_because_of_deaths_elsewhere() -> None:
    """A process that crashed is not its node's fault, and standbys need another node than their owners'."""
    world = made(of("a", "a1", wanted=2, standbys=1), at("a1", "n1"))
    nodes = {name: replace(node, died_at_ms=None if name == "n1" else 9_000) for name, node in world.nodes.items()}
    assert planned(Reshuffle(), CRASH, replace(world, nodes=nodes))[0] == "start a on n2"


def test_instances_that_came_to_be_on_one_node_get_one_elsewhere_and_then_one_of_them_is_too_many() -> None:
    close = made(of("a", "a1", "a2", standbys=1, wanted=2), at("a1", "n1"), at("a2", "n1"))
    assert lines(missing(close, ["a"])) == ["start a on n2"]
    apart = made(of("a", "a1", "a3", standbys=1, wanted=2), at("a1", "n1"), at("a2", "n1"), at("a3", "n2"))
    assert lines(upkeep(apart, "a")) == ["stop a2"]


def test_services_that_start_together_are_spread_over_nodes_too() -> None:
    plan = missing(made(of("a"), of("b"), of("c"), of("d")), ["a", "b", "c", "d"])
    starts = [line for line in lines(plan) if line.startswith("start")]
    assert starts == ["start a on n1", "start b on n2", "start c on n3", "start d on n1"]


def test_instances_are_spread_over_nodes_and_zones() -> None:
    zones = {"n1": "z1", "n2": "z1", "n3": "z2", "n4": "z2"}
    world = made(of("a", wanted=4), nodes=zones)
    assert planned(Reshuffle(), CRASH, world)[:-1] == [f"start a on {node}" for node in ("n1", "n3", "n2", "n4")]


def test_replace_starts_what_is_missing_before_shards_find_a_new_place() -> None:
    world = made(of("a", None, "a2", wanted=2), at("a2", "n2"))
    plan = Replace().plan(CRASH, world)
    assert lines(plan) == ["start a on n1", "place a"]
    assert phase(plan, "replace a").steps[0].guards == []


@pytest.mark.parametrize("policy", [PromoteStandby(), Reshuffle(), Replace(), CoordinatedRestart(), TreeStrategy()])
@pytest.mark.parametrize("kind", [Kind.GRAY, Kind.POISON, Kind.LOG_UNAVAILABLE, Kind.PLANNED_DRAIN, Kind.MASS_FAILURE])
def test_who_plans_for_deaths_plans_for_nothing_else(policy: Policy, kind: Kind) -> None:
    other = CRASH.model_copy(update={"kind": kind, "restart": ["a"], "restart_ms": {"a": 10_000}})
    assert policy.plan(other, made(of("a", None), at("a2", "n2"))) is None


def test_who_needs_a_service_waits_until_it_is_served_and_for_nothing_else() -> None:
    """Not for instances that are started, nor for standbys that follow."""
    a = of("a", None, "a2", standbys=1, wanted=3)
    world = made(a, of("b", None, "b2", needs=["a"]), at("a2", "n2"), at("b2", "n3"))
    both = CRASH.model_copy(update={"services": ["b", "a"]})
    plan = Reshuffle().plan(both, world)
    assert phase(plan, "own a").after == []
    assert phase(plan, "own b").after == ["own a"]
    assert phase(plan, "replace a").after == ["own a"]


def test_below_rest_for_one_each_child_is_started_when_the_one_before_it_serves() -> None:
    services = [of("a"), of("b")]
    root = Supervisor("top", REST_FOR_ONE, [service.spec for service in services])
    plan = missing(made(*services, root=root), ["b", "a"])
    assert lines(plan) == ["start a on n1", "place a", "start b on n2", "place b"]
    assert phase(plan, "replace b").after == ["place a"]


# restarts: the strategies of the tree, and coordinated_restart


def started(name: str, node: str, started_ms: int) -> Any:
    return at(name, node, started_ms=started_ms)


def group(*, b_started_ms: int = 0, a_started_ms: int = 0) -> World:
    services = [of("a", "a1"), of("b", "b1", needs=["a"])]
    root = Supervisor("top", ONE_FOR_ALL, [service.spec for service in services])
    return made(*services, started("a1", "n1", a_started_ms), started("b1", "n2", b_started_ms), root=root)


DECIDED = CRASH.model_copy(update={"restart": ["b", "a"], "restart_ms": {"b": 10_000, "a": 10_000}})


def test_a_group_is_quiesced_and_ended_in_stop_order_and_comes_back_in_start_order() -> None:
    plan = TreeStrategy().plan(DECIDED, group())
    assert lines(plan) == [
        *["own b: 0->None", "stop b1", "own a: 0->None", "stop a1"],
        *["start a on n3", "place a", "start b on n1", "place b"],
    ]
    assert plan is not None
    assert [phase.after for phase in plan.phases] == [None] * 8, "each phase waits for the one before it"


def test_the_strategy_has_nothing_to_say_where_only_the_instance_is_restarted() -> None:
    assert TreeStrategy().plan(CRASH, group()) is None


def test_what_was_restarted_since_then_stays() -> None:
    assert planned(TreeStrategy(), DECIDED, group(b_started_ms=10_001)) == [
        *["own a: 0->None", "stop a1"],
        *["start a on n3", "place a", "place b"],
    ]
    assert TreeStrategy().plan(DECIDED, group(a_started_ms=10_001, b_started_ms=10_001)) is None


def test_a_second_restart_ends_what_the_first_one_has_started() -> None:
    again = DECIDED.model_copy(update={"restart_ms": {"b": 12_000, "a": 10_000}})
    plan = TreeStrategy().plan(again, group(a_started_ms=11_000, b_started_ms=11_000))
    assert lines(plan)[:2] == ["own b: 0->None", "stop b1"]
    assert "stop a1" not in lines(plan)


def test_nothing_is_ended_while_there_is_no_node_to_start_it_on() -> None:
    shut = replace(group(), cordoned=dict.fromkeys(("n1", "n2", "n3"), "drained"))
    assert TreeStrategy().plan(DECIDED, shut) is None


def test_a_service_that_is_to_have_no_instances_is_ended_and_not_waited_for() -> None:
    services = [of("a", "a1"), of("b", "b1", wanted=0)]
    world = made(*services, started("a1", "n1", 0), started("b1", "n2", 0))
    assert planned(TreeStrategy(), DECIDED, world) == [
        *["own b: 0->None", "stop b1", "own a: 0->None", "stop a1"],
        *["start a on n3", "place a"],
    ]


def test_coordinated_restart_takes_all_along_that_need_the_service_at_first_or_second_hand() -> None:
    services = [of("a", None), of("b", "b1", needs=["a"]), of("c", "c1", needs=["b"]), of("d", "d1")]
    world = made(*services, at("b1", "n1"), at("c1", "n2"), at("d1", "n3"))
    plan = CoordinatedRestart().plan(CRASH, world)
    assert lines(plan) == [
        *["own c: 0->None", "stop c1", "own b: 0->None", "stop b1"],
        *["start a on n1", "place a", "start b on n2", "place b", "start c on n3", "place c"],
    ]
    assert plan is not None
    assert plan.services == ["a", "b", "c"]


def test_a_second_death_restarts_again_what_came_back_after_the_first() -> None:
    twice = incident(
        Kind.INSTANCE_CRASH, evidence(Signal.CLOSED, "a1", "n1"), evidence(Signal.CLOSED, "a2", "n1", at_ms=11_000)
    )
    world = made(of("a", None), of("b", "b1", needs=["a"]), started("b1", "n2", 10_500))
    assert "stop b1" in planned(CoordinatedRestart(), twice, world)
    assert "stop b1" not in planned(CoordinatedRestart(), CRASH, world)


# quorum_guard, rolling_by_zone


def test_under_a_quorum_guard_nothing_ends_while_too_few_would_be_left() -> None:
    world = made(of("a", "a1", "a2", "a3"), at("a1", "n1"), at("a2", "n2"), at("a3", "n3"))
    plan = Guarded(CoordinatedRestart()).plan(CRASH, world)
    assert plan is not None
    assert plan.policy == "quorum_guard(coordinated_restart)"
    assert [step.guards for step in phase(plan, "stop a").steps] == [
        [Enough(service="a", least=2, without=name)] for name in ("a1", "a2", "a3")
    ]
    assert Guarded(Hold()).plan(CRASH, world) is None


def test_rolling_goes_zone_by_zone_and_one_ends_when_the_shards_of_the_one_before_are_served() -> None:
    world = made(of("a", "a1", "a2", "a3", min_active=2), at("a1", "n1"), at("a2", "n2"), at("a3", "n1"))
    plan = rolling_by_zone(world, "a")
    assert lines(plan) == [
        *["start a on n1", "start a on n1", "stop a1", "place a", "stop a3", "place a"],
        *["start a on n2", "stop a2", "place a"],
    ]
    ends = phase(plan, "end in z1")
    assert ends.ordering is Ordering.SERIAL
    assert ends.steps[0].guards == [Served(service="a"), Enough(service="a", least=2, without="a1")]
    assert rolling_by_zone(made(of("a")), "a") is None


def test_rolling_starts_nothing_on_a_cordoned_node() -> None:
    world = made(of("a", "a1"), at("a1", "n1"), cordoned={"n1": "x"})
    assert lines(rolling_by_zone(world, "a"))[0] == "start a on n2"
    assert rolling_by_zone(replace(world, cordoned=dict.fromkeys(world.nodes, "x")), "a") is None


# mass_freeze


def test_in_a_mass_failure_orphans_go_to_survivors_and_nothing_else_happens() -> None:
    mass = CRASH.model_copy(update={"kind": Kind.MASS_FAILURE, "services": ["a", "b"]})
    world = made(of("a", None, "a2", wanted=9, standbys=1), of("b", wanted=1), at("a2", "n2"), frozen=True)
    assert planned(MassFreeze(), mass, world) == ["own a: 0->a2", "start b on n1", "place b"]
    assert MassFreeze().plan(CRASH, world) is None


def test_while_what_can_wait_has_to_nobody_does_more() -> None:
    world = made(of("a", None, "a2", wanted=9, standbys=1), at("a2", "n2"), at("a3", "n3", slow=True), frozen=True)
    assert planned(Reshuffle(), CRASH, world) == ["own a: 0->a2"]
    assert lines(missing(world, ["a"])) == ["own a: 0->a2"]
    asked = incident(Kind.PLANNED_DRAIN, evidence(Signal.ASKED, "", "n2"))
    slow = incident(Kind.GRAY, evidence(Signal.SLOW, "a3", "n3"))
    assert Drain().plan(asked, world) is None
    assert QuarantineGray().plan(slow, world) is None


# quarantine_poison, quarantine_gray


def test_a_shard_that_kills_is_kept_down_and_no_service_is_spoken_for() -> None:
    poison = incident(Kind.POISON, evidence(Signal.POISON, "", service="a", shard=1, text="poison: two died"))
    plan = QuarantinePoison().plan(poison, made(of("a", "a1", None), at("a1", "n1")))
    assert lines(plan) == ["refuse a/1"]
    assert plan is not None
    assert plan.services == []
    kept = made(where(of("a", "a1", None), 1, refused="poison: two died"))
    assert QuarantinePoison().plan(poison, kept) is None
    assert QuarantinePoison().plan(poison, made(of("b"))) is None, "the service is there no more"


SLOW = incident(Kind.GRAY, evidence(Signal.SLOW, "a1", "n1"))


def test_shards_leave_a_slow_instance_warm_and_it_lives_on() -> None:
    world = made(of("a", "a1", "a1", "a2"), at("a1", "n1", slow=True), at("a2", "n2"))
    assert planned(QuarantineGray(), SLOW, world) == ["follow a: 0->a2, 1->a2", "own a: 0->a2", "own a: 1->a2"]
    left = made(of("a", "a2", "a2", "a2"), at("a1", "n1", slow=True), at("a2", "n2"))
    assert QuarantineGray().plan(SLOW, left) is None


def test_nothing_is_given_back_to_a_slow_instance() -> None:
    world = made(of("a", "a2", "a2", "a2", "a2", wanted=2), at("a1", "n1", slow=True), at("a2", "n2"))
    assert upkeep(world, "a") is None
    orphaned = replace(world, services={"a": of("a", "a2", "a2", "a2", None, wanted=2)})
    assert planned(Reshuffle(), CRASH, orphaned) == ["own a: 3->a2"]
    one_too_many = replace(world, services={"a": of("a", "a2", "a2", wanted=1)})
    assert lines(upkeep(one_too_many, "a")) == ["stop a1"], "a slow one is missed least"


def test_few_are_left_alone_for_being_slow_and_enough_others_must_be_there() -> None:
    names = [f"a{number}" for number in range(1, 5)]
    two = [at(name, "n1", slow=name in ("a1", "a2")) for name in names]
    both = incident(Kind.GRAY, evidence(Signal.SLOW, "a1", "n1"), evidence(Signal.SLOW, "a2", "n1"))
    plan = QuarantineGray().plan(both, made(of("a", *names), *two))
    assert [line for line in lines(plan) if line.startswith("own")] in (
        ["own a: 0->a2"],
        ["own a: 0->a3"],
        ["own a: 0->a4"],
    )
    alone = made(of("a", "a1"), at("a1", "n1", slow=True))
    assert QuarantineGray().plan(SLOW, alone) is None
    needed = made(of("a", "a1", "a2", min_active=2), at("a1", "n1", slow=True), at("a2", "n2"))
    assert QuarantineGray().plan(SLOW, needed) is None


# drain, hold

ASKED = incident(Kind.PLANNED_DRAIN, evidence(Signal.ASKED, "", "n1", text="ann: new disks"))


def test_a_node_that_is_drained_is_first_cordoned() -> None:
    plan = Drain().plan(ASKED, made(of("a", "a1"), at("a1", "n1")))
    assert lines(plan) == ["cordon n1"]


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        ("successors", ["start a on n2"]),
        ("moves", ["follow a: 0->a2, 1->a2", "own a: 0->a2", "own a: 1->a2"]),
        ("ends", ["stop a1"]),
    ],
)
def test_then_successors_start_then_shards_move_warm_then_it_ends(situation: str, expected: list[str]) -> None:
    owners = ("a2", "a2") if situation == "ends" else ("a1", "a1")
    others = [] if situation == "successors" else [at("a2", "n2")]
    world = made(of("a", *owners, instances=1), at("a1", "n1"), *others, cordoned={"n1": "ann: new disks"})
    assert planned(Drain(), ASKED, world) == expected


def test_drained_instances_end_one_after_the_other_and_only_while_enough_are_left() -> None:
    world = made(of("a", "a3", min_active=1), at("a1", "n1"), at("a2", "n1"), at("a3", "n2"), cordoned={"n1": "x"})
    plan = Drain().plan(ASKED, world)
    assert lines(plan) == ["stop a1", "stop a2"]
    ends = phase(plan, "stop a")
    assert (ends.ordering, ends.steps[0].guards) == (Ordering.ROLLING, [Enough(service="a", least=1, without="a1")])


def test_what_is_drained_is_mended_first() -> None:
    """A drain that waited for shards to be served, and gave them to nobody, waited for ever."""
    world = made(of("a", "a2", None), at("a1", "n1"), at("a2", "n2"), cordoned={"n1": "x"})
    assert planned(Drain(), ASKED, world) == ["own a: 1->a2"]


def test_a_drained_node_of_which_nothing_is_left_needs_no_plan() -> None:
    assert Drain().plan(ASKED, made(of("a", "a2"), at("a2", "n2"), cordoned={"n1": "x"})) is None


def test_while_the_log_is_away_shards_are_placed_when_it_is_back_and_nothing_moves() -> None:
    away = incident(Kind.LOG_UNAVAILABLE, evidence(Signal.LOG_AWAY, "a1", "n1"))
    plan = Hold().plan(away, made(of("a", "a1", None), at("a1", "n1"), log_there=False))
    assert lines(plan) == ["place a"]
    assert phase(plan, "serve again").steps[0].guards == [LogThere()]
    assert Hold().plan(away, made(of("a", "a1"), at("a1", "n1"))) is None


# upkeep


def test_what_is_missing_is_started_placed_and_followed_in_the_order_of_needs() -> None:
    world = made(of("a", standbys=1), of("b", needs=["a"]), nodes={"n1": "z1"})
    assert lines(missing(world, ["b", "a"])) == ["start a on n1", "place a", "start b on n1", "place b"]
    whole = made(of("a", "a1", "a2"), at("a1", "n1"), at("a2", "n2"))
    assert missing(whole, ["a"]) is None


def test_nothing_is_placed_where_nobody_is_or_comes() -> None:
    """A plan for it could only fail, again and again, and each time count as a restart."""
    assert missing(made(of("a", wanted=0)), ["a"]) is None
    assert missing(made(of("a"), cordoned=dict.fromkeys(("n1", "n2", "n3"), "x")), ["a"]) is None


def test_shards_that_are_left_alone_now_are_not_placed() -> None:
    world = made(where(where(of("a", "a1", None, None), 1, refused="poison"), 2, held=True), at("a1", "n1"))
    assert missing(world, ["a"]) is None


def test_standbys_that_are_too_many_follow_no_longer() -> None:
    """One of them may have been warming up for a move that was given up."""
    world = made(where(of("a", "a1"), 0, standbys=("a2",), behind={"a2": 0}), at("a1", "n1"), at("a2", "n2"))
    assert lines(missing(world, ["a"])) == ["follow a: 0->"]


def test_one_that_follows_on_the_owners_node_does_not_pass_for_a_standby() -> None:
    warming = where(of("a", "a1", standbys=1, wanted=3), 0, standbys=("a2",), behind={"a2": 0})
    world = made(warming, at("a1", "n1"), at("a2", "n1"), at("a3", "n3"))
    assert lines(missing(world, ["a"])) == ["follow a: 0->a3"]


def test_balance_moves_few_shards_warm() -> None:
    world = made(of("a", *["a1"] * 12, wanted=2), at("a1", "n1"), at("a2", "n2"))
    plan = upkeep(world, "a")
    moves = [line for line in lines(plan) if line.startswith("own")]
    assert 1 <= len(moves) <= MOVES_AT_ONCE
    assert all(line.endswith("->a2") for line in moves)
    assert upkeep(made(of("a", "a1", "a2"), at("a1", "n1"), at("a2", "n2")), "a") is None


def test_a_move_never_ends_beside_a_standby() -> None:
    a = of("a", "a1", "a1", "a1", "a1", "a2", standbys=1, wanted=3)
    for number in range(4):
        a = where(a, number, standbys=("a2",), behind={"a2": 0})
    world = made(where(a, 4, standbys=("a1",), behind={"a1": 0}), at("a1", "n1"), at("a2", "n2"), at("a3", "n2"))
    for line in lines(upkeep(world, "a")):
        assert "->a3" not in line, "a3 shares its node with the standby a2"


def test_instances_that_are_too_many_give_their_shards_away_and_then_end() -> None:
    world = made(of("a", "a1", "a2", wanted=1), at("a1", "n1"), at("a2", "n2"))
    assert lines(upkeep(world, "a")) == ["follow a: 0->a2", "own a: 0->a2"]
    moved = made(of("a", "a2", "a2", wanted=1, min_active=1), at("a1", "n1"), at("a2", "n2"))
    plan = upkeep(moved, "a")
    assert lines(plan) == ["stop a1"]
    assert phase(plan, "stop a").steps[0].guards == [Enough(service="a", least=1, without="a1")]


def test_what_came_up_on_a_cordoned_node_all_the_same_ends_when_it_is_replaced() -> None:
    a = of("a", "a2", wanted=1)
    both = made(a, at("a1", "n1"), at("a2", "n2"), cordoned={"n1": "x"})
    assert lines(upkeep(both, "a")) == ["stop a1"]
    assert upkeep(made(a, at("a1", "n1"), cordoned={"n1": "x"}), "a") is None


def test_one_that_owns_what_cannot_move_does_not_end() -> None:
    stuck = made(of("a", "a1", wanted=1), at("a1", "n1"), at("a2", "n2", slow=True), cordoned={"n2": "x"})
    assert lines(upkeep(stuck, "a")) == ["stop a2"]
    parked = made(of("a", "a1", wanted=0), at("a1", "n1"))
    assert lines(upkeep(parked, "a")) == ["stop a1"], "nothing of it is to be served"


def test_a_restart_that_has_to_wait_is_a_start_that_has_to_wait() -> None:
    plan = delayed(plan_for_cold_start(), 12_345)
    assert [step.guards for step in phase(plan, "replace a").steps] == [[NotBefore(at_ms=12_345)]]
    assert phase(plan, "place a").steps[0].guards == [Ready(service="a")]


def plan_for_cold_start() -> Plan:
    plan = missing(made(of("a")), ["a"])
    assert plan is not None
    return plan


# all of them


def test_a_policy_is_a_function_of_what_it_is_shown() -> None:
    world = made(of("a", None, "a2", wanted=3, standbys=1), of("b", None), at("a2", "n2"), at("b2", "n1"))
    for policy in (*BUILT_IN, Replace(), CoordinatedRestart()):
        for kind in Kind:
            shown = DECIDED.model_copy(update={"kind": kind})
            assert policy.plan(shown, world) == policy.plan(shown, world)


def test_incidents_of_services_that_are_there_no_more_end_no_controller() -> None:
    """An application was brought up without a service that an open incident is about."""
    gone = incident(Kind.GRAY, evidence(Signal.SLOW, "z1", "n9", shard=0))
    for policy in (*BUILT_IN, Replace(), CoordinatedRestart()):
        for kind in Kind:
            shown = gone.model_copy(update={"kind": kind, "restart": ["z"], "restart_ms": {"z": 0}})
            assert lines(policy.plan(shown, made(of("a", "a1"), at("a1", "n1")))) in ([], ["cordon n9"])


def test_a_service_speaks_with_its_own_policies_as_they_were_declared() -> None:
    declared = Service("a", Tally, shards=1, instances=1, on_failure=[Replace(), Guarded(Reshuffle())])
    assert [policy.name for policy in declared.on_failure] == ["replace", "quorum_guard"]
