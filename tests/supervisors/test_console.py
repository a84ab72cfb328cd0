"""The console and the operator: who is let in, what is answered, and that a verb takes effect once, whoever leads.

Goal: nothing but the verbs reaches the control log, each of them once by its session and number; every queue and wait has
an end. Method: a console on the real wire beside a control log in memory whose appends can be held; operators by hand where
frames matter, the real one where answers do. `tests/test_cli.py` has a whole application.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest

from rekindle import CommandFailed, OutcomeUnknown, Rejected, Supervisor
from rekindle.actors import (
    BadRequest,
    Closed,
    Connection,
    DeadlineExceeded,
    Host,
    TokenRefused,
    WebsocketWire,
    outcomes,
)
from rekindle.actors.frames import (
    ANSWER,
    CLIENT,
    GOODBYE,
    HELLO,
    OPERATE,
    OPERATOR,
    PROTOCOL,
    WELCOME,
    frame,
    parse,
)
from rekindle.events import AppendRefused, Topic, session_name, unpack
from rekindle.supervisors import (
    Console,
    Control,
    Controller,
    Launch,
    Node,
    Operator,
    ProcessCluster,
    control_log,
    leader,
)
from rekindle.supervisors.console import REQUESTS_MAX, TEXT_MAX
from rekindle.supervisors.control import INSTANCES_MAX, NoSuchPlan, NotNow, Unknown
from rekindle.supervisors.plans import ATTEMPTS_MAX, Phase, Place, Plan, Standing, Start, State, Step, advance
from rekindle.supervisors.prediction import NotSupposable
from tests.support.inprocess import START_MS, Clock, GatedLog, in_loop
from tests.support.loops import eventually
from tests.support.worlds import service

APP: Final = "shop"
BIND: Final = "127.0.0.1:0"
ROOT: Final = Supervisor("root", children=[service("stock", shards=2)])
SESSION: Final = session_name(START_MS, b"12345678")
TOKEN: Final = "a secret"


@dataclass
class Process:
    """A process with a controller that leads, but for its rounds, and a console."""

    controller: Controller
    console: Console
    said: list[str]
    address: str

    @property
    def control(self) -> Control:
        """What is decided."""
        return self.controller.decisions.control

    async def lead(self) -> None:
        """Claim the control log, and say in it where the console is."""
        decisions = self.controller.decisions
        await decisions.lead()
        await decisions.decide("lead", self.controller.name, self.address, "")
        await decisions.decide("declare", "stock", 2, 2)
        self.controller.nodes = [Node("a", "host-a", "east"), Node("b", "host-b", "west")]


@asynccontextmanager
async def process(
    log: GatedLog, name: str = "one", *, leads: bool = True, token: str | None = None
) -> AsyncGenerator[Process]:
    """One on this log, until the end of the block."""
    said: list[str] = []
    host = Host(log, None, WebsocketWire(), Clock(), asyncio.to_thread, said.append, token=token)
    controller = Controller(APP, ROOT, ProcessCluster(Launch("none:none"), ["a", "b"]), host, name)
    console = Console(host, APP)
    one = Process(controller, console, said, await console.start(BIND))
    console.controller = controller
    try:
        if leads:
            await one.lead()
        yield one
    finally:
        log.gate.set()
        controller.decisions.resign()
        await console.close()
    assert not [line for line in said if line.startswith("bug")], said


async def make_log() -> GatedLog:
    log = GatedLog()
    await log.create(Topic(control_log(APP).partition(0).topic, 1))
    return log


def operator(log: GatedLog, *, token: str | None = None, deadline_s: float = 20.0) -> Operator:
    return Operator(APP, leader(APP, log, None), WebsocketWire(), token, deadline_s)


@dataclass
class Hand:
    """An operator by hand."""

    connection: Connection

    async def ask(self, call: int, number: int, verb: str, *args: Any, low: int | None = None) -> None:
        """Send a question."""
        session = SESSION if number else b""
        low = number if low is None else low
        await self.connection.send(frame(OPERATE, call, session, number, low, verb, args))

    async def answers(self, count: int) -> dict[int, list[Any]]:
        """So many outcomes, by the number of their call."""
        found: dict[int, list[Any]] = {}
        while len(found) < count:
            fields = parse(await self.connection.receive())
            assert fields[0] == ANSWER
            found.update((call, unpack(payload)) for call, payload in fields[1])
        return found

    async def goodbye(self) -> str:
        """Why the console has closed the connection."""
        fields = parse(await self.connection.receive())
        assert fields[0] == GOODBYE, fields
        with pytest.raises(Closed):
            await self.connection.receive()
        return str(fields[1])


async def hand(one: Process, *hello: Any) -> Hand:
    """Connected; welcome, unless it says something else than an operator does."""
    connection = await WebsocketWire().connect(one.address)
    await connection.send(frame(HELLO, *(hello or (PROTOCOL, None, OPERATOR))))
    if not hello:
        fields = parse(await connection.receive())
        assert fields[:4] == [WELCOME, PROTOCOL, APP, "control"]
    return Hand(connection)


async def sleepless(log: GatedLog) -> None:
    """Until somebody's append is held."""
    await eventually(lambda: log.held > 0)


def sayings(one: Process) -> list[tuple[str, str, str]]:
    return [(saying.who, saying.verb, saying.target) for saying in one.control.sayings]


# Who is let in


@in_loop
async def test_without_a_token_only_loopback_is_served() -> None:
    console = Console(
        Host(await make_log(), None, WebsocketWire(), Clock(), asyncio.to_thread, list[str]().append), APP
    )
    with pytest.raises(ValueError, match="needs a token"):
        await console.start("0.0.0.0:0")
    await console.close()


@in_loop
async def test_an_operator_with_another_token_is_refused_at_once() -> None:
    log = await make_log()
    async with process(log, token=TOKEN), operator(log, token=TOKEN) as friend, operator(log, token="no") as stranger:
        with pytest.raises(TokenRefused):
            await stranger.look()
        assert (await friend.look(["services"])).services[0].name == "stock"


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        ((PROTOCOL, None, CLIENT), "operators are served here, not a 'client'"),
        ((PROTOCOL + 1, None, OPERATOR), f"protocol {PROTOCOL + 1} is not spoken here, {PROTOCOL} is"),
        ((PROTOCOL, None), "expected HELLO, protocol, token, role; got kind 1 with 2 fields"),
    ],
)
def test_who_is_no_operator_is_told_so(hello: Sequence[Any], reason: str) -> None:
    @in_loop
    async def test() -> None:
        async with process(await make_log()) as one:
            assert await (await hand(one, *hello)).goodbye() == reason

    test()


@in_loop
async def test_more_connections_than_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rekindle.supervisors.console.CONNECTIONS_MAX", 1)
    log = await make_log()
    async with process(log) as one:
        first = await hand(one)
        assert (
            await (await hand(one, PROTOCOL, None, OPERATOR)).goodbye()
            == "1 operators are connected, more are not served"
        )
        await first.connection.close()
        async with operator(log) as second:  # which tries again until there is room
            assert (await second.look(["nodes"])).app == APP


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ((1, SESSION, 1, 1, "assign", ("stock", ())), "'assign' is not said here"),
        ((1, b"", 0, 0, "scale", ()), "'scale' is not said here"),
        ((1, SESSION, 1, 1, "look", ()), "'look' is not said here"),
        ((1, SESSION, 0, 0, "look", ()), "a session and a number belong together"),
        ((1, b"", 1, 1, "scale", ()), "a session and a number belong together"),
        ((1, SESSION, 1, 2, "scale", ()), "no question"),
        ((1, SESSION, -1, -1, "scale", ()), "no question"),
        ((1, SESSION * 9, 1, 1, "scale", ()), "no question"),
        ((1, "a session", 1, 1, "scale", ()), "no question"),
        ((None, SESSION, 1, 1, "scale", ()), "no question"),
        ((1, SESSION, True, 1, "scale", ()), "no question"),
        ((1, SESSION, 1, 1, "scale", "no list"), "no question"),
        ((1, SESSION, 1, 1, "scale"), "frame kind 21 with 5 fields is not for a console"),
    ],
)
def test_what_is_no_question_ends_the_connection(question: Sequence[Any], reason: str) -> None:
    @in_loop
    async def test() -> None:
        async with process(await make_log()) as one:
            caller = await hand(one)
            await caller.connection.send(frame(OPERATE, *question))
            assert reason in await caller.goodbye()
            assert one.control.sayings == []

    test()


# What is answered


@in_loop
async def test_what_only_looks_touches_nothing() -> None:
    log = await make_log()
    async with process(log) as one, operator(log) as ann:
        before = await log.bounds(control_log(APP).partition(0))
        assert (await ann.look()).services[0].state == "down"
        assert (await ann.explain("stock/1")).state.startswith("nobody's")
        assert (await ann.suppose("poison:stock/1")).plans[0].policy == "quarantine_poison"
        assert await log.bounds(control_log(APP).partition(0)) == before
        assert one.control.plans == {}


@in_loop
async def test_a_plan_and_an_incident_by_their_numbers() -> None:
    log = await make_log()
    async with process(log) as one, operator(log) as ann:
        number = await ann.say("drain", "ann", "old", "a")
        plan = Plan(
            policy="p", cause="c", services=[], phases=[Phase(name="n", steps=[Step(action=Place(service="stock"))])]
        )
        made = await one.controller.decisions.decide("propose", plan)
        assert (await ann.incident(number)).incident.nodes == ["a"]
        assert (await ann.plan(made)).phases[0].steps[0].what == "stock: every shard is served"
        for ask in (ann.incident, ann.plan):
            with pytest.raises(Unknown):
                await ask(99)


@pytest.mark.parametrize(
    ("verb", "args", "error", "fields"),
    [
        ("pause", [7], NoSuchPlan, {"plan": 7, "active": []}),
        ("scale", ["till", 2], Unknown, {"what": "service", "name": "till", "known": ["stock"]}),
        ("scale", ["stock", 0], NotNow, {"verb": "scale", "target": "stock"}),
        ("scale", ["stock", INSTANCES_MAX + 1], NotNow, {"verb": "scale", "target": "stock"}),
        ("drain", ["z"], Unknown, {"what": "node", "name": "z", "known": ["a", "b"]}),
        ("uncordon", ["a"], Unknown, {"what": "cordoned node", "name": "a", "known": []}),
        ("allow", ["stock", 2], Unknown, {"what": "shard", "name": "stock/2"}),
    ],
)
def test_a_refusal_comes_with_its_fields(
    verb: str, args: list[Any], error: type[Rejected], fields: dict[str, Any]
) -> None:
    @in_loop
    async def test() -> None:
        log = await make_log()
        async with process(log) as one, operator(log) as ann:
            with pytest.raises(error) as refused:
                await ann.say(verb, "ann", "why not", *args)
            assert fields.items() <= vars(refused.value).items()
            assert one.control.sayings == []

    test()


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("scale", ["ann", "why", "stock", "many"]),
        ("scale", ["ann", "why", "stock"]),
        ("drain", ["ann", "why"]),
        ("pause", ["ann", "why", 1, 2]),
        ("scale", ["ann", "x" * (TEXT_MAX + 1), "stock", 2]),
        ("look", [1]),
        ("explain", []),
        ("incident", ["1"]),
    ],
)
def test_a_question_with_wrong_arguments(verb: str, args: list[Any]) -> None:
    @in_loop
    async def test() -> None:
        log = await make_log()
        async with process(log) as one, operator(log) as ann:
            with pytest.raises(BadRequest):
                await ann.ask(verb, *args, once=verb in {"scale", "drain", "pause"})
            assert one.control.sayings == []

    test()


@in_loop
async def test_a_name_and_a_reason_are_needed() -> None:
    log = await make_log()
    async with process(log), operator(log) as ann:
        for who, reason in (("", "why"), ("ann", "")):
            with pytest.raises(NotNow, match="a name and a reason are needed"):
                await ann.say("scale", who, reason, "stock", 3)


@in_loop
async def test_what_cannot_be_supposed_says_what_can() -> None:
    log = await make_log()
    async with process(log), operator(log) as ann:
        with pytest.raises(NotSupposable) as refused:
            await ann.suppose("rain:a")
        assert "node-dead:NODE" in refused.value.expected


@in_loop
async def test_a_bug_in_an_answer_ends_neither_console_nor_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    log = await make_log()

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    async with process(log) as one, operator(log) as ann:
        with monkeypatch.context() as patch:
            patch.setattr("rekindle.supervisors.console.explain", broken)
            with pytest.raises(CommandFailed, match="our bug"):
                await ann.explain("stock")
        assert (await ann.explain("stock")).sort == "service"
        assert one.said.pop().startswith("bug: the console cannot answer explain")


@in_loop
async def test_a_step_that_is_retried_has_attempts_that_nobody_has_acted_for() -> None:
    log = await make_log()
    async with process(log) as one, operator(log) as ann:
        start = Step(action=Start(service="stock", node="a"))
        plan = Plan(policy="p", cause="c", services=["stock"], phases=[Phase(name="n", steps=[start])])
        made = await one.controller.decisions.decide("propose", plan)
        failures = {(1, attempt): "no room" for attempt in range(1, ATTEMPTS_MAX)}

        async def go_on() -> Step:
            changes = advance(one.control.plans[made], one.controller.world(), failures)
            await one.controller.decisions.decide("advance", made, changes, {})
            return one.control.plans[made].step(1)

        assert [(await go_on()).attempt for _ in range(ATTEMPTS_MAX)] == list(range(1, ATTEMPTS_MAX + 1))
        await ann.say("retry", "ann", "there is room now", made, 1)
        assert one.control.plans[made].step(1).state is State.PENDING
        failures |= {(1, attempt): "no room" for attempt in range(ATTEMPTS_MAX, 2 * ATTEMPTS_MAX + 1)}
        again = [await go_on() for _ in range(ATTEMPTS_MAX + 1)]
        assert [step.attempt for step in again[:-1]] == list(range(ATTEMPTS_MAX + 1, 2 * ATTEMPTS_MAX + 1))
        assert (again[-1].state, one.control.plans[made].standing) == (State.FAILED, Standing.FAILED)


# Once


@in_loop
async def test_the_same_number_twice_is_done_once_and_answered_twice() -> None:
    async with process(await make_log()) as one:
        caller = await hand(one)
        await caller.ask(1, 1, "drain", "ann", "old", "a")
        await caller.ask(2, 1, "drain", "ann", "old", "a")
        answers = await caller.answers(2)
        assert answers[1] == answers[2] == [outcomes.OK, 1]
        await caller.ask(3, 2, "drain", "ann", "old", "a")
        assert await caller.answers(1) == {3: [outcomes.OK, 2]}
        assert sayings(one) == [("ann", "drain", "a")] * 2
        assert one.control.incidents[1].zones == ["east"]
        assert one.controller.changed.is_set()


@in_loop
async def test_a_node_that_has_gone_since_does_not_change_the_answer() -> None:
    async with process(await make_log()) as one:
        caller = await hand(one)
        await caller.ask(1, 1, "drain", "ann", "old", "a")
        first = await caller.answers(1)
        one.controller.nodes = []
        await caller.ask(2, 1, "drain", "ann", "old", "a")
        assert (await caller.answers(1))[2] == first[1]


@in_loop
async def test_a_refusal_is_an_answer_for_ever() -> None:
    async with process(await make_log()) as one:
        caller = await hand(one)
        await caller.ask(1, 1, "uncordon", "ann", "new", "a")
        assert (await caller.answers(1))[1][0] == outcomes.REJECTED
        await caller.ask(2, 2, "drain", "ann", "old", "a", low=1)
        await one.controller.decisions.decide("advance", 1, [], {})
        await caller.ask(3, 1, "uncordon", "ann", "new", "a")
        answers = await caller.answers(2)
        assert answers[3][0] == outcomes.REJECTED


@in_loop
async def test_questions_beyond_the_bound_are_sent_back() -> None:
    log = await make_log()
    async with process(log) as one:
        log.gate.clear()
        caller = await hand(one)
        for number in range(1, REQUESTS_MAX + 2):
            await caller.ask(number, number, "scale", "ann", "why", "stock", number, low=1)
        assert await caller.answers(1) == {REQUESTS_MAX + 1: [outcomes.BUSY, REQUESTS_MAX, REQUESTS_MAX]}
        log.gate.set()
        assert set(await caller.answers(REQUESTS_MAX)) == set(range(1, REQUESTS_MAX + 1))
        assert one.control.wanted == {"stock": REQUESTS_MAX}


@in_loop
async def test_who_waits_too_long_is_told_to_ask_again_and_it_is_still_done_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = await make_log()
    async with process(log) as one:
        log.gate.clear()
        caller = await hand(one)
        with monkeypatch.context() as patch:
            patch.setattr("rekindle.supervisors.console.ANSWER_MAX_S", 0.01)
            await caller.ask(1, 1, "scale", "ann", "why", "stock", 5)
            assert await caller.answers(1) == {1: [outcomes.MOVED, None, 0]}
        assert one.controller.decisions._futures == {}  # pyright: ignore[reportPrivateUsage]
        log.gate.set()
        await caller.ask(2, 1, "scale", "ann", "why", "stock", 5)
        assert await caller.answers(1) == {2: [outcomes.OK, None]}
        assert sayings(one) == [("ann", "scale", "stock to 5")]


# Whoever leads


@in_loop
async def test_a_process_that_stands_by_says_who_leads() -> None:
    log = await make_log()
    async with process(log, "one") as one, process(log, "two", leads=False) as two:
        caller = await hand(two)
        await caller.ask(1, 0, "look")
        await caller.ask(2, 1, "scale", "ann", "why", "stock", 3)
        answers = await caller.answers(2)
        assert answers[1] == answers[2] == [outcomes.MOVED, one.address, 0]
        assert one.control.sayings == []


@in_loop
async def test_a_process_that_is_fenced_does_nothing_more() -> None:
    log = await make_log()
    async with process(log, "one") as one, process(log, "two") as two:
        assert one.controller.decisions.leads  # as far as it knows
        caller = await hand(one)
        await caller.ask(1, 1, "scale", "ann", "why", "stock", 3)
        assert await caller.answers(1) == {1: [outcomes.MOVED, two.address, 0]}
        assert two.control.sayings == []


@in_loop
async def test_a_leader_that_has_not_declared_anything_yet_is_asked_again() -> None:
    log = await make_log()
    async with process(log, leads=False) as one, operator(log) as ann:
        await one.controller.decisions.lead()
        await one.controller.decisions.decide("lead", "one", one.address, "")
        asked = asyncio.create_task(ann.look(["services"]))
        await eventually(lambda: "does not lead" in ann.last_error)
        await one.controller.decisions.decide("declare", "stock", 2, 2)
        assert (await asked).services[0].shards == 2


@in_loop
async def test_an_operator_follows_to_the_next_leader() -> None:
    log = await make_log()
    async with process(log, "one") as one, operator(log) as ann:
        await ann.say("scale", "ann", "why", "stock", 3)
        await one.console.close()
        async with process(log, "two") as two:
            await ann.say("scale", "ann", "why", "stock", 4)
            assert (await ann.look()).leader == "two"
            assert sayings(two) == [("ann", "scale", "stock to 3"), ("ann", "scale", "stock to 4")]


@in_loop
async def test_a_verb_is_done_once_although_its_leader_died_before_it_answered() -> None:
    log = await make_log()
    async with process(log, "one") as one, operator(log) as ann:
        log.gate.clear()
        asked = asyncio.create_task(ann.say("drain", "ann", "old", "a"))
        await sleepless(log)
        await one.console.close()  # its process dies, but the append is on its way
        log.gate.set()
        async with process(log, "two") as two:
            assert await asked == 1
            assert sayings(two) == [("ann", "drain", "a")]
            assert sorted(two.control.incidents) == [1]


@in_loop
async def test_a_verb_is_done_although_its_leader_died_before_it_was_written_down() -> None:
    log = await make_log()
    async with process(log, "one") as one, operator(log) as ann:
        log.gate.clear()
        asked = asyncio.create_task(ann.say("drain", "ann", "old", "a"))
        await sleepless(log)
        await one.console.close()
        one.controller.decisions.resign()
        log.refusals.append(AppendRefused("it never arrives"))
        log.gate.set()
        await one.controller.decisions.wait_fenced()
        async with process(log, "two") as two:
            assert await asked == 1
            assert sayings(two) == [("ann", "drain", "a")]


@in_loop
async def test_a_leader_that_is_frozen_is_left_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rekindle.supervisors.operators.SILENT_S", 0.02)
    log = await make_log()
    heard, thawed = asyncio.Event(), asyncio.Event()

    async def frozen(connection: Connection) -> None:
        await connection.receive()
        await connection.send(frame(WELCOME, PROTOCOL, APP, "control", "one", START_MS, []))
        await connection.receive()
        heard.set()
        await thawed.wait()

    async with process(log, "one", leads=False) as one, operator(log) as ann:
        listening = await WebsocketWire().serve(BIND, frozen)
        one.address = listening.address
        await one.lead()
        asked = asyncio.create_task(ann.say("scale", "ann", "why", "stock", 3))
        await heard.wait()
        async with process(log, "two") as two:
            await asked
            assert sayings(two) == [("ann", "scale", "stock to 3")]
        thawed.set()
        await listening.close()


# Deadlines


@in_loop
async def test_where_nobody_leads_the_deadline_says_so() -> None:
    log = await make_log()
    async with operator(log, deadline_s=0.05) as ann:
        with pytest.raises(DeadlineExceeded, match="nobody has led 'shop' yet"):
            await ann.say("scale", "ann", "why", "stock", 3)


@in_loop
async def test_where_nobody_answers_a_verb_may_have_been_done() -> None:
    log = await make_log()
    async with process(log), operator(log, deadline_s=0.5) as ann:
        await ann.look(["nodes"])  # connected, so that the deadline is not over before it is sent
        log.gate.clear()
        with pytest.raises(OutcomeUnknown, match="it may have been done"):
            await ann.say("scale", "ann", "why", "stock", 3)


@in_loop
async def test_questions_of_one_operator_take_their_turn() -> None:
    log = await make_log()
    async with process(log) as one, operator(log) as ann:
        await asyncio.gather(*(ann.say("scale", "ann", "why", "stock", count) for count in range(1, 9)))
        assert sayings(one) == [("ann", "scale", f"stock to {count}") for count in range(1, 9)]
