"""Whatever fails, and whatever operators say: the rules hold, every plan ends, and the application becomes whole again.

Goal: the decisions of a controller are right, not only those that somebody thought of. Method: random trees, clusters,
failures and verbs (hypothesis); a model of instances and nodes carries out what the real code decides (`stories`), and
`rules` looks at every record. `test_planted` shows that they would see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from random import Random
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rekindle import Supervisor
from rekindle.supervisors import control
from rekindle.supervisors.incidents import Incident
from rekindle.supervisors.plans import Phase as PlanPhase
from rekindle.supervisors.plans import Place, Plan, Step
from rekindle.supervisors.policies import CoordinatedRestart, Guarded, PromoteStandby, Replace, Reshuffle
from rekindle.supervisors.tree import Child
from rekindle.supervisors.world import World
from tests.supervisors.cluster_model import Cluster, Fault, spread
from tests.supervisors.otp import trees
from tests.supervisors.stories import Story
from tests.support.loops import run

CALM_MS: Final = 120_000
"""From here on nothing fails any more, and operators clear up behind themselves."""

SERVICES: Final = range(2, 7)

KEPT: Final = 5
"""How many plans, incidents and sayings are kept here: so few that something is forgotten in most of the stories."""


class Raising:
    """A policy with a bug."""

    name = "raising"

    def plan(self, incident: Incident, world: World) -> Plan | None:
        raise ValueError(f"no idea what to do about {incident.kind}")


class Nonsense:
    """A policy that speaks of what is not there."""

    name = "nonsense"

    def plan(self, incident: Incident, world: World) -> Plan | None:
        steps = [Step(action=Place(service="nobody"))]
        return Plan(policy=self.name, cause="?", services=["nobody"], phases=[PlanPhase(name="?", steps=steps)])


POLICIES = [Raising(), Nonsense(), Reshuffle(), Replace(), PromoteStandby(), CoordinatedRestart(), Guarded(Reshuffle())]
FAULTS = [
    *["crash", "crash", "lose_node", "lose_zone", "regain_node", "suspect", "lag"],
    *["give_up", "close_log", "open_log", "spoil", "stall"],
]
VERBS = ["lead", "lead", "scale", "drain", "uncordon", "roll", "pause", "resume", "retry", "skip", "force", "allow"]

at = st.sampled_from(range(500, CALM_MS, 347))  # any of these is as likely as any other: most find something that runs
which = st.sampled_from(range(20))
sizes = st.fixed_dictionaries(
    {
        "shards": st.integers(1, 4),
        "instances": st.integers(1, 3),
        "standbys": st.integers(0, 1),
        "min_active": st.integers(0, 1),
        "on_failure": st.lists(st.sampled_from(POLICIES), max_size=2),
    }
)


def sized(tree: Supervisor, chosen: Sequence[Mapping[str, Any]]) -> Supervisor:
    """The same tree, with services of these sizes."""
    left = list(chosen)

    def walk(child: Child) -> Child:
        if isinstance(child, Supervisor):
            return replace(child, children=[walk(below) for below in child.children])
        return replace(child, **left.pop())

    grown = walk(tree)
    assert isinstance(grown, Supervisor)
    return grown


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Any application, in any cluster, through a dozen failures or so."""
    tree = draw(trees().filter(lambda tree: len([*tree.services()]) in SERVICES))
    count = len([*tree.services()])
    tree = sized(tree, draw(st.lists(sizes, min_size=count, max_size=count)))
    faults = draw(st.lists(st.builds(Fault, at, st.sampled_from(FAULTS), which), min_size=6, max_size=16))
    verbs = draw(st.lists(st.tuples(at, st.sampled_from(VERBS), which), min_size=3, max_size=10))
    cluster = Cluster(
        spread(draw(st.integers(2, 5)), draw(st.integers(1, 3))),
        {service.name: service.shards for service in tree.services()},
        Random(draw(st.integers(0, 999))),
        sorted([*faults, Fault(CALM_MS, "calm")]),
        fails_share=draw(st.sampled_from([0.0, 0.2])),
    )
    end = [(CALM_MS, "uncordon", 0), (CALM_MS, "resume", 0), (CALM_MS + 1, "allow", 0)]
    return Story(tree, cluster, [*verbs, *end])


@pytest.fixture(autouse=True)
def _little_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PLANS_KEPT", "INCIDENTS_KEPT", "SAYINGS_KEPT"):
        monkeypatch.setattr(control, name, KEPT)


bounded = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
    phases=[
        Phase.explicit,
        Phase.reuse,
        Phase.generate,
    ],  # a story of a thousand records is not made shorter in minutes
)


@settings(bounded, max_examples=40)
@given(stories())
def test_the_rules_hold_and_all_becomes_whole_again(story: Story) -> None:
    async def main() -> None:
        await story.run(CALM_MS)
        await story.run_until_whole()

    run(main())


@settings(bounded, max_examples=15)
@given(stories(), at)
def test_the_same_log_leads_to_the_same_decisions(story: Story, at_ms: int) -> None:
    """Two controllers that read it and look at the same cluster write the same records from then on."""

    async def main() -> None:
        await story.run(at_ms)
        one, other = (Story(story.root, deepcopy(story.cluster), story.verbs, story.log) for _ in range(2))
        await one.run(CALM_MS)
        await other.run(CALM_MS)
        assert one.log.records == other.log.records

    run(main())
