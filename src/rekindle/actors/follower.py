"""Standbys: the shards that an instance follows without owning them, so that it can own one of them at once.

    newest whole snapshot -> the end of the log: caught up -> whatever comes, until told otherwise
    assigned here         -> the owner claims, the follower reads that claim, the owner goes on with its state

Invariants:
- An instance follows what it is told to and does not own. A shard that it loses is followed again, from the log.
- A follower decides nothing: the owner that takes its state over has claimed first, and reads to its own claim, whoever
  has read the rest. State is handed over, not copied; then the follower is gone.
- While the log is away a follower waits. What makes its state worthless (another log, a newer record) ends it, and is said.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Container, Mapping
from typing import Any, Final

from rekindle.actors.entities import Entities
from rekindle.actors.frames import FOLLOWED, UNFOLLOWED, frame
from rekindle.actors.host import Hosted
from rekindle.actors.owner import Surroundings
from rekindle.actors.replay import RETRY_FIRST_S, RETRY_MAX_S, Floor
from rekindle.actors.replica import Replica
from rekindle.events import InternalError, LogTruncated, LogUnavailable, RekindleError

CATCHING_UP_MAX: Final = 2
"""How many followers of an instance replay at the same time: the rest of it serves."""

HAND_OVER_MAX_S: Final = 0.25
"""How long a new owner waits for its follower to have read its claim; then it reads the rest by itself."""


class Follower:
    """Follows one shard.

    caught_up: it has been at the end of its log, and has followed it since, however far that has got on meanwhile.
    """

    def __init__(
        self,
        hosted: Hosted,
        shard: int,
        floor: Floor,
        around: Surroundings,
        turns: asyncio.Semaphore,
        on_caught_up: Callable[[Follower], None],
    ) -> None:
        self.hosted = hosted
        self.shard = shard
        self.floor = floor
        self.around = around
        self.caught_up = False
        self.replica = self._new_replica()
        self._loaded = False
        self._turns = turns
        self._on_caught_up = on_caught_up
        self._wanted: int | None = None
        self._reached = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def _new_replica(self) -> Replica:
        around = self.around

        def say(line: str) -> None:
            around.say(f"follower of {line}")

        return Replica(self.hosted, self.shard, around.log, around.snapshots, say, self.floor)

    @property
    def position(self) -> Floor:
        """How far it has read."""
        fold = self.replica.fold
        return Floor(fold.term, fold.offset, fold.sequence)

    def begin(self, on_end: Callable[[Follower, RekindleError], None]) -> None:
        """Start to follow. on_end: is told what has ended it, unless that was `end`."""
        self._task = self.around.spawn(self._run(on_end))

    def end(self) -> None:
        """Follow no more; nothing changes its state from here on."""
        if self._task is not None:
            self._task.cancel()

    async def hand_over(self, end: int) -> Replica | None:
        """End; the state, with everything below offset `end` read if that comes soon. None: it is of no use."""
        if self.caught_up:
            await self.wait_for(end)
        self.end()
        return self.replica if self.caught_up else None

    async def wait_for(self, end: int) -> bool:
        """Whether everything below offset `end` is read, now or within `HAND_OVER_MAX_S`."""
        self._wanted = end
        self._reached.clear()
        self._look()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HAND_OVER_MAX_S):
                await self._reached.wait()
        return self.replica.fold.offset >= end

    def _look(self) -> None:
        if self._wanted is not None and self.replica.fold.offset >= self._wanted:
            self._reached.set()

    async def _run(self, on_end: Callable[[Follower, RekindleError], None]) -> None:
        try:
            await self._follow()
        except RekindleError as error:
            self._give_up(error, on_end)
        except Exception as error:  # noqa: BLE001 - our bug, or the log's: that there is no standby must be heard of
            self._give_up(InternalError(f"{self.replica.partition} after {self.position}: {error!r}"), on_end)

    def _give_up(self, error: RekindleError, on_end: Callable[[Follower, RekindleError], None]) -> None:
        self.caught_up = False
        self._reached.set()
        on_end(self, error)

    async def _follow(self) -> None:
        loop, pause = asyncio.get_running_loop(), RETRY_FIRST_S
        while True:
            began = loop.time()
            try:
                await self._catch_up()
                await self._stay()
            except LogUnavailable:
                self.around.count("log_unavailable")
            except LogTruncated:
                if not (self.hosted.retention and await self.replica.replay.is_trimmed()):
                    raise
                self.caught_up = self._loaded = False
                self.replica = self._new_replica()
            if loop.time() - began > RETRY_MAX_S:  # it went well for a while
                pause = RETRY_FIRST_S
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_MAX_S)

    async def _catch_up(self) -> None:
        """Read to the end as it is now."""
        async with self._turns:
            if not self._loaded:
                await self.replica.load()
                self._loaded = True
            await self.replica.read()
        self.replica.replay.check_floor()
        self._look()
        if not self.caught_up:
            self.caught_up = True
            self._on_caught_up(self)

    async def _stay(self) -> None:
        replay = self.replica.replay
        async with self.around.log.follow(replay.partition, replay.offset) as reader:
            while True:
                await replay.next(reader)
                self._look()


class Following:
    """The followers of an instance. report: sends a frame to its controllers."""

    def __init__(self, hosted: Hosted, around: Surroundings, report: Callable[[bytes], None]) -> None:
        self.hosted = hosted
        self.around = around
        self.report = report
        self.told: dict[int, Floor] = {}
        self.followers: dict[int, Follower] = {}
        self._turns = asyncio.Semaphore(CATCHING_UP_MAX)

    def follow(self, told: Mapping[int, Floor], owned: Container[int]) -> None:
        """The complete list: what is new in it begins, what is not in it ends. What is owned waits for its owner's end."""
        self.told = dict(told)
        for shard in [shard for shard in self.followers if shard not in told]:
            self.followers.pop(shard).end()
        for shard in told:
            if shard not in owned:
                self.resume(shard)

    def resume(self, shard: int) -> None:
        """Follow a shard that is not owned (any more), if that is wanted."""
        if shard in self.told and shard not in self.followers:
            floor = self.told[shard]
            follower = Follower(self.hosted, shard, floor, self.around, self._turns, self._on_caught_up)
            self.followers[shard] = follower
            follower.begin(self._on_end)

    def take(self, shard: int) -> Follower | None:
        """The follower of a shard that is to be owned; whoever takes it ends it."""
        return self.followers.pop(shard, None)

    def tell_positions(self) -> None:
        """Report how far each of them is."""
        if self.followers:
            self.report(_followed(*self.followers.values()))

    def entities(self) -> list[Entities]:
        """All that they hold."""
        return [follower.replica.entities for follower in self.followers.values()]

    def _on_caught_up(self, follower: Follower) -> None:
        self.report(_followed(follower))

    def _on_end(self, follower: Follower, error: RekindleError) -> None:
        if self.followers.get(follower.shard) is follower:
            del self.followers[follower.shard]
        reason = f"{type(error).__name__}: {error}"
        self.around.say(f"{follower.replica.partition} is not followed any more: {reason}")
        self.report(frame(UNFOLLOWED, follower.shard, reason, type(error).__name__))


def _followed(*followers: Follower) -> bytes:
    positions: list[Any] = [[follower.shard, follower.position, follower.caught_up] for follower in followers]
    return frame(FOLLOWED, positions)
