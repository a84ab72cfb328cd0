"""The rules of a shard's log (design, section 4) as a random model check: one partition, three owners, three clients.

Goal: a rule is right here before it is code. `rekindle.events.rules` and `rekindle.actors.shard` are the same rules;
`tests/actors/test_shard_model.py` drives the code itself in a world like this one.

Method: the world delays, duplicates and drops appends, loses acknowledgements, delivers frames twice and late, pauses
owners, moves the shard at any time (also back, also twice with the same assignment), and lets clients retry anywhere,
fall silent and come back. Owners run ahead of the log: later commands see earlier ones that are not durable yet. No
clock is right: every owner and every client has its own, and they differ by more than the sessions' time to live.

The shard is one counter. `inc` counts and returns the new value, `read` returns the value, `take` counts where the
value is odd and is refused, with the value it saw, where it is even.

Judged from the clients' side alone: an acknowledged command counts exactly once, a refused one never, all answers to
one command are the same, what was given up as unknown is never run later, and the history of all answers is
linearizable (for a counter: whatever was answered before an operation began is not newer than what that operation sees).

`tests/model/explore.py` judges and runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush
from random import Random
from typing import Any, ClassVar, Final, NamedTuple, Protocol, Self

TTL: Final = 70
"""Log time for which a shard remembers a session without a commit. A step of the world takes 1."""

STEPS: Final = 500
DELAY: Final = 4
LATE: Final = 80
SKEW_MAX: Final = 3 * TTL

MUTANTS: Final = (
    "no contiguity",
    "no doubt",
    "read from memory",
    "Rejected without barrier",
    "stored reply early",
    "below the mark",
    "not my commit",
    "ride in flight",
    "refusal without a trace",
    "unknown session is new",
    "sessions forgotten by count",
    "forgotten session comes back",
    "born ahead of the log",
)
"""Each leaves out or twists one rule: the code that asks for it says which."""


class Name(NamedTuple):
    """A session's name: its birth by its client's clock, and what makes it unique."""

    birth: int
    client: int
    serial: int


class Kind(Enum):
    """What became of an operation. FORGOTTEN: it may have been run; it never will be."""

    OK = "ok"
    REFUSED = "refused"
    FORGOTTEN = "forgotten"


class Reply(NamedTuple):
    """An answer: what became of the operation, and the value that it made or saw (FORGOTTEN: the log's time)."""

    kind: Kind
    value: int


class Claim(NamedTuple):
    """An owner takes the shard."""

    assignment: int
    owner: int


class Commit(NamedTuple):
    """One command's outcome, refused ones too; a barrier if it has no session."""

    term: int
    sequence: int
    time: int
    session: Name | None
    number: int
    low: int
    reply: Reply


Record = Claim | Commit


# --- what a log means --------------------------------------------------------------------------------------------


class Verdict(Enum):
    """What is to be done with a command that has no stored reply."""

    RUN = "run"
    STALE = "stale"
    FORGOTTEN = "forgotten"


@dataclass
class Known:
    """What the shard knows of a session."""

    low: int
    seen: int
    replies: dict[int, Reply] = field(default_factory=dict[int, Reply])


class Fold:
    """Rules 1 and 2 and the sessions: what a prefix of the log means. Every reader computes this and nothing else."""

    def __init__(self, mutant: str | None = None) -> None:
        self.mutant = mutant
        self.offset = 0
        self.term = -1
        self.assignment = -1
        self.owner = -1
        self.sequence = 0
        self.time = 0
        self.value = 0
        self.sessions: dict[Name, Known] = {}

    def feed(self, record: Record) -> bool:
        """Take the next record; whether it is a commit that counts."""
        offset, self.offset = self.offset, self.offset + 1
        if isinstance(record, Claim):
            if record.assignment > self.assignment or record == (self.assignment, self.owner):
                self.term, self.assignment, self.owner = offset, record.assignment, record.owner
            return False
        if record.term != self.term or record.sequence != self.sequence + 1:
            return False
        self.sequence, self.time = record.sequence, record.time
        if record.session is not None:
            self.value += record.reply.kind is Kind.OK
            self._remember(record.session, record)
        return True

    def _remember(self, name: Name, commit: Commit) -> None:
        known = self.sessions.pop(name, None)
        if known is None:
            self._forget(commit.time)
            # It was forgotten after the owner judged it, and is not to be known again without what it had done.
            if name.birth + TTL < commit.time and self.mutant != "forgotten session comes back":
                return
            known = Known(commit.low, commit.time if self.mutant == "born ahead of the log" else name.birth)
        known.low, known.seen = max(known.low, commit.low), max(known.seen, commit.time)
        known.replies[commit.number] = commit.reply
        known.replies = {number: reply for number, reply in known.replies.items() if number >= known.low}
        self.sessions[name] = known

    def _forget(self, now: int) -> None:
        if self.mutant == "sessions forgotten by count":
            self.sessions = dict(list(self.sessions.items())[-2:])
        else:
            self.sessions = {name: known for name, known in self.sessions.items() if known.seen + TTL >= now}

    def judge(self, name: Name, number: int) -> Verdict | Reply:
        """What to do with a command."""
        known = self.sessions.get(name)
        if known is None:
            fresh = self.time <= name.birth + TTL or self.mutant == "unknown session is new"
            return Verdict.RUN if fresh else Verdict.FORGOTTEN
        if number < known.low and self.mutant != "below the mark":
            return Verdict.STALE
        return known.replies.get(number, Verdict.RUN)


# --- owners ------------------------------------------------------------------------------------------------------


class Phase(Enum):
    """IDLE: not its shard. REPLAYING: until its claim is read. OWNING: runs what comes."""

    IDLE = "idle"
    REPLAYING = "replaying"
    OWNING = "owning"


class Owner:
    """One owner; `world` carries its messages and tells the time."""

    def __init__(self, world: World, name: int, skew: int) -> None:
        self.world, self.name, self.skew = world, name, skew
        self.assignment = -1
        self.sent = 0
        self.reset(Phase.IDLE)

    def reset(self, phase: Phase) -> None:
        """Forget everything but the assignment."""
        self.phase = phase
        self.fold = Fold(self.world.mutant)  # verified
        self.value = self.sequence = self.time = 0  # executed
        self.must_claim = phase is Phase.REPLAYING
        self.waits_for: int | None = None  # the append in flight
        self.flight: list[Commit] = []
        self.staged: list[Commit] = []
        self.waiting: dict[int, list[tuple[Op, Reply]]] = {}  # sequence -> answers to give when it counts
        self.queue: list[tuple[Op, int]] = []

    def on_assign(self, assignment: int) -> None:
        """Take the shard over."""
        if assignment > self.assignment:
            self.assignment = assignment
            self.reset(Phase.REPLAYING)

    def act(self) -> None:
        """Send what is to be sent; at most one append is in flight."""
        if self.waits_for is not None or self.phase is Phase.IDLE:
            return
        if self.must_claim:
            self._append([Claim(self.assignment, self.name)])
        elif self.staged or self.waiting:
            if not self.staged:
                self._stage(None, 0, 0, Reply(Kind.OK, 0))
            count = self.world.random.randint(1, len(self.staged))
            self.flight, self.staged = self.staged[:count], self.staged[count:]
            self._append(self.flight)

    def _append(self, records: list[Claim] | list[Commit]) -> None:
        self.sent += 1
        self.waits_for = self.sent
        self.world.append(self, self.sent, tuple(records))

    # --- requests

    def on_ask(self, op: Op, low: int) -> None:
        """Take a frame."""
        if self.phase is Phase.REPLAYING:
            self.queue.append((op, low))
        elif self.phase is Phase.OWNING:
            if op.session is None:
                self._answer_read(op, Reply(Kind.OK, self.value), early="read from memory")
            else:
                self._command(op, op.session, low)

    def _command(self, op: Op, session: Session, low: int) -> None:
        known = self._unverified(session.name, op.number) or self.fold.judge(session.name, op.number)
        if isinstance(known, Reply):
            self._answer_read(op, known, early="stored reply early")
        elif known is Verdict.FORGOTTEN:
            op.forgotten = min(op.forgotten, self.world.now)
            self.world.answer(op, Reply(Kind.FORGOTTEN, self.fold.time))
        elif known is Verdict.RUN:
            self._run(op, session, low)

    def _unverified(self, name: Name, number: int) -> Reply | None:
        commits = (c for c in (*self.flight, *self.staged) if (c.session, c.number) == (name, number))
        return next((commit.reply for commit in commits), None)

    def _run(self, op: Op, session: Session, low: int) -> None:
        refused = op.kind == "take" and self.value % 2 == 0
        reply = Reply(Kind.REFUSED, self.value) if refused else Reply(Kind.OK, self.value + 1)
        if refused and self.world.mutant in ("refusal without a trace", "Rejected without barrier"):
            self._answer_read(op, reply, early="Rejected without barrier")
            return
        self.value += not refused
        self._stage(session.name, op.number, low, reply)
        self._wait(self.sequence, op, reply)

    def _stage(self, name: Name | None, number: int, low: int, reply: Reply) -> None:
        self.sequence += 1
        self.time = max(self.time, self.world.now + self.skew)
        self.staged.append(Commit(self.fold.term, self.sequence, self.time, name, number, low, reply))

    def _answer_read(self, op: Op, reply: Reply, early: str) -> None:
        """Ride on an append that is sent from now on, and not before anything that was seen."""
        if self.world.mutant == early:
            self.world.answer(op, reply)
        elif self.world.mutant == "ride in flight" and self.flight and op.session is None:
            self._wait(self.flight[-1].sequence, op, reply)
        else:
            self._wait(self.sequence + (not self.staged), op, reply)

    def _wait(self, sequence: int, op: Op, reply: Reply) -> None:
        self.waiting.setdefault(sequence, []).append((op, reply))

    # --- the log's answers

    def on_timeout(self, sent: int) -> None:
        """Rule 4: an append whose outcome is unknown is followed by a claim."""
        if self.waits_for != sent:
            return
        self.waits_for = None
        if self.world.mutant == "no doubt" and self.flight:
            self.flight, self.staged = [], []
            self.sequence, self.value = self.fold.sequence, self.fold.value
        else:
            self.must_claim = True

    def on_ack(self, sent: int, end: int) -> None:
        """Rule 3: contiguous means that there is no gap to read; a gap is folded like any log."""
        if self.waits_for != sent:
            return
        self.waits_for = None
        if self.world.mutant == "no contiguity" and self.flight:
            for commit in self.flight:
                self._verified(commit.sequence)
            self.flight = []
            return
        for record in self.world.log[self.fold.offset : end]:
            if self.fold.feed(record) and (self._in_force or self.world.mutant == "not my commit"):
                self._verified(self.fold.sequence)
        self._settle()

    @property
    def _in_force(self) -> bool:
        return (self.fold.owner, self.fold.assignment) == (self.name, self.assignment)

    def _verified(self, sequence: int) -> None:
        self.flight = [commit for commit in self.flight if commit.sequence != sequence]
        for op, reply in self.waiting.pop(sequence, ()):
            self.world.answer(op, reply)

    def _settle(self) -> None:
        """After reading: fenced, now the owner, or owner under a new term."""
        self.must_claim = False
        if not self._in_force:
            self.reset(Phase.IDLE)
        elif self.phase is Phase.REPLAYING:
            self.phase = Phase.OWNING
            self.value, self.sequence, self.time = self.fold.value, self.fold.sequence, self.fold.time
            queue, self.queue = self.queue, []
            for op, low in queue:
                self.on_ask(op, low)
        else:
            self._renew()

    def _renew(self) -> None:
        """Rule 4: what did not count is appended again: same sequence, command and reply, under the term in force."""
        self.staged = [commit._replace(term=self.fold.term) for commit in (*self.flight, *self.staged)]
        self.flight = []
        if self.world.mutant is None:
            expected = list(range(self.fold.sequence + 1, self.sequence + 1))
            assert [commit.sequence for commit in self.staged] == expected, f"{self.staged} after {self.fold.sequence}"


# --- clients -----------------------------------------------------------------------------------------------------


@dataclass
class Session:
    """A client's side of a session."""

    name: Name
    used: int
    next: int = 1
    pending: dict[int, Op] = field(default_factory=dict[int, "Op"])

    @property
    def low(self) -> int:
        """The lowest number still waited for."""
        return min(self.pending, default=self.next)


@dataclass
class Op:
    """One operation and what its client heard. forgotten: when an owner first said that it will never be run."""

    kind: str
    key: str
    began: int
    session: Session | None = None
    number: int = 0
    answers: list[Reply] = field(default_factory=list[Reply])
    ended: int | None = None
    forgotten: float = float("inf")


class Client:
    """Numbers its commands, and replaces a session that it has not used for half of the TTL or that is forgotten."""

    def __init__(self, name: int, skew: int) -> None:
        self.name, self.skew = name, skew
        self.sessions: list[Session] = []
        self.awake = True

    def pending(self) -> list[Op]:
        """Everything that it still waits for."""
        return [op for session in self.sessions for op in session.pending.values()]

    def command(self, kind: str, key: str, now: int) -> Op:
        """A new command."""
        session = self._session(now)
        session.used = now
        op = Op(kind, key, now, session, session.next)
        session.pending[op.number] = op
        session.next += 1
        return op

    def _session(self, now: int) -> Session:
        if not self.sessions or now - self.sessions[-1].used > TTL // 2:
            self.sessions.append(Session(Name(now + self.skew, self.name, len(self.sessions)), now))
        return self.sessions[-1]

    def hear(self, op: Op, reply: Reply, now: int) -> None:
        """Take an answer; from then on the command is not waited for. A forgotten session teaches the log's time."""
        op.answers.append(reply)
        op.ended = now if op.ended is None else op.ended
        if op.session is None:
            return
        op.session.pending.pop(op.number, None)
        if reply.kind is Kind.FORGOTTEN:
            self.skew = max(self.skew, reply.value - now)
            op.session.used = -TTL


# --- the world ---------------------------------------------------------------------------------------------------


class Player(Protocol):
    """An owner as the world deals with it."""

    def on_assign(self, assignment: int) -> None:
        """The shard is to be its own from now on."""
        ...

    def on_ask(self, op: Op, low: int) -> None:
        """A frame has come."""
        ...

    def on_ack(self, sent: int, end: int) -> None:
        """An append is in the log; its last record is the one before `end`."""
        ...

    def on_timeout(self, sent: int) -> None:
        """Nobody knows what became of an append."""
        ...

    def act(self) -> None:
        """It may send something."""
        ...


class World:
    """One run: everything that happens is drawn from one seed. `player` makes the owners."""

    COMMANDS: ClassVar[tuple[str, ...]] = ("inc", "take")
    KEYS: ClassVar[tuple[str, ...]] = ("the counter",)

    def __init__(self, seed: int, mutant: str | None = None) -> None:
        self.random, self.mutant, self.now = Random(seed), mutant, 0
        self.log: list[Any] = []
        self.landed: list[int] = []
        self.net: list[tuple[int, int, Callable[[], None]]] = []
        self.sent = 0
        self.ops: list[Op] = []
        skew = self.random.choice([0, SKEW_MAX])
        self.owners = [self.player(name, self.random.randint(-skew, skew)) for name in range(3)]
        self.clients = [Client(name, self.random.randint(-skew, skew)) for name in range(3)]
        self.current, self.assignment = self.owners[0], 0
        self.move()

    def player(self, name: int, skew: int) -> Player:
        """One of the owners."""
        return Owner(self, name, skew)

    def run(self, steps: int = STEPS) -> Self:
        """Let it happen."""
        for _ in range(steps):
            self.step()
        return self

    def step(self) -> None:
        """One thing happens; owners that can send may do so."""
        self.now += 1
        choice = self.random.random()
        if choice < 0.025:
            self.move()
        elif choice < 0.035:
            self.doze()
        elif choice < 0.40:
            self.ask()
        while self.net and self.net[0][0] <= self.now:
            heappop(self.net)[2]()
        for owner in self.owners:
            if self.random.random() < 0.5:
                owner.act()

    def send(self, message: Callable[[], None]) -> None:
        """Something is on its way; most of it for a moment, some for so long that everything has changed meanwhile."""
        self.sent += 1
        delay = self.random.randint(1, DELAY if self.random.random() < 0.9 else LATE)
        heappush(self.net, (self.now + delay, self.sent, message))

    def move(self) -> None:
        """The shard is assigned, perhaps to its owner, perhaps twice with one number."""
        self.assignment += self.random.random() < 0.9
        owner, assignment = self.current, self.assignment = self.random.choice(self.owners), self.assignment
        self.send(lambda: owner.on_assign(assignment))

    def doze(self) -> None:
        """Clients fall silent, others come back."""
        for client in self.clients:
            client.awake = self.random.random() < 0.7

    def ask(self) -> None:
        """A client asks something new, or the same again, perhaps somewhere else, perhaps twice; or gives up."""
        client = self.random.choice(self.clients)
        if not client.awake:
            return
        pending = client.pending()
        if not pending or self.random.random() < 0.5:
            op = self._new_op(client)
        else:
            op = self.random.choice(pending)
            if op.session is not None and self.random.random() < 0.05:
                del op.session.pending[op.number]
                return
        self._send(op)

    def _new_op(self, client: Client) -> Op:
        key = self.random.choice(self.KEYS)
        if self.random.random() < 0.2:
            op = Op("read", key, self.now)
        else:
            op = client.command(self.random.choice(self.COMMANDS), key, self.now)
        self.ops.append(op)
        return op

    def _send(self, op: Op) -> None:
        low = 0 if op.session is None else op.session.low
        target = self.current if self.random.random() < 0.8 else self.random.choice(self.owners)
        copies = 2 if self.random.random() < 0.15 else 1
        for _ in range(copies):
            self.send(lambda: target.on_ask(op, low))

    def answer(self, op: Op, reply: Reply) -> None:
        """An answer is on its way."""
        client = self.clients[0 if op.session is None else op.session.name.client]
        self.send(lambda: client.hear(op, reply, self.now))

    def append(self, owner: Player, sent: int, records: Sequence[Any]) -> None:
        """A batch is on its way: once, twice or never."""
        copies = self.random.choices([1, 2, 0], [8, 1, 1])[0]
        for _ in range(copies):
            self.send(lambda: self._land(owner, sent, records))
        if copies == 0 or self.random.random() < 0.1:
            self.send(lambda: owner.on_timeout(sent))

    def _land(self, owner: Player, sent: int, records: Sequence[Any]) -> None:
        self.log += records
        self.landed += [self.now] * len(records)
        end, known = len(self.log), self.random.random() < 0.9
        self.send(lambda: owner.on_ack(sent, end) if known else owner.on_timeout(sent))
