"""The controller: turns evidence into incidents, incidents into plans, plans into what is true; and survives none of it.

It is level-triggered: evidence only sets a flag, and one round after the other compares what is with what should be.

    look -> bury the dead -> incidents grow -> policies plan -> plans advance -> written down -> acted on

A round computes all its decisions first, ahead of the log as every shard does, then waits until they are in the control
log, then acts. Whoever holds the claim on that log leads; all orders carry its term. Instances outlive the controller
and serve on while it is away; the next one reads the plans in progress and looks before it acts.

The decisions themselves are pure functions: `incidents`, `policies`, `parts`, `plans`, `placement`, `restarts`. What is
here is their order, and the edge: `Ward` (what is seen), `Decisions` (what is decided), `Cluster` and `Orders` (what is done).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from functools import cache
from typing import Any, Final

from rekindle.actors import Floor, Host
from rekindle.events import LogError, RekindleError
from rekindle.supervisors.acting import Acting
from rekindle.supervisors.cluster import Cluster, Node
from rekindle.supervisors.control import DEATHS_MAX
from rekindle.supervisors.decided import Counted, Gone, Owned, Position, Running
from rekindle.supervisors.decisions import Decisions, NotLeading
from rekindle.supervisors.incidents import Evidence, Incident, Kind, Signal, begin, grown, home_of
from rekindle.supervisors.orders import Orders
from rekindle.supervisors.parts import homes
from rekindle.supervisors.planning import Planning
from rekindle.supervisors.plans import Place, Plan, Standing, State, Step, Stop, advance
from rekindle.supervisors.restarts import on_exit
from rekindle.supervisors.tree import Supervisor
from rekindle.supervisors.view import Sight, ground_of, world_of
from rekindle.supervisors.ward import SUSPECT_S, Ward
from rekindle.supervisors.world import World

TICK_S: Final = 0.05
ROUND_S: Final = 0.25
"""While a plan or an incident goes on there is a round at least this often: deadlines pass without a word."""

REPORT_S: Final = 5e-6
"""For each shard there is: so long the report that one is served waits for others, because a round looks at all shards. A
death waits for nothing."""

BUSY_AGAIN_S: Final = 10.0
"""So often at most an instance is said to turn calls away: a record each time, while there is no room for records."""

LOG_ANSWER_MAX_S: Final = 2.0
"""A log that was away is there when it says within this time where it ends."""

SUSPICION_ONCE_IN_S: Final = 10.0
"""A shard moves on suspicion at most once in this time; then it needs proof (a closed connection, the cluster's word)."""

OBSERVE_S: Final = 5.0
NODES_S: Final = 1.0
ADOPT_MAX_S: Final = 2.0
STARTS_MAX_S: Final = 10.0
"""How long a stop waits for instances that are being started. One that takes longer ends by itself (`UNWANTED_MAX_S`)."""

BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
STALL_MS: Final = 90_000
"""A plan in which nothing changes for so long is made anew: longer than any pause before a restart."""

FREEZE_MS: Final = 30_000
"""After a mass failure, what can wait does so for this long after the last death. Shorter than what orchestrators use (120 s):
here nothing is copied when a shard moves, and a wrong move loses nothing."""

FINAL_ERRORS: Final = frozenset({"LogTruncated", "LogDamaged", "NewerRecord", "TopicMissing", "TopicContractBroken"})
"""Ends of ownership that another instance would meet again: the shard stays down until an operator looks."""

_OWN_FAULT: Final = frozenset({Kind.INSTANCE_CRASH, Kind.INSTANCE_HANG})
"""Deaths that count against restart intensity: not those of a machine that took everything on it along."""


class Controller:
    """Runs the services of one application. decisions: those that were followed until now, if they were."""

    def __init__(
        self,
        app: str,
        root: Supervisor,
        cluster: Cluster,
        host: Host,
        name: str,
        console: str = "",
        beacon: str = "",
        decisions: Decisions | None = None,
    ) -> None:
        self.app = app
        self.root = root
        self.services = {service.name: service for service in root.services()}
        self.cluster = cluster
        self.host = host
        self.name = name
        self.addresses = (console, beacon)
        self.decisions = decisions or Decisions(app, name, host)
        self.orders = Orders(list(self.services.values()))
        self.planning = Planning(host)
        self.acting = Acting(self)
        self.wards: dict[str, Ward] = {}
        self.nodes: list[Node] = []
        self.up = asyncio.Event()
        self.changed = asyncio.Event()
        self._stopping = False
        self._suspected_at: dict[tuple[str, int], float] = {}
        self._hold_until: dict[tuple[str, int], float] = {}
        self._released: set[str] = set()
        self._pauses: dict[tuple[str, int], tuple[float, float]] = {}
        self._degraded: dict[str, tuple[float, str]] = {}
        self._observed: dict[tuple[str, int], Floor] = {}
        self._above: dict[tuple[str, int], int] = {}
        self._floors: dict[tuple[str, int], Floor] = {}
        self._died_on: dict[str, int] = {}
        self._logs_away: set[tuple[str, int]] = set()
        self._busy_at: dict[str, float] = {}
        self._served: set[str] = set()
        self._published = False
        self._looking: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- life --------------------------------------------------------------------------------------------------

    async def run(self) -> str:
        """Lead until stopped or fenced; the reason. Raises `RekindleError` if it cannot begin, or cannot go on."""
        loop = asyncio.get_running_loop()
        await self.decisions.lead()
        fenced = loop.create_task(self.decisions.wait_fenced())
        work = loop.create_task(self._work())
        try:
            await asyncio.wait((fenced, work), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
            reason = fenced.result() if fenced.done() else "stopped"
        except NotLeading as error:
            reason = str(error)
        finally:
            for task in (fenced, work, *self._tasks):
                task.cancel()
            self.decisions.resign()
        if self.decisions.error is not None:
            raise self.decisions.error
        return reason

    async def _work(self) -> None:
        await self._begin()
        self.spawn(self._ticks())
        while not self._stopping:
            await self._round()
            await self.changed.wait()
            self.changed.clear()
        await self._kill_all()

    async def _begin(self) -> None:
        """Declare what is to run, adopt what runs already."""
        self.host.say(f"controller {self.name} leads {self.app!r} with term {self.decisions.term}")
        was_ended = self.decisions.control.ended
        await self.decisions.decide("lead", self.name, *self.addresses)
        for service in self.services.values():
            await self.decisions.decide("declare", service.name, service.shards, service.instances)
            for shard, owned in enumerate(self._owned(service.name) if was_ended else ()):
                if owned.refused is not None:  # whoever brings an application up again has had a look
                    await self.decisions.decide("refuse", service.name, shard, None)
        try:
            self.nodes = await self.cluster.nodes()
        except RekindleError as error:  # shards move to survivors without it; starting has to wait
            self.host.say(f"the cluster does not answer: {error}")
        for incarnation, running in tuple(self.decisions.control.instances.items()):
            self.watch(incarnation, running)
        await asyncio.gather(*(ward.wait_ready(ADOPT_MAX_S) for ward in self.wards.values()))
        for ward in self.wards.values():
            if not ward.ready:
                ward.die("not there when the controller began", proven=True, signal=Signal.CLOSED)
        self._published = False

    @property
    def leads(self) -> bool:
        """Whether it holds the claim on the control log."""
        return self.decisions.leads

    @property
    def is_stopped(self) -> bool:
        """Whether it was told to stop the application."""
        return self._stopping

    def stop(self) -> None:
        """Stop the application: `run` kills its instances, gives up the lead and returns."""
        self._stopping = True
        self.changed.set()

    async def _kill_all(self) -> None:
        await self.acting.wait_started(STARTS_MAX_S)  # whoever is being started now would be left behind
        await self._observe()
        await asyncio.gather(*(self.cluster.kill(incarnation) for incarnation in self.wards))
        for incarnation in tuple(self.wards):
            self.decisions.put("gone", incarnation, "the application was stopped", [], [])
        for plan in self.decisions.control.active_plans():
            self.decisions.put("end_plan", plan.id, Standing.SUPERSEDED, "the application was stopped")
        self.decisions.put("end")
        await self.decisions.settle()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something beside the rounds, for as long as this controller leads."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and not isinstance(task.exception(), NotLeading):
            self.host.say(f"bug: a task of the controller died: {task.exception()!r}")

    def watch(self, incarnation: str, running: Running) -> Ward:
        """Have an eye on an instance."""
        host = self.host
        ward = Ward(incarnation, running, host.wire, host.token, self.changed.set, self._on_report)
        self.wards[incarnation] = ward
        self.spawn(ward.run())
        self.spawn(self._watch_cluster(ward))
        return ward

    def _on_report(self) -> None:
        """One more shard is served: look at it together with those that follow."""
        if self._looking is None:
            pause_s = REPORT_S * sum(service.shards for service in self.services.values())
            self._looking = asyncio.get_running_loop().call_later(pause_s, self._look_at_reports)

    def _look_at_reports(self) -> None:
        self._looking = None
        self.changed.set()

    async def _watch_cluster(self, ward: Ward) -> None:
        reason = await self.cluster.watch(ward.incarnation)
        await ward.hear_out()
        ward.die(reason, proven=True, signal=Signal.SAID_DEAD)

    # --- looking -----------------------------------------------------------------------------------------------

    async def _ticks(self) -> None:
        """Time passes: missed pulses, nodes that are gone, positions to be written down."""
        loop = asyncio.get_running_loop()
        last = nodes_at = observed_at = round_at = loop.time()
        while True:
            await asyncio.sleep(TICK_S)
            now = loop.time()
            if now - last > SUSPECT_S / 2:  # it was this process that slept: nobody's silence counts
                for ward in self.wards.values():
                    ward.pulse_at = now
            last = now
            self._look(now)
            if now - nodes_at > NODES_S:
                nodes_at = now
                self.spawn(self._look_at_nodes())
                if self._logs_away:
                    self.spawn(self._look_at_logs())
            if now - observed_at > OBSERVE_S:
                observed_at = now
                self.spawn(self._observe())
            if now - round_at > ROUND_S:
                round_at = now
                if self._goes_on():
                    self.changed.set()

    def _goes_on(self) -> bool:
        control = self.decisions.control
        return bool(control.active_plans() or control.open_incidents() or not self.up.is_set())

    def _look(self, now: float) -> None:
        for ward in self.wards.values():
            service = self.services.get(ward.running.service)
            if service is not None:
                ward.look(now, service.hang_s)
        for name in self.services:
            peers = [ward for ward in self.wards.values() if ward.running.service == name and ward.alive]
            for ward in peers:
                ward.compare([other.lag_ms for other in peers if other is not ward])
        if any(until <= now for until in self._hold_until.values()):
            self._released.update(service for (service, _), until in self._hold_until.items() if until <= now)
            self._hold_until = {what: until for what, until in self._hold_until.items() if until > now}
            self.changed.set()

    async def _look_at_nodes(self) -> None:
        try:
            self.nodes = await self.cluster.nodes()
        except RekindleError as error:  # the cluster is disposable: what runs, runs on
            self.host.say(f"the cluster does not answer: {error}")
            return
        names = {node.name for node in self.nodes}
        for ward in self.wards.values():
            if ward.running.node not in names:
                ward.die(f"node {ward.running.node} is gone", proven=True, signal=Signal.NODE_GONE)

    async def _look_at_logs(self) -> None:
        """Whether the logs that were given up answer again; before that nobody could own their shards."""
        for service, shard in sorted(self._logs_away):
            try:
                async with asyncio.timeout(LOG_ANSWER_MAX_S):
                    await self.host.log.bounds(self.services[service].hosted(self.app).partition(shard))
            except (LogError, TimeoutError):
                return
            self._logs_away.discard((service, shard))
        self.changed.set()

    async def _observe(self) -> None:
        """Write down how far shards are, for the floor of owners after a stop of everything."""
        for name in self.services:
            positions: list[tuple[int, Position]] = []
            for shard, floor in self._known_positions(name).items():
                if self._observed.get((name, shard)) != floor:
                    self._observed[name, shard] = floor
                    positions.append((shard, Position(term=floor.term, offset=floor.offset, sequence=floor.sequence)))
            if positions:
                await self.decisions.decide("observe", name, positions)

    def _known_positions(self, service: str) -> dict[int, Floor]:
        """The highest position that is known of each shard."""
        known: dict[int, Floor] = {}
        for shard, owned in enumerate(self._owned(service)):
            if owned.position is not None:
                known[shard] = Floor(owned.position.term, owned.position.offset, owned.position.sequence)
        heard = [ward.positions.items() for ward in self.wards.values() if ward.running.service == service]
        buried = [((shard, floor) for (name, shard), floor in self._floors.items() if name == service)]
        for shard, floor in (entry for entries in (*heard, *buried) for entry in entries):
            if shard not in known or floor.sequence > known[shard].sequence:
                known[shard] = floor
        return known

    # --- a round -----------------------------------------------------------------------------------------------

    def _owned(self, service: str) -> list[Owned]:
        return self.decisions.control.services[service]

    async def _round(self) -> None:
        """Everything that can be decided now; then, once it is in the log, everything that follows from it."""
        self._bury()
        self._hear_lost()
        self._notice_slow()
        self._notice_busy()
        self._notice_gone()
        world = self.world()
        self._conclude(world)
        await self._plan(world)
        self._advance()
        await self.decisions.settle()
        self._act()

    def world(self) -> World:
        """What is known now."""
        control, now_ms = self.decisions.control, self.decisions.now_ms()
        return world_of(control, self._sight(), now_ms, frozen=self._is_frozen(now_ms), chance=self._chance())

    def _sight(self) -> Sight:
        return Sight(
            self.root,
            self.wards,
            self.nodes,
            self._died_on,
            tuple(self._hold_until),
            dict(self.acting.starting),
            log_there=not self._logs_away,
        )

    def _chance(self) -> float:
        return int.from_bytes(self.host.randomness(2), "big") / 0x10000

    def _is_frozen(self, now_ms: int) -> bool:
        mass = [i for i in self.decisions.control.incidents.values() if i.kind is Kind.MASS_FAILURE]
        return any(now_ms - incident.changed_ms < FREEZE_MS for incident in mass)

    def _bury(self) -> None:
        """Write down who is dead, then have it killed: a dead one that still runs is fenced, not feared.

        What looks like the death of an instance may be that of its node: all that died are noticed first, then each is
        buried as what the incident looks like by then.
        """
        now = asyncio.get_running_loop().time()
        dead = [ward for ward in self.wards.values() if ward.dead is not None and self._may_bury(ward, now)]
        for ward in dead:
            del self.wards[ward.incarnation]
            self._died_on[ward.running.node] = self.decisions.now_ms()
            self._published = False
        crashed = [ward for ward in dead if not self._is_being_stopped(ward.incarnation)]
        numbers = [self._notice(self._evidence(ward, ward.signal, ward.dead or "")) for ward in crashed]
        for ward in dead:
            if ward not in crashed:
                self.decisions.put("stopped", ward.incarnation, ward.dead or "")
        for ward, number in zip(crashed, numbers, strict=True):
            self._bury_crashed(ward, number, now)

    def _may_bury(self, ward: Ward, now: float) -> bool:
        if not ward.proven and self._moved_on_suspicion(ward, now):
            self.acting.kill(ward.incarnation)
            return False
        self._note_suspicion(ward, now)
        return True

    def _bury_crashed(self, ward: Ward, number: int, now: float) -> None:
        control, service = self.decisions.control, ward.running.service
        blamed, replaying = ward.blamed(), self._blamed_replays(ward)
        self.host.say(f"{ward.incarnation} at {ward.running.address} is dead: {ward.dead}{_named(blamed, replaying)}")
        self._degraded.setdefault(service, (now, ward.incarnation))
        self._floors.update(((service, shard), floor) for shard, floor in ward.positions.items())
        known, refused = control.poison(), len(control.open_incidents())
        gone = Gone(
            incarnation=ward.incarnation,
            reason=ward.dead or "",
            replaying=replaying,
            commands=blamed,
            signal=ward.signal,
        )
        incident = control.incidents[number]
        of_its_own = incident.kind in _OWN_FAULT and service in self.services
        counted = self._count_exit(service, abnormal=ward.signal is not Signal.ENDED) if of_its_own else None
        self.decisions.put("bury", gone, incident, *(counted or (Counted(restarts=control.restarts), [])))
        self.acting.kill(ward.incarnation)
        for session, call, text in dict.fromkeys(blamed):
            if (session, call) in control.poison() and (session, call) not in known:
                self.host.say(f"poison: {text} is not run again, {DEATHS_MAX} instances died of it")
        for poison in control.open_incidents()[refused:]:
            self.host.say(f"{service}/{poison.evidence[0].shard} is kept down: {poison.evidence[0].text}")

    def _is_being_stopped(self, incarnation: str) -> bool:
        """Whether a plan is ending it, perhaps one of a controller that has died over it."""
        return any(
            isinstance(step.action, Stop) and step.action.incarnation == incarnation and step.state is State.RUNNING
            for plan in self.decisions.control.active_plans()
            for _, _, step in plan.steps()
        )

    def _blamed_replays(self, ward: Ward) -> list[int]:
        """A suspect shard says so before it replays: without that word, something else has killed the instance."""
        owned = self.decisions.control.services.get(ward.running.service, [])
        return [shard for shard in ward.replaying() if ward.announced(shard) or not owned[shard].deaths]

    def _moved_on_suspicion(self, ward: Ward, now: float) -> bool:
        service = ward.running.service
        moved = [self._suspected_at.get((service, shard), -SUSPICION_ONCE_IN_S) for shard in ward.sent]
        return any(now - at < SUSPICION_ONCE_IN_S for at in moved)

    def _note_suspicion(self, ward: Ward, now: float) -> None:
        if not ward.proven:
            self._suspected_at.update(((ward.running.service, shard), now) for shard in ward.sent)

    # --- incidents ---------------------------------------------------------------------------------------------

    def _notice(self, evidence: Evidence) -> int:
        """Evidence makes an incident, or makes one grow; its number."""
        control = self.decisions.control
        ground = ground_of(control, self._sight())
        home = home_of(evidence, control.open_incidents(), ground)
        incident = begin(0, evidence, ground) if home is None else grown(home, evidence, ground)
        self.decisions.put("notice", incident)
        return home.id if home is not None else control.numbered

    def _evidence(self, ward: Ward, signal: Signal, text: str) -> Evidence:
        running = ward.running
        zone = next((node.zone for node in self.nodes if node.name == running.node), "")
        return Evidence(
            at_ms=self.decisions.now_ms(),
            signal=signal,
            text=text,
            service=running.service,
            incarnation=ward.incarnation,
            node=running.node,
            zone=zone,
        )

    def _count_exit(self, service: str, *, abnormal: bool = True) -> tuple[Counted | None, list[str]]:
        """OTP's rules: what is restarted with it, how soon, and whether a supervisor gives up over it. None: nothing."""
        control, now_ms = self.decisions.control, self.decisions.now_ms()
        verdict = on_exit(self.root, control.restarts, service, abnormal=abnormal, now_ms=now_ms, chance=self._chance())
        for name in verdict.gave_up:
            self.host.say(f"supervisor {name} gives up: {service} ends too often; what is above it decides")
        if verdict.is_final:  # an application that ends itself helps nobody at 3 AM: the survivors serve, restarts wait
            self.host.say(
                f"the root {self.root.name} would end the application: {service} waits, an operator is needed"
            )
            delay_ms = round(self.root.backoff.max_s * 1000)
            return Counted(restarts=control.restarts, held={service: now_ms + delay_ms}), []
        if verdict.by is None:
            self.host.say(f"{service}: this exit is not followed by a restart ({self.services[service].restart.value})")
            return None, []
        held = dict.fromkeys(verdict.start, now_ms + verdict.delay_ms) if verdict.delay_ms else {}
        return Counted(restarts=verdict.history, held=held), verdict.stop

    def _notice_slow(self) -> None:
        """An instance whose loop lags far behind its peers': gray, not dead."""
        for name in self.services:
            for ward in [ward for ward in self.wards.values() if ward.running.service == name and ward.is_gray]:
                self._notice(self._evidence(ward, Signal.SLOW, f"its loop lags by {ward.lag_ms} ms"))
                ward.is_gray = False

    def _notice_busy(self) -> None:
        """Instances that have turned calls away; said of each once in a while, for as long as it goes on."""
        now = asyncio.get_running_loop().time()
        for ward in self.wards.values():
            if ward.turned_away and now - self._busy_at.get(ward.incarnation, -BUSY_AGAIN_S) >= BUSY_AGAIN_S:
                count, ward.turned_away = ward.turned_away, 0
                self._busy_at[ward.incarnation] = now
                self._notice(
                    self._evidence(ward, Signal.BUSY, f"{count} calls were turned away, too many wait already")
                )

    def _notice_gone(self) -> None:
        """What was taken for the death of instances was that of their node."""
        incidents, names = self.decisions.control.open_incidents(), {node.name for node in self.nodes}
        died_on = {node for incident in incidents for node in incident.deaths}
        for node in sorted(died_on - names - {node for incident in incidents for node in incident.gone}):
            text = f"node {node} is gone"
            self._notice(Evidence(at_ms=self.decisions.now_ms(), signal=Signal.NODE_GONE, text=text, node=node))

    def _hear_lost(self) -> None:
        """Instances that gave up a shard by themselves; and shards that were left alone for long enough."""
        for service in sorted(self._released):
            self.decisions.put("disturb", service)
        self._released.clear()
        for ward in [w for w in self.wards.values() if w.lost and w.running.service in self.services]:
            lost, ward.lost = ward.lost, []
            for shard, number, reason, error, seen in lost:
                owned = self._owned(ward.running.service)[shard]
                if owned.number == number and owned.incarnation == ward.incarnation:
                    self._on_lost(ward, shard, reason, error, seen)

    def _on_lost(self, ward: Ward, shard: int, reason: str, error: str | None, seen: int) -> None:
        service = ward.running.service
        self.host.say(f"{service}/{shard} was given up: {reason}")
        if error in FINAL_ERRORS:
            self.decisions.put("refuse", service, shard, reason)
        else:
            self._back_off((service, shard))
            if error == "LogUnavailable":
                self._logs_away.add((service, shard))
                self._notice(self._evidence(ward, Signal.LOG_AWAY, reason))
        # A higher assignment than our own may have been met: go on above it.
        self.decisions.put("lose", service, shard, seen)
        self._published = False

    def _back_off(self, what: tuple[str, int]) -> None:
        """Hold it, each time for longer; what went well for a while begins from the start again."""
        now = asyncio.get_running_loop().time()
        pause, until = self._pauses.get(what, (0.0, 0.0))
        recent = now < until + BACKOFF_MAX_S
        pause = min(2 * pause, BACKOFF_MAX_S) if recent and pause else BACKOFF_FIRST_S
        self._pauses[what] = (pause, now + pause)
        self._hold_until[what] = now + pause

    def _conclude(self, world: World) -> None:
        """Incidents of which nothing is left to be done are closed."""
        control = self.decisions.control
        busy = {name for plan in control.active_plans() for name in plan.services}
        for incident in control.open_incidents():
            outcome = self.planning.outcome_of(incident, world) if busy.isdisjoint(incident.services) else None
            if outcome is not None:
                marks = incident.marks | self._marks(incident)
                closed = incident.model_copy(update={"closed_ms": world.now_ms, "outcome": outcome, "marks": marks})
                self.decisions.put("notice", closed)

    def _marks(self, incident: Incident) -> dict[str, int]:
        """When the last shard that changed hands over it was claimed, and when it was replayed, as the new owners say."""
        offset_ms = self.decisions.now_ms() - asyncio.get_running_loop().time() * 1000
        wards = [ward for ward in self.wards.values() if ward.running.service in incident.services]
        said = [(round(offset_ms + at * 1000), took) for ward in wards for at, took in ward.took.values()]
        ends = [(at_ms, took) for at_ms, took in said if at_ms >= incident.opened_ms]
        if not ends:
            return {}
        claimed_ms = max(at_ms - took.replayed_ms + took.claimed_ms for at_ms, took in ends)
        return {"claimed": claimed_ms, "replayed": max(at_ms for at_ms, _ in ends)}

    # --- plans -------------------------------------------------------------------------------------------------

    async def _plan(self, world: World) -> None:
        """Plan for what has no plan, or none that knows of everything that has happened since."""
        control = self.decisions.control
        for plan in control.active_plans():
            if (why := _why_stale(plan, world)) is not None:
                self.decisions.put("end_plan", plan.id, Standing.SUPERSEDED, why)
        for plan in await self.planning.plans(control, world, self._notice):
            self.decisions.put("propose", plan)
            steps = sum(len(phase.steps) for phase in plan.phases)
            self.host.say(f"plan {control.numbered} ({plan.policy}), {steps} steps: {plan.cause}")

    def _advance(self) -> None:
        for plan in self.decisions.control.active_plans():
            world = self.world()
            changes = advance(plan, world, self.acting.failures(plan.id))
            if not changes:
                continue
            starting = [c.step for c in changes if c.state is State.RUNNING]
            places = {
                number: homes(world, world.services[step.action.service])
                for number, _, step in plan.steps()
                if number in starting and isinstance(step.action, Place)
            }
            self.decisions.put("advance", plan.id, changes, places)
            self._published = False
            after = self.decisions.control.plans[plan.id]
            if after.standing is Standing.FAILED:
                self._on_failed(plan.id)
            if not after.is_active:  # what comes next is planned in another round, which nothing else may bring about
                self.changed.set()

    def _on_failed(self, number: int) -> None:
        """A plan that failed counts as an exit of the services that it failed for: the next one waits, longer each time."""
        plan = self.decisions.control.plans[number]
        self.host.say(f"plan {number} ({plan.cause}) failed: {plan.why}")
        failed = [step for _, _, step in plan.steps() if step.state is State.FAILED]
        for service in sorted({name for step in failed if (name := self._service_of(step)) is not None}):
            counted, _ = self._count_exit(service)
            if counted is not None:
                self.decisions.put("count_restarts", counted.restarts, counted.held, None, [])

    def _service_of(self, step: Step) -> str | None:
        """The service that a step is about, if it is one that is to run."""
        running = self.decisions.control.instances.get(getattr(step.action, "incarnation", ""))
        name = getattr(step.action, "service", None) if running is None else running.service
        return name if name in self.services else None

    # --- acting ------------------------------------------------------------------------------------------------

    def _act(self) -> None:
        """Everything decided is in the log now."""
        control = self.decisions.control
        if not self._published:
            self._published = True
            self.orders.publish(control, self.wards, self.decisions.term)
        self.orders.send(control, self.wards, self.decisions.term, cache(self._known_positions))
        for plan in control.active_plans():
            self.acting.carry_out(plan)
        for service in self.services:
            self._see_served(service)

    def _see_served(self, service: str) -> None:
        """Say when every shard that may be served is, after it was not."""
        for shard, owned in enumerate(self._owned(service)):
            ward = self.wards.get(owned.incarnation or "")
            if owned.refused is None and (ward is None or ward.serving.get(shard) != owned.number):
                self._served.discard(service)
                return
        self._served.add(service)
        since = self._degraded.pop(service, None)
        if since is not None:
            took = round((asyncio.get_running_loop().time() - since[0]) * 1000)
            shards = len(self._owned(service))
            self.host.say(f"{service}: all {shards} shards are served again, {took} ms after {since[1]} was seen dead")
        if len(self._served) == len(self.services):
            self.up.set()


def _why_stale(plan: Plan, world: World) -> str | None:
    """Why a plan has to be made anew: something has happened that it was not made for, or it comes to nothing. A paused
    one is an operator's."""
    if plan.standing is not Standing.RUNNING:
        return None
    if any(world.services[n].disturbed != seen for n, seen in plan.basis.items() if n in world.services):
        return "something else happened"
    last_ms = max((step.since_ms for _, _, step in plan.steps()), default=plan.made_ms)
    still_ms = world.now_ms - max(last_ms, plan.made_ms)
    return f"nothing has changed for {still_ms} ms" if still_ms > STALL_MS else None


def _named(blamed: Sequence[tuple[bytes, int, str]], replaying: Sequence[int]) -> str:
    """What may have killed an instance, for the line that reports its death."""
    texts = [*dict.fromkeys(text for _, _, text in blamed), *(f"the replay of shard {shard}" for shard in replaying)]
    return f"; while it ran {', '.join(texts)}" if texts else ""
