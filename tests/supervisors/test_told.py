"""What sidecars have performed: a fact that the control log keeps, for policies, and for whoever reads that log.

Goal: a policy that plans in several steps, and a service's own upkeep, can go by what was done before, whatever has become
of the plans and of the controller. Method: the entity is driven through a real shard, policies are asked on worlds by hand.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rekindle import Service, Supervisor
from rekindle.actors import Host
from rekindle.supervisors.control import Control
from rekindle.supervisors.decided import Owned
from rekindle.supervisors.incidents import Evidence, Signal
from rekindle.supervisors.planning import UPKEEP_AGAIN_MS, Planning
from rekindle.supervisors.plans import ByHand, Cordon, Perform, Phase, Plan, Standing, State, Step, advance
from rekindle.supervisors.view import Sight, world_of
from rekindle.supervisors.world import InstanceView, NodeView, ServiceView, ShardView, Told, World, latest
from tests.supervisors.test_control import host_of, leading, make_log, running
from tests.support.inprocess import Tally, in_loop


def told(incarnation: str, operation: str, result: Any = None) -> Told:
    return Told(incarnation=incarnation, operation=operation, result=result)


# What is kept


def test_of_each_instance_and_operation_the_last_one_is_kept() -> None:
    first, second, other, third = told("x", "a", 1), told("x", "b", 2), told("y", "a", 3), told("x", "a", 4)
    assert latest([first, second, other, third], {"x", "y"}) == [second, other, third]


def test_of_who_is_gone_only_what_nobody_has_performed_since() -> None:
    facts = [told("x", "promote"), told("y", "follow"), told("z", "follow"), told("z", "promote")]
    assert latest(facts, {"y"}) == [told("y", "follow"), told("z", "follow"), told("z", "promote")]
    assert latest(facts, ()) == [told("z", "follow"), told("z", "promote")]


# The control log


def plan_of(*operations: tuple[str, str]) -> Plan:
    steps = [Step(action=Perform(incarnation=name, operation=operation)) for name, operation in operations]
    return Plan(policy="own", cause="a test", services=["a"], phases=[Phase(name="tell", steps=steps)])


@in_loop
async def test_what_was_performed_outlives_its_plan_and_its_controller() -> None:
    log = await make_log()
    async with leading(log) as decisions:
        await decisions.decide("declare", "a", 1)
        for name in ("x", "y"):
            await decisions.decide("started", name, running())
        plan = await decisions.decide("propose", plan_of(("x", "promote"), ("y", "follow"), ("z", "follow")))
        for step, result in enumerate(({"offset": 7}, None, "of who is gone already"), start=1):
            await decisions.decide("perform", plan, step, [result])
        await decisions.decide("gone", "x", "killed", [], [])
        expected = [told("x", "promote", {"offset": 7}), told("y", "follow")]
        assert decisions.control.told == {"a": expected}
        assert [step.result for _, _, step in decisions.control.plans[plan].steps()][:2] == [[{"offset": 7}], [None]]
    async with leading(log, "successor") as successor:
        assert successor.control.told == {"a": expected}
        again = await successor.decide("propose", plan_of(("y", "promote")))
        await successor.decide("perform", again, 1, [None])
        assert successor.control.told == {"a": [told("y", "follow"), told("y", "promote")]}


# The world


def test_policies_see_what_was_performed() -> None:
    control = Control.describe().new("control")
    assert isinstance(control, Control)
    control.services, control.told = {"a": [Owned()]}, {"a": [told("x", "promote")]}
    sight = Sight(Supervisor("root", children=[Service("a", Tally, shards=1, instances=1)]), {}, [], {})
    assert world_of(control, sight, 0, frozen=False, chance=0.5).services["a"].told == (told("x", "promote"),)


# A step that is an operator's


def test_a_step_by_hand_waits_for_its_operator() -> None:
    cordon = Step(action=Cordon(node="n", reason="test"), guards=[ByHand(why="it cannot be undone")])
    plan = Plan(policy="own", cause="a test", services=[], phases=[Phase(name="by hand", steps=[cordon])])
    (change,) = advance(plan, world())
    assert (change.state, change.attempt) == (State.BLOCKED, 0)
    assert change.why == "it cannot be undone; `force` or `skip` of step 1 would unblock it"
    cordon.forced = True
    assert [change.state for change in advance(plan, world())] == [State.RUNNING]


# A service's own upkeep


def world(upkeep: Callable[[World, str], Plan | None] | None = None, *, now_ms: int = 0, up: bool = True) -> World:
    """One instance, on one node, that serves one shard; or none."""
    spec = Service("a", Tally, shards=1, instances=1, upkeep=upkeep)
    owner = "x" if up else None
    return World(
        now_ms,
        Supervisor("root", children=[spec]),
        {"a": ServiceView(spec, (ShardView(owner=owner, served=up),))},
        {"x": InstanceView("x", "a", "n")} if up else {},
        {"n": NodeView("n")},
    )


async def host() -> Host:
    return host_of(await make_log())


async def asked(planning: Planning, seen: World, *known: Plan) -> tuple[list[str], list[Evidence]]:
    """The policies whose plans are to be carried out, and what was noticed."""
    noticed: list[Evidence] = []
    control = Control.describe().new("control")
    assert isinstance(control, Control)
    control.plans = {plan.id: plan for plan in known}
    plans = await planning.plans(control, seen, noticed.append)
    return [plan.policy for plan in plans], noticed


@in_loop
async def test_a_services_own_upkeep_is_asked_when_nothing_is_missing() -> None:
    planning, calls = Planning(await host()), list[str]()

    def own(seen: World, name: str) -> Plan | None:
        calls.append(name)
        return plan_of(("x", "check")) if seen.now_ms else None

    assert await asked(planning, world(own, up=False)) == (["upkeep"], [])
    assert calls == []
    assert await asked(planning, world(own)) == ([], [])
    assert await asked(planning, world(own, now_ms=1)) == (["own"], [])
    assert calls == ["a", "a"]


@in_loop
async def test_an_upkeep_that_fails_is_noticed_and_left_alone_for_a_while() -> None:
    planning, calls = Planning(await host()), list[int]()

    def broken(seen: World, name: str) -> Plan | None:
        calls.append(seen.now_ms)
        return plan_of(("nobody", "check")) if name else None

    for now_ms in (0, 1, UPKEEP_AGAIN_MS - 1, UPKEEP_AGAIN_MS):
        policies, noticed = await asked(planning, world(broken, now_ms=now_ms))
        assert policies == []
        assert [e.signal for e in noticed] == ([Signal.POLICY_FAILED] if now_ms in (0, UPKEEP_AGAIN_MS) else [])
        assert all(e.text == "upkeep: there is no instance 'nobody'" for e in noticed)
    assert calls == [0, UPKEEP_AGAIN_MS]


@in_loop
async def test_an_upkeep_whose_plan_has_failed_is_left_alone_for_a_while_also_by_the_next_leader() -> None:
    def own(_: World, __: str) -> Plan | None:
        return plan_of(("x", "check"))

    failed = plan_of(("x", "check")).model_copy(update={"standing": Standing.FAILED, "ended_ms": 7, "is_own": True})
    for now_ms, policies in ((7, []), (UPKEEP_AGAIN_MS + 6, []), (UPKEEP_AGAIN_MS + 7, ["own"])):
        assert await asked(Planning(await host()), world(own, now_ms=now_ms), failed) == (policies, [])


@in_loop
async def test_an_upkeep_speaks_for_its_own_service_only() -> None:
    def nobodys(_: World, __: str) -> Plan | None:
        phases = [Phase(name="more", steps=[Step(action=Cordon(node="n", reason="a test"))])]
        return Plan(policy="own", cause="a test", services=[], phases=phases)

    policies, (noticed,) = await asked(Planning(await host()), world(nobodys))
    assert policies == []
    assert noticed.text == "upkeep: the upkeep of a speaks for []"


@in_loop
async def test_an_upkeep_does_not_hold_the_loop() -> None:
    threads = list[int]()

    def own(_: World, __: str) -> Plan | None:
        threads.append(threading.get_ident())
        return None

    await asked(Planning(await host()), world(own))
    assert len(threads) == 1
    assert threads != [threading.get_ident()]
