"""What would happen, and what it would cost: suppositions, predictions, and dry runs of both together.

Goal: figures that follow from the named rates and from nothing else, by the rules that carry plans out; and a world that
is the same before and after. Method: small worlds whose figures can be worked out by hand; then random ones.
"""

from __future__ import annotations

import asyncio
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle import ONE_FOR_ALL, Supervisor
from rekindle.actors import Host, WebsocketWire
from rekindle.supervisors.control import Unknown
from rekindle.supervisors.forecasting import forecast
from rekindle.supervisors.incidents import Incident, Kind
from rekindle.supervisors.planning import Planning
from rekindle.supervisors.plans import Enough, Own, Phase, Plan, Start, Step, Stop
from rekindle.supervisors.policies import Reshuffle, delayed
from rekindle.supervisors.prediction import (
    CLAIM_S,
    REPLAY_EVENTS_PER_S,
    START_S,
    SUPPOSABLE,
    TICK_MS,
    NotSupposable,
    parsed,
    predict,
    suppose,
)
from rekindle.supervisors.report import Forecast
from rekindle.supervisors.tree import Service
from rekindle.supervisors.world import World
from tests.support.inprocess import Clock, GatedLog
from tests.support.loops import run
from tests.support.worlds import service, with_shard, world_of

NODES = {"a": "east", "b": "east", "c": "west", "d": "west"}
TICK_S = TICK_MS / 1000
SECOND = REPLAY_EVENTS_PER_S
"""So many events are replayed in one second."""


def stock_on(nodes: str = "abc", **fields: Any) -> World:
    """One service with an instance on each of these nodes, called `s` and the node's name."""
    options = {name: fields.pop(name) for name in ("events", "follow") if name in fields}
    spec = service("stock", **{"shards": 6, "instances": len(nodes), **fields})
    return world_of([spec], NODES, {f"s{node}": node for node in nodes}, **options)


def planned(world: World, asked: str) -> tuple[Plan, World]:
    """The plan of the ordinary policy, and the world it is made for."""
    incident, after, _ = suppose(world, *parsed(asked))
    plan = Reshuffle().plan(incident, after)
    assert plan is not None
    return plan, after


def dry_run(world: World, asked: str) -> tuple[Forecast, list[str]]:
    """A forecast, and what was said meanwhile."""
    said: list[str] = []
    planning = Planning(Host(GatedLog(), None, WebsocketWire(), Clock(), asyncio.to_thread, said.append))
    return run(forecast(asked, world, planning, asyncio.to_thread)), said


# Suppositions


def test_a_dead_node_takes_its_instances_along() -> None:
    world = stock_on()
    before = deepcopy(world.services)
    incident, after, delay_ms = suppose(world, Kind.NODE_DEAD, "a")
    assert (incident.kind, incident.nodes, incident.instances) == (Kind.NODE_DEAD, ["a"], ["sa"])
    assert (sorted(after.nodes), sorted(after.instances), delay_ms) == (["b", "c", "d"], ["sb", "sc"], 0)
    assert after.services["stock"].unserved() == [0, 3]
    assert world.services == before


def test_a_crashed_instance_leaves_its_node_there_and_its_standbys_behind() -> None:
    _, after, _ = suppose(stock_on(follow=True), Kind.INSTANCE_CRASH, "sb")
    shards = after.services["stock"].shards
    assert "b" in after.nodes
    assert after.nodes["b"].died_at_ms == after.now_ms
    assert [shard.owner for shard in shards] == ["sa", None, "sc"] * 2
    assert [shard.standbys for shard in shards] == [(), ("sc",), ("sa",)] * 2


def test_a_zone_is_all_of_its_nodes() -> None:
    incident, after, _ = suppose(stock_on("abcd"), Kind.ZONE_DOWN, "west")
    assert (incident.nodes, sorted(after.instances)) == (["c", "d"], ["sa", "sb"])


def test_a_mass_failure_freezes_what_can_wait() -> None:
    _, after, _ = suppose(stock_on("abcd"), Kind.MASS_FAILURE, "a,b,c")
    assert (sorted(after.instances), after.frozen) == (["sd"], True)


@pytest.mark.parametrize(
    "asked", ["planned-drain:a", "gray:sa", "poison:stock/5", "log-unavailable:stock", "overload:stock"]
)
def test_what_kills_nobody_leaves_everybody_there(asked: str) -> None:
    world = stock_on()
    incident, after, _ = suppose(world, *parsed(asked))
    assert after.instances == world.instances
    assert f"{incident.kind}" == asked.partition(":")[0]
    assert after.log_there == (incident.kind is not Kind.LOG_UNAVAILABLE)


def test_a_crash_is_judged_by_the_supervisor_above_it() -> None:
    stock, till = service("stock"), service("till")
    root = Supervisor("root", strategy=ONE_FOR_ALL, children=[stock, till], max_restarts=1)
    world = world_of([stock, till], NODES, {"s1": "a", "s2": "b", "t1": "a", "t2": "b"}, root=root)
    first = suppose(world, Kind.INSTANCE_CRASH, "s1")
    assert sorted(first.incident.restart) == ["stock", "till"]
    assert first.world.restarts == {"root": [world.now_ms]}
    second = suppose(first.world, Kind.INSTANCE_CRASH, "s2")
    assert second.incident.restart == []
    assert second.delay_ms == 1000 * root.backoff.max_s


@pytest.mark.parametrize(
    ("asked", "what", "known"),
    [
        ("node-dead:z", "node", ["a", "b", "c", "d"]),
        ("mass-failure:a,z", "node", ["a", "b", "c", "d"]),
        ("zone-down:north", "zone", ["east", "west"]),
        ("instance-hang:sz", "instance", ["sa", "sb", "sc"]),
        ("overload:till", "service", ["stock"]),
        ("poison:stock/6", "shard of stock", ["0", "1", "2", "3", "4", "5"]),
    ],
)
def test_what_is_not_there_cannot_fail(asked: str, what: str, known: list[str]) -> None:
    with pytest.raises(Unknown) as unknown:
        suppose(stock_on(), *parsed(asked))
    assert (unknown.value.what, unknown.value.known) == (what, known)


@pytest.mark.parametrize("asked", ["node-dead", "node-dead:", "policy-failed:x", "rain:a", ""])
def test_only_some_incidents_can_be_supposed(asked: str) -> None:
    with pytest.raises(NotSupposable) as refused:
        parsed(asked)
    assert refused.value.expected == list(SUPPOSABLE)


# Predictions


def test_survivors_replay_beside_each_other_and_each_shard_behind_the_other() -> None:
    plan, world = planned(stock_on("abc", shards=12, events=SECOND), "instance-crash:sa")
    prediction = predict(plan, world)
    assert prediction.shards_moved == 4
    assert prediction.lowest_availability == pytest.approx(8 / 12)
    assert prediction.recovery_s == pytest.approx(
        2.0 + CLAIM_S, abs=TICK_S
    )  # four shards, two survivors, a second each
    assert prediction.over_s == pytest.approx(2.0 + CLAIM_S + START_S, abs=2 * TICK_S)
    assert prediction.blocked == []
    assert not prediction.world.services["stock"].unserved()
    assert len(prediction.world.up("stock")) == 3


def test_a_standby_that_has_caught_up_serves_at_once() -> None:
    plan, world = planned(stock_on(events=5 * SECOND, follow=True), "node-dead:a")
    assert predict(plan, world).recovery_s == pytest.approx(CLAIM_S, abs=TICK_S)


def test_a_standby_that_lags_reads_the_rest() -> None:
    world = with_shard(stock_on(shards=3, events=9 * SECOND, follow=True), "stock", 0, behind={"sb": SECOND})
    plan, after = planned(world, "node-dead:a")
    assert predict(plan, after).recovery_s == pytest.approx(1.0 + CLAIM_S, abs=TICK_S)


def test_where_nobody_is_left_an_instance_has_to_be_started_first() -> None:
    plan, world = planned(stock_on("a", events=SECOND), "node-dead:a")
    prediction = predict(plan, world)
    assert prediction.lowest_availability == 0.0
    assert prediction.recovery_s == pytest.approx(START_S + 6.0 + CLAIM_S, abs=2 * TICK_S)


def test_what_waits_for_its_time_begins_then() -> None:
    plan, world = planned(stock_on(), "instance-crash:sa")
    late = predict(delayed(plan, world.now_ms + 7_000), world)
    assert late.recovery_s == pytest.approx(CLAIM_S, abs=TICK_S)
    assert late.over_s == pytest.approx(7.0 + START_S, abs=TICK_S)


def test_a_step_that_can_never_begin_is_told_with_its_reason() -> None:
    guard = Enough(service="stock", least=3, without="sa")
    stop = Step(action=Stop(incarnation="sa", reason="why not"), guards=[guard])
    plan = Plan(policy="p", cause="c", services=["stock"], phases=[Phase(name="stop", steps=[stop])])
    prediction = predict(plan, stock_on())
    reason = "2 instances of stock would be left, 3 must stay; `force` or `skip` of step 1 would unblock it"
    assert prediction.blocked == [f"step 1 is blocked: sa is stopped: why not ({reason})"]
    assert (prediction.lowest_availability, prediction.over_s) == (1.0, 0.0)


def test_a_shard_that_is_given_to_nobody_is_down_until_it_is_given_to_somebody() -> None:
    quiet = Step(action=Own(service="stock", moves=[(n, None) for n in range(6)]))
    back = Step(action=Own(service="stock", moves=[(n, "sb") for n in range(6)]))
    phases = [Phase(name="quiet", steps=[quiet]), Phase(name="back", steps=[back])]
    prediction = predict(Plan(policy="p", cause="c", services=["stock"], phases=phases), stock_on(events=SECOND))
    assert (prediction.lowest_availability, prediction.shards_moved) == (0.0, 6)
    assert prediction.recovery_s == pytest.approx(6.0 + CLAIM_S, abs=TICK_S)


def test_an_instance_that_is_stopped_takes_its_shards_along() -> None:
    stop = Step(action=Stop(incarnation="sa", reason="r"))
    plan = Plan(policy="p", cause="c", services=["stock"], phases=[Phase(name="stop", steps=[stop])])
    prediction = predict(plan, stock_on())
    assert prediction.recovery_s is None
    assert prediction.lowest_availability == pytest.approx(4 / 6)


def test_the_world_that_was_asked_about_stays_as_it_is() -> None:
    plan, world = planned(stock_on(events=SECOND), "node-dead:a")
    services, instances, before = deepcopy(world.services), dict(world.instances), plan.model_copy(deep=True)
    predict(plan, world)
    assert (world.services, world.instances, plan) == (services, instances, before)


# Dry runs


def test_a_drain_is_followed_to_its_end_and_nobody_misses_anything() -> None:
    told, said = dry_run(stock_on("abc", shards=24, events=SECOND), "planned-drain:a")
    assert {plan.policy for plan in told.plans} == {"drain"}
    assert (told.shards_moved, told.recovery_s, told.lowest_availability) == (8, 0.0, 1.0)
    assert told.over_s == pytest.approx(START_S + 8.0, abs=1.0)  # somebody has to read all of it before it takes over
    assert [plan.id for plan in told.plans] == list(range(1, len(told.plans) + 1))
    last = told.plans[-1].phases[-1].steps[-1]
    assert last.what == "sa is stopped: drained"
    assert said == []


def test_a_group_is_restarted_whole_in_the_order_of_its_needs() -> None:
    stock, till = service("stock", instances=1), service("till", instances=1, needs=["stock"])
    root = Supervisor("root", strategy=ONE_FOR_ALL, children=[stock, till])
    told, _ = dry_run(world_of([stock, till], NODES, {"s1": "a", "t1": "b"}, root=root), "instance-crash:s1")
    assert [plan.policy for plan in told.plans] == ["strategy"]
    names = [phase.name for phase in told.plans[0].phases]
    assert names == ["quiesce till", "stop till", "start stock", "serve stock", "start till", "serve till"]
    assert told.lowest_availability == 0.0
    assert told.recovery_s == pytest.approx(2 * (START_S + CLAIM_S), abs=4 * TICK_S)


def test_a_policy_of_a_services_own_decides_in_place_of_its_supervisor() -> None:
    stock, till = service("stock", on_failure=[Reshuffle()]), service("till")
    root = Supervisor("root", strategy=ONE_FOR_ALL, children=[stock, till])
    world = world_of([stock, till], NODES, {"s1": "a", "s2": "b", "t1": "a", "t2": "b"}, root=root)
    assert [plan.policy for plan in dry_run(world, "instance-crash:s1")[0].plans] == ["reshuffle"]
    assert [plan.policy for plan in dry_run(world, "instance-crash:t1")[0].plans] == ["strategy"]


def test_a_poisoned_shard_is_down_in_the_forecast_too() -> None:
    told, _ = dry_run(stock_on(), "poison:stock/2")
    assert told.plans[0].phases[0].steps[0].what == "stock/2 is kept down: supposed"
    assert told.lowest_availability == pytest.approx(5 / 6)


def test_where_no_policy_has_a_plan_the_forecast_says_so() -> None:
    told, _ = dry_run(stock_on(), "overload:stock")
    assert (told.plans, told.shards_moved, told.recovery_s, told.lowest_availability) == ([], 0, 0.0, 1.0)


class Broken:
    """A user's policy that raises."""

    name = "broken"

    def plan(self, incident: Incident, world: World) -> Plan | None:
        raise KeyError(incident.kind)


class Elsewhere:
    """A user's policy whose plan names what is not there."""

    name = "elsewhere"

    def plan(self, incident: Incident, world: World) -> Plan | None:
        start = Step(action=Start(service="stock", node="moon"))
        return Plan(policy=self.name, cause="c", services=["stock"], phases=[Phase(name="up", steps=[start])])


def test_what_is_wrong_with_a_policy_is_told_and_the_next_one_is_asked() -> None:
    told, _ = dry_run(stock_on(on_failure=[Broken(), Elsewhere()]), "node-dead:a")
    assert told.notes == [
        "policy broken: KeyError: <Kind.NODE_DEAD: 'node-dead'>",
        "policy elsewhere: there is no node 'moon'",
    ]
    assert [plan.policy for plan in told.plans] == ["reshuffle"]


# Random worlds


@st.composite
def worlds(draw: st.DrawFn) -> tuple[World, str]:
    """A world in which all is well, and something that may happen to it."""
    nodes = {f"n{number}": draw(st.sampled_from(["east", "west"])) for number in range(draw(st.integers(3, 6)))}
    specs: list[Service] = []
    instances: dict[str, str] = {}
    for name in draw(st.sampled_from([["stock"], ["stock", "till"]])):
        homes = draw(st.lists(st.sampled_from(sorted(nodes)), min_size=1, max_size=4))
        needs = [spec.name for spec in specs if draw(st.booleans())]
        standbys = draw(st.integers(0, 1))
        specs.append(service(name, draw(st.integers(1, 12)), len(homes), standbys=standbys, needs=needs))
        instances |= {f"{name[0]}{number}": home for number, home in enumerate(homes)}
    events, follow = draw(st.integers(0, 3 * SECOND)), draw(st.booleans())
    world = world_of(specs, nodes, instances, events=events, follow=follow)
    kinds = ["instance-crash:" + name for name in instances] + [
        f"{kind}:{node}" for node in nodes for kind in ("node-dead", "node-suspect", "planned-drain", "flapping")
    ]
    return world, draw(st.sampled_from(kinds))


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_every_forecast_ends_with_everything_served_and_leaves_the_world_alone(case: tuple[World, str]) -> None:
    world, asked = case
    before = deepcopy((world.services, world.instances, world.nodes))
    told, said = dry_run(world, asked)
    assert (told.blocked, told.notes, said) == ([], [], [])
    assert told.recovery_s is not None
    assert 0.0 <= told.recovery_s <= told.over_s + TICK_S
    assert 0.0 <= told.lowest_availability <= 1.0
    hit = {s for s, v in world.services.items() if any(shard.owner in told.instances for shard in v.shards)}
    assert told.kind is Kind.PLANNED_DRAIN or not hit or told.shards_moved > 0
    assert (world.services, world.instances, world.nodes) == before
    assert dry_run(world, asked)[0] == told
