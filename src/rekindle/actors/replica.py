"""Reading a shard without owning it: the same rules, the same replay, no claim."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from rekindle.actors.entities import Entities
from rekindle.actors.entity import Entity
from rekindle.actors.host import Hosted
from rekindle.actors.replay import LOG_AWAY_MAX_S, NO_FLOOR, Floor, Replay, check_claim_was_read, load_snapshot
from rekindle.events import (
    Entry,
    EventLog,
    Fold,
    LogUnavailable,
    SnapshotStore,
    Undecodable,
    decode,
    unpack,
)
from rekindle.events.records import SNAPSHOTTED


class Replica:
    """A shard's state at some offset of its log. since_snapshot: commits since the last snapshot that it has met."""

    def __init__(
        self,
        hosted: Hosted,
        shard: int,
        log: EventLog,
        snapshots: SnapshotStore | None,
        say: Callable[[str], None],
        floor: Floor = NO_FLOOR,
    ) -> None:
        self.hosted = hosted
        self.partition = hosted.partition(shard)
        self.log = log
        self.snapshots = snapshots
        self.say = say
        self.fold = Fold()
        self.entities = Entities(hosted.kind, lambda reason: say(f"{self.partition}: quarantined {reason}"))
        self.since_snapshot = 0
        self.replay = Replay(self.partition, log, self, self._on_strangers, floor)

    async def load(self, at_most: int | None = None) -> None:
        """Start from the newest snapshot at or below an offset, if there is one."""
        if self.snapshots is None:
            return
        loaded = await load_snapshot(self.snapshots, self.partition, self.hosted.kind, self.say, at_most)
        if loaded is not None:
            self.fold, captured, _, self.replay.mark = loaded
            self.entities.restore(captured)

    async def read(self, end: int | None = None) -> None:
        """Read everything below offset `end`; None: below the end of the log as it is now. Raises `LogError`."""
        end = (await self.log.bounds(self.partition)).end if end is None else end
        if self.fold.offset >= end and self.replay.mark is None:
            return
        async with self.replay.reader() as reader:
            until = asyncio.get_running_loop().time() + LOG_AWAY_MAX_S
            while self.fold.offset < end or self.replay.mark is not None:
                if not await self.replay.next(reader, end) and asyncio.get_running_loop().time() > until:
                    raise LogUnavailable(
                        f"{self.partition}: offset {self.fold.offset} is in the log and cannot be read"
                    )

    def feed(self, entries: Iterable[Entry]) -> None:
        """Replay what counts. Raises `LogTruncated`: see `check_claim_was_read`."""
        counts, replay = self.fold.feed, self.entities.replay
        for entry in entries:
            value = entry.value
            record = decode(value)
            if counts(entry.offset, record):
                self.since_snapshot = 0 if record.kind == SNAPSHOTTED else self.since_snapshot + 1  # type: ignore[union-attr]
                if record.events:  # type: ignore[union-attr]
                    replay(record, value)  # type: ignore[arg-type]
            else:
                check_claim_was_read(self.partition, self.fold, record)

    def _on_strangers(self, count: int, where: str) -> None:
        self.say(f"{self.partition}: {count} records {where} are not ours, they count for nothing")

    def entity(self, key: str) -> Entity | None:
        """The entity as it is; None if nobody has written to it. Raises `Undecodable`."""
        if self.state(key) is None:
            return None
        active = self.entities.active.get(key) or self.entities.activate(key)
        return active.entity

    def state(self, key: str) -> tuple[int, dict[str, object]] | None:
        """An entity's version (its events so far) and state; None if it is as new. Raises `Undecodable` if quarantined."""
        bad = self.entities.quarantined.get(key)
        if bad is not None:
            raise Undecodable(
                f"{key!r} is quarantined: {bad.reason}; {len(bad.events)} events since its last good state"
            )
        active = self.entities.active.get(key)
        if active is not None:
            return active.version, dict(vars(active.entity))
        data = self.entities.idle.get(key)
        if data is None:
            return None
        version, state = unpack(data)
        return version, state
