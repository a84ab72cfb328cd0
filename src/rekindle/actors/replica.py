"""Reading a shard without owning it: the same rules, the same replay, no claim."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from rekindle.actors.entities import Entities
from rekindle.actors.entity import Entity
from rekindle.actors.instance import Hosted
from rekindle.actors.owner import LOG_AWAY_MAX_S, READ_WAIT_S, Mark, load_snapshot, past_mark
from rekindle.events import Entry, EventLog, Fold, LogUnavailable, SnapshotStore, Undecodable, decode, unpack

_SLICE: Final = 500


class Replica:
    """A shard's state at some offset of its log."""

    def __init__(
        self, hosted: Hosted, shard: int, log: EventLog, snapshots: SnapshotStore | None, say: Callable[[str], None]
    ) -> None:
        self.hosted = hosted
        self.partition = hosted.partition(shard)
        self.log = log
        self.snapshots = snapshots
        self.say = say
        self.fold = Fold()
        self._mark: Mark | None = None
        self.entities = Entities(hosted.kind, lambda reason: say(f"{self.partition}: quarantined {reason}"))

    async def load(self, at_most: int | None = None) -> None:
        """Start from the newest snapshot at or below an offset, if there is one."""
        if self.snapshots is None:
            return
        loaded = await load_snapshot(self.snapshots, self.partition, self.hosted.kind, self.say, at_most)
        if loaded is not None:
            self.fold, captured, _, self._mark = loaded
            self.entities.restore(captured)

    async def read(self, end: int | None = None) -> None:
        """Read everything below offset `end`; None: below the end of the log as it is now."""
        end = (await self.log.bounds(self.partition)).end if end is None else end
        if self.fold.offset >= end and self._mark is None:
            return
        start = self.fold.offset if self._mark is None else self._mark.offset
        async with self.log.reader(self.partition, start) as reader:
            until = asyncio.get_running_loop().time() + LOG_AWAY_MAX_S
            while self.fold.offset < end or self._mark is not None:
                entries = await reader.next(READ_WAIT_S)
                if entries and self._mark is not None:
                    entries, self._mark = past_mark(self.partition, self._mark, entries), None
                self._feed(entries, end)
                if not entries and asyncio.get_running_loop().time() > until:
                    raise LogUnavailable(
                        f"{self.partition}: offset {self.fold.offset} is in the log and cannot be read"
                    )

    def _feed(self, entries: Sequence[Entry], end: int) -> None:
        for entry in entries:
            if entry.offset >= end:
                return
            record = decode(entry.value)
            if self.fold.feed(entry.offset, record) and record.events:  # type: ignore[union-attr]
                self.entities.replay(record, entry.value)  # type: ignore[arg-type]

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
