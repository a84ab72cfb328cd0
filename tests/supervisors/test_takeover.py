"""The controller dies behind every record of a plan's life, and when it has acted on it: the next one brings it to the same end.

Goal: what is not in the control log is of no importance. Method: one story for each built-in policy, told once without
disturbance (`stories`); then told again from each point at which a controller can die, with a new one that has read the
records so far and sees the cluster as it was then. Compared is what there is in the end, and how often things were done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import pytest

from rekindle import ONE_FOR_ALL, REST_FOR_ONE, Service, Supervisor
from rekindle.supervisors.decided import Gone, Started
from rekindle.supervisors.policies import CoordinatedRestart, Replace
from tests.supervisors.cluster_model import Cluster, Fault, spread
from tests.supervisors.ledger import Ledger
from tests.supervisors.stories import Story, Verb
from tests.support.inprocess import Tally
from tests.support.loops import run

AT_MS: Final = 20_000
"""When it happens: everything has come to rest long before."""


@dataclass(frozen=True)
class Case:
    """A story that a policy is for. plan: begins its policy and cause, if not with the case's name. renewed: the services
    of which no instance is older than that in the end. lasts_ms: how long it is told, where an operator has the last word."""

    root: Supervisor
    faults: Sequence[Fault] = ()
    verbs: Sequence[Verb] = ()
    nodes: int = 3
    at_ms: int = AT_MS
    plan: str = ""
    renewed: str = ""
    lasts_ms: int = 0

    def story(self) -> Story:
        """From its beginning."""
        shards = {service.name: service.shards for service in self.root.services()}
        return Story(self.root, Cluster(spread(self.nodes, 3), shards, Random(1), sorted(self.faults)), self.verbs)


def of(name: str, **fields: Any) -> Service:
    usual: dict[str, Any] = {"shards": 3, "instances": 2}
    return Service(name, Tally, **usual | fields)


def tree(*children: Service | Supervisor, **fields: Any) -> Supervisor:
    return Supervisor("top", children=children, **fields)


def fault(*what: str, which: int = 0, after_ms: int = 0) -> list[Fault]:
    return [Fault(AT_MS + after_ms, name, which) for name in what]


def verb(what: str, which: int = 0) -> list[Verb]:
    return [(AT_MS, what, which)]


INNER = Supervisor("inner", children=[of("a")], max_restarts=0)
CASES: Final = {
    "promote_standby": Case(tree(of("a", standbys=1)), fault("crash")),
    "reshuffle": Case(tree(of("a", instances=3)), fault("crash")),
    "replace": Case(tree(of("a", on_failure=[Replace()])), fault("crash")),
    "one_for_all": Case(tree(of("a"), of("b"), strategy=ONE_FOR_ALL), fault("crash"), plan="strategy", renewed="ab"),
    "rest_for_one": Case(
        tree(of("a"), of("b"), of("c"), strategy=REST_FOR_ONE), fault("crash", which=2), plan="strategy", renewed="bc"
    ),
    "escalation": Case(tree(INNER, of("b"), strategy=ONE_FOR_ALL), fault("crash"), plan="strategy", renewed="ab"),
    "coordinated_restart": Case(
        tree(of("a", on_failure=[CoordinatedRestart()]), of("b", needs=["a"])), fault("crash"), renewed="ab"
    ),
    "rolling_by_zone": Case(tree(of("a", instances=4)), verbs=verb("roll"), renewed="a"),
    "quarantine_poison": Case(tree(of("a")), [*fault("spoil", which=1), *fault("crash", which=1)], renewed="a"),
    "quarantine_gray": Case(tree(of("a", instances=3)), fault("lag")),
    "mass_freeze": Case(tree(of("a", shards=5, instances=8)), fault(*["lose_node"] * 3), nodes=4),
    "drain": Case(tree(of("a", standbys=1), of("b")), verbs=verb("drain"), nodes=4),
    "hold": Case(tree(of("a")), [*fault("close_log"), *fault("open_log", after_ms=5_000)]),
    "start": Case(tree(of("a"), of("b", needs=["a"])), at_ms=-1, plan="upkeep a, b: what is missing", renewed="ab"),
    "scale_up": Case(tree(of("a", shards=8)), verbs=verb("scale", 3), nodes=4, plan="upkeep a: balance"),
    "scale_down": Case(tree(of("a", instances=3)), verbs=verb("scale", 0), plan="upkeep a: fewer instances"),
}


@dataclass(frozen=True)
class End:
    """What a story comes to. shards: by service, how many each instance owns, and how many standbys each shard has.
    started, ended: how often; planned ends apart from deaths."""

    shards: dict[str, tuple[list[int], list[int]]]
    refused: dict[str, list[int]]
    renewed: str
    cordoned: list[str]
    started: dict[str, int]
    ended: dict[bool, int]


def end_of(story: Story, since_ms: int) -> End:
    control = story.log.control
    events = [*story.log.events()]
    return End(
        shards={
            name: (sorted(Counter(o.incarnation for o in owned).values()), [len(o.standbys) for o in owned])
            for name, owned in control.services.items()
        },
        refused={name: [n for n, o in enumerate(owned) if o.refused] for name, owned in control.services.items()},
        renewed="".join(
            name
            for name in control.services
            if all(running.started_ms > since_ms for running in control.instances.values() if running.service == name)
        ),
        cordoned=sorted(control.cordoned),
        started=Counter(event.running.service for event in events if isinstance(event, Started)),
        ended=Counter(event.planned for event in events if isinstance(event, Gone)),
    )


async def undisturbed(case: Case) -> Story:
    """The case as it goes when no controller dies, with all the points at which one could."""
    story = case.story()
    await story.run(case.at_ms)
    story.keeps_points = True
    if case.lasts_ms:
        await story.run(case.at_ms + case.lasts_ms)
    else:
        await story.run_until_whole()
    return story


async def told_again(case: Case, story: Story) -> None:
    """From each of its points. Raises `AssertionError` where another controller comes to another end."""
    expected = end_of(story, case.at_ms)
    for point in story.points:
        records = story.log.records[: point.records]
        again = Story(case.root, deepcopy(point.cluster), point.verbs, Ledger(records))
        await again.run_until_whole()
        end = end_of(again, case.at_ms)
        last = records[-1].command if records else "nothing"
        assert end == expected, f"after {len(records)} records, the last one {last}: {again.tell()}"


@pytest.mark.parametrize("name", CASES)
def test_whenever_the_controller_dies_the_end_is_the_same(name: str) -> None:
    case = CASES[name]

    async def main() -> None:
        story = await undisturbed(case)
        plans = [
            f"{plan.policy} {plan.cause}" for plan in story.log.control.plans.values() if plan.made_ms >= case.at_ms
        ]
        assert any(plan.startswith(case.plan or name) for plan in plans), f"{name} is not what it is about: {plans}"
        assert end_of(story, case.at_ms).renewed == case.renewed
        assert len(story.points) > 5
        await told_again(case, story)

    run(main())
