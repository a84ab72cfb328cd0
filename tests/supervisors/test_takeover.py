"""wip"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from rekindle import ONE_FOR_ALL, REST_FOR_ONE, Service, Supervisor
from rekindle.supervisors.decided import Gone, Started
from rekindle.supervisors.policies import CoordinatedRestart, Replace
from tests.supervisors.cluster_model import Cluster, Fault, spread
from tests.supervisors.ledger import Ledger
from tests.supervisors.stories import Story, Verb
from tests.support.inprocess import Tally

AT = 20_000


def service(name: str, **fields: Any) -> Service:
    usual: dict[str, Any] = {"shards": 3, "instances": 2}
    return Service(name, Tally, **usual | fields)


def tree(*children: Any, **fields: Any) -> Supervisor:
    return Supervisor("top", children=children, **fields)


@dataclass(frozen=True)
class Case:
    root: Supervisor
    faults: Sequence[Fault] = ()
    verbs: Sequence[Verb] = ()
    nodes: int = 3
    zones: int = 3
    at: int = AT
    plan: str = ""


A, B, C = service("a"), service("b"), service("c")
CASES = {
    "promote_standby": Case(tree(service("a", standbys=1)), [Fault(AT, "crash")]),
    "reshuffle": Case(tree(service("a", instances=3)), [Fault(AT, "crash")], plan="reshuffle"),
    "replace": Case(tree(service("a", on_failure=[Replace()])), [Fault(AT, "crash")]),
    "one_for_all": Case(tree(A, B, strategy=ONE_FOR_ALL), [Fault(AT, "crash")], plan="strategy"),
    "rest_for_one": Case(tree(A, B, strategy=REST_FOR_ONE), [Fault(AT, "crash")], plan="strategy"),
    "escalation": Case(
        tree(Supervisor("inner", children=[A], max_restarts=0), B, strategy=ONE_FOR_ALL),
        [Fault(AT, "crash")],
        plan="strategy",
    ),
    "coordinated_restart": Case(
        tree(service("a", on_failure=[CoordinatedRestart()]), service("b", needs=["a"])), [Fault(AT, "crash")]
    ),
    "rolling_by_zone": Case(tree(service("a", instances=3)), verbs=[(AT, "roll", 0)]),
    "quarantine_poison": Case(tree(A), [Fault(AT, "spoil", 1), Fault(AT, "crash", 1)]),
    "quarantine_gray": Case(tree(service("a", instances=3)), [Fault(AT, "lag")]),
    "mass_freeze": Case(
        tree(service("a", shards=5, instances=8)),
        [Fault(AT, "lose_node"), Fault(AT, "lose_node"), Fault(AT, "lose_node")],
        nodes=4,
    ),
    "drain": Case(tree(service("a", standbys=1), B), verbs=[(AT, "drain", 0)], nodes=4),
    "hold": Case(tree(A), [Fault(AT, "close_log"), Fault(AT + 5000, "open_log")]),
    "start": Case(tree(A, service("b", needs=["a"])), at=0, plan="upkeep"),
    "scale_up": Case(tree(A), verbs=[(AT, "scale", 3)], nodes=4, plan="upkeep"),
    "scale_down": Case(tree(service("a", instances=3)), verbs=[(AT, "scale", 0)], plan="upkeep"),
}


def end(story: Story, at: int) -> Any:
    control = story.log.control
    found = {}
    for name, owned in control.services.items():
        loads = Counter(o.incarnation for o in owned if o.refused is None)
        found[name] = (
            sorted(loads.values()),
            [n for n, o in enumerate(owned) if o.refused is not None],
            control.wanted[name],
            all(control.instances[i].started_ms > at for i in story.up(name)),
            [len(o.standbys) for o in owned],
        )
    starts = Counter(e.running.service for e in story.log.events() if isinstance(e, Started))
    stops = Counter((e.planned) for e in story.log.events() if isinstance(e, Gone))
    return found, sorted(control.cordoned), starts, stops


@pytest.mark.parametrize("name", CASES)
def test_takeover(name: str) -> None:
    case = CASES[name]

    async def main() -> None:
        shards = {s.name: s.shards for s in case.root.services()}
        story = Story(
            case.root, Cluster(spread(case.nodes, case.zones), shards, Random(1), sorted(case.faults)), list(case.verbs)
        )
        await story.run(case.at)
        story.keeps_points = True
        await story.run_until_whole()
        policies = {p.policy for p in story.log.control.plans.values() if p.made_ms >= case.at}
        assert (case.plan or name) in policies, policies
        undisturbed = end(story, case.at)
        t = time.time()
        bad = 0
        for point in story.points:
            again = Story(case.root, deepcopy(point.cluster), point.verbs, Ledger(story.log.records[: point.records]))
            await again.run_until_whole()
            if end(again, case.at) != undisturbed:
                bad += 1
                if bad < 3:
                    print(
                        name,
                        point.records,
                        story.log.records[point.records - 1].command,
                        "\n   ",
                        undisturbed,
                        "\n   ",
                        end(again, case.at),
                    )
        print(name, len(story.points), "points", bad, "bad", time.time() - t)
        assert not bad

    asyncio.run(main())
