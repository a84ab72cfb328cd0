"""An application through its failures, on a model cluster, with the rules looking on.

    story = Story(tree, cluster, verbs=[(60_000, "drain", 1)])
    await story.run(120_000)                    # everything that is due until then
    await story.run_until_whole()               # nothing fails any more: how long does it take?

A story can be told again from any of its `points`: as the next controller finds it, if this one dies there.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Final, NamedTuple

from rekindle.supervisors import Supervisor
from rekindle.supervisors.plans import Standing
from rekindle.supervisors.policies import rolling_by_zone
from tests.supervisors.cluster_model import Cluster, Puppet
from tests.supervisors.leader_model import Leader
from tests.supervisors.ledger import Ledger, Record
from tests.supervisors.rules import Rules

ROUND_MS: Final = 50
IDLE_MAX_MS: Final = 8_000
"""Rounds in which nothing happens come further and further apart, up to this."""

WHOLE_MAX_MS: Final = 1_800_000
RECORDS_MAX: Final = 3_000
"""A story that needs more has no end."""

Verb = tuple[int, str, int]
"""When an operator says what, and about which of those that there are."""


class Point(NamedTuple):
    """Where a controller can die: what is in the log, and what is so in the cluster."""

    records: int
    cluster: Cluster
    verbs: list[Verb]


@dataclass
class Story:
    """One application. keeps_points: remember every place at which a controller can die."""

    root: Supervisor
    cluster: Cluster
    verbs: Sequence[Verb] = ()
    ledger: Ledger | None = None
    keeps_points: bool = False

    def __post_init__(self) -> None:
        self.verbs = sorted(self.verbs)
        self.points: list[Point] = []
        self.log = self.ledger or Ledger()
        self._before = self.cluster
        self.lead()

    # --- going on ----------------------------------------------------------------------------------------------------

    def lead(self) -> None:
        """Another controller leads: it knows what is in the log, and nothing else."""
        known, self.log = vars(self.log.control), Ledger(self.log.records)
        assert vars(self.log.control) == known, "the log, read again, adds up to something else"
        self.rules = Rules(self.root, self.log, self.up, self.served)
        self.log.on_record = self._on_record
        self._remember()
        self.leader = Leader(self.root, self.log, self.cluster)

    def _on_record(self, record: Record) -> None:
        self.rules.look(record)
        if self.keeps_points:
            self.points.append(Point(len(self.log.records), self._before, list(self.verbs)))

    def _remember(self) -> None:
        if self.keeps_points:
            self._before = deepcopy(self.cluster)

    async def step(self) -> None:
        """One round. A controller can die behind each of its records, and when it has acted on them."""
        self._remember()
        first = len(self.log.records)
        await self.leader.step()
        if self.keeps_points and len(self.log.records) > first:
            self.points.append(Point(first, self._before, list(self.verbs)))
            self.points.append(Point(len(self.log.records), deepcopy(self.cluster), list(self.verbs)))

    async def run(self, until_ms: int) -> None:
        """Everything that is due until then."""
        await self._run(until_ms, until_whole=False)

    async def run_until_whole(self) -> None:
        """Until nothing is missing, and nothing is left to be done. Raises `AssertionError` with what is missing for ever."""
        await self._run(self.cluster.now_ms + WHOLE_MAX_MS, until_whole=True)
        assert not self.missing(), "\n".join(["it never becomes whole:", *self.missing()])

    async def _run(self, until_ms: int, *, until_whole: bool) -> None:
        most, idle_ms = len(self.log.records) + RECORDS_MAX, ROUND_MS
        while self.cluster.now_ms < until_ms:
            seen = len(self.log.records)
            await self.step()
            assert len(self.log.records) < most, f"it decides on and on: {self.tell(20)}"
            is_quiet = len(self.log.records) == seen
            if until_whole and is_quiet and idle_ms == IDLE_MAX_MS and not self.verbs and not self.missing():
                return
            idle_ms = min(2 * idle_ms, IDLE_MAX_MS) if is_quiet else ROUND_MS
            self._pass_time(idle_ms, until_ms)

    def _pass_time(self, idle_ms: int, until_ms: int) -> None:
        now_ms = self.cluster.now_ms
        due = [now_ms + idle_ms, until_ms, *(at for at, _, _ in self.verbs[:1])]
        if (next_ms := self.cluster.next_ms()) is not None:
            due.append(next_ms)
        self.cluster.advance(min(max(at, now_ms + 1) for at in due))
        while self.verbs and self.verbs[0][0] <= self.cluster.now_ms:
            (_, verb, which), *self.verbs = self.verbs
            self._remember()
            self.say(verb, which)

    # --- operators ---------------------------------------------------------------------------------------------------

    def say(self, verb: str, which: int = 0) -> None:
        """An operator says something, where there is something to say it about."""
        control, say = self.log.control, self.leader.operate
        plans = [plan.id for plan in control.active_plans()]
        match verb:
            case "lead":
                self.lead()
            case "scale":
                say("scale", sorted(control.services)[which % len(control.services)], 1 + which % 4)
            case "drain":
                node = sorted(self.cluster.zones)[which % len(self.cluster.zones)]
                say("drain", node, self.cluster.zones[node])
            case "uncordon":
                for node in sorted(control.cordoned):
                    say("uncordon", node)
            case "roll":
                self._roll(sorted(control.services)[which % len(control.services)])
            case "allow":
                for service, owned in control.services.items():
                    for shard in [n for n, o in enumerate(owned) if o.refused is not None]:
                        say("allow", service, shard)
            case "resume":
                for number in [plan.id for plan in control.active_plans() if plan.standing is Standing.PAUSED]:
                    say("resume", number)
            case "pause" if plans:
                say("pause", plans[which % len(plans)])
            case "retry" | "skip" | "force" if plans:
                chosen = control.plans[plans[which % len(plans)]]
                say(verb, chosen.id, 1 + which % len([*chosen.steps()]))
            case _:
                pass

    def _roll(self, service: str) -> None:
        world = self.leader.world()
        plan = rolling_by_zone(world, service)
        if plan is not None:
            basis = {service: world.services[service].disturbed}
            self.leader.decide("propose", plan.model_copy(update={"basis": basis}))

    # --- looking -----------------------------------------------------------------------------------------------------

    def up(self, service: str) -> list[str]:
        """The instances of a service that a controller knows."""
        return [puppet.name for puppet in self.cluster.of(service) if puppet.name in self.log.control.instances]

    def unserved(self, service: str) -> list[int]:
        """The shards of a service that nobody serves and that nobody has said are not to be served."""
        puppets = {puppet.name: puppet for puppet in self.cluster.of(service)}
        owned = self.log.control.services[service]
        return [
            number
            for number, o in enumerate(owned)
            if o.refused is None
            and not ((puppet := puppets.get(o.incarnation or "")) and puppet.serving.get(number) == o.number)
        ]

    def served(self, service: str) -> bool:
        """Whether all shards of a service are served, but for those that are left alone for a while."""
        held, owned = self.leader.hold_until, self.log.control.services[service]
        return all((service, n) in held or owned[n].deaths > 1 for n in self.unserved(service))

    def missing(self) -> list[str]:
        """What is missing, in words."""
        control = self.log.control
        found = [f"plan {plan.id} goes on: {plan!r}" for plan in control.active_plans()]
        found += [f"incident {i.id} goes on: {i.kind} of {i.services}" for i in control.open_incidents()]
        strangers = [puppet for puppet in self.cluster.alive() if puppet.name not in control.instances]
        found += [f"{puppet.name} lives and nobody knows it" for puppet in strangers]
        for service in control.services:
            found += self._missing_of(service)
        return found

    def _missing_of(self, service: str) -> list[str]:
        up, wanted = self.up(service), self.log.control.wanted[service]
        puppets = {puppet.name: puppet for puppet in self.cluster.of(service)}
        found = [f"{up} of {service} are up, {wanted} are wanted"] if len(up) != wanted else []
        if wanted:
            found += [f"{service}/{number} is not served" for number in self.unserved(service)]
            found += self._badly_followed(service, puppets)
        return found

    def _badly_followed(self, service: str, puppets: dict[str, Puppet]) -> list[str]:
        standbys = next(spec.standbys for spec in self.root.services() if spec.name == service)
        best = min(standbys, len({puppet.node for puppet in puppets.values()}) - 1)
        found: list[str] = []
        for number, o in enumerate(self.log.control.services[service]):
            nodes = [puppets[name].node for name in (o.incarnation, *o.standbys) if name in puppets]
            if o.refused is None and (len(o.standbys) != best or len(set(nodes)) < len(nodes)):
                found.append(f"{service}/{number} of {o.incarnation} has standbys {o.standbys}, on {nodes}")
        return found

    def tell(self, last: int = 40) -> str:
        """The last records, for people."""
        lines = [
            f"{r.at_ms:>9} {r.command:14} {event!r:.300}" for r in self.log.records[-last:] for event in r.events()
        ]
        return "\n".join(["", *lines])
