"""Which policy is asked, and what becomes of answers that are none: a user's policy is somebody else's code.

Goal: whatever it raises or answers, and however long it takes: the next policy is asked, an incident of its own tells of it,
and the controller goes on. Method: a policy that does what a test says, asked as in a controller, in a thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Final

import pytest

from rekindle.actors import Host, WebsocketWire
from rekindle.supervisors import planning
from rekindle.supervisors.checks import DEADLINE_MAX_S, PLAN_BYTES_MAX, STEPS_MAX, checked
from rekindle.supervisors.incidents import Evidence, Incident, Kind, Signal, begin
from rekindle.supervisors.planning import POLICY_REST_MS, TEXT_MAX, Planning
from rekindle.supervisors.plans import (
    Cordon,
    Enough,
    Follow,
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
)
from rekindle.supervisors.policies import Policy, Reshuffle
from rekindle.supervisors.world import World
from tests.supervisors.ledger import Ledger
from tests.supervisors.worlds import at, evidence, ground, incident, made, of, where
from tests.support.inprocess import Clock, GatedLog, in_loop
from tests.support.loops import eventually

NOW_MS: Final = 10_000


class Told:
    """A policy that does what it was told to."""

    def __init__(self, answer: Callable[[], Any], name: str = "told") -> None:
        self.answer = answer
        self.name = name
        self.asked: list[Kind] = []

    def plan(self, incident: Incident, world: World) -> Any:
        self.asked.append(incident.kind)
        return self.answer()


def answering(answer: Any, name: str = "told") -> Told:
    return Told(lambda: answer, name)


def raising(error: BaseException) -> Told:
    def answer() -> None:
        raise error

    return Told(answer)


def plan(*actions: Any, services: list[str] | None = None, policy: str = "told", **fields: Any) -> Plan:
    steps = [action if isinstance(action, Step) else Step(action=action) for action in actions]
    phases = [Phase(name="do", steps=steps, **fields)]
    return Plan(policy=policy, cause="a test", services=["a"] if services is None else services, phases=phases)


class Asking:
    """A controller that only asks: a ledger with one open incident, and a world with an orphan."""

    def __init__(self, *own: Policy, policies: tuple[Policy, ...] = (Reshuffle(),)) -> None:
        self.ledger = Ledger()
        self.said: list[str] = []
        host = Host(GatedLog(), None, WebsocketWire(), Clock(), asyncio.to_thread, self.said.append)
        self.planning = Planning(host, policies)
        self.world = made(of("a", None, "a2", on_failure=own), of("b", "b1"), at("a2", "n2"), at("b1", "n1"))
        for service in self.world.services.values():
            self.ledger.run(NOW_MS, "declare", service.name, len(service.shards))
        self.notice(evidence(Signal.CLOSED, "a1", "n1"))

    def notice(self, piece: Evidence) -> None:
        self.ledger.run(NOW_MS, "notice", begin(0, piece, ground(running={"n1": 1})))

    async def plans(self) -> list[str]:
        """The policies whose plans would be proposed now."""
        return [found.policy for found in await self.made()]

    async def made(self) -> list[Plan]:
        return await self.planning.plans(self.ledger.control, self.world, self.notice)

    def failures(self) -> list[str]:
        """What incidents tell of policies."""
        incidents = self.ledger.control.incidents.values()
        return [e.text for i in incidents if i.kind is Kind.POLICY_FAILED for e in i.evidence]


# Whatever a policy raises


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no idea"), "policy told: ValueError: no idea"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (asyncio.CancelledError(), "CancelledError"),
        (TimeoutError("of its own"), "TimeoutError: of its own"),
        (Unspeakable(), "<exception str() failed>"),
        (ValueError("two\nlines"), "ValueError: two lines"),
        (ValueError("from a file \udc80"), "ValueError: from a file ?"),
    ],
    ids=lambda value: type(value).__name__,
)
@in_loop
async def test_what_it_raises_is_told_and_the_next_policy_is_asked(error: BaseException, text: str) -> None:
    asking = Asking(raising(error))
    assert await asking.plans() == ["reshuffle"]
    assert text in asking.failures()[0]
    assert asking.said == [f"a: {asking.failures()[0]}"]


@in_loop
async def test_what_it_says_fits_into_the_log() -> None:
    asking = Asking(raising(ValueError("x" * 10 * PLAN_BYTES_MAX)))
    assert await asking.plans() == ["reshuffle"]
    assert len(asking.failures()[0]) < 2 * TEXT_MAX


@in_loop
async def test_not_even_its_name_is_trusted() -> None:
    class Nameless(Told):
        @property
        def name(self) -> str:
            raise RuntimeError("who knows")

        @name.setter
        def name(self, name: str) -> None:
            pass

    asking = Asking(Nameless(lambda: "nonsense"))
    assert await asking.plans() == ["reshuffle"]
    assert asking.failures()[0].startswith("policy Nameless: ")


@in_loop
async def test_a_built_in_policy_with_a_bug_ends_no_controller_either() -> None:
    asking = Asking(policies=(raising(ZeroDivisionError("a bug")), Reshuffle()))
    assert await asking.plans() == ["reshuffle"]
    assert asking.failures() == ["policy told: ZeroDivisionError: a bug"]


# Whatever it answers

OWN: Final = Own(service="a", moves=[(0, "a2")])
NONSENSE: Final[dict[str, tuple[Callable[[], Any], str]]] = {
    "no plan": (lambda: "restart everything", "a str that is no plan"),
    "a list": (lambda: [plan(OWN)], "a list that is no plan"),
    "a plan of nonsense": (lambda: plan(OWN).model_copy(update={"phases": "first this"}), "that is no plan"),
    "not for the log": (
        lambda: plan(Perform(incarnation="a2", operation="x", args={"x": object()})),
        "cannot be kept in the log",
    ),
    "too large": (lambda: plan(OWN, services=["a"], policy="x" * PLAN_BYTES_MAX), "are allowed"),
    "without steps": (lambda: Plan(policy="told", cause="", services=["a"], phases=[]), "a plan of 0 steps"),
    "too many steps": (lambda: plan(*[Place(service="a")] * (STEPS_MAX + 1)), "are allowed"),
    "no such service": (lambda: plan(Place(service="z"), services=["z"]), r"speaks for \['z'\]"),
    "a service that it does not speak for": (lambda: plan(Place(service="b")), "speaks for"),
    "no such instance": (lambda: plan(Stop(incarnation="a9", reason="x")), "no instance 'a9'"),
    "an instance of another service": (lambda: plan(Stop(incarnation="b1", reason="x")), "about service 'b'"),
    "shards to a stranger": (lambda: plan(Own(service="a", moves=[(0, "b1")])), r"\['b1'\] are no instances of a"),
    "no such shard": (lambda: plan(Own(service="a", moves=[(2, "a2")])), r"shards 0 to 1, not \[2\]"),
    "a shard below all": (lambda: plan(Own(service="a", moves=[(-1, "a2")])), r"not \[-1\]"),
    "a shard for two": (lambda: plan(Own(service="a", moves=[(0, "a2"), (0, None)])), "two things of one shard"),
    "no such shard to refuse": (lambda: plan(Refuse(service="a", shard=9, reason="x"), services=[]), r"not \[9\]"),
    "no such service to refuse": (lambda: plan(Refuse(service="z", shard=0, reason="x"), services=[]), "no service"),
    "no such node": (lambda: plan(Start(service="a", node="n9")), "no node 'n9'"),
    "no such node to cordon": (lambda: plan(Cordon(node="n9", reason="x")), "no node 'n9'"),
    "a strange standby": (lambda: plan(Follow(service="a", moves=[(0, ["b1"])])), "no instances of a"),
    "a standby beside the owner": (lambda: plan(Follow(service="a", moves=[(1, ["a3"])])), "would share a node"),
    "a guard of no service": (lambda: plan(Step(action=OWN, guards=[Served(service="z")])), "a guard is about 'z'"),
    "a quorum of no service": (
        lambda: plan(Step(action=OWN, guards=[Enough(service="z", least=1, without="")])),
        "a guard is about 'z'",
    ),
    "a step that has begun": (lambda: plan(Step(action=OWN, state=State.DONE)), "has begun already"),
    "a step that was forced": (lambda: plan(Step(action=OWN, forced=True)), "has begun already"),
    "a step without end": (lambda: plan(Step(action=OWN, deadline_s=2 * DEADLINE_MAX_S)), "a deadline of"),
    "a step without time": (lambda: plan(Step(action=OWN, deadline_s=float("nan"))), "a deadline of"),
    "none at once": (lambda: plan(OWN, at_once=0), "lets 0 steps run at once"),
    "a circle": (lambda: plan(OWN, after=["do"]), "do not come before it"),
    "two phases of one name": (
        lambda: plan(OWN).model_copy(update={"phases": 2 * plan(OWN).phases}),
        "two phases are called 'do'",
    ),
}


@pytest.mark.parametrize("what", NONSENSE)
@in_loop
async def test_an_answer_that_cannot_be_carried_out_is_told_and_the_next_policy_is_asked(what: str) -> None:
    answer, problem = NONSENSE[what]
    world = made(of("a", None, "a2"), of("b", "b1"), at("a2", "n2"), at("a3", "n2"), at("b1", "n1"))
    with pytest.raises(Exception, match=problem):
        checked(answer(), world)
    asking = Asking(Told(answer))
    asking.world = made(of("a", None, "a2", on_failure=[Told(answer)]), of("b", "b1"), *world.instances.values())
    assert await asking.plans() == ["reshuffle"]
    assert len(asking.failures()) == 1


def test_a_plan_that_can_be_carried_out_is_taken_as_it_is() -> None:
    world = made(of("a", None, "a2"), at("a2", "n2"), at("a3", "n2"))
    sound = plan(
        OWN,
        Follow(service="a", moves=[(1, ["a3"])]),  # beside the owner, but it is to take the shard over
        Own(service="a", moves=[(1, "a3")]),
        Start(service="a", node="n1"),
        Stop(incarnation="a2", reason="x"),
        Perform(incarnation="a2", operation="x", args={"deep": [1, {"y": None}]}),
        Refuse(service="a", shard=0, reason=None),
        Cordon(node="n1", reason="x"),
        Step(action=Place(service="a"), guards=[Served(service="a"), Enough(service="a", least=1, without="a2")]),
    )
    assert checked(sound, world) == sound


def test_nobody_changes_a_plan_behind_the_controllers_back() -> None:
    kept = plan(OWN)
    taken = checked(kept, made(of("a", None, "a2"), at("a2", "n2")))
    kept.phases.clear()
    kept.services.append("b")
    assert [step.action for _, _, step in taken.steps()] == [OWN]
    assert taken.services == ["a"]


@in_loop
async def test_a_plan_that_wants_only_what_is_so_already_is_none() -> None:
    """It would be done at once, and made again, for as long as the incident goes on."""
    asking = Asking(answering(plan(Own(service="a", moves=[(1, "a2")]))))
    assert await asking.plans() == ["reshuffle"]
    assert asking.failures() == []


# However long it takes


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "PLAN_MAX_S", 0.02)


@pytest.mark.usefixtures("_impatient")
@in_loop
async def test_one_that_takes_too_long_is_passed_over_and_not_asked_again_until_it_has_answered() -> None:
    """Nobody can stop its thread. If it were asked each time, one thread after the other would be stuck."""
    go_on = threading.Event()
    slow = Told(lambda: go_on.wait() and None)
    asking = Asking(slow)
    assert await asking.plans() == ["reshuffle"]
    assert "no answer within 0.02 s" in asking.failures()[0]
    assert await asking.plans() == ["reshuffle"]
    assert len(slow.asked) == 1
    go_on.set()
    await eventually(lambda: not asking.planning._thinking)  # pyright: ignore[reportPrivateUsage]
    assert await asking.plans() == ["reshuffle"]
    assert len(slow.asked) == 2


# Said once


@in_loop
async def test_what_goes_wrong_every_time_is_said_once_for_a_while() -> None:
    asking = Asking(raising(ValueError("no idea")))
    for _ in range(3):
        assert await asking.plans() == ["reshuffle"]
    assert len(asking.failures()) == len(asking.said) == 1
    told = next(i for i in asking.ledger.control.open_incidents() if i.kind is Kind.POLICY_FAILED)
    assert asking.planning.outcome_of(told, asking.world) is None
    later = made(*asking.world.services.values(), now_ms=told.changed_ms + POLICY_REST_MS + 1)
    assert asking.planning.outcome_of(told, later) == "the next policy was asked"


@in_loop
async def test_what_goes_wrong_in_a_policy_disturbs_no_plan_and_is_no_policys_business() -> None:
    broken = raising(ValueError("no idea"))
    asking = Asking(broken)
    before = dict(asking.ledger.control.disturbed)
    found = await asking.made()
    assert asking.ledger.control.disturbed == before == found[0].basis | {"a": before["a"]}
    await asking.made()
    assert set(broken.asked) == {Kind.INSTANCE_CRASH}


# Who is asked


@in_loop
async def test_a_services_own_policies_come_first_in_their_order() -> None:
    asking = Asking(answering(None), answering(plan(OWN, policy="second")), answering(plan(OWN, policy="third")))
    [found] = await asking.made()
    assert (found.policy, found.is_own, found.incident) == ("second", True, 1)
    assert (await Asking().made())[0].is_own is False


@in_loop
async def test_when_a_policys_plan_has_failed_it_is_the_next_ones_turn() -> None:
    asking = Asking(answering(plan(OWN, policy="hopeful")))
    [found] = await asking.made()
    number = asking.ledger.run(NOW_MS, "propose", found)
    asking.ledger.run(NOW_MS, "end_plan", number, Standing.FAILED, "it was not to be")
    assert await asking.plans() == ["reshuffle"]
    first = asking.ledger.control.incidents[1]
    asking.ledger.run(NOW_MS, "notice", first.model_copy(update={"closed_ms": NOW_MS}))
    asking.notice(evidence(Signal.CLOSED, "a3", "n3"))
    assert await asking.plans() == ["hopeful"], "another incident, another try"


@in_loop
async def test_a_policy_may_answer_for_some_services_and_leave_the_others() -> None:
    asking = Asking(answering(plan(OWN, policy="mine")))
    asking.notice(evidence(Signal.CLOSED, "b2", "n1"))
    both = asking.ledger.control.incidents[1].model_copy(update={"services": ["a", "b"]})
    asking.ledger.run(NOW_MS, "notice", both)
    asking.world = made(
        of("a", None, "a2", on_failure=[answering(plan(OWN, policy="mine"))]),
        of("b", None, "b1"),
        *[at("a2", "n2"), at("b1", "n1")],
    )
    assert [(found.policy, found.services) for found in await asking.made()] == [("mine", ["a"]), ("reshuffle", ["b"])]


@in_loop
async def test_no_two_plans_speak_for_one_service() -> None:
    asking = Asking()
    [found] = await asking.made()
    asking.ledger.run(NOW_MS, "propose", found)
    asking.notice(evidence(Signal.CLOSED, "a3", "n3"))
    assert await asking.made() == []


@in_loop
async def test_deaths_are_planned_for_before_what_is_only_slow_or_asked_for() -> None:
    asking = Asking(policies=(answering(plan(OWN, policy="first"), "any"),))
    asked = evidence(Signal.ASKED, "", "n2").model_copy(update={"service": "a"})
    asking.ledger.run(NOW_MS, "notice", begin(0, asked, ground()).model_copy(update={"id": 0}))
    newest = max(asking.ledger.control.incidents)
    swapped = {1: asking.ledger.control.incidents[newest], newest: asking.ledger.control.incidents[1]}
    for number, known in swapped.items():
        asking.ledger.run(NOW_MS, "notice", known.model_copy(update={"id": number}))
    assert [found.incident for found in await asking.made()] == [newest]


@in_loop
async def test_a_plan_knows_its_incident_and_how_often_its_services_were_disturbed() -> None:
    asking = Asking()
    asking.ledger.run(NOW_MS, "disturb", "a")
    asking.world = made(of("a", None, "a2", disturbed=2), of("b", "b1"), at("a2", "n2"), at("b1", "n1"))
    [found] = await asking.made()
    assert (found.incident, found.basis) == (1, {"a": 2})


# How incidents end


def ended(kind: Kind, world: World, *pieces: Evidence, **fields: Any) -> str | None:
    shown = incident(kind, *pieces).model_copy(update=fields)
    return Asking().planning.outcome_of(shown, world)


def test_a_death_is_over_when_nothing_is_missing_any_more() -> None:
    whole = made(of("a", "a2", "a3"), at("a2", "n2"), at("a3", "n3"), now_ms=12_000)
    assert ended(Kind.NODE_DEAD, whole) == "healed in 2000 ms"
    assert ended(Kind.NODE_DEAD, made(of("a", "a2", None), at("a2", "n2"))) is None
    assert ended(Kind.NODE_DEAD, made(of("a", "a2", wanted=2), at("a2", "n2"))) is None
    assert ended(Kind.NODE_DEAD, made(of("a", wanted=0))) is not None, "nothing is wanted of it"


def test_a_shard_that_is_left_alone_for_a_while_is_missing_all_the_same() -> None:
    held = made(where(of("a", "a2", None), 1, held=True), at("a2", "n2"))
    assert ended(Kind.LOG_UNAVAILABLE, held) is None


def test_what_is_to_be_restarted_is_not_over_before_it_was() -> None:
    decided = {"restart": ["b"], "restart_ms": {"b": 10_000}}
    old, new = (
        made(of("a", "a2"), of("b", "b1"), at("a2", "n2"), at("b1", "n1", started_ms=ms)) for ms in (9_000, 11_000)
    )
    assert ended(Kind.INSTANCE_CRASH, old, **decided) is None
    assert ended(Kind.INSTANCE_CRASH, new, **decided) == "healed in 0 ms"
    assert ended(Kind.MASS_FAILURE, old, **decided) == "healed in 0 ms"


def test_a_drain_is_over_when_its_node_is_empty_and_stays_so() -> None:
    asked = evidence(Signal.ASKED, "", "n1")
    assert ended(Kind.PLANNED_DRAIN, made(of("a", "a1"), at("a1", "n1"), cordoned={"n1": "x"}), asked) is None
    assert ended(Kind.PLANNED_DRAIN, made(of("a", "a2"), at("a2", "n2")), asked) is None
    assert ended(Kind.PLANNED_DRAIN, made(of("a"), cordoned={"n1": "x"}), asked) == "drained in 0 ms"


def test_a_slow_instance_is_left_alone_for_a_while() -> None:
    slow = evidence(Signal.SLOW, "a1", "n1")
    assert ended(Kind.GRAY, made(of("a", "a2"), at("a1", "n1"), at("a2", "n2")), slow) is None
    assert ended(Kind.GRAY, made(of("a", "a2"), at("a1", "n1"), now_ms=99_000), slow) == "left alone for 89000 ms"
    assert ended(Kind.GRAY, made(of("a", "a2"), at("a2", "n2")), slow) is not None, "it is gone"
