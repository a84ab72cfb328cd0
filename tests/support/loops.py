"""Running a coroutine inside of a plain test: on a real loop with a deadline, or on virtual time.

On virtual time nothing waits: when there is nothing left to do the clock jumps to the next timer. A test of an hour takes
a millisecond, and the same program does the same things in the same order.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

DEADLINE_S: Final = 60.0
"""No test waits longer for anything."""

_POLL_S: Final = 0.005


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on a new real loop."""

    async def bounded() -> T:
        async with asyncio.timeout(DEADLINE_S):
            return await main

    return asyncio.run(bounded())


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run on a new loop with virtual time."""
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(main)


async def pass_time(seconds: float) -> None:
    """Let virtual time pass."""
    assert isinstance(asyncio.get_running_loop(), _VirtualLoop), "a test that waits on a real loop"
    await asyncio.sleep(seconds)


async def eventually(condition: Callable[[], object]) -> None:
    """Let the loop run until the condition holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110  (nobody tells us: we have to ask)
            await asyncio.sleep(_POLL_S)


class _JumpingSelector(selectors.SelectSelector):
    """Never waits for a timer, but says how far it jumped instead."""

    def __init__(self) -> None:
        super().__init__()
        self.jumped_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        assert ready or timeout is not None, "everything waits for something that cannot happen any more"
        if not ready and timeout:
            self.jumped_s += timeout
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time is the sum of all waits that did not happen."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.jumped_s
