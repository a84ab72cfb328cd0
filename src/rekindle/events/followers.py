"""Readers that have reached the end of their partition and wait for the next record.

Invariant: whoever changes a partition wakes its followers *after* the change; a follower says that it waits *before* it
looks, and looks again whenever it is woken. So no change is missed, and nobody polls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from rekindle.events.log import Partition

Found = TypeVar("Found")


class Followers:
    """Who waits for which partition of one log, in one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[Partition, list[asyncio.Future[None]]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def wake(self, partition: Partition) -> None:
        """The partition has changed: everyone who waits for it looks again."""
        for future in self._waiting.pop(partition, ()):
            if not future.done():
                future.set_result(None)

    def wake_all(self) -> None:
        """Anything may have changed: everyone looks again."""
        for partition in list(self._waiting):
            self.wake(partition)

    async def find(
        self, partition: Partition, wait_s: float, look: Callable[[], Awaitable[Sequence[Found]]]
    ) -> Sequence[Found]:
        """What `look` finds, now or after a change of the partition; empty if that is still nothing after `wait_s`."""
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            changed = self._expect(partition)
            try:
                found = await look()
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


async def _comes(changed: asyncio.Future[None], deadline: float) -> bool:
    """Whether the change comes before the deadline."""
    try:
        async with asyncio.timeout_at(deadline):
            await changed
    except TimeoutError:
        return False
    return True
