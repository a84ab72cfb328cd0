"""An instance: hosts shards of one service on one node, serves its callers, does what the controller says.

Invariants:
- It owns what it was assigned and nothing else; a controller of a lower term than one it has heard is refused.
- An assignment replaces the same shard's older one; a repeated or older one changes nothing.
- What it knows of other owners it has from the controller's table or not at all.
- What it follows without owning it (`rekindle.actors.follower`) serves nobody until it is assigned.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import lru_cache
from typing import Any, Final

from rekindle.actors import outcomes
from rekindle.actors.errors import BadRequest, ShardRefused
from rekindle.actors.follower import Following
from rekindle.actors.frames import (
    ASK,
    ASSIGN,
    BEGAN,
    CALL,
    CONTROLLER,
    ENDED,
    FOLLOW,
    GOODBYE,
    LOST,
    POSITIONS,
    PROTOCOL,
    PULSE,
    RELEASE,
    SERVING,
    TABLE,
    TELL,
    WELCOME,
    BadFrame,
    frame,
    parse,
    why_refused,
)
from rekindle.actors.host import Host, Hosted
from rekindle.actors.kept import keyed_handlers
from rekindle.actors.link import Link
from rekindle.actors.owner import Assignment, Owner, Surroundings
from rekindle.actors.replay import Floor
from rekindle.actors.requests import Request
from rekindle.actors.routes import Table
from rekindle.actors.shard import Phase
from rekindle.actors.sidecar import Keeper
from rekindle.actors.wire import Beacon, Closed, Connection, Listening
from rekindle.events import shard_of
from rekindle.events.records import build

KEY_BYTES_MAX: Final = 1_024
SESSION_BYTES_MAX: Final = 64
GREET_MAX_S: Final = 10.0
"""How long a new connection may take to say who it is."""
PULSE_S: Final = 0.2
HELD_MS: Final = 400
"""A command that the pulse meets running for longer than this is named in it."""

SWEEP_S: Final = 0.5
SWEEP_STEPS: Final = 500
POSITIONS_S: Final = 1.0
CALLED_MAX: Final = 1_000
"""Of so many shards, those that were asked for most, it reports that they were while they were not served here."""

BEAT_S: Final = 0.05
DONE: Final = "done its work, it ends"

UNWANTED_MAX_S: Final = 30.0
"""An instance that no controller has greeted in this time after its start is known to none: its controller died, or was
stopped, while it started it. It ends. Once greeted, it serves on whatever becomes of its controller."""


cached_shard_of = lru_cache(maxsize=1 << 17)(shard_of)


class Instance:
    """Hosts shards of one service."""

    def __init__(self, hosted: Hosted, incarnation: str, host: Host) -> None:
        self.hosted = hosted
        self.incarnation = incarnation
        self.host = host
        self.handlers = {**hosted.kind.handlers, **keyed_handlers(hosted.kind)}
        self.owners: dict[int, Owner] = {}
        self.table = Table()
        self.control_term = -1
        self.links: list[Link] = []
        self.controllers: list[Link] = []
        self.executing: Request | None = None
        self.called: Counter[int] = Counter()
        self.stopped = asyncio.Event()
        self._seen: Request | None = None
        self._seen_at = 0.0
        self._beat = 0.0
        self._wanted = False
        self._listening: Listening | None = None
        self._beacon: Beacon | None = None
        self.around = Surroundings(
            host.log,
            host.snapshots,
            host.now_ms,
            host.spawn,
            host.offload,
            self,
            host.say,
            hosted.snapshot_every,
            hosted.retention,
            lambda shard: self.table.owner(hosted.name, shard),
        )
        self.following = Following(hosted, self.around, self._report)
        sidecar = None if hosted.sidecar is None else hosted.sidecar(incarnation)
        self.keeper = Keeper(sidecar, lambda: self.control_term, host.spawn, host.say)

    # --- life --------------------------------------------------------------------------------------------------

    async def start(self, bind: str, advertise: str | None = None) -> tuple[str, str]:
        """Listen, once its sidecar is up; the addresses for frames and for pulses. Without a token only loopback
        addresses are taken."""
        require_token(bind, self.host.token)
        await self.keeper.start()
        try:
            addresses = await self._listen(bind, advertise)
        except BaseException:
            await self.keeper.stop()
            raise
        self.host.spawn(self._tick())
        self.host.spawn(self._end_with_sidecar())
        return addresses

    async def _listen(self, bind: str, advertise: str | None) -> tuple[str, str]:
        self._listening = await self.host.wire.serve(bind, self._accept)
        bound_host = bind.rpartition(":")[0]
        self._beat = self.host.monotonic()
        self._beacon = self.host.wire.beacon(f"{bound_host}:0", self.host.token, self.pulse, PULSE_S)
        shown = advertise or bound_host
        return tuple(f"{shown}:{a.rpartition(':')[2]}" for a in (self._listening.address, self._beacon.address))  # type: ignore[return-value]

    async def stop(self) -> None:
        """Give up all shards and stop listening."""
        self.stopped.set()
        for owner in self.owners.values():
            owner.stop("the instance stops")
        await self.keeper.stop()
        if self._beacon is not None:
            self._beacon.close()
        if self._listening is not None:
            await self._listening.close()
        for task in tuple(self.host.tasks):
            task.cancel()

    async def _tick(self) -> None:
        """Housekeeping: show that the loop turns, encode idle entities, report positions."""
        turns = 0
        started = self.host.monotonic()
        while not self.stopped.is_set():
            self._beat = self.host.monotonic()
            if not self._wanted and self._beat - started > UNWANTED_MAX_S:
                self.host.say(f"{self.incarnation}: no controller has greeted it in {UNWANTED_MAX_S:g} s, it ends")
                self.stopped.set()
            await asyncio.sleep(BEAT_S)
            turns += 1
            if turns % round(SWEEP_S / BEAT_S) == 0:
                owned = [owner.shard.entities for owner in self.owners.values()]
                for entities in (*owned, *self.following.entities()):
                    entities.sweep(SWEEP_STEPS)
                    await asyncio.sleep(0)
            if turns % round(POSITIONS_S / BEAT_S) == 0:
                self._tell_positions()
                self.following.tell_positions()

    def _tell_positions(self) -> None:
        """How far the shards are that are served here, how often those were asked for that are not, and how many calls of
        those that are could not be taken."""
        owning = [(shard, owner) for shard, owner in self.owners.items() if owner.shard.phase is Phase.OWNING]
        positions = [[shard, owner.assignment.number, owner.position] for shard, owner in owning]
        turned_away = sum(owner.shard.turned_away for _, owner in owning)
        self._report(frame(POSITIONS, positions, dict(self.called.most_common(CALLED_MAX)), turned_away))
        self.called.clear()
        for _, owner in owning:
            owner.shard.turned_away = 0

    async def _end_with_sidecar(self) -> None:
        reason = await self.keeper.wait()
        if not self.stopped.is_set():
            self.host.say(f"{self.incarnation}: its sidecar has {f'died, it ends: {reason}' if reason else DONE}")
            if not reason:
                self._report(frame(GOODBYE, DONE))
            self.stopped.set()

    # --- connections -------------------------------------------------------------------------------------------

    async def _accept(self, connection: Connection) -> None:
        link = Link(connection)
        try:
            if await self._greet(link):
                self.links.append(link)
                await link.run(lambda fields: self._on_frame(link, fields))
        except BadFrame as error:
            self.host.say(f"{self.incarnation}: a connection was closed: {error}")
        except (Closed, TimeoutError):
            pass
        finally:
            for links in (self.links, self.controllers):
                if link in links:
                    links.remove(link)

    async def _greet(self, link: Link) -> bool:
        async with asyncio.timeout(GREET_MAX_S):
            data = await link.connection.receive()
        try:
            fields = parse(data)
        except BadFrame as error:
            await link.refuse(str(error))
            raise
        refusal = why_refused(fields, self.host.token)
        if refusal is not None:
            await link.refuse(refusal)
            return False
        hosted = self.hosted
        await link.connection.send(
            frame(WELCOME, PROTOCOL, hosted.app, hosted.name, self.incarnation, self.host.now_ms(), self.table.dump())
        )
        if fields[3] == CONTROLLER:
            self.controllers.append(link)
            self._wanted = True
        return True

    def _on_frame(self, link: Link, fields: list[Any]) -> None:
        try:
            match fields:
                case [kind, groups] if kind == CALL:
                    self._on_call(link, groups)
                case [kind] if kind == ASK:
                    link.send(frame(TABLE, *self.table.dump()))
                case [kind, term, orders] if kind in (ASSIGN, RELEASE, FOLLOW) and link in self.controllers:
                    self._on_order(kind, term, orders)
                case [kind, term, *operation] if kind == TELL and link in self.controllers:
                    self._on_tell(link, term, *operation)
                case [kind, version, services, refused] if kind == TABLE and link in self.controllers:
                    self._on_table(Table.load(version, services, refused))
                case _:
                    raise BadFrame(f"frame kind {fields[0]} with {len(fields) - 1} fields is not for an instance")
        except (ValueError, TypeError, IndexError) as error:
            raise BadFrame(f"frame kind {fields[0]} is misshapen: {error!r}") from error

    def _on_call(self, link: Link, groups: list[Any]) -> None:
        hosted, handlers = self.hosted, self.handlers
        for shard, session, low, suspect, calls in groups:
            _check_group(session, low)
            suspect = bool(suspect and session)  # what has no session cannot be named
            owner = self.owners.get(shard)
            for call, number, key, name, args, kwargs, staleness in calls:
                _check_call(call, session, number, key)
                handler = handlers.get(name)
                if (
                    handler is None
                    or cached_shard_of(key, hosted.shards) != shard
                    or len(key) > KEY_BYTES_MAX
                    or handler.is_command != (number > 0)
                ):
                    link.reply(call, outcomes.refused(self._why_bad(shard, number, key, name)))
                elif owner is None:
                    self._send_away(link, call, shard)
                else:
                    fields = (link, call, session, number, low, key, handler, args, kwargs, suspect, staleness)
                    owner.shard.submit(build(Request, fields))
            if owner is not None and owner.shard.phase is not Phase.OWNING:
                self.called[shard] += len(calls)

    def _why_bad(self, shard: int, number: int, key: str, name: str) -> BadRequest:
        hosted = self.hosted
        handler = self.handlers.get(name)
        if handler is None:
            return BadRequest(f"{hosted.kind.name} has no {name!r}; it has {sorted(hosted.kind.handlers)}")
        if len(key) > KEY_BYTES_MAX:
            return BadRequest(f"a key of {len(key)} characters, {KEY_BYTES_MAX} are allowed")
        if handler.is_command != (number > 0):
            return BadRequest(
                f"{handler.name} is a {'command' if handler.is_command else 'query'}, it came with number {number}"
            )
        return BadRequest(
            f"{key!r} is in shard {shard_of(key, hosted.shards)} of {hosted.shards}, it was sent to shard {shard}"
        )

    def _send_away(self, link: Link, call: int, shard: int) -> None:
        route = self.table.owner(self.hosted.name, shard)
        if 0 <= shard < self.hosted.shards:
            self.called[shard] += 1
            link.reply(call, outcomes.moved(route and route.address, -1 if route is None else route.assignment))
        else:
            link.reply(
                call,
                outcomes.refused(
                    ShardRefused(f"{self.hosted.name} has shards 0 to {self.hosted.shards - 1}, not {shard}")
                ),
            )

    # --- the controller ----------------------------------------------------------------------------------------

    def _on_order(self, kind: int, term: int, orders: list[Any]) -> None:
        if term < self.control_term:
            self.host.say(f"{self.incarnation}: a controller of term {term} was refused, {self.control_term} leads")
            return
        self.control_term = term
        if kind == FOLLOW:
            self.following.follow({shard: Floor(*floor) for shard, floor in orders}, self.owners)
            return
        for order in orders:
            if kind == ASSIGN:
                shard, number, floor, suspect, poison = order
                self._take(Assignment(shard, number, Floor(*floor), suspect, tuple((s, n) for s, n in poison)))
            else:
                self._release(*order)

    def _on_tell(self, link: Link, term: int, id: Any, operation: Any, args: Any) -> None:
        _check_tell(id, operation, args)
        self.control_term = max(self.control_term, term)
        self.keeper.tell(link, term, id, operation, args)

    def _take(self, assignment: Assignment) -> None:
        current = self.owners.get(assignment.shard)
        if current is not None and current.assignment.number >= assignment.number:
            if current.shard.phase is Phase.OWNING:
                self._on_serving(current)
            return
        if current is not None:
            current.stop(f"replaced by assignment {assignment.number}")
        owner = Owner(
            self.hosted.partition(assignment.shard),
            self.hosted.kind,
            assignment,
            self.incarnation,
            self.around,
            self.following.take(assignment.shard),
        )
        self.owners[assignment.shard] = owner
        self.host.spawn(self._own(owner))

    async def _own(self, owner: Owner) -> None:
        await owner.run(self._on_serving)
        shard = owner.assignment.shard
        if self.owners.get(shard) is owner:
            del self.owners[shard]
            self.following.resume(shard)
        error = None if owner.error is None else type(owner.error).__name__
        self._report(
            frame(
                LOST, shard, owner.assignment.number, owner.reason, error, owner.position, owner.shard.fold.assignment
            )
        )

    def _release(self, shard: int, number: int) -> None:
        owner = self.owners.get(shard)
        if owner is not None and owner.assignment.number <= number:
            owner.stop("released by the controller")

    def _on_serving(self, owner: Owner) -> None:
        self._report(frame(SERVING, owner.assignment.shard, owner.assignment.number, owner.position, owner.took))

    def _report(self, data: bytes) -> None:
        for link in self.controllers:
            link.send(data)

    def _on_table(self, table: Table) -> None:
        if table.version <= self.table.version:
            return
        self.table = table
        data = frame(TABLE, *table.dump())
        for link in self.links:
            if link not in self.controllers:
                link.send(data)

    # --- what is running (the shards' Witness, the beacon's pulse) -----------------------------------------------

    def began(self, session: bytes, number: int, text: str) -> None:
        """Said over the beacon before it runs, so that it is known even if this process does not survive it."""
        self._announce(frame(BEGAN, session, number, text))

    def ended(self, session: bytes, number: int) -> None:
        """It is over."""
        self._announce(frame(ENDED, session, number))

    def name_running(self) -> None:
        """A last pulse, which names what runs however short it has: this process is about to end itself for it."""
        request = self.executing
        if request is not None:
            executing = [*request.identity, request.title, 0]
            self._announce(frame(PULSE, self.incarnation, 0, executing, self.host.resident_bytes()))

    def _announce(self, data: bytes) -> None:
        if self._beacon is not None:
            self._beacon.announce(data)

    def pulse(self) -> bytes:
        """How this process is. Called from the beacon's thread: it only reads."""
        now = self.host.monotonic()
        request = self.executing
        if request is not self._seen:
            self._seen, self._seen_at = request, now
        held_ms = round((now - self._seen_at) * 1000)
        executing = None
        if request is not None and held_ms >= HELD_MS:
            executing = [*request.identity, request.title, held_ms]
        lag_ms = max(0, round((now - self._beat - BEAT_S) * 1000))
        return frame(PULSE, self.incarnation, lag_ms, executing, self.host.resident_bytes())


def require_token(bind: str, token: str | None) -> None:
    """Bound beyond loopback, the wire needs a token from the first day. Raises ValueError."""
    host = bind.rpartition(":")[0]
    if token is None and not (host.startswith("127.") or host in ("localhost", "::1", "[::1]")):
        raise ValueError(
            f"listening on {bind} needs a token (REKINDLE_TOKEN): without one only loopback addresses are served"
        )


def _check_group(session: Any, low: Any) -> None:
    """These get into the log, where a wrong type would stop every reader. Raises `BadFrame`."""
    if type(session) is not bytes or len(session) > SESSION_BYTES_MAX or type(low) is not int or low < 0:
        raise BadFrame(
            f"expected a session of at most {SESSION_BYTES_MAX} bytes and a low mark, got {session!r:.80} and {low!r:.80}"
        )


def _check_call(call: Any, session: bytes, number: Any, key: Any) -> None:
    if (
        type(call) is not int
        or type(number) is not int
        or type(key) is not str
        or number < 0
        or (number and not session)
    ):
        raise BadFrame(
            f"expected a call, a number (0 without a session) and a key, got {call!r:.80}, {number!r:.80} and {key!r:.80}"
        )


def _check_tell(id: Any, operation: Any, args: Any) -> None:
    if not (isinstance(id, int | str) and isinstance(operation, str) and isinstance(args, dict)):
        raise BadFrame(
            f"expected an id, an operation and its arguments by name, got {id!r:.80}, {operation!r:.80} and {args!r:.80}"
        )
