"""A controller without I/O: it leads a model cluster with all the real decisions, in the order of the real rounds.

    leader = Leader(tree, ledger, cluster)      # reads what was decided, adopts what runs
    await leader.step()                         # a round: look, decide, act

Real are `Control`, incidents, policies, parts, placement, planning, plans, restarts, orders and the view of the world. Played
are instances, nodes and time (`cluster_model`), the log (`ledger`), and the order of a round, which is that of
`Controller._round`. What a leader knows besides the ledger is lost with it, as in a controller that is killed.

It is ahead of the controller: a death is one record (`bury`); all deaths of a round are noticed before any of them is judged;
a cluster that notices late that a node is gone is heard; a plan that fails is an exit of the services whose steps have failed
only; who takes over does not lift what is kept down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Final, cast

from rekindle.actors import Floor, Host, Rejected
from rekindle.actors.frames import TABLE, parse
from rekindle.supervisors import Supervisor, controller, on_exit
from rekindle.supervisors.decided import Counted, Gone, Running
from rekindle.supervisors.incidents import Evidence, Incident, Kind, Signal, begin, grown, home_of
from rekindle.supervisors.orders import Orders
from rekindle.supervisors.parts import homes
from rekindle.supervisors.planning import Planning
from rekindle.supervisors.plans import Cordon, Perform, Place, Plan, Standing, Start, State, Step, Stop, advance
from rekindle.supervisors.policies import BUILT_IN, Policy
from rekindle.supervisors.view import Sight, ground_of, world_of
from rekindle.supervisors.ward import Ward
from rekindle.supervisors.world import InstanceView, World
from tests.supervisors.cluster_model import Cluster, Key, Puppet, Starting
from tests.supervisors.ledger import Ledger

BACKOFF_FIRST_MS: Final = 500
BACKOFF_MAX_MS: Final = 30_000
OWN_FAULT: Final = (Kind.INSTANCE_CRASH, Kind.INSTANCE_HANG)


class Sighted:
    """One instance as the leader sees it: what `Ward` is to orders and to the view of the world."""

    def __init__(self, puppet: Puppet, running: Running, hear: Callable[[Puppet, bytes], None]) -> None:
        self.incarnation = puppet.name
        self.running = running
        self.puppet = puppet
        self.dead: str | None = None
        self.signal = Signal.CLOSED
        self.serving: dict[int, int] = {}
        self.sent: dict[int, int] = {}
        self.following: list[int] = []
        self.followed: dict[int, tuple[Floor, bool]] = {}
        self.positions: dict[int, Floor] = {}
        self.asked: dict[int, int] = {}
        self.may_follow = True
        self._hear = hear

    @property
    def alive(self) -> bool:
        return self.dead is None

    def send(self, data: bytes) -> None:
        if parse(data)[0] != TABLE:
            self._hear(self.puppet, data)

    def die(self, reason: str, signal: Signal) -> None:
        if self.dead is None:
            self.dead, self.signal = reason, signal

    def look(self, now_ms: int) -> None:
        """Hear what there is to hear."""
        if not self.puppet.alive:
            self.die("connection closed", Signal.CLOSED)
            return
        self.serving = dict(self.puppet.serving)
        self.followed = {shard: (Floor(), due_ms <= now_ms) for shard, due_ms in self.puppet.following.items()}


def _hosted(say: Callable[[str], None]) -> Host:
    """All that planning asks of a host; a policy is asked right here."""

    async def offload(work: Callable[[], Any]) -> Any:
        return work()

    return cast(Host, SimpleNamespace(say=say, offload=offload))


class Leader:
    """A controller. say: is told what it would tell an operator."""

    def __init__(
        self, root: Supervisor, ledger: Ledger, cluster: Cluster, policies: Sequence[Policy] = BUILT_IN
    ) -> None:
        self.root = root
        self.services = {service.name: service for service in root.services()}
        self.ledger = ledger
        self.cluster = cluster
        self.said: list[str] = []
        self.planning = Planning(_hosted(self.said.append), policies)
        self.orders = Orders(list(self.services.values()))
        self.wards: dict[str, Sighted] = {}
        self.starting: dict[str, InstanceView] = {}
        self.stopping: list[tuple[str, str]] = []
        self.performing: list[tuple[tuple[int, int, int], Perform]] = []
        self.begun: set[tuple[int, int, int]] = set()
        self.failures: dict[int, dict[tuple[int, int], str]] = {}
        self.died_on: dict[str, int] = {}
        self.hold_until: dict[Key, int] = {}
        self.pauses: dict[Key, tuple[int, int]] = {}
        self.chance = 0.5
        self._begin()

    @property
    def now_ms(self) -> int:
        return self.cluster.now_ms

    def decide(self, command: str, *args: Any) -> Any:
        return self.ledger.run(self.now_ms, command, *args)

    # --- life --------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.decide("lead", "leader", "", "")
        self.term = sum(record.command == "lead" for record in self.ledger.records)
        for service in self.services.values():
            self.decide("declare", service.name, service.shards, service.instances)
        for name, running in self.ledger.control.instances.items():
            self.watch(name, running)

    def watch(self, name: str, running: Running) -> None:
        puppet = self.cluster.puppets[name]
        puppet.greeted = True
        self.wards[name] = Sighted(puppet, running, self.cluster.hear)
        self.wards[name].look(self.now_ms)

    async def step(self) -> None:
        """One round, as `Controller._round`; before it, what came of what was begun in earlier ones."""
        self._look()
        self._bury()
        self._hear_lost()
        self._notice_slow()
        world = self.world()
        self._conclude(world)
        await self._plan(world)
        self._advance()
        self.act()

    def operate(self, verb: str, *args: Any) -> bool:
        """An operator says something; whether it was taken."""
        try:
            self.decide(verb, "operator", "a test", *args)
        except Rejected:
            return False
        return True

    # --- looking -------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        mine = [outcome for outcome in self.cluster.outcomes if outcome[0].term == self.term]
        self.cluster.outcomes = []
        for starting, error in mine:
            self._on_started(starting, error)
        for name, reason in self.stopping:
            self.decide("stopped", name, reason)
        for key, action in self.performing:
            self._on_performed(key, action)
        self.stopping, self.performing = [], []
        for ward in self.wards.values():
            ward.look(self.now_ms)
        for name in self.cluster.suspected:
            if name in self.wards:
                self.wards[name].die("no pulse", Signal.SILENT)
        self.cluster.suspected = []
        listed = {node.name for node in self.cluster.nodes()}
        for ward in self.wards.values():
            if ward.running.node not in listed:
                ward.die("its node is gone", Signal.NODE_GONE)
        self._notice_gone(listed)
        for service in sorted({service for (service, _), until in self.hold_until.items() if until <= self.now_ms}):
            self.decide("disturb", service)
        self.hold_until = {key: until for key, until in self.hold_until.items() if until > self.now_ms}

    def _notice_gone(self, listed: set[str]) -> None:
        """What was taken for the death of instances was that of their node."""
        incidents = self.ledger.control.open_incidents()
        died_on = {node for incident in incidents for node in incident.deaths}
        for node in sorted(died_on - listed - {node for incident in incidents for node in incident.gone}):
            text = f"node {node} is gone"
            self._notice(Evidence(at_ms=self.now_ms, signal=Signal.NODE_GONE, text=text, node=node))

    def _on_started(self, starting: Starting, error: str | None) -> None:
        self.starting.pop(starting.name, None)
        if error is not None:
            self._fail(starting.key, error)
            return
        running = Running(
            service=starting.service, node=starting.node, address="", beacon="", started_ms=starting.due_ms
        )
        self.decide("started", starting.name, running, *starting.key[:2])
        self.watch(starting.name, running)

    def _on_performed(self, key: tuple[int, int, int], action: Perform) -> None:
        ward = self.wards.get(action.incarnation)
        if ward is None or not ward.puppet.alive:
            self._fail(key, f"{action.incarnation} is gone")
        else:
            self.decide("perform", *key[:2], [action.operation])

    def _fail(self, key: tuple[int, int, int], text: str) -> None:
        self.failures.setdefault(key[0], {})[key[1:]] = text

    def _sight(self) -> Sight:
        wards = cast("dict[str, Ward]", self.wards)
        return Sight(self.root, wards, self.cluster.nodes(), self.died_on, tuple(self.hold_until), dict(self.starting))

    def world(self) -> World:
        """What is known now."""
        control = self.ledger.control
        mass = [i for i in control.incidents.values() if i.kind is Kind.MASS_FAILURE]
        frozen = any(self.now_ms - incident.changed_ms < controller.FREEZE_MS for incident in mass)
        return world_of(control, self._sight(), self.now_ms, frozen=frozen, chance=self.chance)

    # --- incidents -----------------------------------------------------------------------------------------------------

    def _bury(self) -> None:
        """All that died are noticed first, then each is buried as what the incident looks like by then."""
        dead = [ward for ward in self.wards.values() if ward.dead is not None]
        for ward in dead:
            del self.wards[ward.incarnation]
            self.died_on[ward.running.node] = self.now_ms
        stopped = [ward for ward in dead if self._is_being_stopped(ward.incarnation)]
        crashed = [ward for ward in dead if ward not in stopped]
        numbers = [self._notice(self._evidence(ward, ward.signal, ward.dead or "")) for ward in crashed]
        for ward in stopped:
            self.decide("stopped", ward.incarnation, ward.dead)
        for ward, number in zip(crashed, numbers, strict=True):
            self._bury_crashed(ward, self.ledger.control.incidents[number])

    def _bury_crashed(self, ward: Sighted, incident: Incident) -> None:
        died_in = ward.puppet.died_replaying
        gone = Gone(incarnation=ward.incarnation, reason=ward.dead or "", replaying=died_in, signal=ward.signal)
        counted = self._count(ward.running.service) if incident.kind in OWN_FAULT else None
        self.decide("bury", gone, incident, *(counted or (Counted(restarts=self.ledger.control.restarts), [])))
        self.cluster.kill(ward.incarnation)

    def _is_being_stopped(self, incarnation: str) -> bool:
        return any(
            isinstance(step.action, Stop) and step.action.incarnation == incarnation and step.state is State.RUNNING
            for plan in self.ledger.control.active_plans()
            for _, _, step in plan.steps()
        )

    def _notice(self, evidence: Evidence) -> int:
        control = self.ledger.control
        ground = ground_of(control, self._sight())
        home = home_of(evidence, control.open_incidents(), ground)
        incident = begin(0, evidence, ground) if home is None else grown(home, evidence, ground)
        return int(self.decide("notice", incident))

    def _evidence(self, ward: Sighted, signal: Signal, text: str) -> Evidence:
        running = ward.running
        zone = next((node.zone for node in self.cluster.nodes() if node.name == running.node), "")
        return Evidence(
            at_ms=self.now_ms,
            signal=signal,
            text=text,
            service=running.service,
            incarnation=ward.incarnation,
            node=running.node,
            zone=zone,
        )

    def _count(self, service: str) -> tuple[Counted | None, list[str]]:
        control, now_ms = self.ledger.control, self.now_ms
        verdict = on_exit(self.root, control.restarts, service, abnormal=True, now_ms=now_ms, chance=self.chance)
        if verdict.is_final:
            delay_ms = round(self.root.backoff.max_s * 1000)
            return Counted(restarts=control.restarts, held={service: now_ms + delay_ms}), []
        if verdict.by is None:
            return None, []
        held = dict.fromkeys(verdict.start, now_ms + verdict.delay_ms) if verdict.delay_ms else {}
        return Counted(restarts=verdict.history, held=held), verdict.stop

    def _notice_slow(self) -> None:
        for name in self.cluster.slow:
            if name in self.wards:
                self._notice(self._evidence(self.wards[name], Signal.SLOW, "its loop lags"))
        self.cluster.slow = []

    def _hear_lost(self) -> None:
        for ward in self.wards.values():
            lost, ward.puppet.lost = ward.puppet.lost, []
            for shard, number, reason, error in lost:
                owned = self.ledger.control.services[ward.running.service][shard]
                if owned.number == number and owned.incarnation == ward.incarnation:
                    self._back_off((ward.running.service, shard))
                    if error == "LogUnavailable":
                        self._notice(self._evidence(ward, Signal.LOG_AWAY, reason))
                    self.decide("lose", ward.running.service, shard, number)

    def _back_off(self, key: Key) -> None:
        pause_ms, until_ms = self.pauses.get(key, (0, 0))
        recent = self.now_ms < until_ms + BACKOFF_MAX_MS
        pause_ms = min(2 * pause_ms, BACKOFF_MAX_MS) if recent and pause_ms else BACKOFF_FIRST_MS
        self.pauses[key] = pause_ms, self.now_ms + pause_ms
        self.hold_until[key] = self.now_ms + pause_ms

    def _conclude(self, world: World) -> None:
        control = self.ledger.control
        busy = {name for plan in control.active_plans() for name in plan.services}
        for incident in control.open_incidents():
            outcome = self.planning.outcome_of(incident, world) if busy.isdisjoint(incident.services) else None
            if outcome is not None:
                self.decide("notice", incident.model_copy(update={"closed_ms": self.now_ms, "outcome": outcome}))

    # --- plans -----------------------------------------------------------------------------------------------------------

    async def _plan(self, world: World) -> None:
        control = self.ledger.control
        for plan in control.active_plans():
            if (why := controller._why_stale(plan, world)) is not None:  # pyright: ignore[reportPrivateUsage]
                self.decide("end_plan", plan.id, Standing.SUPERSEDED, why)
        for plan in await self.planning.plans(control, world, self._notice):
            self.decide("propose", plan)

    def _advance(self) -> None:
        for plan in self.ledger.control.active_plans():
            world = self.world()
            changes = advance(plan, world, self.failures.get(plan.id, {}))
            if not changes:
                continue
            starting = [change.step for change in changes if change.state is State.RUNNING]
            places = {
                number: homes(world, world.services[step.action.service])
                for number, _, step in plan.steps()
                if number in starting and isinstance(step.action, Place)
            }
            self.decide("advance", plan.id, changes, places)
            if self.ledger.control.plans[plan.id].standing is Standing.FAILED:
                self._on_failed(self.ledger.control.plans[plan.id])

    def _on_failed(self, plan: Plan) -> None:
        """As an exit of the services that it failed for."""
        failed = [step.action for _, _, step in plan.steps() if step.state is State.FAILED]
        instances = self.ledger.control.instances
        services = {
            instances[action.incarnation].service if isinstance(action, Stop | Perform) else action.service
            for action in failed
            if not isinstance(action, Cordon) and getattr(action, "incarnation", None) in {None, *instances}
        }
        for service in sorted(services):
            counted, _ = self._count(service)
            if counted is not None:
                self.decide("count_restarts", counted.restarts, counted.held, None, [])

    # --- acting ----------------------------------------------------------------------------------------------------------

    def act(self) -> None:
        """Everything decided is in the log now."""
        control = self.ledger.control
        self.orders.send(control, cast("dict[str, Ward]", self.wards), self.term, lambda _: {})
        for plan in control.active_plans():
            if plan.standing is Standing.RUNNING:
                for number, _, step in plan.steps():
                    key = plan.id, number, step.attempt
                    if step.state is State.RUNNING and key not in self.begun:
                        self.begun.add(key)
                        self._do(key, step)

    def _do(self, key: tuple[int, int, int], step: Step) -> None:
        match step.action:
            case Start(service=service, node=node):
                name = f"{service}-{self.term}.{key[0]}.{key[1]}.{key[2]}"
                zone = self.cluster.zones.get(node, "")
                self.starting[name] = InstanceView(name, service, node, zone, up=False, started_ms=self.now_ms)
                self.cluster.start(name, service, node, self.term, key)
            case Stop(incarnation=incarnation, reason=reason):
                self.wards.pop(incarnation, None)
                self.cluster.kill(incarnation)
                self.stopping.append((incarnation, reason))
            case Perform():
                self.performing.append((key, step.action))
            case _:
                pass
