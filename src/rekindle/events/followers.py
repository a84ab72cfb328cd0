"""Readers that have reached the end of their partition and wait for the next record.

Invariant: whoever changes a partition wakes its followers *after* the change; a follower says that it waits *before* it
looks, and looks again whenever it is woken. So no change is missed, and nobody polls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from rekindle.events.log import Partition, Stored

Look = Callable[[Partition, int], Awaitable[Sequence[Stored]]]
"""What is in the partition at an offset and behind it; nothing at the end, `LogTruncated` outside of the log."""


class Followers:
    """Who waits for which partition of one log, in one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[Partition, list[asyncio.Future[None]]] = {}

    def waited_for(self) -> list[Partition]:
        """The partitions that somebody waits for."""
        return list(self._waiting)

    def wake(self, partition: Partition) -> None:
        """The partition has changed: everyone who waits for it looks again."""
        for future in self._waiting.pop(partition, ()):
            if not future.done():
                future.set_result(None)

    def wake_all(self) -> None:
        """Anything may have changed: everyone looks again."""
        for partition in self.waited_for():
            self.wake(partition)

    async def find(self, partition: Partition, offset: int, wait_s: float, look: Look) -> Sequence[Stored]:
        """What `look` finds, now or after a change of the partition; empty if that is still nothing after `wait_s`."""
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            changed = self._expect(partition)
            try:
                found = await look(partition, offset)
                if found or not await _comes(changed, deadline):
                    return found
            finally:
                self._forget(partition, changed)

    def _expect(self, partition: Partition) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(partition, []).append(future)
        return future

    def _forget(self, partition: Partition, future: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(partition)
        if waiting and future in waiting:
            waiting.remove(future)
            if not waiting:
                del self._waiting[partition]


class FollowingReader:
    """A `Reader` that waits among the followers of its log."""

    def __init__(self, followers: Followers, partition: Partition, offset: int, look: Look) -> None:
        self._followers = followers
        self._partition = partition
        self._offset = offset
        self._look = look

    async def next(self, wait_s: float) -> Sequence[Stored]:
        """See `Reader`."""
        entries = await self._followers.find(self._partition, self._offset, wait_s, self._look)
        if entries:
            self._offset = entries[-1].offset + 1
        return entries


async def _comes(changed: asyncio.Future[None], deadline: float) -> bool:
    """Whether the change comes before the deadline."""
    try:
        async with asyncio.timeout_at(deadline):
            await changed
    except TimeoutError:
        return False
    return True
