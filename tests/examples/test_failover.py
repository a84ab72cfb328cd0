"""The failover policy of the Redis example, on worlds made by hand: it is a pure function, so no server is needed.

Method: what a plan wants performed is taken for performed, with answers that the test makes up; then the policy is asked
again, as the controller does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from examples.redis.app import app
from examples.redis.failover import SERVICE, Failover, one_primary, primary_of
from rekindle.supervisors.incidents import Incident, Kind
from rekindle.supervisors.plans import Guard, Perform, Plan, Standing, State, advance
from rekindle.supervisors.world import InstanceView, NodeView, ServiceView, ShardView, Told, World, latest

NAMES: Final = ("x", "y", "z")
PORTS: Final = {"x": 1, "y": 2, "z": 3, "new": 4}
DEATH: Final = Incident(id=1, kind=Kind.INSTANCE_CRASH, opened_ms=0, changed_ms=0, evidence=[], services=[SERVICE])


def world(*names: str, told: tuple[Told, ...] = ()) -> World:
    """These instances are up, one on each node; the first one owns the shard."""
    (spec,) = app.services
    owner = names[0] if names else None
    view = ServiceView(spec, (ShardView(owner=owner, served=owner is not None),), wanted=3, told=told)
    instances = {name: InstanceView(name, SERVICE, f"node-{name}") for name in names}
    nodes = {f"node-{name}": NodeView(f"node-{name}") for name in PORTS}
    return World(0, app.tree, {SERVICE: view}, instances, nodes)


def told(incarnation: str, operation: str, *, history: str = "h", offset: int = 0, follows: str = "") -> Told:
    """What an instance was told, and answered."""
    args = {"host": "127.0.0.1", "port": PORTS[follows]} if follows else {}
    result = {"address": f"127.0.0.1:{PORTS[incarnation]}", "history": history, "offset": offset}
    return Told(incarnation=incarnation, operation=operation, args=args, result=result)


SETTLED: Final = (told("x", "promote"), told("y", "follow", follows="x"), told("z", "follow", follows="x"))


def asked_for(plan: Plan | None) -> list[list[tuple[str, str]]]:
    """Phase by phase, what is to be performed, by whom."""
    phases = [[step.action for step in phase.steps] for phase in plan.phases] if plan is not None else []
    found = [[(a.operation, a.incarnation) for a in actions if isinstance(a, Perform)] for actions in phases]
    return [operations for operations in found if operations]


def guards_of(plan: Plan | None) -> list[Guard]:
    """What the promotion waits for."""
    assert plan is not None
    (step,) = (s for _, _, s in plan.steps() if isinstance(s.action, Perform) and s.action.operation == "promote")
    return step.guards


def detached(names: Mapping[str, int], history: str = "h") -> tuple[Told, ...]:
    """These are, with their offsets."""
    return tuple(told(name, "detach", history=history, offset=offset) for name, offset in names.items())


def test_the_first_primary_is_one_of_three_that_are_empty() -> None:
    first = one_primary(world(*NAMES), SERVICE)
    assert asked_for(first) == [[("detach", name) for name in NAMES]]
    second = one_primary(world(*NAMES, told=detached(dict.fromkeys(NAMES, 0))), SERVICE)
    assert asked_for(second) == [[("promote", "z")], [("follow", "x"), ("follow", "y")]]
    assert guards_of(second) == []


def test_nothing_is_done_where_all_follow_the_primary() -> None:
    assert one_primary(world(*NAMES, told=SETTLED), SERVICE) is None
    assert Failover().plan(DEATH, world("x", "y", told=SETTLED)) is None  # a replica is replaced as any instance is


def test_who_was_started_since_follows_the_primary() -> None:
    plan = one_primary(world("x", "y", "new", told=SETTLED), SERVICE)
    assert asked_for(plan) == [[("follow", "new")]]
    assert plan is not None
    assert [s.action.args for _, _, s in plan.steps() if isinstance(s.action, Perform)] == [
        {"host": "127.0.0.1", "port": 1}
    ]


def test_all_are_detached_before_the_most_advanced_is_promoted() -> None:
    assert asked_for(Failover().plan(DEATH, world("y", "z", told=SETTLED))) == [[("detach", "y"), ("detach", "z")]]
    half = (*SETTLED, told("y", "detach", offset=9))
    assert asked_for(Failover().plan(DEATH, world("y", "z", told=half))) == [[("detach", "z")]]
    both = (*SETTLED, *detached({"y": 9, "z": 5}))
    assert asked_for(Failover().plan(DEATH, world("y", "z", told=both))) == [[("promote", "y")], [("follow", "z")]]


def test_a_promotion_that_was_performed_is_not_made_again() -> None:
    facts = (*SETTLED, *detached({"y": 9, "z": 5}), told("y", "promote", history="h2", offset=9))
    assert Failover().plan(DEATH, world("y", "z", told=facts)) is None
    assert asked_for(one_primary(world("y", "z", "new", told=facts), SERVICE)) == [[("follow", "new"), ("follow", "z")]]


def test_an_empty_one_is_not_promoted_however_far_it_is() -> None:
    facts = (*SETTLED, *detached({"y": 5, "z": 9}), told("new", "detach", history="its own", offset=99))
    plan = Failover().plan(DEATH, world("new", "y", "z", told=facts))
    assert asked_for(plan) == [[("promote", "z")], [("follow", "new"), ("follow", "y")]]


def test_the_history_that_a_primary_began_with_its_first_replica_is_its_own() -> None:
    followed = [told(name, "follow", history="later", follows="x") for name in ("y", "z")]
    facts = (told("x", "promote", history="at first"), *followed, *detached({"y": 5, "z": 9}, "later"))
    plan = Failover().plan(DEATH, world("y", "z", told=facts))
    assert asked_for(plan) == [[("promote", "z")], [("follow", "y")]]
    assert guards_of(plan) == []


def test_where_two_are_missing_an_operator_has_to_say_so() -> None:
    facts = latest([*SETTLED, *detached({"y": 5})], {"y", "new"})
    seen = world("new", "y", told=(*facts, told("new", "detach", history="its own")))
    plan = Failover().plan(DEATH, seen)
    assert plan is not None
    plan = plan.model_copy(update={"standing": Standing.RUNNING})
    (number,) = [n for n, _, s in plan.steps() if isinstance(s.action, Perform) and s.action.operation == "promote"]
    (blocked,) = [change for change in advance(plan, seen) if change.step == number]
    assert blocked.state is State.BLOCKED
    assert blocked.why == (
        "1 of 2 replicas of x are left: what only a missing one has is lost; "
        f"`force` or `skip` of step {number} would unblock it"
    )
    plan.step(number).forced = True
    assert [change.state for change in advance(plan, seen) if change.step == number] == [State.RUNNING]


def test_the_rest_of_the_recovery_does_not_wait_for_the_operator() -> None:
    lost = replace(world("y", told=(*SETTLED, *detached({"y": 5}))), now_ms=1)
    plan = Failover().plan(DEATH, lost)
    assert plan is not None
    assert [phase.name for phase in plan.phases] == ["replace redis", "promote", "follow"]
    plan = plan.model_copy(update={"standing": Standing.RUNNING})
    assert [change.state for change in advance(plan, lost)] == [State.RUNNING, State.RUNNING, State.BLOCKED]


def test_clients_find_the_last_promotion() -> None:
    assert primary_of(()) is None
    assert primary_of(SETTLED) == SETTLED[0]
    assert primary_of((*SETTLED, told("y", "promote"))) == told("y", "promote")
