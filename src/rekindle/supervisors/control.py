"""What the controller knows, as an entity on the control log: decisions exist once they are events in it.

The control log is one shard under the rules of `rekindle.events.rules`, like any other. A candidate claims it with
the number in force + 1; whoever holds the claim leads, and the claim's offset is the control term.

Everything that must survive a controller is here: who runs, who owns what, incidents, plans and where they stand,
restarts that were counted, what operators said. What can be seen again (who is connected, what is served) is not.
"""

from __future__ import annotations

from typing import Any, Final

from rekindle.actors import Entity, Hosted, Rejected, command
from rekindle.supervisors.decided import (
    Assigned,
    Cordoned,
    Counted,
    Decided,
    Declared,
    Disturbed,
    Ended,
    Followed,
    Forced,
    Gone,
    Leads,
    Noticed,
    Observed,
    Owned,
    Performed,
    Position,
    Proposed,
    Refused,
    Running,
    Said,
    Saying,
    Scaled,
    Started,
    Stepped,
    Stood,
    Suspect,
)
from rekindle.supervisors.incidents import (
    CORRELATE_MS,
    OF_NODES,
    Evidence,
    Ground,
    Incident,
    Kind,
    Signal,
    begin,
    home_of,
    recent,
)
from rekindle.supervisors.plans import (
    OVER,
    Change,
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
    changed,
    standing_of,
)
from rekindle.supervisors.world import Told, latest

CONTROL: Final = "control"
KEY: Final = "control"
DEATHS_MAX: Final = 2
"""A command, or a shard's replay, that was running at the death of this many instances is refused as poison."""

INSTANCES_MAX: Final = 1_000
"""Of one service: a slip of the hand must not fill a cluster."""

PLANS_KEPT: Final = 100
INCIDENTS_KEPT: Final = 200
SAYINGS_KEPT: Final = 200
"""Plans that are over, incidents that are closed, and words of operators, of which the newest are kept in the state (the
log has all of them)."""


class ShardsAreFixed(Rejected):
    """A service is declared with another number of shards than its log was made with."""

    service: str
    declared: int
    found: int


class NoSuchPlan(Rejected):
    """No plan of this number is active. active: those that are."""

    plan: int
    active: list[int]


class Unknown(Rejected):
    """There is nothing of this name. known: what there is."""

    what: str
    name: str
    known: list[str]


class NotNow(Rejected):
    """The verb does not fit what it is said to."""

    verb: str
    target: str
    why: str


class Control(Entity):
    """The one entity of the control log.

    disturbed: by service, how often something has happened to it that a plan made before did not know of. told: by
    service, what its sidecars have performed, as far as it has to be known (`world.latest`).
    """

    services: dict[str, list[Owned]] = {}
    instances: dict[str, Running] = {}
    suspects: dict[str, Suspect] = {}
    spawned: int = 0
    leader: str = ""
    leader_at: str = ""
    beacon: str = ""
    ended: bool = False
    declared: dict[str, int] = {}
    wanted: dict[str, int] = {}
    cordoned: dict[str, str] = {}
    incidents: dict[int, Incident] = {}
    plans: dict[int, Plan] = {}
    disturbed: dict[str, int] = {}
    told: dict[str, list[Told]] = {}
    restarts: dict[str, list[int]] = {}
    held: dict[str, int] = {}
    flaps: dict[str, list[int]] = {}
    sayings: list[Saying] = []
    numbered: int = 0

    # --- what happened ---------------------------------------------------------------------------------------------

    def apply(self, event: Decided) -> None:
        """Take what was decided."""
        match event:
            case Declared(service=service, shards=shards, instances=instances):
                self.services.setdefault(service, [Owned() for _ in range(shards)])
                self.declared[service] = self.wanted[service] = instances
            case Assigned(service=service, moves=moves):
                for shard, number, owner in moves:
                    owned = self.services[service][shard]
                    owned.number, owned.incarnation = number, owner
                    owned.standbys = [name for name in owned.standbys if self._is_elsewhere(name, owner)]
            case Followed(service=service, moves=moves):
                for shard, names in moves:
                    owner = self.services[service][shard].incarnation
                    self.services[service][shard].standbys = [n for n in names if n in self.instances and n != owner]
            case Observed(service=service, positions=positions):
                for shard, position in positions:
                    self.services[service][shard].position = position
                    self.services[service][shard].deaths = 0
            case Refused(service=service, shard=shard):
                self.services[service][shard].refused = event.reason
                self.services[service][shard].deaths = 0
            case Disturbed(service=service):
                self._disturb(service)
            case Started() | Gone() | Scaled() | Cordoned() | Leads() | Ended():
                self._apply_to_cluster(event)
            case _:
                self._apply_to_story(event)

    def _apply_to_cluster(self, event: Started | Gone | Scaled | Cordoned | Leads | Ended) -> None:
        match event:
            case Leads(name=name, console=console, beacon=beacon):
                self.leader, self.leader_at, self.beacon, self.ended = name, console, beacon, False
            case Ended():
                self.ended = True
            case Started(incarnation=incarnation, running=running):
                self.instances[incarnation] = running
                self.spawned += 1
                if event.plan in self.plans:
                    self._edit(event.plan, event.step, result=incarnation)
            case Gone():
                self._apply_gone(event)
            case Scaled(service=service, instances=instances):
                self.wanted[service] = instances
                self._disturb(service)
            case Cordoned(node=node, reason=reason):
                self.cordoned = {name: why for name, why in self.cordoned.items() if name != node}
                if reason is not None:
                    self.cordoned[node] = reason
                    for service in sorted(self._starting_on(node)):
                        self._disturb(service)

    def _apply_gone(self, gone: Gone) -> None:
        running = self.instances.pop(gone.incarnation, None)
        for session, number, text in gone.commands:
            name = f"{session.hex()}/{number}"
            known = self.suspects.get(name)
            self.suspects[name] = Suspect(text=text, deaths=1 if known is None else known.deaths + 1)
        if running is None:
            return
        if not gone.planned:
            self._disturb(running.service)
        if gone.signal in OF_NODES:
            self._note_flap(running.node, gone.at_ms)
        if running.service in self.told:
            self.told[running.service] = latest(self.told[running.service], self.instances)
        for shard, owned in enumerate(self.services[running.service]):
            if gone.incarnation in owned.standbys:
                owned.standbys = [name for name in owned.standbys if name != gone.incarnation]
            if shard in gone.replaying:
                owned.deaths += 1

    def _note_flap(self, node: str, at_ms: int) -> None:
        """A node was taken for dead; all that died with it died once."""
        flaps = {name: kept for name, times in self.flaps.items() if (kept := recent(times, at_ms))}
        times = flaps.get(node, [])
        self.flaps = flaps if times and at_ms - times[-1] <= CORRELATE_MS else {**flaps, node: [*times, at_ms]}

    def _is_elsewhere(self, standby: str, owner: str | None) -> bool:
        """Whether the owner's death leaves the standby: one on the owner's node is none."""
        one, other = self.instances.get(standby), self.instances.get(owner or "")
        return one is None or other is None or one.node != other.node

    def _starting_on(self, node: str) -> set[str]:
        """The services of plans that are to start something on a node, or do."""
        return {
            step.action.service
            for plan in self.active_plans()
            for _, _, step in plan.steps()
            if isinstance(step.action, Start) and step.action.node == node and step.state not in OVER
        }

    def _disturb(self, service: str) -> None:
        self.disturbed[service] = self.disturbed.get(service, 0) + 1

    def _apply_to_story(
        self, event: Noticed | Proposed | Stepped | Stood | Performed | Forced | Counted | Said
    ) -> None:
        match event:
            case Noticed(incident=incident):
                self._notice(incident)
            case Proposed(plan=plan):
                self.plans[plan.id] = plan
                self.numbered = max(self.numbered, plan.id)
                over = [number for number, known in self.plans.items() if not known.is_active]
                for number in over[:-PLANS_KEPT]:
                    del self.plans[number]
            case Stepped(plan=number, changes=changes, at_ms=at_ms):
                plan = self.plans[number]
                self._put(number, {c[0]: changed(plan.step(c[0]), Change(*c), at_ms) for c in changes})
            case Stood(plan=number, standing=standing, why=why, at_ms=at_ms):
                ended = None if standing in (Standing.RUNNING, Standing.PAUSED) else at_ms
                plan = self.plans[number]
                self.plans[number] = plan.model_copy(update={"standing": standing, "why": why, "ended_ms": ended})
            case Performed(plan=number, step=step, result=result):
                self._edit(number, step, result=result)
                self._remember(self.plans[number].step(step))
            case Forced(plan=number, step=step):
                self._edit(number, step, forced=True)
            case Counted(restarts=restarts, held=held):
                self.restarts = restarts
                self.held.update(held)
            case Said(saying=saying):
                self.sayings = [*self.sayings, saying][-SAYINGS_KEPT:]

    def _remember(self, step: Step) -> None:
        """What was performed stays known when the plan is long forgotten; unless whoever did it is gone already."""
        action = step.action
        if isinstance(action, Perform) and (running := self.instances.get(action.incarnation)) is not None:
            (value,) = step.result
            one = Told(incarnation=action.incarnation, operation=action.operation, args=action.args, result=value)
            self.told[running.service] = latest([*self.told.get(running.service, ()), one], self.instances)

    def _notice(self, incident: Incident) -> None:
        for service in sorted(_touched(self.incidents.get(incident.id), incident)):
            self._disturb(service)
        self.incidents[incident.id] = incident
        self.numbered = max(self.numbered, incident.id)
        closed = [number for number, other in self.incidents.items() if not other.is_open]
        for number in closed[:-INCIDENTS_KEPT]:
            del self.incidents[number]

    def _edit(self, number: int, step: int, **fields: Any) -> None:
        self._put(number, {step: self.plans[number].step(step).model_copy(update=fields)})

    def _put(self, number: int, steps: dict[int, Step]) -> None:
        plan, first = self.plans[number], 1
        phases: list[Phase] = []
        for phase in plan.phases:
            changed_here = [steps.get(at, step) for at, step in enumerate(phase.steps, first)]
            first += len(phase.steps)
            phases.append(phase.model_copy(update={"steps": changed_here}))
        self.plans[number] = plan.model_copy(update={"phases": phases})

    # --- what is decided: the cluster --------------------------------------------------------------------------------

    @command
    def lead(self, name: str, console: str, beacon: str) -> None:
        """Another controller leads from here on."""
        self.emit(Leads(name=name, console=console, beacon=beacon, at_ms=self.now_ms))

    @command
    def end(self) -> None:
        """The application was stopped: nobody is to lead until it is brought up again."""
        self.emit(Ended(at_ms=self.now_ms))

    @command
    def declare(self, service: str, shards: int, instances: int = 1) -> None:
        """A service exists. The number of its shards is fixed with its first declaration; that of its instances is what
        was declared last, until an operator says otherwise."""
        known = self.services.get(service)
        if known is not None and len(known) != shards:
            raise ShardsAreFixed(service=service, declared=shards, found=len(known))
        if known is None or self.declared.get(service) != instances:
            self.emit(Declared(service=service, shards=shards, instances=instances))

    @command
    def started(self, incarnation: str, running: Running, plan: int = 0, step: int = 0) -> None:
        """An instance listens."""
        self.emit(Started(incarnation=incarnation, running=running, plan=plan, step=step))

    @command
    def gone(
        self,
        incarnation: str,
        reason: str,
        replaying: list[int],
        commands: list[tuple[bytes, int, str]],
        signal: Signal | None = None,
    ) -> None:
        """An instance is dead, or given up."""
        if incarnation in self.instances:
            self.emit(
                Gone(
                    incarnation=incarnation,
                    reason=reason,
                    replaying=replaying,
                    commands=commands,
                    at_ms=self.now_ms,
                    signal=signal,
                )
            )

    @command
    def bury(
        self, gone: Gone, incident: Incident, counted: Counted | None = None, stop: list[str] | None = None
    ) -> None:
        """An instance is dead: what is known of that, the incident that it belongs to (0: a new one), and what its
        supervisor makes of it: `counted` and `stop` as in `count_restarts`; None: it is not replaced.

        One record: a controller that read the death without the rest would replace the instance, and nobody would ever
        restart what stands or falls with it, or keep down the shard that has killed it.
        """
        running = self.instances.get(gone.incarnation)
        if running is None:
            return
        number = incident.id or self.numbered + 1
        self.emit(gone.model_copy(update={"at_ms": self.now_ms}))
        self.emit(Noticed(incident=incident.model_copy(update={"id": number})))
        if counted is None:
            self._retire(running.service)
        else:
            self._count(counted, number, stop or [])
        for shard in gone.replaying:
            self._notice_poison(running.service, shard)

    def _notice_poison(self, service: str, shard: int) -> None:
        owned = self.services[service][shard]
        if owned.deaths >= DEATHS_MAX and owned.refused is None:
            text = f"poison: its replay was running at the death of {owned.deaths} instances"
            poison = Evidence(at_ms=self.now_ms, signal=Signal.POISON, text=text, service=service, shard=shard)
            ground = Ground(zones={}, alive=[])
            if home_of(poison, self.open_incidents(), ground) is None:
                self.emit(Noticed(incident=begin(self.numbered + 1, poison, ground)))

    @command
    def stopped(self, incarnation: str, reason: str) -> None:
        """An instance was stopped as planned: nobody is disturbed."""
        if incarnation in self.instances:
            self.emit(Gone(incarnation=incarnation, reason=reason, planned=True, at_ms=self.now_ms))

    @command
    def assign(self, service: str, moves: list[tuple[int, str | None]], above: int = 0) -> list[tuple[int, int]]:
        """Give shards to instances; each gets a number higher than all it had, and higher than `above`."""
        return self._assign(service, moves, above)

    def _assign(self, service: str, moves: list[tuple[int, str | None]], above: int = 0) -> list[tuple[int, int]]:
        numbered = [
            (shard, max(self.services[service][shard].number, above) + 1, incarnation) for shard, incarnation in moves
        ]
        self.emit(Assigned(service=service, moves=numbered))
        return [(shard, number) for shard, number, _ in numbered]

    @command
    def lose(self, service: str, shard: int, above: int) -> None:
        """A shard was given up by its owner: it belongs to nobody, and whoever has planned for its service plans anew."""
        self._assign(service, [(shard, None)], above)
        self.emit(Disturbed(service=service))

    @command
    def disturb(self, service: str) -> None:
        """Something has changed for a service that plans have to take into account."""
        self.emit(Disturbed(service=service))

    @command
    def observe(self, service: str, positions: list[tuple[int, Position]]) -> None:
        """Shards got this far."""
        self.emit(Observed(service=service, positions=positions))

    @command
    def refuse(self, service: str, shard: int, reason: str | None) -> None:
        """Keep a shard down, or (None) let it come up again."""
        self._refuse(service, shard, reason)

    def _refuse(self, service: str, shard: int, reason: str | None) -> None:
        if self.services[service][shard].refused != reason:
            self.emit(Refused(service=service, shard=shard, reason=reason))

    # --- what is decided: incidents and plans ------------------------------------------------------------------------

    @command
    def notice(self, incident: Incident) -> int:
        """An incident has begun (its number is 0 as yet), has grown, or has ended."""
        number = incident.id or self.numbered + 1
        self.emit(Noticed(incident=incident.model_copy(update={"id": number})))
        return number

    @command
    def propose(self, plan: Plan) -> int:
        """A plan begins; active plans for the same services are superseded by it."""
        number = self.numbered + 1
        incident = self.incidents.get(plan.incident or 0)
        if plan.is_own and incident is not None and incident.restart:
            self.emit(Noticed(incident=incident.model_copy(update={"restart": [], "restart_ms": {}})))
        for other in self.active_plans():
            if not set(other.services).isdisjoint(plan.services):
                self._stand(other.id, Standing.SUPERSEDED, f"by plan {number}")
        self.emit(Proposed(plan=plan.model_copy(update={"id": number, "made_ms": self.now_ms})))
        return number

    @command
    def advance(self, plan: int, changes: list[Change], places: dict[int, list[tuple[int, str | None]]]) -> None:
        """Steps change their states; what those that begin want of the cluster is decided with it, in one record.

        places: of `Place` steps, by number, where the shards are to go. Nothing happens if the plan is not running any more, or
        if something has happened that it was not made for: what another plan has just decided, for instance.
        """
        known = self.plans.get(plan)
        if known is None or known.standing is not Standing.RUNNING or not self._is_up_to_date(known):
            return
        self.emit(Stepped(plan=plan, changes=[(c.step, c.state, c.attempt, c.why) for c in changes], at_ms=self.now_ms))
        for change in changes:
            if change.state is State.RUNNING:
                self._carry_out(self.plans[plan].step(change.step), places.get(change.step, []))
        standing = standing_of(self.plans[plan])
        if standing is not self.plans[plan].standing:
            self._stand(plan, standing, next((c.why for c in changes if c.state is State.FAILED), ""))

    def _is_up_to_date(self, plan: Plan) -> bool:
        return all(self.disturbed.get(name, 0) == seen for name, seen in plan.basis.items())

    def _carry_out(self, step: Step, places: list[tuple[int, str | None]]) -> None:
        """What is only to be decided; starting, stopping and performing are left to whoever acts."""
        match step.action:
            case Own(service=service, moves=moves):
                self._move(service, moves)
            case Place(service=service):
                self._move(service, places)
            case Follow(service=service, moves=moves):
                self.emit(Followed(service=service, moves=moves))
            case Refuse(service=service, shard=shard, reason=reason):
                self._refuse(service, shard, reason)
            case Cordon(node=node, reason=reason):
                self.emit(Cordoned(node=node, reason=reason))
            case _:
                pass

    def _move(self, service: str, moves: list[tuple[int, str | None]]) -> None:
        """Shards that are there already stay: acting again must not take them from who has them."""
        owned = self.services[service]
        needed = [
            (shard, to)
            for shard, to in moves
            if owned[shard].incarnation != to and (to is None or to in self.instances)
        ]
        if needed:
            self._assign(service, needed)

    @command
    def perform(self, plan: int, step: int, result: list[Any]) -> None:
        """A step's operation was carried out. result: one value, which may be None."""
        if plan in self.plans:
            self.emit(Performed(plan=plan, step=step, result=result))

    @command
    def end_plan(self, plan: int, standing: Standing, why: str) -> None:
        """A plan is over for a reason that is not in its steps."""
        if plan in self.plans and self.plans[plan].is_active:
            self._stand(plan, standing, why)

    def _stand(self, plan: int, standing: Standing, why: str) -> None:
        self.emit(Stood(plan=plan, standing=standing, why=why, at_ms=self.now_ms))

    @command
    def count_restarts(
        self, restarts: dict[str, list[int]], held: dict[str, int], incident: int | None, stop: list[str]
    ) -> None:
        """A supervisor restarts: services wait until a time, others are stopped with the one that the incident is about."""
        self._count(Counted(restarts=restarts, held=held), incident, stop)

    def _count(self, counted: Counted, incident: int | None, stop: list[str]) -> None:
        self.emit(counted)
        if incident in self.incidents and stop:
            known = self.incidents[incident]
            restart = [*known.restart, *(name for name in stop if name not in known.restart)]
            restart_ms = known.restart_ms | dict.fromkeys(stop, self.now_ms)
            self.emit(Noticed(incident=known.model_copy(update={"restart": restart, "restart_ms": restart_ms})))

    def _retire(self, service: str) -> None:
        """An instance that has ended is not replaced."""
        if (wanted := self.wanted.get(service, 0)) > 0:
            self.emit(Scaled(service=service, instances=wanted - 1))

    # --- what operators say --------------------------------------------------------------------------------------------

    @command
    def scale(self, who: str, reason: str, service: str, instances: int) -> None:
        """A service gets more or fewer instances."""
        if service not in self.services:
            raise Unknown(what="service", name=service, known=sorted(self.services))
        if not 1 <= instances <= INSTANCES_MAX:
            raise NotNow(verb="scale", target=service, why=f"1 to {INSTANCES_MAX} instances can be asked for")
        self._say(who, "scale", f"{service} to {instances}", reason)
        self.emit(Scaled(service=service, instances=instances))

    @command
    def drain(self, who: str, reason: str, node: str, zone: str, known: list[str] | None = None) -> int:
        """A node is to be emptied: an incident that somebody asked for; its number.

        known: the nodes that there are. Judged here and not by whoever asks: said again after the node has gone, the
        same command must have the same answer.
        """
        if known is not None and node not in known:
            raise Unknown(what="node", name=node, known=known)
        self._say(who, "drain", node, reason)
        text = f"{who}: {reason}"
        asked = Evidence(at_ms=self.now_ms, signal=Signal.ASKED, text=text, node=node, zone=zone)
        incident = begin(self.numbered + 1, asked, Ground(zones={}, alive=[]))
        services = sorted({running.service for running in self.instances.values() if running.node == node})
        self.emit(Noticed(incident=incident.model_copy(update={"services": services})))
        return incident.id

    @command
    def uncordon(self, who: str, reason: str, node: str) -> None:
        """A node may be given something again; a drain of it that goes on is called off."""
        drains = [i for i in self.open_incidents() if i.kind is Kind.PLANNED_DRAIN and node in i.nodes]
        if node not in self.cordoned and not drains:
            raise Unknown(what="cordoned node", name=node, known=sorted(self.cordoned))
        self._say(who, "uncordon", node, reason)
        for drain in drains:  # else its policy would cordon the node again
            self._close(drain, f"called off by {who}")
            for plan in self.active_plans():
                if plan.incident == drain.id:
                    self._stand(plan.id, Standing.SUPERSEDED, f"called off by {who}")
        if node in self.cordoned:
            self.emit(Cordoned(node=node, reason=None))

    @command
    def allow(self, who: str, reason: str, service: str, shard: int) -> None:
        """A shard that was kept down may be served again."""
        if service not in self.services or not 0 <= shard < len(self.services[service]):
            raise Unknown(what="shard", name=f"{service}/{shard}", known=sorted(self.services))
        self._say(who, "allow", f"{service}/{shard}", reason)
        for incident in self.open_incidents():  # else its policy would keep the shard down again
            if incident.kind is Kind.POISON and any(
                (e.service, e.shard) == (service, shard) for e in incident.evidence
            ):
                self._close(incident, f"allowed by {who}")
        self._refuse(service, shard, None)

    def _close(self, incident: Incident, outcome: str) -> None:
        self.emit(Noticed(incident=incident.model_copy(update={"closed_ms": self.now_ms, "outcome": outcome})))

    @command
    def pause(self, who: str, reason: str, plan: int) -> None:
        """No further step of a plan begins."""
        self._say_to_plan(who, "pause", plan, reason)
        self._stand(plan, Standing.PAUSED, f"{who}: {reason}")

    @command
    def resume(self, who: str, reason: str, plan: int) -> None:
        """A paused plan goes on."""
        if self._say_to_plan(who, "resume", plan, reason).standing is not Standing.PAUSED:
            raise NotNow(verb="resume", target=f"plan {plan}", why="it is not paused")
        self._stand(plan, Standing.RUNNING, "")

    @command
    def retry(self, who: str, reason: str, plan: int, step: int) -> None:
        """A step is tried again, with all its attempts."""
        attempt = self._say_to_step(who, "retry", plan, step, reason).attempt
        self.emit(Stepped(plan=plan, changes=[(step, State.PENDING, attempt, f"{who}: {reason}")], at_ms=self.now_ms))

    @command
    def skip(self, who: str, reason: str, plan: int, step: int) -> None:
        """A step is left out."""
        self._say_to_step(who, "skip", plan, step, reason)
        attempt = self.plans[plan].step(step).attempt
        self.emit(Stepped(plan=plan, changes=[(step, State.SKIPPED, attempt, f"{who}: {reason}")], at_ms=self.now_ms))
        if (standing := standing_of(self.plans[plan])) is Standing.DONE:
            self._stand(plan, standing, "")

    @command
    def force(self, who: str, reason: str, plan: int, step: int) -> None:
        """A step begins although its guards do not hold."""
        if self._say_to_step(who, "force", plan, step, reason).state not in (State.PENDING, State.BLOCKED):
            raise NotNow(verb="force", target=f"step {step}", why="it is not waiting")
        self.emit(Forced(plan=plan, step=step))

    def _say(self, who: str, verb: str, target: str, reason: str) -> None:
        if not (who and reason):
            raise NotNow(verb=verb, target=target, why="a name and a reason are needed")
        self.emit(Said(saying=Saying(at_ms=self.now_ms, who=who, verb=verb, target=target, reason=reason)))

    def _say_to_plan(self, who: str, verb: str, plan: int, reason: str) -> Plan:
        known = self.plans.get(plan)
        if known is None or not known.is_active:
            raise NoSuchPlan(plan=plan, active=[active.id for active in self.active_plans()])
        self._say(who, verb, f"plan {plan}", reason)
        return known

    def _say_to_step(self, who: str, verb: str, plan: int, step: int, reason: str) -> Step:
        found = self._say_to_plan(who, verb, plan, reason and f"step {step}: {reason}").step(step)
        if found.state in (State.DONE, State.SKIPPED):
            raise NotNow(verb=verb, target=f"step {step}", why=f"it is {found.state}")
        return found

    # --- looking -------------------------------------------------------------------------------------------------------

    def active_plans(self) -> list[Plan]:
        """Plans that go on, or are paused, the oldest first."""
        return [plan for _, plan in sorted(self.plans.items()) if plan.is_active]

    def open_incidents(self) -> list[Incident]:
        """Incidents that go on, the oldest first."""
        return [incident for _, incident in sorted(self.incidents.items()) if incident.is_open]

    def poison(self) -> list[tuple[bytes, int]]:
        """Commands that must not be run again."""
        names = (name.split("/") for name, suspect in self.suspects.items() if suspect.deaths >= DEATHS_MAX)
        return [(bytes.fromhex(session), int(number)) for session, number in names]


def _touched(known: Incident | None, incident: Incident) -> set[str]:
    """The services for which an incident means more than it did: plans for them are made anew."""
    if not incident.is_open or incident.kind is Kind.POLICY_FAILED:
        return set()
    touched = {name for name, at in incident.restart_ms.items() if known is None or known.restart_ms.get(name) != at}
    if known is None or (known.kind, known.services) != (incident.kind, incident.services):
        touched.update(incident.services)
    return touched


def control_log(app: str) -> Hosted:
    """The control log of an application, as a service of one shard."""
    return Hosted(app, CONTROL, Control.describe(), 1)
