"""The controller: sees instances die, hands their shards to the survivors, starts replacements afterwards.

It is level-triggered: evidence only sets a flag, and one loop compares what is with what should be, decides, writes
the decision into the control log, and acts once it is there. Whoever holds the claim on that log leads; all orders
carry its term. Instances outlive the controller and serve on while it is away.

    look -> bury the dead -> give orphaned shards away -> when all are served: replace, then balance

The full supervision tree (strategies, incidents, plans) stands on the same three seams: what is (`Ward`), what is
decided (`Decisions`), who does it (`Cluster`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from rekindle.actors import Floor, Host, Route, Table
from rekindle.actors.frames import ASSIGN, RELEASE, TABLE, frame
from rekindle.events import RekindleError
from rekindle.supervisors.cluster import Cluster, Node
from rekindle.supervisors.control import DEATHS_MAX, Owned, Position, Running
from rekindle.supervisors.decisions import Decisions, NotLeading
from rekindle.supervisors.placement import Placement, Seat, balance, place
from rekindle.supervisors.tree import Service
from rekindle.supervisors.ward import SUSPECT_S, Ward

TICK_S: Final = 0.05
SUSPICION_ONCE_IN_S: Final = 10.0
"""A shard moves on suspicion at most once in this time; then it needs proof (a closed connection, the cluster's word)."""

OBSERVE_S: Final = 5.0
NODES_S: Final = 1.0
ADOPT_MAX_S: Final = 2.0
SPAWNS_AT_ONCE: Final = 4
STARTS_MAX_S: Final = 10.0
"""How long a stop waits for instances that are being started. One that takes longer ends by itself (`UNWANTED_MAX_S`)."""

BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
DIED_HERE_S: Final = 15.0
"""A cluster may need this long to notice that a node is gone."""

BALANCE_MOVES: Final = 4
"""Healthy shards moved in one round of balancing; the next round waits until all are served again."""

FINAL_ERRORS: Final = frozenset({"LogTruncated", "LogDamaged", "NewerRecord", "TopicMissing", "TopicContractBroken"})
"""Ends of ownership that another instance would meet again: the shard stays down until an operator looks."""


class Controller:
    """Runs the services of one application."""

    def __init__(self, app: str, services: Sequence[Service], cluster: Cluster, host: Host, name: str) -> None:
        self.app = app
        self.services = {service.name: service for service in services}
        self.cluster = cluster
        self.host = host
        self.name = name
        self.decisions = Decisions(app, name, host)
        self.wards: dict[str, Ward] = {}
        self.table = Table()
        self.nodes: list[Node] = []
        self.spawning: dict[str, int] = dict.fromkeys(self.services, 0)
        self.up = asyncio.Event()
        self._changed = asyncio.Event()
        self._stopping = False
        self._suspected_at: dict[tuple[str, int], float] = {}
        self._hold_until: dict[Any, float] = {}
        self._pauses: dict[Any, tuple[float, float]] = {}
        self._degraded: dict[str, tuple[float, str]] = {}
        self._observed: dict[tuple[str, int], Floor] = {}
        self._above: dict[tuple[str, int], int] = {}
        self._floors: dict[tuple[str, int], Floor] = {}
        self._died_on: dict[str, float] = {}
        self._served: set[str] = set()
        self._names = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._starts: set[asyncio.Task[None]] = set()

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
        self._spawn(self._ticks())
        while not self._stopping:
            await self._reconcile()
            await self._changed.wait()
            self._changed.clear()
        await self._kill_all()

    async def _begin(self) -> None:
        """Declare what is to run, adopt what runs already."""
        self.host.say(f"controller {self.name} leads {self.app!r} with term {self.decisions.term}")
        for service in self.services.values():
            await self.decisions.decide("declare", service.name, service.shards)
            for shard, owned in enumerate(self._owned(service.name)):
                if owned.refused is not None:  # whoever starts a controller has had a look
                    await self.decisions.decide("refuse", service.name, shard, None)
        self.nodes = await self.cluster.nodes()
        for incarnation, running in tuple(self.decisions.control.instances.items()):
            self._watch(incarnation, running)
        await asyncio.gather(*(ward.wait_ready(ADOPT_MAX_S) for ward in self.wards.values()))
        for ward in self.wards.values():
            if not ward.ready:
                ward.die("not there when the controller began", proven=True)
        self._publish()

    def stop(self) -> None:
        """Stop the application: `run` kills its instances, gives up the lead and returns."""
        self._stopping = True
        self._changed.set()

    async def _kill_all(self) -> None:
        if self._starts:  # whoever is being started now would be left behind
            await asyncio.wait(self._starts, timeout=STARTS_MAX_S)
        await self._observe()
        await asyncio.gather(*(self.cluster.kill(incarnation) for incarnation in self.wards))
        for incarnation in tuple(self.wards):
            await self.decisions.decide("gone", incarnation, "the application was stopped", [], [])

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and not isinstance(task.exception(), NotLeading):
            self.host.say(f"bug: a task of the controller died: {task.exception()!r}")

    def _watch(self, incarnation: str, running: Running) -> Ward:
        ward = self.wards[incarnation] = Ward(incarnation, running, self.host.wire, self.host.token, self._changed.set)
        self._spawn(ward.run())
        self._spawn(self._watch_cluster(ward))
        return ward

    async def _watch_cluster(self, ward: Ward) -> None:
        ward.die(await self.cluster.watch(ward.incarnation), proven=True)

    # --- looking -----------------------------------------------------------------------------------------------

    async def _ticks(self) -> None:
        """Time passes: missed pulses, nodes that are gone, positions to be written down."""
        loop = asyncio.get_running_loop()
        last = nodes_at = observed_at = loop.time()
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
                self._spawn(self._look_at_nodes())
            if now - observed_at > OBSERVE_S:
                observed_at = now
                self._spawn(self._observe())

    def _look(self, now: float) -> None:
        for ward in self.wards.values():
            service = self.services.get(ward.running.service)
            if service is not None:
                ward.look(now, service.hang_s)
        if any(until <= now for until in self._hold_until.values()):
            self._hold_until = {what: until for what, until in self._hold_until.items() if until > now}
            self._changed.set()

    async def _look_at_nodes(self) -> None:
        try:
            self.nodes = await self.cluster.nodes()
        except RekindleError as error:  # the cluster is disposable: what runs, runs on
            self.host.say(f"the cluster does not answer: {error}")
            return
        names = {node.name for node in self.nodes}
        for ward in self.wards.values():
            if ward.running.node not in names:
                ward.die(f"node {ward.running.node} is gone", proven=True)

    async def _observe(self) -> None:
        """Write down how far shards are, for the floor of owners after a stop of everything."""
        for name in self.services:
            positions: list[tuple[int, Position]] = []
            for shard, owned in enumerate(self._owned(name)):
                floor = self._position(name, shard, owned)
                if floor is not None and self._observed.get((name, shard)) != floor:
                    self._observed[name, shard] = floor
                    positions.append((shard, Position(term=floor.term, offset=floor.offset, sequence=floor.sequence)))
            if positions:
                await self.decisions.decide("observe", name, positions)

    def _position(self, service: str, shard: int, owned: Owned) -> Floor | None:
        """The highest position that is known of a shard."""
        known = [
            ward.positions[shard]
            for ward in self.wards.values()
            if ward.running.service == service and shard in ward.positions
        ]
        if (service, shard) in self._floors:
            known.append(self._floors[service, shard])
        if owned.position is not None:
            known.append(Floor(owned.position.term, owned.position.offset, owned.position.sequence))
        return max(known, key=lambda floor: floor.sequence, default=None)

    # --- deciding ----------------------------------------------------------------------------------------------

    def _owned(self, service: str) -> list[Owned]:
        return self.decisions.control.services[service]

    def _alive(self, service: str) -> list[Seat]:
        zones = {node.name: node.zone for node in self.nodes}
        return [
            Seat(ward.incarnation, ward.running.node, zones.get(ward.running.node, ""))
            for ward in self.wards.values()
            if ward.alive and ward.running.service == service
        ]

    async def _reconcile(self) -> None:
        """One round: everything that can be decided now."""
        await self._bury()
        for service in self.services.values():
            await self._hear_lost(service)
            await self._give_away(service)
            if self._is_served(service):
                await self._balance(service)
            self._replace(service)

    async def _bury(self) -> None:
        """Write down who is dead, then kill it: a dead one that still runs is fenced, not feared."""
        now = asyncio.get_running_loop().time()
        for ward in [ward for ward in self.wards.values() if ward.dead is not None]:
            if not ward.proven and self._moved_on_suspicion(ward, now):
                self._spawn(self.cluster.kill(ward.incarnation))
                continue
            self._note_suspicion(ward, now)
            del self.wards[ward.incarnation]
            blamed, replaying = ward.blamed(), self._blamed_replays(ward)
            self.host.say(
                f"{ward.incarnation} at {ward.running.address} is dead: {ward.dead}{_named(blamed, replaying)}"
            )
            self._degraded.setdefault(ward.running.service, (now, ward.incarnation))
            self._died_on[ward.running.node] = now
            self._floors.update(((ward.running.service, shard), floor) for shard, floor in ward.positions.items())
            known = self.decisions.control.poison()
            await self.decisions.decide("gone", ward.incarnation, ward.dead, replaying, blamed)
            self._spawn(self.cluster.kill(ward.incarnation))
            for session, number, text in dict.fromkeys(blamed):
                if (session, number) in self.decisions.control.poison() and (session, number) not in known:
                    self.host.say(f"poison: {text} is not run again, {DEATHS_MAX} instances died of it")

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

    async def _hear_lost(self, service: Service) -> None:
        """Instances that gave up a shard by themselves."""
        for ward in [w for w in self.wards.values() if w.running.service == service.name and w.lost]:
            lost, ward.lost = ward.lost, []
            for shard, number, reason, error, seen in lost:
                owned = self._owned(service.name)[shard]
                if owned.number == number and owned.incarnation == ward.incarnation:
                    await self._on_lost(service, shard, reason, error, seen)

    async def _on_lost(self, service: Service, shard: int, reason: str, error: str | None, seen: int) -> None:
        self.host.say(f"{service.name}/{shard} was given up: {reason}")
        self._above[service.name, shard] = seen  # a higher assignment than our own was met: go on above it
        if error in FINAL_ERRORS:
            await self.decisions.decide("refuse", service.name, shard, reason)
        else:
            self._back_off((service.name, shard))
        await self._assign(service, [(shard, None)])

    def _back_off(self, what: Any) -> None:
        """Hold it, each time for longer; what went well for a while begins from the start again."""
        now = asyncio.get_running_loop().time()
        pause, until = self._pauses.get(what, (0.0, 0.0))
        recent = now < until + BACKOFF_MAX_S
        pause = min(2 * pause, BACKOFF_MAX_S) if recent and pause else BACKOFF_FIRST_S
        self._pauses[what] = (pause, now + pause)
        self._hold_until[what] = now + pause

    async def _give_away(self, service: Service) -> None:
        """Orphaned shards go to the survivors at once."""
        alive = self._alive(service.name)
        if not alive or (self.spawning[service.name] and not self._has_served(service)):
            return
        owned = self._owned(service.name)
        held = {
            shard for shard, o in enumerate(owned) if o.refused is not None or (service.name, shard) in self._hold_until
        }
        for shard, o in enumerate(owned):
            if o.deaths >= DEATHS_MAX and o.refused is None:
                reason = f"poison: its replay was running at the death of {o.deaths} instances"
                self.host.say(f"{service.name}/{shard} is kept down: {reason}")
                await self.decisions.decide("refuse", service.name, shard, reason)
                self._publish()
                held.add(shard)
        placed = place(Placement.of(o.incarnation for o in owned), alive, pinned=held)
        moves = [(shard, to) for shard, to in enumerate(placed.owners) if to != owned[shard].incarnation]
        if moves:
            await self._assign(service, moves)
        else:
            self._send_missing(service)

    def _has_served(self, service: Service) -> bool:
        return any(o.incarnation in self.wards for o in self._owned(service.name))

    async def _assign(self, service: Service, moves: list[tuple[int, str | None]]) -> None:
        above = max((self._above.pop((service.name, shard), 0) for shard, _ in moves), default=0)
        await self.decisions.decide("assign", service.name, moves, above)
        self._publish()
        self._send_missing(service)

    async def _balance(self, service: Service) -> None:
        owned = self._owned(service.name)
        refused = {shard for shard, o in enumerate(owned) if o.refused is not None}
        current = Placement.of(o.incarnation for o in owned)
        placed = balance(current, self._alive(service.name), moves_max=BALANCE_MOVES, pinned=refused)
        moves = [(shard, to) for shard, to in enumerate(placed.owners) if to != owned[shard].incarnation]
        if moves:
            await self._assign(service, moves)

    # --- acting ------------------------------------------------------------------------------------------------

    def _send_missing(self, service: Service) -> None:
        """Send every instance the assignments it has not been sent yet."""
        orders: dict[str, list[Any]] = {}
        releases: dict[str, list[Any]] = {}
        poison = self.decisions.control.poison()
        for shard, owned in enumerate(self._owned(service.name)):
            for ward in self.wards.values():
                if ward.running.service == service.name and ward.alive:
                    self._order(ward, service.name, shard, owned, poison, orders, releases)
        for kind, lists in ((ASSIGN, orders), (RELEASE, releases)):
            for incarnation, entries in lists.items():
                self.wards[incarnation].send(frame(kind, self.decisions.term, entries))

    def _order(
        self,
        ward: Ward,
        service: str,
        shard: int,
        owned: Owned,
        poison: list[Any],
        orders: dict[str, list[Any]],
        releases: dict[str, list[Any]],
    ) -> None:
        sent = ward.sent.get(shard)
        if owned.incarnation == ward.incarnation:
            if sent != owned.number:
                ward.sent[shard] = owned.number
                floor = self._position(service, shard, owned) or Floor()
                orders.setdefault(ward.incarnation, []).append([shard, owned.number, floor, owned.deaths > 0, poison])
        elif sent is not None:
            del ward.sent[shard]
            ward.serving.pop(shard, None)
            releases.setdefault(ward.incarnation, []).append([shard, sent])

    def _publish(self) -> None:
        """Tell everybody who owns what."""
        services = {
            name: [
                Route(self.wards[o.incarnation].running.address, o.number) if o.incarnation in self.wards else None
                for o in self._owned(name)
            ]
            for name in self.services
        }
        refused = {
            name: {shard: o.refused for shard, o in enumerate(self._owned(name)) if o.refused is not None}
            for name in self.services
        }
        self.table = Table((self.decisions.term, self.table.version[1] + 1), services, refused)
        for ward in self.wards.values():
            ward.send(frame(TABLE, *self.table.dump()))

    def _is_served(self, service: Service) -> bool:
        """Whether every shard that may be served is; says so when it comes true again."""
        for shard, owned in enumerate(self._owned(service.name)):
            ward = self.wards.get(owned.incarnation or "")
            if owned.refused is None and (ward is None or ward.serving.get(shard) != owned.number):
                self._served.discard(service.name)
                return False
        self._served.add(service.name)
        since = self._degraded.pop(service.name, None)
        if since is not None:
            took = round((asyncio.get_running_loop().time() - since[0]) * 1000)
            self.host.say(
                f"{service.name}: all {service.shards} shards are served again, {took} ms after {since[1]} was seen dead"
            )
        if len(self._served) == len(self.services):
            self.up.set()
        return True

    def _replace(self, service: Service) -> None:
        """Start what is missing, once all shards are served (or nobody is left to serve them)."""
        alive = len(self._alive(service.name))
        missing = service.instances - alive - self.spawning[service.name]
        connecting = sum(
            1 for w in self.wards.values() if w.running.service == service.name and not w.ready and w.dead is None
        )
        if alive and not self.spawning[service.name] and not self._is_served(service):
            return
        for _ in range(min(missing - connecting, SPAWNS_AT_ONCE - self.spawning[service.name])):
            if ("spawn", service.name) not in self._hold_until and self.nodes:
                self.spawning[service.name] += 1
                start = self._spawn(self._start(service, self._node_for(service)))
                self._starts.add(start)
                start.add_done_callback(self._starts.discard)

    def _node_for(self, service: Service) -> Node:
        """The node with the fewest instances of the service, then of all; one on which an instance has just died is the last choice."""
        now = asyncio.get_running_loop().time()
        died = {name for name, at in self._died_on.items() if now - at < DIED_HERE_S}
        starting = self.spawning[service.name] - 1
        counts = {node.name: (0, 0) for node in self.nodes}
        for ward in self.wards.values():
            if ward.running.node in counts:
                own, total = counts[ward.running.node]
                counts[ward.running.node] = (own + (ward.running.service == service.name), total + 1)
        ranked = sorted(self.nodes, key=lambda node: (node.name in died, counts[node.name], node.name))
        sound = [node for node in ranked if node.name not in died] or ranked
        return sound[starting % len(sound)]

    async def _start(self, service: Service, node: Node) -> None:
        self._names += 1
        incarnation = f"{service.name}-{self.decisions.term}.{self._names}-{self.host.random_hex(4)}"
        try:
            spawned = await self.cluster.spawn(service.name, incarnation, node)
            running = Running(service=service.name, node=spawned.node, address=spawned.address, beacon=spawned.beacon)
            await self.decisions.decide("started", incarnation, running)
            self.host.say(f"{incarnation} was started at {spawned.address}")
            ward = self._watch(incarnation, running)
            await ward.wait_ready(ADOPT_MAX_S)
            self._pauses.pop(("spawn", service.name), None)
            ward.send(frame(TABLE, *self.table.dump()))
        except RekindleError as error:
            self.host.say(f"no instance of {service.name} on {node.name}: {error}")
            self._back_off(("spawn", service.name))
        finally:
            self.spawning[service.name] -= 1
            self._changed.set()


def _named(blamed: list[tuple[bytes, int, str]], replaying: list[int]) -> str:
    """What may have killed an instance, for the line that reports its death."""
    texts = [*dict.fromkeys(text for _, _, text in blamed), *(f"the replay of shard {shard}" for shard in replaying)]
    return f"; while it ran {', '.join(texts)}" if texts else ""
