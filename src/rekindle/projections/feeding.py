"""All shards of a projection, read ahead of the database: bounded, in order per shard, whatever the log does.

Invariants:
- No more than `AHEAD_EVENTS_MAX` events wait for the database, give or take what one read of each shard brings.
- A shard that is read again, for whatever reason, goes on where it was, and only if the log still has the record before.
- While the log is away a feed waits. What makes its position worthless ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from rekindle.actors.replay import LOG_AWAY_MAX_S, RETRY_FIRST_S, RETRY_MAX_S, Replay
from rekindle.events import EventLog, LogTruncated, LogUnavailable
from rekindle.projections.errors import PositionNotConfirmed
from rekindle.projections.reading import Fact, Reading, Share, confirm

AHEAD_EVENTS_MAX: Final = 8_000
"""Events that are read and not yet handled: a few batches."""

CATCHING_UP_MAX: Final = 4
"""Shards that are read from the log's past at the same time: each of them has its own connection and buffers."""


class Feed:
    """What a projector takes its batches from. filled: there is something to take. away: why the log cannot be read, if so."""

    def __init__(self, projection: str, log: EventLog, readings: Sequence[Reading], say: Callable[[str], None]) -> None:
        self.projection = projection
        self.log = log
        self.readings = readings
        self.filled = asyncio.Event()
        self.away = ""
        self._say = say
        self._by_place = {(reading.service, reading.shard): reading for reading in readings}
        self._behind = dict.fromkeys(readings)
        self._moved: dict[Reading, None] = {}
        self._room = asyncio.Event()
        self._room.set()
        self._read = asyncio.Condition()
        self._turns = asyncio.Semaphore(CATCHING_UP_MAX)

    @property
    def caught_up(self) -> bool:
        """Whether every shard has been at its end, and everything that was read is taken."""
        return not self._behind and not self._waiting

    @property
    def _waiting(self) -> int:
        return sum(reading.waiting for reading in self._moved)

    async def run(self) -> None:
        """Follow all shards, until cancelled.

        Raises `PositionNotConfirmed`, `HistoryGone`, `LogDamaged`, `NewerRecord`, `TopicMissing`, `TopicContractBroken`.
        """
        async with asyncio.TaskGroup() as group:
            for reading in self.readings:
                group.create_task(self._follow(reading))

    async def _follow(self, reading: Reading) -> None:
        loop, pause = asyncio.get_running_loop(), RETRY_FIRST_S
        replay = Replay(reading.partition, self.log, reading, self._on_strangers)
        while True:
            began = loop.time()
            try:
                await self._catch_up(reading, replay)
                await self._stay(reading, replay)
            except LogUnavailable as error:
                if not self.away:
                    self._say(f"projection {self.projection!r} waits for the log: {error}")
                self.away = f"{type(error).__name__}: {error}"
            except LogTruncated as error:
                where, offset = str(reading.partition), reading.fold.offset
                raise PositionNotConfirmed(self.projection, where, offset, error.found, str(error)) from error
            if loop.time() - began > RETRY_MAX_S:  # it went well for a while
                pause = RETRY_FIRST_S
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_MAX_S)

    async def _catch_up(self, reading: Reading, replay: Replay) -> None:
        """Read to the end as it is now."""
        async with self._turns:
            bounds = await confirm(self.projection, self.log, reading.partition, reading.position)
            reading.end = max(reading.end, bounds.end)
            if reading.fold.offset < bounds.end:
                until = asyncio.get_running_loop().time() + LOG_AWAY_MAX_S
                async with replay.reader() as reader:
                    while reading.fold.offset < bounds.end:
                        await self._room.wait()
                        if await replay.next(reader, bounds.end):
                            await self._take_note(reading)
                            until = asyncio.get_running_loop().time() + LOG_AWAY_MAX_S
                        elif asyncio.get_running_loop().time() > until:
                            raise LogUnavailable(f"{reading.partition}: offset {reading.fold.offset} cannot be read")
        self._behind.pop(reading, None)
        self.away = ""
        self.filled.set()

    async def _stay(self, reading: Reading, replay: Replay) -> None:
        async with self.log.follow(reading.partition, replay.offset) as reader:
            while True:
                await self._room.wait()
                if await replay.next(reader):
                    await self._take_note(reading)

    async def _take_note(self, reading: Reading) -> None:
        """Something was read."""
        self._moved[reading] = None
        self._look_at_room()
        if reading.facts:
            self.filled.set()
        async with self._read:
            self._read.notify_all()

    def _look_at_room(self) -> None:
        if self._waiting < AHEAD_EVENTS_MAX:
            self._room.set()
        else:
            self._room.clear()

    def _on_strangers(self, count: int, where: str) -> None:
        self._say(f"projection {self.projection!r}: {count} records {where} are not ours, they count for nothing")

    # --- for the projector ---

    def take(self, events: int) -> list[Share]:
        """About so many events, in turn from the shards that have some; and where shards without any stand now."""
        shares: list[Share] = []
        for reading in list(self._moved):
            if events <= 0:
                break
            del self._moved[reading]
            share = reading.take(events)
            events -= sum(len(fact.commit.events) for fact in share.facts)
            if share.after != share.before:
                shares.append(share)
            if reading.facts:
                self._moved[reading] = None  # behind the others
        self._note_taken()
        return shares

    def take_all(self) -> list[Share]:
        """Everything that was read."""
        shares = [reading.take(reading.waiting) for reading in self._moved]
        self._moved.clear()
        self._note_taken()
        return [share for share in shares if share.after != share.before]

    def give_back(self, shares: Sequence[Share], done: Sequence[Share]) -> None:
        """What was taken and not done goes in front again."""
        for share, part in zip(shares, done, strict=True):
            if part.after != share.after:
                reading = self._by_place[share.hosted.name, share.shard]
                rest: list[Fact] = share.facts[len(part.facts) :]
                reading.put_back(rest, part.after)
                self._moved = {reading: None, **self._moved}
        self._note_taken()

    def _note_taken(self) -> None:
        self._look_at_room()
        if any(reading.facts for reading in self._moved):
            self.filled.set()
        else:
            self.filled.clear()

    def standing_still(self) -> list[Share]:
        """A share that moves nothing: it only finds out whether somebody else did."""
        return [Share(r.hosted, r.shard, r.taken, [], r.taken) for r in self.readings[:1]]

    def lag(self, now_ms: int) -> tuple[int, float]:
        """Offset slots that are not taken yet, and the age of the oldest of them in seconds."""
        slots, oldest = 0, now_ms
        for reading in self._lagging():
            slots += reading.end - reading.taken.offset
            oldest = min(oldest, reading.facts[0].commit.time if reading.facts else reading.taken.time or now_ms)
        return slots, max(0, now_ms - oldest) / 1000

    def _lagging(self) -> Iterable[Reading]:
        candidates = self.readings if self._behind else list(self._moved)
        return [reading for reading in candidates if reading.end > reading.taken.offset]

    async def read_to(self, goal: Mapping[tuple[str, int], int]) -> None:
        """Until every shard is read up to these offsets."""

        def is_there() -> bool:
            return all(r.fold.offset >= goal.get((r.service, r.shard), 0) for r in self.readings)

        async with self._read:
            await self._read.wait_for(is_there)
