"""Waiting for a condition without polling: whatever it depends on says when it has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Watch:
    """Something that changes within one event loop, and those who wait for it to be as they want it."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def changed(self) -> None:
        """Let those go on whose condition holds now."""
        for holds, reached in self._waiting:
            if not reached.done() and holds():
                reached.set_result(None)

    async def until(self, what: str, holds: Callable[[], bool], within_s: float) -> None:
        """Until the condition holds; an AssertionError if it does not within that time."""
        if holds():
            return
        waiter = (holds, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(within_s):
                await waiter[1]
        except TimeoutError:
            raise AssertionError(f"expected within {within_s} s that {what}") from None
        finally:
            self._waiting.remove(waiter)
