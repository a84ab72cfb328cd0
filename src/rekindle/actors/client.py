"""The client: typed proxies of entities, and calls that take effect exactly once, whatever happens on the way.

    async with app.connect() as shop:
        stock = shop.get(Stock, "sku-42")
        await stock.receive(5)

A call is sent to the shard's owner together with all others of this loop turn. It is sent again, under the same
number of the same session, when its owner has moved, died or is busy, until the caller's deadline.

Invariants:
- A command keeps its session and number for life; a new number is never used twice.
- A session's low mark is the lowest number still waited for; it only rises, and every frame carries it.
- A session that was not used for half of `SESSION_TTL_MS` is replaced: the shard has not forgotten it yet.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Self, TypeVar, cast

from rekindle.actors import outcomes
from rekindle.actors.entity import Entity, HandlerType
from rekindle.actors.errors import (
    BadRequest,
    CallError,
    DeadlineExceeded,
    OutcomeUnknown,
    Overloaded,
    ShardRefused,
)
from rekindle.actors.host import Hosted
from rekindle.actors.instance import KEY_BYTES_MAX, cached_shard_of
from rekindle.actors.outcomes import result_of
from rekindle.actors.peer import QUIET_S, SILENT_S, Call, Peer, Session
from rekindle.actors.routes import Route, Table
from rekindle.actors.wire import Wire
from rekindle.events import SESSION_TTL_MS, session_name, unpack

T = TypeVar("T")

DEADLINE_S: Final = 10.0
DEADLINE_MAX_S: Final = 120.0
"""Far below the sessions' TTL, so that a session is not forgotten while one of its commands is being sent."""

OUTSTANDING_MAX: Final = 50_000
TICK_S: Final = 0.02
RETRY_MAX_S: Final = 0.5
REFRESH_S: Final = 0.1
"""At most one question for the routing table in this time."""


_RANDOM_BYTES: Final = 8


class Client:
    """Calls to the entities of one application. Open it with `async with`.

    seeds: gives addresses of instances when none is known: from the control log, or a fixed list.
    """

    def __init__(
        self,
        app: str,
        services: Sequence[Hosted],
        wire: Wire,
        seeds: Callable[[], Awaitable[Sequence[str]]],
        now_ms: Callable[[], int],
        token: str | None = None,
        randomness: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.app = app
        self.services = {hosted.kind.cls: hosted for hosted in services}
        self.wire = wire
        self.seeds = seeds
        self.token = token
        self.now_ms = now_ms
        self.randomness = randomness
        self.name = randomness(_RANDOM_BYTES)
        self.table = Table()
        self.peers: dict[str, Peer] = {}
        self.calls: dict[int, Call] = {}
        self.parked: list[Call] = []
        self.retrying: dict[Call, asyncio.TimerHandle] = {}
        self.sessions: dict[tuple[str, int], Session] = {}
        self.retried = 0
        self.last_error = "no instance is known yet"
        self._skew_ms = 0
        self._count = 0
        self._asked_at = -REFRESH_S
        self._missing_since: float | None = None
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()  # kept: to ask for it costs a system call
        self._spawn(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        self.fail_all(Overloaded("the client was closed"))
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def get(self, entity: type[T], key: str, *, timeout: float = DEADLINE_S, max_staleness: float | None = None) -> T:
        """The entity with this key, as its callers see it: handlers are awaitable, and typed as they are written.

        timeout: seconds until a call gives up. max_staleness: seconds; queries are then answered from the owner's
        memory at once, refused (`Stale`) if the log has not confirmed the owner for longer.
        """
        hosted = self.services.get(cast(type[Entity], entity))
        if hosted is None:
            raise BadRequest(
                f"{entity.__name__} is no service of {self.app!r}; it has {[cls.__name__ for cls in self.services]}"
            )
        if not 0 < timeout <= DEADLINE_MAX_S:
            raise BadRequest(f"timeout is {timeout} s, expected more than 0 and at most {DEADLINE_MAX_S}")
        _check_key(key)
        return cast(T, Proxy(self, hosted, key, timeout, max_staleness))

    def call(
        self,
        proxy: Proxy,
        handler: HandlerType,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        session: Session | None = None,
    ) -> asyncio.Future[Any]:
        """Send a call; the future is its value or its error. session: of a command, if it is to be another than the
        client's own."""
        if len(self.calls) >= OUTSTANDING_MAX or self._closing:
            raise Overloaded(f"{len(self.calls)} calls are unanswered, {OUTSTANDING_MAX} are allowed")
        now = self._loop.time()
        hosted, shard = proxy.hosted, proxy.shard
        number, staleness = 0, None
        if handler.is_command:
            session = session or self._session(hosted.name, shard, now)
            number = session.next
            session.next = number + 1
            session.used_at = now
        elif proxy.max_staleness is not None:
            staleness = round(proxy.max_staleness * 1000)
        self._count += 1
        wire = [self._count, number, proxy.key, handler.short, args, kwargs, staleness]
        call = Call(hosted, shard, handler, session, number, wire, now + proxy.timeout, self._loop.create_future())
        if session is not None:
            session.outstanding[number] = call
        self.calls[self._count] = call
        self._route(call)
        return call.future

    def log_ms(self) -> int:
        """The time by the clock of those who write the log, as far as it is known to be ahead of this one."""
        return self.now_ms() + self._skew_ms

    def _session(self, service: str, shard: int, now: float) -> Session:
        session = self.sessions.get((service, shard))
        if session is None or (now - session.used_at) * 1000 > SESSION_TTL_MS / 2:
            session = Session(session_name(self.log_ms(), self.randomness(_RANDOM_BYTES)), now)
            self.sessions[service, shard] = session
        return session

    # --- routing -----------------------------------------------------------------------------------------------

    def _route(self, call: Call) -> None:
        route = self.table.owner(call.hosted.name, call.shard)
        if route is None:
            refusal = self.table.refusal(call.hosted.name, call.shard)
            if refusal is None:
                self._park(call)
            else:
                self._give_up(call, ShardRefused(f"shard {call.shard} of {call.hosted.name} is kept down: {refusal}"))
            return
        peer = self.peers.get(route.address)
        if peer is None:
            peer = self._connect(route.address)
        peer.put(call)

    def _connect(self, address: str) -> Peer:
        peer = self.peers[address] = Peer(self, address)
        self._spawn(peer.run())
        return peer

    def _park(self, call: Call) -> None:
        self.parked.append(call)
        self._ask()

    def _again(self, call: Call) -> None:
        """Send it again, a little later each time, or as soon as its shard has another owner."""
        self.retried += 1
        pause, call.pause = call.pause, min(call.pause * 2, RETRY_MAX_S)
        self.retrying[call] = asyncio.get_running_loop().call_later(pause, self._resend, call)

    def _resend(self, call: Call) -> None:
        timer = self.retrying.pop(call, None)
        if timer is not None:
            timer.cancel()
        if not call.future.done() and not self._closing:
            self._route(call)

    def _ask(self) -> None:
        """Ask some instance for the routing table, not too often."""
        now = asyncio.get_running_loop().time()
        if now - self._asked_at < REFRESH_S or self._closing:
            return
        self._asked_at = now
        self._missing_since = self._missing_since or now
        asked = [peer.ask(now) for peer in self.peers.values()]
        if not any(asked) or now - self._missing_since > SILENT_S:  # whom we know may know no better
            self._missing_since = now
            self._spawn(self._seek())

    async def _seek(self) -> None:
        """Nobody is connected: try who is known, and who the seeds name. A greeting brings the table along."""
        try:
            found = await self.seeds()
        except Exception as error:  # noqa: BLE001 - seeds are the caller's own code; what went wrong is said at the deadline
            self.last_error = f"no instance found: {error}"
            found = ()
        for address in dict.fromkeys((*self.table.addresses, *found)):
            if address not in self.peers:
                self._connect(address)

    # --- what peers say ----------------------------------------------------------------------------------------

    def on_welcome(self, server_now_ms: int, table: Table) -> None:
        """Sessions are born by the instances' clock: what counts is the log's time, which they write."""
        self._skew_ms = max(self._skew_ms, server_now_ms - self.now_ms())
        self.on_table(table)

    def on_table(self, table: Table) -> None:
        """A newer table: what had nowhere to go may go now, and what waits for another attempt where the shard was."""
        if table.version > self.table.version:
            before, self.table = self.table, table
            self._missing_since = None
            parked, self.parked = self.parked, []
            moved = [call for call in self.retrying if _route_in(table, call) != _route_in(before, call)]
            for call in (*parked, *moved):
                self._resend(call)
            self._leave_silent()

    def _leave_silent(self) -> None:
        """What was asked of an owner that says nothing is asked of whoever owns the shard since. The old one may be stopped,
        and never answer; should it wake up, it finds itself fenced, or its answer is one too many."""
        now = self._loop.time()
        silent = {peer for peer in self.peers.values() if now - peer.heard_at > QUIET_S}
        for call in [call for call in self.calls.values() if call.peer in silent] if silent else ():
            route = _route_in(self.table, call)
            if call.peer is not None and route is not None and route.address != call.peer.address:
                self._take_back(call)
                self._resend(call)

    @staticmethod
    def _take_back(call: Call) -> None:
        """It is not with its peer any more. If it was sent, it may be what has befallen that one, and may have been run."""
        call.peer = None
        call.suspect = call.suspect or call.sent
        call.unsure = call.unsure or call.sent

    def on_gone(self, peer: Peer) -> None:
        """What was in flight is sent again, to whoever owns its shard then, as suspect: one of these may have killed it."""
        if self.peers.get(peer.address) is peer:
            del self.peers[peer.address]
        for call in [call for call in self.calls.values() if call.peer is peer]:
            self._take_back(call)
            if not call.future.done():
                self._again(call)
        self._ask()

    def on_answer(self, call: Call, payload: bytes) -> None:
        """An outcome, or a reason to send it again."""
        outcome = unpack(payload)
        code = outcome[0]
        if code == outcomes.MOVED:
            self._on_moved(call, *outcome[1:])
        elif code == outcomes.BUSY:
            self._on_busy(call, *outcome[1:])
        else:
            self._forget(call)
            if code == outcomes.FORGOTTEN:
                self._renew_session(call)
            if call.future.done():
                return
            if code == outcomes.OK and call.handler.returns is None:
                call.future.set_result(outcome[1])
            else:
                self._resolve(call, outcome)

    def _renew_session(self, call: Call) -> None:
        """Our clock, or our sleep, made the shard forget the session: it would run nothing more of it."""
        where = (call.hosted.name, call.shard)
        if self.sessions.get(where) is call.session:
            del self.sessions[where]

    def on_bad(self, call: Call, problem: str) -> None:
        """A call that cannot travel."""
        self._forget(call)
        if not call.future.done():
            call.future.set_exception(BadRequest(f"{call.handler.name}: {problem}"))

    def _resolve(self, call: Call, outcome: list[Any]) -> None:
        try:
            value = result_of(outcome, call.hosted.kind, call.handler)
        except CallError as error:
            call.future.set_exception(error)
        except Exception as error:  # noqa: BLE001 - whatever a converter raises belongs to this call alone
            call.future.set_exception(
                BadRequest(f"the answer of {call.handler.name} does not fit its declared type: {error}")
            )
        else:
            call.future.set_result(value)

    def _on_moved(self, call: Call, address: str | None, assignment: int) -> None:
        answered, call.peer = call.peer, None
        call.unsure = True  # whoever lost a shard does not know what becomes of its last appends
        if address is not None:
            self.table.learn(call.hosted.name, call.shard, Route(address, assignment))
        route = self.table.owner(call.hosted.name, call.shard)
        # At once, but never to whoever has just sent it away: so it goes in no circle that the table does not know.
        if route is not None and route.assignment >= assignment and answered and answered.address != route.address:
            self.retried += 1
            self._route(call)
        else:
            self._ask()
            self._again(call)

    def _on_busy(self, call: Call, waiting: int, limit: int) -> None:
        call.peer = None
        call.sent = call.unsure
        call.busy = f"{waiting} requests wait for the shard, {limit} may"
        self._again(call)

    # --- endings -----------------------------------------------------------------------------------------------

    def _forget(self, call: Call) -> None:
        self.calls.pop(call.wire[0], None)
        if call.session is not None:
            call.session.outstanding.pop(call.number, None)

    def fail_all(self, error: Exception) -> None:
        """Give up everything that is outstanding."""
        for call in tuple(self.calls.values()):
            self._give_up(call, error)

    def _give_up(self, call: Call, error: Exception) -> None:
        """A command that was sent may have been run, whatever the reason."""
        self._forget(call)
        if not call.future.done():
            unknown = OutcomeUnknown(f"{call.handler.name} of {call.wire[2]!r} may have been run: {error}")
            call.future.set_exception(unknown if call.sent and call.number else error)
            call.future.exception()  # whoever asked may have gone

    async def _tick(self) -> None:
        """Deadlines, calls that were given up by their callers, calls that wait for a route."""
        loop = asyncio.get_running_loop()
        looked_at = loop.time()
        while True:
            await asyncio.sleep(TICK_S)
            now = loop.time()
            if now - looked_at > SILENT_S / 2:
                looked_at = now
                self._look_at_peers(now)
            for call in [c for c in self.calls.values() if c.deadline <= now or c.future.done()]:
                self._expire(call)
            if self.parked:
                parked, self.parked = self.parked, []
                for call in parked:
                    self._resend(call)

    def _look_at_peers(self, now: float) -> None:
        """Who owes us answers and is silent is asked for the table; who does not even answer that is given up."""
        self._leave_silent()
        owing = {call.peer for call in self.calls.values() if call.sent}
        for peer in tuple(self.peers.values()):
            if peer in owing and peer.connection is not None and now - peer.heard_at > SILENT_S and not peer.ask(now):
                self.last_error = f"{peer.address} says nothing any more"
                self._spawn(peer.connection.close())

    def _expire(self, call: Call) -> None:
        self._forget(call)
        if not call.future.done():
            call.future.set_exception(self._why_expired(call))

    def _why_expired(self, call: Call) -> CallError:
        where = f"{call.handler.name} of {call.wire[2]!r} (shard {call.shard} of {call.hosted.name})"
        if call.sent and call.number:
            text = f"no answer to {where} before its deadline; it may have been run. Last: {self.last_error}"
            return OutcomeUnknown(text)
        if call.busy is not None:
            return Overloaded(f"{where} was not run before its deadline: {call.busy}")
        return DeadlineExceeded(f"no answer to {where} before its deadline; it had no effect. Last: {self.last_error}")

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _route_in(table: Table, call: Call) -> Route | None:
    return table.owner(call.hosted.name, call.shard)


class Proxy:
    """An entity as its callers see it: every handler is a method that returns an awaitable."""

    def __init__(self, client: Client, hosted: Hosted, key: str, timeout: float, max_staleness: float | None) -> None:
        self.client = client
        self.hosted = hosted
        self.key = key
        self.timeout = timeout
        self.max_staleness = max_staleness
        self.shard = cached_shard_of(key, hosted.shards)

    def __getattr__(self, name: str) -> Callable[..., asyncio.Future[Any]]:
        handler = self.hosted.kind.handlers.get(name)
        if handler is None:
            raise AttributeError(
                f"{self.hosted.kind.name} has no command or query {name!r}; it has {sorted(self.hosted.kind.handlers)}"
            )

        def call(*args: Any, **kwargs: Any) -> asyncio.Future[Any]:
            return self.client.call(self, handler, args, kwargs)

        self.__dict__[name] = call
        return call


def _check_key(key: object) -> None:
    """Raises `BadRequest`."""
    if not isinstance(key, str):
        raise BadRequest(f"a key is a str, got the {type(key).__name__} {key!r:.80}")
    if not 0 < len(key) <= KEY_BYTES_MAX:
        raise BadRequest(f"a key has 1 to {KEY_BYTES_MAX} characters, this one has {len(key)}")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"the key {key!r:.80} is no text: {error}") from error
