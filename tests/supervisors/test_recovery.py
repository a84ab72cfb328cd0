"""wip"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rekindle import ONE_FOR_ONE, Service, Supervisor
from rekindle.supervisors.plans import Standing, State
from rekindle.supervisors.tree import Child
from tests.supervisors.cluster_model import Cluster, Fault, spread
from tests.supervisors.leader_model import Leader
from tests.supervisors.ledger import Ledger
from tests.supervisors.otp import trees
from tests.supervisors.rules import Rules

IDLE_MS = (50, 8_000)
CALM_MS = 120_000
END_MS = 3_600_000


class Story:
    """One application through its failures, with the rules looking on."""

    def __init__(self, root: Supervisor, cluster: Cluster, verbs: Sequence[tuple[int, str, int]] = ()) -> None:
        self.root = root
        self.cluster = cluster
        self.ledger = Ledger()
        self.verbs = sorted(verbs)
        self.leader = Leader(root, self.ledger, cluster)
        self.watch()

    def watch(self) -> None:
        self.rules = Rules(self.root, self.ledger, self.up, self.served)

    def up(self, service: str) -> list[str]:
        return [p.name for p in self.cluster.of(service) if p.greeted]

    def served(self, service: str) -> bool:
        owned = self.ledger.control.services[service]
        held = self.leader.hold_until
        puppets = {p.name: p for p in self.cluster.of(service)}
        return all(
            o.refused is not None
            or (service, n) in held
            or o.deaths > 1
            or (o.incarnation in puppets and puppets[o.incarnation].serving.get(n) == o.number)
            for n, o in enumerate(owned)
        )

    def replace_leader(self) -> None:
        known = vars(self.ledger.control)
        self.ledger = Ledger(self.ledger.records)
        assert vars(self.ledger.control) == known
        self.watch()
        self.leader = Leader(self.root, self.ledger, self.cluster)

    async def run(self, until_ms: int, *, until_whole: bool = False) -> None:
        idle_ms, seen = IDLE_MS[0], len(self.ledger.records)
        first = len(self.ledger.records)
        while self.cluster.now_ms < until_ms:
            assert len(self.ledger.records) - first < 2_000, "it decides on and on"
            await self.leader.step()
            quiet = len(self.ledger.records) == seen
            seen = len(self.ledger.records)
            idle_ms = min(2 * idle_ms, IDLE_MS[1]) if quiet else IDLE_MS[0]
            if until_whole and quiet and idle_ms == IDLE_MS[1] and not self.missing():
                return
            times = [
                self.cluster.now_ms + idle_ms,
                self.cluster.next_ms(),
                self.verbs[0][0] if self.verbs else None,
                until_ms,
            ]
            self.cluster.advance(min(max(t, self.cluster.now_ms + 1) for t in times if t is not None))
            while self.verbs and self.verbs[0][0] <= self.cluster.now_ms:
                self.say(*self.verbs.pop(0)[1:])

    def say(self, verb: str, which: int) -> None:
        control = self.ledger.control
        match verb:
            case "lead":
                self.replace_leader()
            case "scale":
                name = sorted(control.services)[which % len(control.services)]
                self.leader.operate("scale", name, 1 + which % 4)
            case "drain":
                nodes = sorted(self.cluster.zones)
                if len(nodes) > 2:
                    node = nodes[which % len(nodes)]
                    self.leader.operate("drain", node, self.cluster.zones[node])
            case "uncordon":
                for node in sorted(control.cordoned):
                    self.leader.operate("uncordon", node)
            case "pause" | "resume":
                if plans := control.active_plans():
                    self.leader.operate(verb, plans[which % len(plans)].id)
            case "resume_all":
                for plan in control.active_plans():
                    if plan.standing is Standing.PAUSED:
                        self.leader.operate("resume", plan.id)
            case "allow_all":
                for name, owned in control.services.items():
                    for shard, o in enumerate(owned):
                        if o.refused is not None:
                            self.leader.operate("allow", name, shard)
            case _:
                if plans := control.active_plans():
                    plan = plans[which % len(plans)]
                    steps = [number for number, _, _ in plan.steps()]
                    self.leader.operate(verb, plan.id, steps[which % len(steps)])

    def missing(self) -> list[str]:
        """What keeps the world from being whole."""
        control = self.ledger.control
        found = [
            f"plan {p.id} {p.standing} {[(n, s.state.value, s.why) for n, _, s in p.steps()]} {p}"
            for p in control.active_plans()
        ]
        found += [f"incident {i.id} {i.kind} {i.services}" for i in control.open_incidents()]
        found += [
            f"{p.name} lives and nobody knows it" for p in self.cluster.alive() if p.name not in control.instances
        ]
        for name, owned in control.services.items():
            if len(self.up(name)) != control.wanted[name]:
                found.append(f"{self.up(name)} of {name}, wanted {control.wanted[name]}")
            puppets = {p.name: p for p in self.cluster.of(name)}
            spec = self.leader.services[name]
            nodes = {p.node for p in puppets.values()}
            for n, o in enumerate(owned):
                if control.wanted[name] == 0:
                    continue
                p = puppets.get(o.incarnation or "")
                if p is None or p.serving.get(n) != o.number:
                    found.append(f"{name}/{n} is not served: {o}")
                if len(o.standbys) != min(spec.standbys, len(nodes) - 1):
                    found.append(f"{name}/{n} has standbys {o.standbys}")
                clash = [x for x in o.standbys if p is not None and x in puppets and puppets[x].node == p.node]
                if clash:
                    found.append(f"{name}/{n}: {clash} on the owner's node")
        return found


def sized(child: Child, sizes: Sequence[tuple[int, int, int, int]]) -> Any:
    left = list(sizes)

    def walk(c: Child) -> Child:
        if isinstance(c, Supervisor):
            return replace(c, children=[walk(x) for x in c.children])
        shards, instances, standbys, least = left.pop(0) if left else (1, 1, 0, 0)
        return replace(c, shards=shards, instances=instances, standbys=standbys, min_active=min(least, instances))

    return walk(child)


KINDS = [
    "crash",
    "crash",
    "lose_node",
    "regain_node",
    "lose_zone",
    "suspect",
    "lag",
    "give_up",
    "close_log",
    "open_log",
    "spoil",
]
VERBS = ["lead", "lead", "scale", "drain", "uncordon", "pause", "resume", "retry", "skip", "force"]

times = st.integers(0, CALM_MS - 1)
faults = st.lists(st.builds(Fault, times, st.sampled_from(KINDS), st.integers(0, 20)), max_size=12)
verbs = st.lists(st.tuples(times, st.sampled_from(VERBS), st.integers(0, 20)), max_size=8)


@st.composite
def stories(draw: st.DrawFn) -> Story:
    tree = draw(trees())
    count = len(list(tree.services()))
    sizes = draw(
        st.lists(
            st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 1), st.integers(0, 2)),
            min_size=count,
            max_size=count,
        )
    )
    tree = sized(tree, sizes)
    nodes, zones = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    shards = {s.name: s.shards for s in tree.services()}
    fs = sorted([*draw(faults), Fault(CALM_MS, "calm")])
    vs = [*draw(verbs), (CALM_MS, "uncordon", 0), (CALM_MS, "resume_all", 0), (CALM_MS + 1, "allow_all", 0)]
    cluster = Cluster(
        spread(nodes, zones), shards, Random(draw(st.integers(0, 999))), fs, fails_share=draw(st.sampled_from([0, 0.2]))
    )
    return Story(tree, cluster, vs)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
    derandomize=False,
    report_multiple_bugs=False,
)
@given(stories())
def test_all(story: Story) -> None:
    async def main() -> None:
        await story.run(CALM_MS)
        await story.run(CALM_MS + 10)
        await story.run(END_MS, until_whole=True)
        assert not story.missing(), "\n".join(story.missing())

    try:
        asyncio.run(main())
    except BaseException:
        open("/tmp/story.txt", "w").write(tell(story, 400))
        raise


def tell(story: Story, last: int = 60) -> str:
    lines = []
    for r in story.ledger.records[-last:]:
        for e in r.events():
            text = str(e)
            if r.command == "propose" and type(e).__name__ == "Proposed":
                p = e.plan
                text = f"PLAN {p.id} {p.policy} {p.cause} {p.services} inc={p.incident} basis={p.basis} " + " | ".join(
                    f"{ph.name} after={ph.after} {ph.ordering.value} ["
                    + "; ".join(f"{s.action} guards={s.guards}" for s in ph.steps)
                    + "]"
                    for ph in p.phases
                )
            lines.append(f"{r.at_ms} {r.command} {type(e).__name__} {text[:700]}")
    return "\n".join(lines)
