"""One shard's owner as a state machine: requests and the log's answers go in, batches and replies come out. No I/O.

    request -> run at once, ahead of the log -> staged -> batch in flight -> verified by rule 3 -> reply

The edge (`rekindle.actors.owner`) appends what `take_batch` gives, one batch at a time, and reports what came of it:
`appended`, `doubt`, or the entries of a gap (`feed`, then `settle`).

Invariants:
- `staged` + `flight` are all commits that were executed and are not verified; their sequences are dense and the next
  one is `sequence + 1`. Whatever runs sees all of them.
- A reply goes out only when its commit is verified (rule 3). A read (a query, a stored reply) waits for an append
  that is sent after it came and not before anything it saw: for the newest staged commit, else for the next one, which
  is a barrier when no command comes.
- A handler runs once for a command, whatever happens to its appends: after doubt the same bytes go out again under the
  new term.
- Every outcome of a command is a commit, a refusal too. A refused command that left no trace would run when a
  straggling copy of it comes later, although its caller was told that it never took effect (tests/model/claims.py).
"""

from __future__ import annotations

import asyncio
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from enum import Enum
from typing import Any, Final

from rekindle.actors import outcomes
from rekindle.actors.entities import Active, Captured, Entities
from rekindle.actors.entity import Entity, EntityType, HandlerType, WrongArguments
from rekindle.actors.errors import BadRequest, CommandFailed, EntityQuarantined, ShardRefused, Stale
from rekindle.actors.requests import Edge, Request, Sink, Staged
from rekindle.events import (
    BATCH_BYTES_MAX,
    RECORD_BYTES_MAX,
    Claim,
    Commit,
    Entry,
    Fold,
    Keyed,
    LogTruncated,
    Partition,
    RecordTooLarge,
    Undecodable,
    Verdict,
    decode,
    encode,
    pack,
)
from rekindle.events.records import (
    BARRIER,
    COMMAND,
    NO_SESSION,
    SNAPSHOTTED,
    build,
    encode_claim,
    encode_head,
    with_events,
)

UNVERIFIED_MAX: Final = 10_000
"""Commands of one shard that were run and are not yet verified; above it new ones are `BUSY`."""

WAITING_MAX: Final = 10_000
"""Requests of one shard that wait for its replay, or behind an async handler."""

ASYNC_HANDLER_MAX_S: Final = 60.0
"""An async handler that takes longer has failed: everything else of its entity waits behind it."""

BATCH_RECORDS_MAX: Final = 2_000
BARRIER_INTERVAL_S: Final = 0.005
"""At most one barrier in this time for reads that find no commit to ride on; the first goes out at once."""

STATE_BYTES_MAX: Final = 1 << 30
"""Encoded state of one shard; above it commands of new entities are refused."""


class Phase(Enum):
    """REPLAYING: reading up to the first claim. OWNING: it runs requests. STOPPED: fenced or given up, for good."""

    REPLAYING = "replaying"
    OWNING = "owning"
    STOPPED = "stopped"


class Shard:
    """The owner of one shard."""

    def __init__(
        self,
        partition: Partition,
        kind: EntityType,
        assignment: int,
        incarnation: str,
        edge: Edge,
        record_bytes_max: int = RECORD_BYTES_MAX,
    ) -> None:
        self.partition = partition
        self.kind = kind
        self.assignment = assignment
        self.incarnation = incarnation
        self.edge = edge
        self.record_bytes_max = record_bytes_max
        self.phase = Phase.REPLAYING
        self.fold = Fold()
        self.entities = Entities(kind, edge.on_quarantine)
        self.term = -1
        self.sequence = 0
        self.time = 0
        self.verified_at_ms = 0
        self.staged: deque[Staged] = deque()
        self.flight: deque[Staged] = deque()
        self.outcomes: dict[tuple[bytes, int], bytes] = {}
        self.reads: dict[int, list[tuple[Sink, int, bytes]]] = {}
        self.reading = 0
        self.waiting: deque[Request] = deque()
        self.queued = 0
        self.resume: dict[int, list[Active]] = {}
        self.poison: set[tuple[bytes, int]] = set()
        self.capturing: dict[int, Captured] = {}
        self.since_snapshot = 0
        self.turned_away = 0

    # --- requests ----------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Take a request: run it, let it wait, or answer that it cannot be taken."""
        if self.phase is Phase.OWNING:
            unverified = len(self.staged) + len(self.flight) + self.reading
            if unverified < UNVERIFIED_MAX:
                self._run(request)
            else:
                self._turn_away(request, unverified, UNVERIFIED_MAX)
        elif self.phase is Phase.STOPPED:
            request.sink.reply(request.call, self._away())
        elif len(self.waiting) < WAITING_MAX:
            self.waiting.append(request)
        else:
            request.sink.reply(request.call, outcomes.busy(len(self.waiting), WAITING_MAX))

    def _turn_away(self, request: Request, waiting: int, limit: int) -> None:
        """More come than can be served: counted, for an operator to know."""
        self.turned_away += 1
        request.sink.reply(request.call, outcomes.busy(waiting, limit))

    def _run(self, request: Request) -> None:
        if request.number and not self._is_new(request):
            return
        active = self.entities.active.get(request.key)
        if active is None:
            active = self._activate(request)
            if active is None:
                return
        if active.busy or request.handler.is_async:
            self._run_in_turn(request, active)
        elif request.staleness_ms is not None:
            self._answer_local(request, active)
        else:
            self._execute(request, active)

    def _is_new(self, request: Request) -> bool:
        """Whether a command is to be run; if not, it is answered as it was the first time, or ignored."""
        known = self.outcomes.get((request.session, request.number)) or self.fold.judge(request.session, request.number)
        if known is Verdict.RUN:
            return True
        if known is Verdict.FORGOTTEN:
            text = f"shard {self.partition} has forgotten the session of this command; it may have been run"
            request.sink.reply(request.call, outcomes.forgotten(text))
        elif known is not Verdict.STALE:
            self._answer_read(request, known)
        return False

    def _activate(self, request: Request) -> Active | None:
        key, entities = request.key, self.entities
        if self._is_quarantined(request):
            return None
        if entities.bytes > STATE_BYTES_MAX and key not in entities.idle:
            text = f"shard {self.partition} holds {entities.bytes} bytes of state, {STATE_BYTES_MAX} are allowed; {key!r} would be new"
            request.sink.reply(request.call, outcomes.refused(ShardRefused(text)))
            return None
        try:
            active = entities.activate(key)
        except Undecodable as error:
            entities.quarantine_idle(key, error)
            self._is_quarantined(request)
            return None
        active.last = self.sequence  # what it did before it was put away, or deleted, need not be verified yet
        return active

    def _is_quarantined(self, request: Request) -> bool:
        """Whether the entity is in quarantine; then the request is answered."""
        quarantined = self.entities.quarantined.get(request.key)
        if quarantined is None:
            return False
        error = EntityQuarantined(f"quarantined: {quarantined.reason}")
        request.sink.reply(request.call, outcomes.refused(error))
        return True

    def _execute(self, request: Request, active: Active) -> None:
        """Run a plain handler to its end and stage what came of it."""
        if request.suspect and self._is_poison(request, active):
            return
        entity = active.entity
        emitted = self._begin(entity, request.handler)
        try:
            outcome = pack((outcomes.OK, self._call(request, entity)))
            if emitted:
                _check_applied(entity, emitted)
        except BaseException as error:  # noqa: BLE001 - a handler is the user's code: nothing it raises ends more than it
            self._end_raised(request, active, emitted, error)
        else:
            self._end(request, active, emitted, outcome)
        finally:
            entity._emitted = None  # pyright: ignore[reportPrivateUsage]

    def _call(self, request: Request, entity: Entity) -> Any:
        if request.suspect:
            return self._call_named(request, entity)
        handler, witness = request.handler, self.edge.witness
        witness.executing = request
        try:
            args, kwargs = handler.arguments_of(request.args, request.kwargs)
            return handler.function(entity, *args, **kwargs)
        finally:
            witness.executing = None

    def _call_named(self, request: Request, entity: Entity) -> Any:
        self._enter(request)
        try:
            args, kwargs = request.handler.arguments_of(request.args, request.kwargs)
            return request.handler.function(entity, *args, **kwargs)
        finally:
            self._leave(request)

    def _enter(self, request: Request) -> None:
        """From here on the handler may hold the loop, or end the process: then it is known which one it was."""
        self.edge.witness.executing = request
        if request.suspect:
            self.edge.witness.began(*request.identity, request.title)

    def _leave(self, request: Request) -> None:
        self.edge.witness.executing = None
        if request.suspect:
            self.edge.witness.ended(*request.identity)

    def _is_poison(self, request: Request, active: Active) -> bool:
        """Whether two instances died of the request; then it is answered, and never run again."""
        if request.identity not in self.poison:
            return False
        error = CommandFailed(f"poison: two instances died while {request.title} was running; it is not run again")
        if request.number:
            self._commit(request, active, [], outcomes.failed(error))
        else:
            request.sink.reply(request.call, outcomes.refused(error))
        return True

    def _begin(self, entity: Entity, handler: HandlerType) -> list[bytes]:
        emitted: list[bytes] = []
        entity._emitted = emitted if handler.is_command else None  # pyright: ignore[reportPrivateUsage]
        now = self.edge.now_ms()
        if now > self.time:  # noqa: PLR1730 - `max` costs twice as much, for every command
            self.time = now
        entity.now_ms = self.time
        return emitted

    def _end(self, request: Request, active: Active, emitted: list[bytes], outcome: bytes) -> None:
        if request.number:
            self._commit(request, active, emitted, outcome)
        else:
            self._answer_read(request, outcome)

    def _end_raised(self, request: Request, active: Active, emitted: list[bytes], error: BaseException) -> None:
        """The handler raised: its events never were. A refusal is an outcome like any other."""
        if emitted:
            self.entities.undo(active)
        if isinstance(error, WrongArguments):
            request.sink.reply(request.call, outcomes.refused(BadRequest(str(error))))
        elif not self._is_quarantined(request):
            self._end(request, active, [], outcomes.raised(error))

    def _commit(self, request: Request, active: Active, emitted: list[bytes], outcome: bytes) -> None:
        entity = active.entity
        version = 0 if emitted and entity._gone else active.version + len(emitted)  # pyright: ignore[reportPrivateUsage]
        session, number, low, key = request.session, request.number, request.low, request.key
        sequence = self.sequence + 1
        fields: Any = (COMMAND, self.term, sequence, self.time, session, number, low, key, version, outcome, None, [])
        commit = build(Commit, fields)
        place, value = key.encode(), with_events(encode_head(commit), emitted)
        if len(place) + len(value) > self.record_bytes_max:
            self._refuse_large(request, active, emitted, len(place) + len(value))
            return
        self.sequence = active.last = sequence
        self.outcomes[session, number] = outcome
        self.staged.append(build(Staged, (commit, (place, value), request.sink, request.call)))
        if emitted:
            self.entities.executed(key, active, value, version)
        if len(self.staged) == 1:  # else the edge has been woken, or is awake
            self.edge.wake()

    def _refuse_large(self, request: Request, active: Active, emitted: list[bytes], size: int) -> None:
        if emitted:
            self.entities.undo(active)
        error = RecordTooLarge(f"the record of {request.handler.name}", size, self.record_bytes_max)
        self._commit(request, active, [], outcomes.failed(error))

    def _answer_read(self, request: Request, payload: bytes) -> None:
        """Answer when an append that is sent from now on, and not before anything seen, is verified."""
        sequence = self.sequence if self.staged else self.sequence + 1
        self.reads.setdefault(sequence, []).append((request.sink, request.call, payload))
        self.reading += 1
        self.edge.wake()

    def _answer_local(self, request: Request, active: Active) -> None:
        age = self.edge.now_ms() - self.verified_at_ms
        if age > (request.staleness_ms or 0):
            error = Stale(f"{age} ms since the log confirmed this shard, {request.staleness_ms} ms allowed")
            request.sink.reply(request.call, outcomes.refused(error))
            return
        if request.suspect and self._is_poison(request, active):
            return
        try:
            payload = pack((outcomes.OK, self._call(request, active.entity), age))
        except WrongArguments as error:
            payload = outcomes.refused(BadRequest(str(error)))
        except BaseException as error:  # noqa: BLE001 - as in `_execute`
            payload = outcomes.raised(error)
        request.sink.reply(request.call, payload)

    # --- async handlers ----------------------------------------------------------------------------------------

    def _run_in_turn(self, request: Request, active: Active) -> None:
        """An async handler starts when all earlier commits of its entity are verified; what comes later waits."""
        if self.queued >= WAITING_MAX:
            self._turn_away(request, self.queued, WAITING_MAX)
            return
        if not active.busy:
            active.busy = True
            active.queue = deque()
            self._call_back(active)
        active.queue.append(request)
        self.queued += 1

    def _call_back(self, active: Active) -> None:
        if active.last > self.fold.sequence:
            self.resume.setdefault(active.last, []).append(active)
        else:
            self.edge.spawn(self._drain(active))

    async def _drain(self, active: Active) -> None:
        """Run what waits for one entity, in order, until an async handler must wait for a commit or nothing is left."""
        while active.queue and self.phase is not Phase.STOPPED:
            if active.queue[0].handler.is_async and active.last > self.fold.sequence:
                self.resume.setdefault(active.last, []).append(active)
                return
            self.queued -= 1
            await self._next_in_turn(active.queue.popleft(), active)
        active.busy = False

    async def _next_in_turn(self, request: Request, active: Active) -> None:
        if (request.number and not self._is_new(request)) or self._is_quarantined(request):
            return
        if request.handler.is_async:
            await self._execute_async(request, active)
        else:
            self._execute(request, active)

    async def _execute_async(self, request: Request, active: Active) -> None:
        if request.suspect and self._is_poison(request, active):
            return
        entity = active.entity
        emitted = self._begin(entity, request.handler)
        raised: BaseException | None = None
        outcome = b""
        try:
            outcome = await self._call_async(request, entity)
            _check_applied(entity, emitted)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():  # it is this process that ends, not the handler
                raise
            raised = error
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - as in `_execute`
            raised = error
        entity._emitted = None  # pyright: ignore[reportPrivateUsage]
        if self.phase is Phase.STOPPED or self._is_quarantined(request):
            return
        if raised is None:
            self._end(request, active, emitted, outcome)
        else:
            self._end_raised(request, active, emitted, raised)

    async def _call_async(self, request: Request, entity: Entity) -> bytes:
        handler = request.handler
        args, kwargs = handler.arguments_of(request.args, request.kwargs)
        limit = asyncio.timeout(ASYNC_HANDLER_MAX_S)
        try:
            async with limit:
                return pack((outcomes.OK, await self._in_steps(request, handler.function(entity, *args, **kwargs))))
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(
                f"it took more than {ASYNC_HANDLER_MAX_S} s; everything else of the entity waited"
            ) from error

    @types.coroutine
    def _in_steps(self, request: Request, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Await a handler so that each of its steps runs under its name; in between others run."""
        resume: Callable[[Any], Any] = work.send
        value: Any = None
        while True:
            self._enter(request)
            try:
                waits_for = resume(value)
            except StopIteration as result:
                return result.value
            finally:
                self._leave(request)
            try:
                resume, value = work.send, (yield waits_for)
            except BaseException as error:  # noqa: BLE001 - what is thrown at us is meant for the handler
                resume, value = work.throw, error

    # --- batches -----------------------------------------------------------------------------------------------

    @property
    def wants_barrier(self) -> bool:
        """Reads wait and no command comes along for them to ride on."""
        return not self.staged and bool(self.reads)

    def take_batch(self) -> list[Keyed]:
        """The next append, at most one at a time: everything staged up to the limits, a barrier if only reads wait."""
        assert not self.flight, f"{self.partition}: a batch of {len(self.flight)} is in flight"
        if self.wants_barrier:
            self._stage_mark(BARRIER, "")
        size = 0
        for _ in range(min(len(self.staged), BATCH_RECORDS_MAX)):
            key, value = self.staged[0].keyed
            size += len(key or b"") + len(value or b"") + _RECORD_OVERHEAD
            if size > BATCH_BYTES_MAX and self.flight:
                break
            self.flight.append(self.staged.popleft())
        return [staged.keyed for staged in self.flight]

    def _stage_mark(self, kind: int, name: str) -> int:
        self.time = max(self.time, self.edge.now_ms())
        self.sequence += 1
        commit = Commit(kind, self.term, self.sequence, self.time, NO_SESSION, 0, 0, name, 0, b"", None, [])
        self.staged.append(Staged(commit, (None, encode(commit)), None, 0))
        return self.sequence

    def snapshot(self, name: str) -> None:
        """Capture the state now and mark the place in the log; `Edge.on_snapshot` gets both when the mark is verified."""
        captured = self.entities.capture()
        self.capturing[self._stage_mark(SNAPSHOTTED, name)] = captured
        self.since_snapshot = 0
        self.edge.wake()

    # --- the log's answers -------------------------------------------------------------------------------------

    def claim(self) -> Keyed:
        """The record that takes the shard (rule 1), or takes it again (rule 4)."""
        return None, encode_claim(Claim(self.assignment, self.incarnation, self.edge.now_ms()))

    def appended(self, base: int) -> bool:
        """The batch in flight was answered with this offset. False: there is a gap, `feed` what is in it, then `settle`.

        Raises `LogTruncated` if the offset is lower than anything that can be (rule 3).
        """
        fold = self.fold
        if base != fold.offset:
            if base < fold.offset:
                raise LogTruncated(str(self.partition), fold.offset, base)
            return False
        flight = self.flight
        offset = base
        while flight:
            staged = flight.popleft()
            counted = fold.feed(offset, staged.commit)
            assert counted, (
                f"{self.partition}: own commit {staged.commit.sequence} of term {staged.commit.term} is void at {offset}"
            )
            self._verified(staged)
            offset += 1
        self.since_snapshot += offset - base
        self.verified_at_ms = self.edge.now_ms()
        return True

    def _verified(self, staged: Staged) -> None:
        commit = staged.commit
        if commit.number:
            del self.outcomes[commit.session, commit.number]
            if staged.sink is not None:
                staged.sink.reply(staged.call, commit.reply)
        elif commit.kind == SNAPSHOTTED and commit.sequence in self.capturing:
            self.edge.on_snapshot(self.capturing.pop(commit.sequence), self.fold.dump(), commit.sequence)
        if self.reads:
            answers = self.reads.pop(commit.sequence, ())
            self.reading -= len(answers)
            for sink, call, payload in answers:
                sink.reply(call, payload)
        if self.resume:
            for active in self.resume.pop(commit.sequence, ()):
                self.edge.spawn(self._drain(active))

    def feed(self, entries: Iterable[Entry]) -> None:
        """Read on: replay what others wrote, verify what is this owner's. Raises `NewerRecord` and `LogDamaged`."""
        counts, replay = self.fold.feed, self.entities.replay
        replaying = self.phase is Phase.REPLAYING
        for entry in entries:
            value = entry.value
            record = decode(value)
            if not counts(entry.offset, record):
                continue
            self.since_snapshot += 1
            if not replaying:
                self._feed_own(record)
            elif record.events:  # type: ignore[union-attr]
                replay(record, value)  # type: ignore[arg-type]

    def _feed_own(self, record: Any) -> None:
        # A newer owner's commits are not ours, whatever their sequence; `settle` finds that we are fenced.
        if (
            self.fold.owned_by(self.assignment, self.incarnation)
            and self.flight
            and self.flight[0].commit.sequence == record.sequence
        ):
            self._verified(self.flight.popleft())

    def settle(self) -> None:
        """Everything up to the own claim, or to the own batch, was read: go on, go on under a new term, or stop."""
        if self.phase is Phase.STOPPED:
            return
        if not self.fold.owned_by(self.assignment, self.incarnation):
            self.stop()
        elif self.phase is Phase.REPLAYING:
            self._become_owner()
        elif self.fold.term != self.term:
            self._renew()
        else:
            assert not self.flight, f"{self.partition}: {len(self.flight)} commits were answered and are not in the log"

    def _become_owner(self) -> None:
        self.phase = Phase.OWNING
        self.term, self.sequence, self.time = self.fold.term, self.fold.sequence, self.fold.time
        self.verified_at_ms = self.edge.now_ms()
        waiting, self.waiting = self.waiting, deque()
        for request in waiting:
            self.submit(request)

    def _renew(self) -> None:
        """Rule 4: what did not count is appended again: same sequence, same command, same reply, the new term."""
        self.term = self.fold.term
        unverified = [*self.flight, *self.staged]
        self.flight.clear()
        self.staged = deque(self._under_new_term(staged) for staged in unverified)
        sequences = [staged.commit.sequence for staged in self.staged]
        assert sequences == list(range(self.fold.sequence + 1, self.sequence + 1)), (
            f"{self.partition}: {sequences} after {self.fold.sequence}"
        )
        self.edge.wake()

    def _under_new_term(self, staged: Staged) -> Staged:
        key, value = staged.keyed
        commit = decode(value)
        assert isinstance(commit, Commit), f"not a commit: {commit!r}"
        return staged._replace(
            commit=staged.commit._replace(term=self.term), keyed=(key, encode(commit._replace(term=self.term)))
        )

    def stop(self) -> None:
        """Fenced, or told to go: nothing more is answered from here; whoever waits is sent to the owner."""
        self.phase = Phase.STOPPED
        away = self._away()
        for staged in (*self.flight, *self.staged):
            if staged.sink is not None:
                staged.sink.reply(staged.call, away)
        for read in (read for reads in self.reads.values() for read in reads):
            read[0].reply(read[1], away)
        queued = [request for active in self.entities.active.values() for request in active.queue]
        for request in (*self.waiting, *queued):
            request.sink.reply(request.call, away)
        self._clear()

    def _away(self) -> bytes:
        """The answer to those who have to ask elsewhere: where, if that is known of whoever has fenced this owner."""
        route, seen = self.edge.route(), self.fold.assignment
        if route is not None and route.assignment >= seen and route.assignment > self.assignment:
            return outcomes.moved(*route)
        return outcomes.moved(None, seen)

    def _clear(self) -> None:
        for waiting in (self.flight, self.staged, self.waiting):
            waiting.clear()
        for held in (self.reads, self.outcomes, self.resume, self.capturing):
            held.clear()
        self.reading = 0
        self.entities = Entities(self.kind, self.edge.on_quarantine)
        self.edge.wake()


_RECORD_OVERHEAD: Final = 64
"""Room for a record's key and Kafka's own fields when a batch is cut."""


def _check_applied(entity: Entity, emitted: list[bytes]) -> None:
    """An event that `apply` refused must not get into the log, even if the handler went on: no replay could apply it."""
    if emitted and entity._emitted is None:  # pyright: ignore[reportPrivateUsage]
        raise RuntimeError("`apply` raised on an event that was emitted, and the handler went on")
