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
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from enum import Enum
from typing import Any, Final, NamedTuple, Protocol

from rekindle.actors import outcomes
from rekindle.actors.entities import Active, Captured, Entities
from rekindle.actors.entity import Entity, EntityType, HandlerType, Rejected
from rekindle.actors.errors import BadRequest, CallError, CommandFailed, EntityQuarantined, ShardRefused, Stale
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
    Unencodable,
    Verdict,
    decode,
    encode,
    pack,
)
from rekindle.events.records import BARRIER, COMMAND, MARK, NO_SESSION, SNAPSHOTTED, VERSION, encode_claim, with_events

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


class Sink(Protocol):
    """Where a reply goes: a connection."""

    def reply(self, call: int, payload: bytes) -> None: ...


class Request(NamedTuple):
    """One call as it came.

    number: 0 for a query. suspect: sent before to an instance that died with it.
    staleness_ms: None, or the greatest age that the caller of a local query accepts.
    """

    sink: Sink
    call: int
    session: bytes
    number: int
    low: int
    key: str
    handler: HandlerType
    args: list[Any]
    kwargs: dict[str, Any]
    suspect: bool
    staleness_ms: int | None


class Staged(NamedTuple):
    """A commit that was executed and is not verified, and who waits for it."""

    commit: Commit
    keyed: Keyed
    sink: Sink | None
    call: int


class Phase(Enum):
    """REPLAYING: reading up to the first claim. OWNING: it runs requests. STOPPED: fenced or given up, for good."""

    REPLAYING = "replaying"
    OWNING = "owning"
    STOPPED = "stopped"


class Witness(Protocol):
    """Who is told what runs, so that it can be named if the process dies of it."""

    executing: Request | None

    def began(self, session: bytes, number: int, text: str) -> None:
        """Something begins that may kill the process: a command that was in flight at an instance that died, or the
        replay of a shard (no session, the shard's number) during which one died."""
        ...

    def ended(self, session: bytes, number: int) -> None:
        """It did not kill this one."""
        ...


class Edge(NamedTuple):
    """What the shard asks of its surroundings; all of it is free of I/O for the caller."""

    now_ms: Callable[[], int]
    wake: Callable[[], None]
    spawn: Callable[[Coroutine[Any, Any, None]], None]
    witness: Witness
    on_snapshot: Callable[[Captured, list[Any], int], None]
    on_quarantine: Callable[[str], None]


class Shard:
    """The owner of one shard."""

    def __init__(self, partition: Partition, kind: EntityType, assignment: int, incarnation: str, edge: Edge, record_bytes_max: int = RECORD_BYTES_MAX) -> None:
        self.partition = partition
        self.kind = kind
        self.assignment = assignment
        self.incarnation = incarnation
        self.edge = edge
        self.record_bytes_max = record_bytes_max
        self.phase = Phase.REPLAYING
        self.fold = Fold()
        self.entities = Entities(kind)
        self.term = -1
        self.sequence = 0
        self.time = 0
        self.verified_at_ms = 0
        self.staged: deque[Staged] = deque()
        self.flight: deque[Staged] = deque()
        self.outcomes: dict[tuple[bytes, int], bytes] = {}
        self.reads: dict[int, list[tuple[Sink, int, bytes]]] = {}
        self.waiting: deque[Request] = deque()
        self.queued = 0
        self.resume: dict[int, list[Active]] = {}
        self.poison: set[tuple[bytes, int]] = set()
        self.capturing: dict[int, Captured] = {}
        self.since_snapshot = 0

    # --- requests ----------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Take a request: run it, let it wait, or answer that it cannot be taken."""
        if self.phase is Phase.OWNING:
            if len(self.staged) + len(self.flight) < UNVERIFIED_MAX:
                self._run(request)
            else:
                request.sink.reply(request.call, outcomes.busy(len(self.staged) + len(self.flight), UNVERIFIED_MAX))
        elif self.phase is Phase.STOPPED:
            request.sink.reply(request.call, outcomes.moved(None, self.fold.assignment))
        elif len(self.waiting) < WAITING_MAX:
            self.waiting.append(request)
        else:
            request.sink.reply(request.call, outcomes.busy(len(self.waiting), WAITING_MAX))

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
        try:
            if key in entities.quarantined:
                raise EntityQuarantined(f"quarantined: {entities.quarantined[key].reason}")
            if entities.bytes > STATE_BYTES_MAX and key not in entities.idle:
                raise ShardRefused(f"shard {self.partition} holds {entities.bytes} bytes of state, {STATE_BYTES_MAX} are allowed; {key!r} would be new")
            return entities.activate(key)
        except Undecodable as error:
            reason = entities.quarantine_idle(key, error)
            self.edge.on_quarantine(reason)
            request.sink.reply(request.call, outcomes.refused(EntityQuarantined(f"quarantined: {reason}")))
        except CallError as error:
            request.sink.reply(request.call, outcomes.refused(error))
        return None

    def _execute(self, request: Request, active: Active) -> None:
        """Run a plain handler to its end and stage what came of it."""
        if request.suspect and not self._may_run(request, active):
            return
        handler, entity, witness = request.handler, active.entity, self.edge.witness
        emitted = self._begin(entity, handler)
        witness.executing = request
        try:
            args, kwargs = handler.arguments_of(request.args, request.kwargs)
            outcome = pack((outcomes.OK, handler.function(entity, *args, **kwargs)))
        except _RAISED as error:
            self._end_raised(request, active, emitted, error)
        else:
            self._end(request, active, emitted, outcome)
        finally:
            witness.executing = None
            entity._emitted = None  # pyright: ignore[reportPrivateUsage]
            if request.suspect:
                witness.ended(request.session, request.number)

    def _may_run(self, request: Request, active: Active) -> bool:
        """A command that was in flight when an instance died runs under its name, and not at all if two died of it."""
        if (request.session, request.number) in self.poison:
            self._commit(request, active, [], _poisoned(request))
            return False
        self.edge.witness.began(request.session, request.number, f"{request.handler.name} of {request.key!r}")
        return True

    def _begin(self, entity: Entity, handler: HandlerType) -> list[bytes]:
        emitted: list[bytes] = []
        entity._emitted = emitted if handler.is_command else None  # pyright: ignore[reportPrivateUsage]
        now = self.edge.now_ms()
        if now > self.time:
            self.time = now
        entity.now_ms = self.time
        return emitted

    def _end(self, request: Request, active: Active, emitted: list[bytes], outcome: bytes) -> None:
        if request.number:
            self._commit(request, active, emitted, outcome)
        else:
            self._answer_read(request, outcome)

    def _end_raised(self, request: Request, active: Active, emitted: list[bytes], error: Exception | SystemExit) -> None:
        """The handler raised: its events never were. A refusal is an outcome like any other."""
        if emitted:
            self.entities.undo(active)
        if isinstance(error, BadRequest):
            request.sink.reply(request.call, outcomes.refused(error))
            return
        self._end(request, active, [], _outcome_of(error))

    def _commit(self, request: Request, active: Active, emitted: list[bytes], outcome: bytes) -> None:
        entity = active.entity
        version = 0 if emitted and entity._gone else active.version + len(emitted)  # pyright: ignore[reportPrivateUsage]
        _, call, session, number, low, key, *_ = request
        sequence = self.sequence + 1
        fields = (COMMAND, self.term, sequence, self.time, session, number, low, key, version, outcome, None)
        value = with_events(pack((MARK, VERSION, *fields)), emitted)
        if len(value) > self.record_bytes_max:
            self._refuse_large(request, active, emitted, len(value))
            return
        self.sequence = active.last = sequence
        self.outcomes[session, number] = outcome
        commit = _new(Commit, (*fields, []))
        self.staged.append(_new(Staged, (commit, (key.encode(), value), request.sink, call)))
        if emitted:
            self.entities.executed(key, active, value, version)
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
        self.edge.wake()

    def _answer_local(self, request: Request, active: Active) -> None:
        age = self.edge.now_ms() - self.verified_at_ms
        if age > (request.staleness_ms or 0):
            request.sink.reply(request.call, outcomes.refused(Stale(f"{age} ms since the log confirmed this shard, {request.staleness_ms} ms allowed")))
            return
        try:
            args, kwargs = request.handler.arguments_of(request.args, request.kwargs)
            payload = pack((outcomes.OK, request.handler.function(active.entity, *args, **kwargs), age))
        except _RAISED as error:
            payload = _outcome_of(error)
        request.sink.reply(request.call, payload)

    # --- async handlers ----------------------------------------------------------------------------------------

    def _run_in_turn(self, request: Request, active: Active) -> None:
        """An async handler starts when all earlier commits of its entity are verified; what comes later waits."""
        if self.queued >= WAITING_MAX:
            request.sink.reply(request.call, outcomes.busy(self.queued, WAITING_MAX))
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
        if request.number and not self._is_new(request):
            return
        if request.handler.is_async:
            await self._execute_async(request, active)
        else:
            self._execute(request, active)

    async def _execute_async(self, request: Request, active: Active) -> None:
        if request.suspect and not self._may_run(request, active):
            return
        handler, entity = request.handler, active.entity
        emitted = self._begin(entity, handler)
        raised: Exception | SystemExit | None = None
        outcome = b""
        try:
            args, kwargs = handler.arguments_of(request.args, request.kwargs)
            async with asyncio.timeout(ASYNC_HANDLER_MAX_S):
                outcome = pack((outcomes.OK, await handler.function(entity, *args, **kwargs)))
        except _RAISED as error:
            raised = error
        entity._emitted = None  # pyright: ignore[reportPrivateUsage]
        if request.suspect:
            self.edge.witness.ended(request.session, request.number)
        if self.phase is Phase.STOPPED:
            return
        if raised is None:
            self._end(request, active, emitted, outcome)
        else:
            self._end_raised(request, active, emitted, raised)

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
        while self.staged and len(self.flight) < BATCH_RECORDS_MAX:
            size += len(self.staged[0].keyed[1] or b"") + _RECORD_OVERHEAD
            if self.flight and size > BATCH_BYTES_MAX:
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
            assert counted, f"{self.partition}: own commit {staged.commit.sequence} of term {staged.commit.term} is void at {offset}"
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
            for sink, call, payload in self.reads.pop(commit.sequence, ()):
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
                reason = replay(record, value)  # type: ignore[arg-type]
                if reason is not None:
                    self.edge.on_quarantine(reason)

    def _feed_own(self, record: Any) -> None:
        # A newer owner's commits are not ours, whatever their sequence; `settle` finds that we are fenced.
        if self.fold.owned_by(self.assignment, self.incarnation) and self.flight and self.flight[0].commit.sequence == record.sequence:
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
        assert sequences == list(range(self.fold.sequence + 1, self.sequence + 1)), f"{self.partition}: {sequences} after {self.fold.sequence}"
        self.edge.wake()

    def _under_new_term(self, staged: Staged) -> Staged:
        key, value = staged.keyed
        commit = decode(value)
        assert isinstance(commit, Commit), f"not a commit: {commit!r}"
        return staged._replace(commit=staged.commit._replace(term=self.term), keyed=(key, encode(commit._replace(term=self.term))))

    def stop(self) -> None:
        """Fenced, or told to go: nothing more is answered from here; whoever waits is sent to the owner."""
        self.phase = Phase.STOPPED
        away = outcomes.moved(None, self.fold.assignment)
        for staged in (*self.flight, *self.staged):
            if staged.sink is not None:
                staged.sink.reply(staged.call, away)
        for read in (read for reads in self.reads.values() for read in reads):
            read[0].reply(read[1], away)
        queued = [request for active in self.entities.active.values() for request in active.queue]
        for request in (*self.waiting, *queued):
            request.sink.reply(request.call, away)
        self._clear()

    def _clear(self) -> None:
        for waiting in (self.flight, self.staged, self.waiting):
            waiting.clear()
        for held in (self.reads, self.outcomes, self.resume, self.capturing):
            held.clear()
        self.entities = Entities(self.kind)
        self.edge.wake()


_new: Final = tuple.__new__
"""Named tuples without the detour through their Python constructors: one each for every command."""

_RECORD_OVERHEAD: Final = 64
"""Room for a record's key and Kafka's own fields when a batch is cut."""


_RAISED: Final = (Exception, SystemExit)
"""What a handler can raise without taking the process with it."""


def _outcome_of(error: Exception | SystemExit) -> bytes:
    try:
        return outcomes.rejected(error) if isinstance(error, Rejected) else outcomes.failed(error)
    except Unencodable as worse:
        return outcomes.failed(worse)


def _poisoned(request: Request) -> bytes:
    return outcomes.failed(CommandFailed(f"poison: two instances died while {request.handler.name} of {request.key!r} was running; it is not run again"))
