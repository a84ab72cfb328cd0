"""The log as its own witness: which flight's events are in it, by the rules, without the entities."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from rekindle.events import Commit, EventLog, Fold, Partition, decode

READ_WAIT_S = 2.0


@dataclass
class Audit:
    """Every (flight, event) that counts, and how many records are void."""

    applied: list[tuple[str, str]]
    void: int


async def audit(log: EventLog, topic: str, shards: int) -> Audit:
    """Read every shard from its first record to its end."""
    found = Audit([], 0)
    for shard in range(shards):
        fold = Fold()
        async for commit in _commits(log, Partition(topic, shard), fold):
            found.applied += [(data["flight"], name) for name, _, data in commit.events]
        found.void += fold.void
    return found


async def _commits(log: EventLog, partition: Partition, fold: Fold) -> AsyncIterator[Commit]:
    bounds = await log.bounds(partition)
    if bounds.end == bounds.start:
        return
    async with log.reader(partition, bounds.start) as reader:
        while fold.offset < bounds.end:
            for entry in await reader.next(READ_WAIT_S):
                record = decode(entry.value)
                if fold.feed(entry.offset, record) and isinstance(record, Commit):
                    yield record
