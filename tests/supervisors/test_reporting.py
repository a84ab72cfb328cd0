"""What operators get to see: reports, stories and explanations, from what is decided and what is seen.

Goal: every state that something can be in has its word, its reason and its verb; and the shapes, which programs read, stay.
Method: small worlds by hand with the decisions that must have led to them, one thing out of order in each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel

from rekindle.supervisors import report as shapes
from rekindle.supervisors.control import Unknown
from rekindle.supervisors.decided import (
    Cordoned,
    Counted,
    Gone,
    Noticed,
    Proposed,
    Refused,
    Said,
    Saying,
    Scaled,
    Stepped,
    Stood,
)
from rekindle.supervisors.explaining import EVIDENCE_TOLD, explain
from rekindle.supervisors.incidents import EVIDENCE_MAX, Evidence, Ground, Incident, Kind, Signal, begin, grown
from rekindle.supervisors.plans import (
    Action,
    Cordon,
    Follow,
    Own,
    Perform,
    Phase,
    Place,
    Plan,
    Refuse,
    Standing,
    Start,
    State,
    Step,
    Stop,
)
from rekindle.supervisors.report import PARTS, Report
from rekindle.supervisors.reporting import Head, plan_report, ranges, report_of, story_of, what
from rekindle.supervisors.world import InstanceView, World
from tests.support.worlds import NOW_MS, control_of, service, with_shard, world_of

HEAD = Head("shop", "controller-1", 7)
SPECS = [service("stock", shards=4, standbys=1), service("till", shards=1, instances=1, needs=["stock"])]
NODES = {"a": "east", "b": "west"}
GROUND = Ground(zones={}, alive=list(NODES))


def calm() -> World:
    """A world in which all is well."""
    return world_of(SPECS, NODES, {"s1": "a", "s2": "b", "t1": "a"}, follow=True)


def report(world: World, *events: Any, parts: tuple[str, ...] = PARTS) -> Report:
    return report_of(HEAD, control_of(world, *events), world, parts)


def crash(number: int = 2, **fields: Any) -> Incident:
    """The death of s2, seen a second ago."""
    piece = Evidence(
        at_ms=NOW_MS - 1000, signal=Signal.CLOSED, text="gone", service="stock", incarnation="s2", node="b"
    )
    return begin(number, piece, GROUND).model_copy(update=fields)


def recovery(*states: State, why: str = "", **fields: Any) -> Plan:
    """A plan about that death: own, start, place, as far as there are states. Each step is in its state since its number."""
    actions: list[Action] = [
        Own(service="stock", moves=[(1, "s1"), (3, "s1")]),
        Start(service="stock", node="b"),
        Place(service="stock"),
    ]
    steps = [
        Step(action=action, state=state, why=why, began_ms=NOW_MS - 899, since_ms=NOW_MS - 898 + number)
        for number, (action, state) in enumerate(zip(actions, states, strict=False), 1)
    ]
    phases = [Phase(name=f"phase {number}", steps=[step]) for number, step in enumerate(steps, 1)]
    known = Plan(
        policy="reshuffle", cause="a crash", services=["stock"], phases=phases, id=3, incident=2, made_ms=NOW_MS - 900
    )
    return known.model_copy(update=fields)


# The report


def test_a_calm_world() -> None:
    told = report(calm())
    assert (told.app, told.leader, told.term, told.at_ms, told.frozen) == ("shop", "controller-1", 7, NOW_MS, False)
    stock, till = told.services
    assert (stock.state, stock.up, stock.wanted, stock.served, stock.shards) == ("served", 2, 2, 4, 4)
    assert (stock.standbys, stock.caught_up, stock.plan) == (4, 4, None)
    assert (till.state, till.needs) == ("served", ["stock"])
    assert [(i.name, i.state, i.shards, i.follows) for i in told.instances] == [
        ("s1", "up", 2, 2),
        ("s2", "up", 2, 2),
        ("t1", "up", 1, 0),
    ]
    assert [(node.name, node.zone, node.state, node.instances) for node in told.nodes] == [
        ("a", "east", "open", 2),
        ("b", "west", "open", 1),
    ]
    assert {shard.state for shard in told.shards} == {"served"}
    assert told.shards[0].standbys == [shapes.StandbyReport(instance="s2", behind=0)]
    assert told.tree is not None
    assert (told.tree.state, [child.name for child in told.tree.children]) == ("whole", ["stock", "till"])
    assert (told.incidents, told.plans, told.sayings) == ([], [], [])


def test_only_the_parts_that_are_asked_for() -> None:
    told = report(calm(), parts=("nodes",))
    assert (len(told.nodes), told.services, told.shards, told.tree) == (2, [], [], None)


def test_a_part_that_there_is_not() -> None:
    with pytest.raises(Unknown) as unknown:
        report(calm(), parts=("nodes", "weather"))
    assert (unknown.value.name, unknown.value.known) == ("weather", list(PARTS))


@pytest.mark.parametrize(
    ("shard", "state", "of_service"),
    [
        ({"served": False}, "replaying", "unserved"),
        ({"served": False, "owner": None}, "nobody's", "unserved"),
        ({"served": False, "owner": None, "held": True}, "held", "unserved"),
        ({"served": False, "owner": None, "refused": "poison"}, "kept down", "unserved"),
        ({"behind": {"s2": None}}, "served", "short"),
        ({}, "served", "served"),
    ],
)
def test_the_words_for_a_shard(shard: dict[str, Any], state: str, of_service: str) -> None:
    told = report(with_shard(calm(), "stock", 0, **shard))
    assert (told.shards[0].state, told.services[0].state) == (state, of_service)


def test_a_service_of_which_nothing_is_served_is_down() -> None:
    told = report(with_shard(calm(), "till", 0, served=False))
    assert told.services[1].state == "down"
    assert told.tree is not None
    assert told.tree.state == "not whole: till"


def test_instances_that_cannot_be_given_anything_and_nodes_that_are_not_there() -> None:
    world = calm()
    silent = replace(world.instances["s2"], up=False)
    starting = InstanceView("s3", "stock", "b", "west", up=False)
    control = control_of(world)
    seen = replace(
        world, instances={**world.instances, "s2": silent, "s3": starting}, cordoned={"b": "why", "z": "old"}
    )
    told = report_of(HEAD, control, seen)
    assert [(i.name, i.state) for i in told.instances] == [
        ("s1", "up"),
        ("s2", "not answering"),
        ("s3", "starting"),
        ("t1", "up"),
    ]
    assert [(n.name, n.state, n.why) for n in told.nodes] == [
        ("a", "open", ""),
        ("b", "cordoned", "why"),
        ("z", "gone", "old"),
    ]
    assert told.services[0].state == "short"


def test_plans_that_are_active_and_incidents_with_their_plans() -> None:
    over = recovery(State.DONE, id=3).model_copy(update={"standing": Standing.DONE})
    active = recovery(State.DONE, State.BLOCKED, id=4, why="not yet")
    told = report(calm(), Noticed(incident=crash()), Proposed(plan=over), Proposed(plan=active))
    assert [plan.id for plan in told.plans] == [4]
    assert told.services[0].plan == 4
    assert [(incident.id, incident.kind, incident.plans) for incident in told.incidents] == [
        (2, Kind.INSTANCE_CRASH, [3, 4])
    ]


def test_a_plan_numbers_its_steps_through_its_phases() -> None:
    told = plan_report(recovery(State.DONE, State.BLOCKED, State.PENDING, why="not yet"))
    steps = [(step.number, step.state, step.why) for phase in told.phases for step in phase.steps]
    assert steps == [(1, State.DONE, "not yet"), (2, State.BLOCKED, "not yet"), (3, State.PENDING, "not yet")]
    assert [phase.after for phase in told.phases] == [[], ["phase 1"], ["phase 2"]]


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (Own(service="s", moves=[(0, "x"), (2, "y"), (1, "x")]), "s: 0-1 owned by x; 2 owned by y"),
        (Own(service="s", moves=[(4, None)]), "s: 4 owned by nobody"),
        (Own(service="s", moves=[(n, f"i{n}") for n in range(6)]), "s: " + "; ".join(f"{n} owned by i{n}" for n in range(4)) + "; and 2 more"),
        (Follow(service="s", moves=[(0, ["x", "y"]), (1, [])]), "s: 0 followed by x, y; 1 followed by nobody"),
        (Start(service="s", node="a"), "s: one more instance on a"),
        (Stop(incarnation="x", reason="drained"), "x is stopped: drained"),
        (Refuse(service="s", shard=3, reason="poison"), "s/3 is kept down: poison"),
        (Refuse(service="s", shard=3, reason=None), "s/3 may be served"),
        (Cordon(node="a", reason="old"), "a gets nothing new: old"),
        (Cordon(node="a", reason=None), "a may be used"),
        (Perform(incarnation="x", operation="promote"), "x performs promote"),
        (Place(service="s"), "s: every shard is served"),
    ],
)  # fmt: skip
def test_what_an_action_wants(action: Any, words: str) -> None:
    assert what(action) == words


def test_many_numbers_are_counted() -> None:
    assert ranges([3, 1, 2, 7]) == "1-3, 7"
    assert ranges(range(0, 40, 2)) == "0, 2, 4, 6, 8, 10, 12, 14, ... (20 in all)"


# The story of an incident


def test_the_timeline_of_an_incident_that_is_over() -> None:
    over = recovery(State.DONE, State.DONE).model_copy(update={"standing": Standing.DONE, "ended_ms": NOW_MS - 500})
    closed = crash(closed_ms=NOW_MS - 400, outcome="healed in 600 ms")
    told = story_of(control_of(calm(), Noticed(incident=closed), Proposed(plan=over)), 2)
    assert [(moment.name, moment.took_ms) for moment in told.timeline] == [
        ("seen", 0),
        ("decided", 100),
        ("assigned", 1),
        ("serving", 2),  # the start of an instance, which is step 2, is not what callers wait for
        ("closed", 497),
    ]
    assert told.took_ms == 600
    assert [line.text for line in told.lines] == [
        "s2 on b: connection closed: gone",
        "plan 3 (reshuffle) is made: a crash",
        "plan 3, step 1 is done: stock: 1, 3 owned by s1",
        "plan 3, step 2 is done: stock: one more instance on b",
        "plan 3 is done",
        "the incident is closed: healed in 600 ms",
    ]


def test_what_was_marked_goes_before_what_can_be_told() -> None:
    marks = {"died": NOW_MS - 1040, "claimed": NOW_MS - 880, "replayed": NOW_MS - 870, "serving": NOW_MS - 860}
    plan = recovery(State.DONE)
    told = story_of(control_of(calm(), Noticed(incident=crash(marks=marks)), Proposed(plan=plan)), 2)
    assert [(moment.name, moment.took_ms) for moment in told.timeline] == [
        ("died", 0),
        ("seen", 40),
        ("decided", 100),
        ("assigned", 1),
        ("claimed", 19),
        ("replayed", 10),
        ("serving", 10),
    ]


def test_nothing_serves_before_every_shard_is_where_it_is_to_be() -> None:
    plan = recovery(State.DONE, State.PENDING, State.RUNNING)
    told = story_of(control_of(calm(), Noticed(incident=crash()), Proposed(plan=plan)), 2)
    assert [moment.name for moment in told.timeline] == ["seen", "decided", "assigned"]


def test_operators_are_part_of_the_story() -> None:
    said = Said(saying=Saying(at_ms=NOW_MS - 800, who="ann", verb="pause", target="plan 3", reason="I look first"))
    other = Said(saying=Saying(at_ms=NOW_MS - 800, who="bob", verb="pause", target="plan 33", reason="elsewhere"))
    told = story_of(control_of(calm(), Noticed(incident=crash()), Proposed(plan=recovery()), said, other), 2)
    assert [line.text for line in told.lines if "says" in line.text] == ["ann says pause plan 3: I look first"]


def test_evidence_beyond_the_bound_is_counted() -> None:
    incident = crash()
    for number in range(EVIDENCE_MAX):
        incident = grown(incident, incident.evidence[0].model_copy(update={"text": f"again {number}"}), GROUND)
    told = story_of(control_of(calm(), Noticed(incident=incident)), 2)
    assert (told.incident.evidence, len(told.evidence)) == (EVIDENCE_MAX + 1, EVIDENCE_MAX)
    assert any(line.text == "and 1 more pieces of evidence, up to now" for line in told.lines)


def test_an_incident_that_there_is_not() -> None:
    with pytest.raises(Unknown) as unknown:
        story_of(control_of(calm(), Noticed(incident=crash())), 5)
    assert unknown.value.known == ["2"]


# Explanations


def why(world: World, target: str, *events: Any) -> shapes.Explanation:
    return explain(control_of(world, *events), world, target)


def test_a_service_that_is_well() -> None:
    told = why(calm(), "stock")
    assert (told.sort, told.state) == ("service", "served: 2 of 2 instances up, 4 of 4 shards served")
    assert told.because == ["every shard is served by as many instances as are wanted"]
    assert (told.rules, told.verbs) == ([], ["rekindle scale stock N --reason WHY"])


def test_a_service_that_waits_for_a_step_that_is_blocked() -> None:
    world = with_shard(calm(), "stock", 1, owner=None, served=False)
    world = replace(world, instances={n: i for n, i in world.instances.items() if n != "s2"}, frozen=True)
    events = [
        Noticed(incident=crash()),
        Proposed(plan=recovery(State.DONE, State.BLOCKED, why="1 to wait")),
        Counted(restarts={"root": [NOW_MS - 10]}, held={"stock": NOW_MS + 500}),
    ]
    world = replace(world, restarts={"root": [NOW_MS - 10]})
    told = why(world, "stock", *events)
    assert told.because == [
        "1 of 2 instances are not there",
        "shards 1 are nobody's",
        "its restarts are held back for another 500 ms",
        "too much died lately: what can wait, waits",
        "plan 3, step 2 is blocked (1 to wait): stock: one more instance on b",
    ]
    assert told.rules == [
        "incident 2 of stock looks like instance-crash: connection closed",
        "policy reshuffle made plan 3: a crash",
        "supervisor root (one_for_one): 1 of 3 restarts within 60 s; one more than that, and what is above it decides",
    ]
    assert told.verbs == [
        "rekindle scale stock N --reason WHY",
        "rekindle pause 3 --reason WHY",
        "rekindle force 3 2 --reason WHY",
        "rekindle skip 3 2 --reason WHY",
    ]


def test_a_service_that_waits_for_another_one() -> None:
    told = why(with_shard(calm(), "stock", 0, served=False), "till")
    assert told.because == ["it needs stock, which is unserved"]


def test_a_service_that_somebody_has_scaled() -> None:
    said = Said(saying=Saying(at_ms=NOW_MS, who="ann", verb="scale", target="stock to 2", reason="the sale"))
    world = calm()
    control = control_of(world, said, Scaled(service="stock", instances=2))
    control.declared["stock"] = 1
    told = explain(control, world, "stock")
    assert told.because == ["2 instances are wanted, not the 1 that are declared: ann said so: the sale"]


@pytest.mark.parametrize(
    ("shard", "reason"),
    [
        ({}, "s1 has claimed it and serves it"),
        ({"served": False}, "s1 owns it by assignment 1 and has not said yet that it serves it"),
        ({"served": False, "owner": None}, "its owner, s1, is not there any more"),
        (
            {"served": False, "held": True},
            "its owner gave it up a moment ago; it is left alone for a while, each time for longer",
        ),
        ({"served": False, "refused": "poison"}, "it is kept down until an operator allows it: poison"),
    ],
)
def test_why_a_shard_is_as_it_is(shard: dict[str, Any], reason: str) -> None:
    told = explain(control_of(calm()), with_shard(calm(), "stock", 2, **shard, waiting=3), "stock/2")
    assert told.because == [reason, "3 calls wait for it", "s2 follows it, 0 commits behind"]
    assert ("rekindle allow stock/2 --reason WHY" in told.verbs) == ("refused" in shard)


def test_a_shard_that_nobody_was_given() -> None:
    told = why(with_shard(calm(), "stock", 2, served=False, owner=None, standbys=()), "stock/2")
    assert told.because == ["it was given up, or taken away, and given to nobody since"]


def test_a_shard_whose_replay_kills() -> None:
    world = with_shard(calm(), "stock", 1, served=False, held=True)
    deaths = [Gone(incarnation=name, reason="r", replaying=[1], at_ms=NOW_MS) for name in ("s2", "s1")]
    assert why(world, "stock/1", *deaths).because[0] == "its replay was running at the death of 2 instances"


def test_a_service_with_a_shard_that_is_kept_down() -> None:
    world = with_shard(calm(), "stock", 3, served=False, owner=None, refused="poison")
    told = why(world, "stock", Refused(service="stock", shard=3, reason="poison"))
    assert told.because == ["shards 3 are kept down"]
    assert "rekindle allow stock/3 --reason WHY" in told.verbs


def test_an_instance_and_who_started_it() -> None:
    plan = recovery(State.DONE, State.DONE)
    plan.phases[1].steps[0] = plan.phases[1].steps[0].model_copy(update={"result": "s2"})
    told = why(replace(calm(), cordoned={"b": "old"}), "s2", Proposed(plan=plan))
    assert (told.state, told.sort) == ("up on b", "instance")
    assert told.because == [
        "started by step 2 of plan 3 (reshuffle): a crash",
        "it owns stock/1, 3",
        "nothing new is put on b: old",
    ]
    assert told.verbs == ["rekindle drain b --reason WHY", "rekindle scale stock N --reason WHY"]


def test_an_instance_that_is_dead() -> None:
    world = calm()
    control = control_of(world, Noticed(incident=crash()))
    gone = replace(world, instances={n: i for n, i in world.instances.items() if n != "s2"})
    told = explain(control, gone, "s2")
    assert (told.state, told.verbs) == ("dead", [])
    assert told.because[-1] == "incident 2: s2 on b: connection closed: gone"
    assert told.rules == ["incident 2 of stock looks like instance-crash: connection closed"]


def test_a_node_that_is_being_drained() -> None:
    asked = Evidence(at_ms=NOW_MS - 5, signal=Signal.ASKED, text="ann: old", node="b")
    incident = begin(2, asked, GROUND).model_copy(update={"services": ["stock"]})
    world = calm()
    died = replace(world.nodes["b"], died_at_ms=NOW_MS - 3_000)
    world = replace(world, cordoned={"b": "ann: old"}, nodes={**world.nodes, "b": died})
    told = why(
        world,
        "b",
        Cordoned(node="b", reason="ann: old"),
        Noticed(incident=incident),
        Proposed(plan=recovery(State.RUNNING)),
    )
    assert told.because == [
        "its instances: s2",
        "nothing new is put on it: ann: old",
        "plan 3, step 1 is running: stock: 1, 3 owned by s1",
    ]
    assert told.rules == [
        "an instance died on it less than 15 s ago: other nodes are preferred for a start",
        "incident 2 of stock looks like planned-drain: asked for",
        "policy reshuffle made plan 3: a crash",
    ]
    assert told.verbs == [
        "rekindle undrain b --reason WHY",
        "rekindle pause 3 --reason WHY",
        "rekindle retry 3 1 --reason WHY",
        "rekindle skip 3 1 --reason WHY",
    ]


def test_a_node_that_flaps_and_is_gone() -> None:
    world = calm()
    times = {"s1": NOW_MS - 9_000, "t1": NOW_MS - 9}
    deaths = [Gone(incarnation=n, reason="r", at_ms=at, signal=Signal.NODE_GONE) for n, at in times.items()]
    told = why(replace(world, nodes={"b": world.nodes["b"]}, cordoned={"a": "old"}), "a", *deaths)
    assert (told.state, told.because[1]) == ("gone", "the cluster does not list it")
    assert told.rules == ["taken for dead 2 times in 10 minutes; from 3 on it flaps"]


def test_a_plan_that_is_paused_and_one_that_is_over() -> None:
    plan = recovery(State.RUNNING)
    paused = Stood(plan=3, standing=Standing.PAUSED, why="ann: I look first", at_ms=NOW_MS)
    told = why(calm(), "3", Noticed(incident=crash()), Proposed(plan=plan), paused)
    assert (told.sort, told.state) == ("plan", "paused: ann: I look first")
    assert told.because[1] == "plan 3 is paused: ann: I look first"
    assert told.verbs[0] == "rekindle resume 3 --reason WHY"
    over = Stood(plan=3, standing=Standing.SUPERSEDED, why="by plan 4", at_ms=NOW_MS)
    told = why(calm(), "3", Proposed(plan=plan), over)
    assert (told.state, told.because, told.verbs) == ("superseded: by plan 4", ["made for: a crash"], [])


def test_an_incident_that_is_open_without_a_plan() -> None:
    incident = crash()
    for number in range(EVIDENCE_TOLD):
        incident = grown(incident, incident.evidence[0].model_copy(update={"text": f"again {number}"}), GROUND)
    told = why(with_shard(calm(), "stock", 0, served=False), "2", Noticed(incident=incident))
    assert (told.sort, told.state) == ("incident", "instance-crash, open")
    assert told.because[EVIDENCE_TOLD:] == [
        "and 1 more pieces of evidence",
        "stock is unserved: 2 of 2 instances up, 3 of 4 shards served",
        "no plan is active for it",
    ]


def test_a_supervisor() -> None:
    world = replace(with_shard(calm(), "till", 0, served=False), restarts={"root": [NOW_MS - 61_000, NOW_MS - 10]})
    told = why(world, "root")
    assert (told.sort, told.state) == ("supervisor", "not whole")
    assert told.because == ["till is down: 1 of 1 instances up, 0 of 1 shards served"]
    assert told.rules[0].startswith("supervisor root (one_for_one): 1 of 3 restarts within 60 s")
    assert told.verbs == ["rekindle explain till"]


@pytest.mark.parametrize("target", ["stock/4", "moon", "99", "stock/x", ""])
def test_what_is_not_there_cannot_be_explained(target: str) -> None:
    with pytest.raises(Unknown):
        why(calm(), target)


def test_a_step_that_an_operator_has_skipped_is_not_told_any_more() -> None:
    plan = recovery(State.DONE, State.BLOCKED, why="1 to wait")
    skipped = Stepped(plan=3, changes=[(2, State.SKIPPED, 0, "ann: enough")], at_ms=NOW_MS)
    assert why(calm(), "3", Proposed(plan=plan), skipped).because == ["made for: a crash"]


# The contract


CONTRACT = {
    "Report": "app at_ms frozen incidents instances leader nodes plans sayings services shards term tree",
    "TreeReport": "children max_restarts name restarts rule sort state within_s",
    "ServiceReport": "caught_up kept_down name needs plan served shards standbys state up wanted",
    "InstanceReport": "follows name node service shards started_ms state zone",
    "NodeReport": "host instances name state why zone",
    "ShardReport": "number owner service shard standbys state waiting why",
    "StandbyReport": "behind instance",
    "IncidentReport": "changed_ms closed_ms evidence id instances kind nodes opened_ms outcome plans services zones",
    "PlanReport": "cause ended_ms id incident made_ms phases policy services standing why",
    "PhaseReport": "after name ordering steps",
    "StepReport": "attempt began_ms forced number since_ms state what why",
    "Story": "evidence incident lines plans timeline took_ms",
    "Moment": "at_ms name took_ms",
    "Line": "at_ms text",
    "Forecast": (
        "asked blocked instances kind lowest_availability nodes notes over_s plans recovery_s services shards_moved"
    ),
    "Explanation": "because rules sort state target verbs",
    "Receipt": "answer reason target verb who",
}
"""Every field of every shape. A program reads them: add here what was added there, never take one away."""


def test_the_shapes_are_those_that_programs_read() -> None:
    found = {
        name: " ".join(sorted(shape.model_fields))
        for name, shape in vars(shapes).items()
        if isinstance(shape, type) and issubclass(shape, BaseModel) and shape.__module__ == shapes.__name__
    }
    assert found == CONTRACT


def test_a_report_is_plain_data_and_back() -> None:
    told = report(calm(), Noticed(incident=crash()), Proposed(plan=recovery(State.RUNNING)))
    assert Report.model_validate_json(told.model_dump_json()) == told


def test_the_parts_are_the_fields_of_the_report() -> None:
    assert {"app", "at_ms", "leader", "term", "frozen", *PARTS} == Report.model_fields.keys()
