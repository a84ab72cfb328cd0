"""The edge of one shard's owner: takes the shard over, then appends its batches, one at a time, until it is fenced.

    claim -> what a follower has here, else the newest whole snapshot -> replay to the own claim -> serve
    an append fails   -> doubt: claim again, read to the claim, go on (rule 4)
    a gap             -> read it, go on (rule 3)
    refused for good  -> discard the state, take over again (design, section 5), `TAKEOVERS_MAX` times
    trimmed meanwhile -> the same: what is missing is in a snapshot

It gives up, and says why, when it is fenced, when the log is damaged, truncated or newer than this build, and when the
log stays away for `LOG_AWAY_MAX_S`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rekindle.actors.entities import Captured
from rekindle.actors.entity import EntityType
from rekindle.actors.replay import (
    LOG_AWAY_MAX_S,
    NO_FLOOR,
    RETRY_FIRST_S,
    RETRY_MAX_S,
    Floor,
    Replay,
    load_snapshot,
)
from rekindle.actors.requests import Edge, Request, Witness
from rekindle.actors.routes import Route
from rekindle.actors.shard import BARRIER_INTERVAL_S, Phase, Shard
from rekindle.events import (
    AppendRefused,
    AppendUnknown,
    Entry,
    EventLog,
    Fold,
    InternalError,
    Keyed,
    LogError,
    LogTruncated,
    LogUnavailable,
    Partition,
    RekindleError,
    SnapshotError,
    SnapshotStore,
    pack,
)
from rekindle.events.snapshots import KEPT, pack_blob, save

if TYPE_CHECKING:
    from rekindle.actors.follower import Follower

TAKEOVERS_MAX: Final = 3
"""How often an owner starts again after the log refused an append, before it gives the shard up."""

SNAPSHOT_EVERY: Final = 4_000
"""Commits between two snapshots of a shard, while its state is small."""

SNAPSHOT_BYTES_PER_COMMIT: Final = 256
"""A large state is written less often: at most about this many bytes of snapshots for each commit."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The controller's word that an instance is to own a shard.

    suspect: an instance died during this shard's replay, so this one says what it does before it does it.
    poison: commands (session, number) that two instances died of.
    """

    shard: int
    number: int
    floor: Floor = NO_FLOOR
    suspect: bool = False
    poison: tuple[tuple[bytes, int], ...] = ()


class Took(NamedTuple):
    """Milliseconds of a takeover since the assignment came: until the claim was in the log, until the shard was replayed."""

    claimed_ms: int = 0
    replayed_ms: int = 0


@dataclass(slots=True)
class Surroundings:
    """What an owner needs of the process it lives in; simulated ones are deterministic.

    offload: runs a function off the loop. say: a line for the operator. retention: delete records that two snapshots
    make superfluous. route: who owns a shard, as far as it is known here.
    """

    log: EventLog
    snapshots: SnapshotStore | None
    now_ms: Callable[[], int]
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    offload: Callable[[Callable[[], bytes]], Awaitable[bytes]]
    witness: Witness
    say: Callable[[str], None]
    snapshot_every: int = SNAPSHOT_EVERY
    retention: bool = False
    route: Callable[[int], Route | None] = lambda shard: None
    counters: dict[str, int] = field(default_factory=dict[str, int])

    def count(self, what: str, more: int = 1) -> None:
        """One more, or several, of something that an operator may want to know."""
        self.counters[what] = self.counters.get(what, 0) + more


class Owner:
    """Owns one shard from its assignment until it is fenced or gives up.

    follower: whoever has followed the shard here until now.
    """

    def __init__(
        self,
        partition: Partition,
        kind: EntityType,
        assignment: Assignment,
        incarnation: str,
        around: Surroundings,
        follower: Follower | None = None,
    ) -> None:
        self.partition = partition
        self.kind = kind
        self.assignment = assignment
        self.incarnation = incarnation
        self.around = around
        self.reason: str | None = None
        self.error: RekindleError | None = None
        self.took = Took()
        self._assigned_at = asyncio.get_running_loop().time()
        self._work = asyncio.Event()
        self._barrier_at = 0.0
        self._blob_size = 0
        self._saving = False
        self._follower = follower
        self._replay = Replay(partition, around.log, self, self._on_strangers, assignment.floor)
        self.shard = self._new_shard()

    def _new_shard(self) -> Shard:
        self._saving = False
        around = self.around
        edge = Edge(
            around.now_ms,
            self._work.set,
            around.spawn,
            around.witness,
            self._on_snapshot,
            self._on_quarantine,
            lambda: around.route(self.assignment.shard),
        )
        shard = Shard(self.partition, self.kind, self.assignment.number, self.incarnation, edge)
        shard.poison.update(self.assignment.poison)
        return shard

    def submit(self, request: Request) -> None:
        """A call for this shard."""
        self.shard.submit(request)

    @property
    def position(self) -> Floor:
        """The highest verified position, for the next owner's floor."""
        fold = self.shard.fold
        return Floor(fold.term, fold.offset, fold.sequence)

    async def run(self, on_serving: Callable[[Owner], None]) -> None:
        """Own the shard until that ends; `reason` then says why, `error` what it was unless it was fenced."""
        try:
            for _ in range(TAKEOVERS_MAX):
                try:
                    await self._own(on_serving)
                    self.reason = (
                        self.reason
                        or f"fenced by assignment {self.shard.fold.assignment} of {self.shard.fold.incarnation}"
                    )
                    return
                except AppendRefused as error:
                    self.around.count("append_refused")
                    self._start_again("the log refused an append", error)
                except LogTruncated as error:
                    if not (self.around.retention and await self._replay.is_trimmed()):
                        raise
                    self._start_again("the log was trimmed meanwhile", error)
            raise LogUnavailable(
                f"{self.partition}: {TAKEOVERS_MAX} takeovers came to nothing, see what was said before"
            )
        except RekindleError as error:
            self._give_up(error)
        except Exception as error:  # noqa: BLE001 - our bug, or the log's: a shard that nobody serves must be heard of
            self._give_up(InternalError(f"{self.partition} after offset {self.shard.fold.offset}: {error!r}"))
        finally:
            self.shard.stop()
            if self._follower is not None:
                self._follower.end()

    def _give_up(self, error: RekindleError) -> None:
        self.error = error
        self.reason = f"{type(error).__name__}: {error}"
        self.around.say(f"{self.partition}: gave up: {self.reason}")

    def _start_again(self, what: str, error: LogError) -> None:
        """What was run is not in the log, and nothing of it was answered: forget it, and read what is true."""
        self.around.say(f"{self.partition}: {what}, state discarded: {error}")
        self.shard.stop()
        self.shard = self._new_shard()

    def stop(self, reason: str) -> None:
        """Give the shard up; whoever waits is sent elsewhere."""
        self.reason = reason
        self.shard.stop()

    # --- takeover ----------------------------------------------------------------------------------------------

    async def _own(self, on_serving: Callable[[Owner], None]) -> None:
        shard = self.shard
        if self._follower is not None and self.assignment.suspect:
            self._follower.end()  # an instance died of what is read here: from now on it is read by name (`feed`)
        claimed = await self._claim(shard)
        claimed_ms = self._elapsed_ms()
        if not await self._inherit(shard, claimed):
            await self._load_snapshot(shard)
        await self._replay_to(shard, claimed)
        if shard.phase is Phase.STOPPED:
            return
        self._replay.check_floor()
        shard.settle()
        self.took = Took(claimed_ms, self._elapsed_ms())
        if shard.phase is Phase.OWNING:
            on_serving(self)
            await self._serve(shard)

    def _elapsed_ms(self) -> int:
        return round((asyncio.get_running_loop().time() - self._assigned_at) * 1000)

    async def _claim(self, shard: Shard) -> int:
        """Append a claim until the log says where it is; a claim too many does no harm."""
        while True:
            base = await self._patiently(lambda: self._try_claim(shard))
            if base is not None:
                return base

    async def _try_claim(self, shard: Shard) -> int:
        try:
            base = await self.around.log.append(self.partition, [shard.claim()])
        except AppendUnknown as error:
            raise LogUnavailable(str(error)) from error
        if base < 0:
            raise LogUnavailable(f"{self.partition}: a claim was answered without its offset")
        return base

    async def _patiently(self, attempt: Callable[[], Coroutine[Any, Any, int]]) -> int | None:
        """Try again while the log is away, up to `LOG_AWAY_MAX_S`; None if the shard was stopped meanwhile."""
        loop = asyncio.get_running_loop()
        until, pause = loop.time() + LOG_AWAY_MAX_S, RETRY_FIRST_S
        while True:
            try:
                return await attempt()
            except LogUnavailable:
                self.around.count("log_unavailable")
                if loop.time() > until:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_MAX_S)

    async def _inherit(self, shard: Shard, claimed: int) -> bool:
        """Go on with what a follower of the shard has in memory here, own claim included; whether there is such a one."""
        follower, self._follower = self._follower, None
        replica = await follower.hand_over(0 if self.assignment.suspect else claimed + 1) if follower else None
        if replica is None:
            return False
        shard.fold, shard.entities, shard.since_snapshot = replica.fold, replica.entities, replica.since_snapshot
        shard.entities.on_quarantine = self._on_quarantine
        self._blob_size = shard.entities.bytes
        self.around.count("inherited")
        return True

    async def _load_snapshot(self, shard: Shard) -> None:
        if self.around.snapshots is None:
            return
        loaded = await load_snapshot(self.around.snapshots, self.partition, self.kind, self.around.say)
        if loaded is not None:
            shard.fold, captured, self._blob_size, self._replay.mark = loaded
            shard.entities.restore(captured)
        elif (start := (await self.around.log.bounds(self.partition)).start) > 0:
            # Retention has deleted what a full replay would need. The store may only be away: try again later.
            raise LogUnavailable(f"{self.partition}: no snapshot can be read, and the log begins at offset {start}")

    async def _replay_to(self, shard: Shard, claimed: int) -> None:
        """Read up to and with the own claim."""
        if self._replay.mark is not None and shard.fold.offset > claimed:
            claimed = await self._newest(shard)
        await self._read(shard, claimed + 1)

    async def _newest(self, shard: Shard) -> int:
        """The snapshot is newer than the own claim: either others went on from there, or the log was cut below it."""
        last = (await self.around.log.bounds(self.partition)).end - 1
        if last < shard.fold.offset - 1:
            raise LogTruncated(str(self.partition), shard.fold.offset - 1, last)
        return last

    async def _read(self, shard: Shard, end: int) -> None:
        """Feed everything below offset `end` to the shard; while the log is away, wait for it and go on."""
        while self._replay.offset < end and shard.phase is not Phase.STOPPED:
            await self._patiently(lambda: self._read_on(shard, end))

    async def _read_on(self, shard: Shard, end: int) -> int:
        """Read from where the shard is."""
        loop = asyncio.get_running_loop()
        async with self._replay.reader() as reader:
            until = loop.time() + LOG_AWAY_MAX_S
            while self._replay.offset < end and shard.phase is not Phase.STOPPED:
                if await self._replay.next(reader, end):
                    until = loop.time() + LOG_AWAY_MAX_S
                elif loop.time() > until:
                    where = f"offset {shard.fold.offset} is in the log and cannot be read"
                    raise LogUnavailable(f"{self.partition}: {where}")
        return shard.fold.offset

    @property
    def fold(self) -> Fold:
        """What the rules know of the shard."""
        return self.shard.fold

    def feed(self, entries: Iterable[Entry]) -> None:
        """Feed the shard. If an instance died in its replay, it is said before it is done."""
        if not self.assignment.suspect:
            self.shard.feed(entries)
            return
        witness, shard = self.around.witness, self.assignment.shard
        witness.began(b"", shard, f"replay of {self.partition} from offset {self.fold.offset}")
        self.shard.feed(entries)
        witness.ended(b"", shard)

    def _on_strangers(self, count: int, where: str) -> None:
        self.around.count("strangers", count)
        self.around.say(f"{self.partition}: {count} records {where} are not ours, they count for nothing")

    # --- serving -----------------------------------------------------------------------------------------------

    async def _serve(self, shard: Shard) -> None:
        while shard.phase is Phase.OWNING:
            await self._work.wait()
            self._work.clear()
            while shard.phase is Phase.OWNING and (shard.staged or shard.reads):
                await self._wait_for_barrier(shard)
                await self._flush(shard)
                if shard.since_snapshot >= max(
                    self.around.snapshot_every, self._blob_size // SNAPSHOT_BYTES_PER_COMMIT
                ):
                    self._take_snapshot(shard)

    async def _wait_for_barrier(self, shard: Shard) -> None:
        """Reads that find no commit to ride on share a barrier: the first goes at once, then one in each interval."""
        if not shard.wants_barrier:
            return
        loop = asyncio.get_running_loop()
        if (early := self._barrier_at - loop.time()) > 0:
            self._work.clear()
            try:
                async with asyncio.timeout(early):
                    while shard.wants_barrier and shard.phase is Phase.OWNING:
                        await self._work.wait()
                        self._work.clear()
            except TimeoutError:
                pass
        self._barrier_at = loop.time() + BARRIER_INTERVAL_S

    async def _flush(self, shard: Shard) -> None:
        if shard.phase is not Phase.OWNING or not (shard.staged or shard.reads):
            return
        batch = shard.take_batch()
        try:
            base = await self._append(batch)
        except AppendUnknown as error:
            self.around.count("doubt")
            self.around.say(
                f"{self.partition}: outcome of an append of {len(batch)} records is unknown, claiming again: {error}"
            )
            base = -1
        if shard.phase is not Phase.OWNING or (base >= 0 and shard.appended(base)) or self._gives_way():
            return
        if base < 0:
            await self._resolve_doubt(shard)
        else:
            self.around.count("gap")
            await self._read(shard, base + len(batch))
            shard.settle()

    def _gives_way(self) -> bool:
        """Somebody else may have written, and the controller has named a newer owner: that will have been it. To look first
        would keep those who wait here from going there; and a shard may be given up at any time."""
        route = self.around.route(self.assignment.shard)
        if route is None or route.assignment <= self.assignment.number:
            return False
        self.stop(f"fenced by assignment {route.assignment}, which is at {route.address}")
        return True

    async def _append(self, batch: list[Keyed]) -> int:
        try:
            return await self.around.log.append(self.partition, batch)
        except LogUnavailable:
            base = await self._patiently(lambda: self.around.log.append(self.partition, batch))
            return -1 if base is None else base

    async def _resolve_doubt(self, shard: Shard) -> None:
        claimed = await self._claim(shard)
        await self._read(shard, claimed + 1)
        shard.settle()

    # --- snapshots ---------------------------------------------------------------------------------------------

    def _take_snapshot(self, shard: Shard) -> None:
        if self.around.snapshots is None or self._saving:
            return
        self._saving = True
        shard.snapshot(
            f"{self.partition.topic}/{self.partition.index:04d}/{shard.sequence + 1:020d}-{self.incarnation}"
        )

    def _on_snapshot(self, captured: Captured, fold: list[Any], sequence: int) -> None:
        self.around.spawn(self._save(captured, fold, sequence))

    async def _save(self, captured: Captured, fold: list[Any], sequence: int) -> None:
        store, offset = self.around.snapshots, int(fold[0]) - 1
        assert store is not None, "a snapshot was taken without a store"
        name = f"{self.partition.topic}/{self.partition.index:04d}/{sequence:020d}-{self.incarnation}"
        try:
            blob = await self.around.offload(lambda: blob_of(captured, fold, self.kind))
            self._blob_size = len(blob)
            await save(store, self.partition, offset, sequence, name, blob)
            if self.around.retention:
                await self._trim(store)
            self.around.count("snapshot_saved")
        except (SnapshotError, LogError) as error:
            self.around.count("snapshot_failed")
            self.around.say(
                f"{self.partition}: snapshot at sequence {sequence} failed, the log is whole without it: {error}"
            )
        finally:
            self._saving = False

    async def _trim(self, store: SnapshotStore) -> None:
        """Delete what neither of the two newest snapshots needs: never by a clock, never without a second snapshot."""
        pointers = await store.pointers(self.partition)
        if len(pointers) >= KEPT:
            await self.around.log.trim(self.partition, pointers[KEPT - 1].offset)
            self.around.count("trimmed")

    def _on_quarantine(self, reason: str) -> None:
        self.around.count("quarantined")
        self.around.say(f"{self.partition}: quarantined {reason}")


def blob_of(captured: Captured, fold: list[Any], kind: EntityType) -> bytes:
    """A snapshot's bytes."""
    return pack_blob(
        {
            "kind": pack(kind.fingerprint),
            "fold": pack(fold),
            "entities": pack(captured.entities),
            "quarantined": pack(captured.quarantined),
        }
    )
