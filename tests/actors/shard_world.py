"""The world of `tests.model.claims` around the real code: `Shard`, `Fold`, the codec, snapshots, on one log in memory.

The owners here do what `rekindle.actors.owner` does, one append at a time, without its loop. Everything that happens to
them, the clients and what is asked of a run are the model's. Two things are new: owners take snapshots, which become
visible late or never and are what the next owner may begin with; and at the end everybody who reads the log, from its
start or from any snapshot, must see what `rekindle.chaos.reading` sees in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from zlib import crc32

from rekindle.actors import Entity, Phase, Rejected, Shard, command, outcomes, query
from rekindle.actors.entities import Captured, Entities
from rekindle.actors.owner import blob_of
from rekindle.actors.requests import Edge, Request
from rekindle.chaos import Reading, read
from rekindle.events import SESSION_TTL_MS, Event, Fold, Keyed, Partition, Stored, decode, session_name, unpack
from rekindle.events.snapshots import unpack_blob
from tests.model import claims, explore
from tests.model.claims import TTL, Kind, Name, Op, Reply

EPOCH_MS: Final = 1_700_000_000_000
STEP_MS: Final = SESSION_TTL_MS // TTL
PARTITION: Final = Partition("model", 0)


# --- what runs ---------------------------------------------------------------------------------------------------


class Added(Event):
    """One more. tag: whose it is."""

    tag: str


class Even(Rejected):
    """It was even: refused."""

    value: int


class Counter(Entity):
    """The model's counter. digest: of all tags in their order, so that two states are equal only if their pasts are."""

    value: int = 0
    digest: int = 0

    def apply(self, event: Added) -> None:
        self.value += 1
        self.digest = crc32(event.tag.encode(), self.digest)

    @command
    def inc(self, tag: str) -> int:
        """Counts."""
        self.emit(Added(tag=tag))
        return self.value

    @command
    def take(self, tag: str) -> int:
        """Counts if the value is odd."""
        value = self.value
        self.emit(Added(tag=tag))
        if value % 2 == 0:
            raise Even(value=value)
        return self.value

    @command
    def fail(self, tag: str) -> int:
        """Fails after it has counted."""
        self.emit(Added(tag=tag))
        raise ArithmeticError(self.value - 1)

    @query
    def read(self) -> int:
        """The value."""
        return self.value


KIND: Final = Counter.describe()


def name_of(session: Name) -> bytes:
    """The model's session as the code names it."""
    return session_name(EPOCH_MS + session.birth * STEP_MS, bytes([session.client, session.serial]))


def tag_of(session: bytes, number: int) -> str:
    """What a command writes into its event."""
    return f"{session.hex()}/{number}"


class Caller:
    """Where the answers to one operation go."""

    def __init__(self, owner: RealOwner, op: Op) -> None:
        self.owner, self.op = owner, op

    def reply(self, call: int, payload: bytes) -> None:
        """Translate an outcome into the model's words; who is sent elsewhere will ask again anyway."""
        world, op = self.owner.world, self.op
        match unpack(payload):
            case [outcomes.OK, value]:
                world.answer(op, Reply(Kind.OK, value))
            case [outcomes.REJECTED, _, {"value": value}]:
                world.answer(op, Reply(Kind.REFUSED, value))
            case [outcomes.FAILED, text]:
                world.answer(op, Reply(Kind.REFUSED, int(text.removeprefix("ArithmeticError: "))))
            case [outcomes.FORGOTTEN, _]:
                op.forgotten = min(op.forgotten, world.now)
                world.answer(op, Reply(Kind.FORGOTTEN, world.now + self.owner.skew))
            case [outcomes.MOVED | outcomes.BUSY, *_]:
                pass
            case other:
                raise AssertionError(f"an answer that nobody gives: {other}")


class RealOwner:
    """A real shard and the least that it needs around it: claims, appends, reads, one thing at a time."""

    executing: Request | None = None

    def __init__(self, world: ShardWorld, name: int, skew: int) -> None:
        self.world, self.name, self.skew = world, name, skew
        self.edge = Edge(self.now_ms, lambda: None, _no_task, self, self._on_snapshot, _no_quarantine)
        self.shard: Shard | None = None
        self.assignment = -1
        self.sent = 0
        self.records = 0
        self.waits_for: int | None = None
        self.must_claim = False

    def now_ms(self) -> int:
        """By its own clock."""
        return EPOCH_MS + (self.world.now + self.skew) * STEP_MS

    def on_assign(self, assignment: int) -> None:
        """A new shard, in place of the one before."""
        if assignment <= self.assignment:
            return
        if self.shard is not None:
            self.shard.stop()
        self.assignment = assignment
        self.shard = Shard(PARTITION, KIND, assignment, f"owner-{self.name}", self.edge)
        self.waits_for, self.must_claim = None, True

    def on_ask(self, op: Op, low: int) -> None:
        """A frame."""
        if self.shard is None:
            return
        session = b"" if op.session is None else name_of(op.session.name)
        args = [] if op.session is None else [tag_of(session, op.number)]
        caller = Caller(self, op)
        self.shard.submit(
            Request(caller, 0, session, op.number, low, op.key, KIND.handlers[op.kind], args, {}, False, None)
        )

    def act(self) -> None:
        """Claim, or append what is staged; now and then take a snapshot, or put entities to sleep."""
        shard = self.shard
        if shard is None or shard.phase is Phase.STOPPED or self.waits_for is not None:
            return
        if self.must_claim:
            self._append([shard.claim()])
        elif shard.staged or shard.reads:
            if self.world.random.random() < 0.1:
                shard.snapshot("a snapshot")
            self._append(shard.take_batch())
        shard.entities.sweep(self.world.random.randint(0, 2))

    def _append(self, records: list[Keyed]) -> None:
        self.sent += 1
        self.waits_for, self.records = self.sent, len(records)
        self.world.append(self, self.sent, records)

    def on_timeout(self, sent: int) -> None:
        """Rule 4."""
        if self.waits_for == sent:
            self.waits_for, self.must_claim = None, True

    def on_ack(self, sent: int, end: int) -> None:
        """Rule 3."""
        if self.waits_for != sent or self.shard is None:
            return
        self.waits_for = None
        if self.must_claim and self.shard.phase is Phase.REPLAYING:
            self._load_snapshot(self.shard)
        if self.must_claim or not self.shard.appended(end - self.records):
            self.shard.feed(self.world.entries(self.shard.fold.offset, end))
            self.shard.settle()
        self.must_claim = False

    # --- snapshots

    def _on_snapshot(self, captured: Captured, fold: list[Any], sequence: int) -> None:
        snapshot = Snapshot(fold[0], blob_of(captured, fold, KIND))
        if self.world.random.random() < 0.8:
            self.world.send(lambda: self.world.snapshots.append(snapshot))

    def _load_snapshot(self, shard: Shard) -> None:
        if self.world.snapshots and self.world.random.random() < 0.7:
            shard.fold, shard.entities = self.world.random.choice(self.world.snapshots[-2:]).load()

    def began(self, session: bytes, number: int, text: str) -> None:
        """Nothing is suspect here."""

    def ended(self, session: bytes, number: int) -> None:
        """Nothing is suspect here."""


def _no_task(work: object) -> None:
    raise AssertionError(f"no handler here is asynchronous, and yet there is {work}")


def _no_quarantine(reason: str) -> None:
    raise AssertionError(f"every event here can be applied, and yet: {reason}")


# --- the world ---------------------------------------------------------------------------------------------------


class Snapshot(NamedTuple):
    """A blob, and the offset at which reading goes on."""

    offset: int
    blob: bytes

    def load(self) -> tuple[Fold, Entities]:
        """What is in it."""
        segments = unpack_blob(self.blob)
        entities = Entities(KIND, _no_quarantine)
        entities.restore(Captured(unpack(segments["entities"]), unpack(segments["quarantined"])))
        return Fold.load(unpack(segments["fold"])), entities


class ShardWorld(claims.World):
    """The model's world with real owners."""

    COMMANDS = ("inc", "inc", "take", "take", "fail")
    KEYS = ("left", "right")

    def __init__(self, seed: int) -> None:
        self.snapshots: list[Snapshot] = []
        super().__init__(seed)

    def player(self, name: int, skew: int) -> claims.Player:
        """A real owner."""
        return RealOwner(self, name, skew)

    def entries(self, start: int, end: int) -> list[Stored]:
        """A piece of the log."""
        return [Stored(offset, *self.log[offset]) for offset in range(start, end)]


# --- the judge ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """An entity as a reader sees it."""

    version: int
    value: int
    digest: int


def judge(world: ShardWorld) -> str | None:
    """What is wrong with the run, if anything."""
    reading = read((offset, value) for offset, (_, value) in enumerate(world.log))
    return (
        _judge_commits(reading)
        or explore.verdict(world.ops, _counted(world, reading))
        or _judge_readers(world, _states(reading))
    )


def _judge_commits(reading: Reading) -> str | None:
    """Every command of a session has at most one outcome, and its event is its own."""
    seen = set[tuple[bytes, int]]()
    for commit in reading.commands:
        if (commit.session, commit.number) in seen:
            return f"two outcomes of {commit.session.hex()}/{commit.number}"
        seen.add((commit.session, commit.number))
        if commit.events not in ([], [["Added", 1, {"tag": tag_of(commit.session, commit.number)}]]):
            return f"events of another command: {commit}"
    return None


def _counted(world: ShardWorld, reading: Reading) -> explore.Counted:
    names = {name_of(op.session.name): op.session.name for op in world.ops if op.session}
    counted = explore.Counted()
    for commit in reading.commands:
        if commit.events:
            counted.setdefault((names[commit.session], commit.number), []).append(world.landed[commit.offset])
    return counted


def _states(reading: Reading) -> dict[str, State]:
    """What the entities are, from the events alone."""
    states: dict[str, State] = {}
    for commit in reading.commands:
        for _, _, fields in commit.events:
            before = states.get(commit.entity, State(0, 0, 0))
            digest = crc32(fields["tag"].encode(), before.digest)
            states[commit.entity] = State(before.version + 1, before.value + 1, digest)
    return states


def _judge_readers(world: ShardWorld, states: dict[str, State]) -> str | None:
    """Whoever reads the log, from its start or from any snapshot, sees the same."""
    whole = Fold()
    seen = _read_on(world, whole, Entities(KIND, _no_quarantine))
    if seen != states:
        return f"a full replay sees {seen}, the log says {states}"
    for snapshot in world.snapshots:
        fold, entities = snapshot.load()
        if fold.offset != snapshot.offset or _read_on(world, fold, entities) != states:
            return f"a replay from offset {snapshot.offset} sees other states than {states}"
        if fold.dump() != whole.dump():
            return f"a replay from offset {snapshot.offset} knows {fold.dump()}, a full one {whole.dump()}"
    return None


def _read_on(world: ShardWorld, fold: Fold, entities: Entities) -> dict[str, State]:
    for entry in world.entries(fold.offset, len(world.log)):
        record = decode(entry.value)
        if fold.feed(entry.offset, record) and record.events:  # type: ignore[union-attr]
            entities.replay(record, entry.value)  # type: ignore[arg-type]
    states = {key: unpack(data) for key, data in entities.capture().entities.items()}
    return {key: State(version, **state) for key, (version, state) in states.items()}
