"""The open load under which things are killed: so many commands a second, evenly, whatever becomes of them.

Every shard is asked in turn, at the same distance in time, by callers that do not wait for each other. So what a shard
does is seen as often as it is asked: a gap in its answers is known to within one such distance.

Invariants:
- A command is sent when its time has come, also while earlier ones are unanswered. A loop that was late makes up for it.
- What was sent and when its answer came is kept for the whole run: 16 bytes a command.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import cycle, pairwise

from bench.load import DRAIN_S
from bench.stock import Stock
from rekindle import CallError, Client
from rekindle.events import shard_of

COMMANDS_PER_S = 2_000
TICK_S = 0.002
KEYS_PER_SHARD = 100
CALL_MAX_S = 60.0
"""The callers' deadline: longer than any outage that is measured."""


def clock_ms() -> float:
    """The wall clock that records in the log are stamped with, in milliseconds with their fractions."""
    return time.time_ns() / 1e6


def keys_of(shards: int, each: int = KEYS_PER_SHARD) -> list[list[str]]:
    """Some keys of every shard."""
    keys: list[list[str]] = [[] for _ in range(shards)]
    missing, number = shards, 0
    while missing:
        key, number = f"sku-{number}", number + 1
        its = keys[shard_of(key, shards)]
        if len(its) < each:
            its.append(key)
            missing -= len(its) == each
    return keys


class Pressure:
    """`COMMANDS_PER_S` on all shards of a service in turn, and what came of them. failed: commands without an outcome."""

    def __init__(self, client: Client, keys: Sequence[Sequence[str]]) -> None:
        self.client = client
        self.failed: Counter[str] = Counter()
        self.sent = [array("d") for _ in keys]
        self.answered = [array("d") for _ in keys]
        self._open = 0
        shards = cycle(range(len(keys)))
        calls = [cycle([client.get(Stock, key, timeout=CALL_MAX_S) for key in its]) for its in keys]
        self._next: Iterator[tuple[int, Stock]] = ((shard, next(calls[shard])) for shard in shards)

    @asynccontextmanager
    async def going(self) -> AsyncGenerator[None]:
        """Commands are sent during the block; behind it the last answers are waited for."""
        sending = asyncio.get_running_loop().create_task(self._send_on())
        try:
            yield
            assert not sending.done(), f"the load has ended by itself: {sending}"
        finally:
            sending.cancel()
            await asyncio.wait([sending])
            await until(lambda: f"{self._open} commands are unanswered" if self._open else None, DRAIN_S)

    async def _send_on(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due += TICK_S
            await asyncio.sleep(max(0.0, due - loop.time()))
            for _ in range(round(COMMANDS_PER_S * TICK_S)):
                self._send(*next(self._next))

    def _send(self, shard: int, stock: Stock) -> None:
        self._open += 1
        answer = asyncio.ensure_future(stock.reserve("load", 1))
        answer.add_done_callback(partial(self._on_answer, shard, clock_ms()))

    def _on_answer(self, shard: int, sent_ms: float, answer: asyncio.Future[int]) -> None:
        self._open -= 1
        if answer.cancelled():
            return
        error = answer.exception()
        if isinstance(error, CallError):
            self.failed[f"{type(error).__name__}: {error}"] += 1
        elif error is not None:
            raise error
        else:
            self.sent[shard].append(sent_ms)
            self.answered[shard].append(clock_ms())

    def latencies_ms(self, shards: Iterable[int], begin_ms: float, end_ms: float) -> list[float]:
        """Of the commands to these shards that were sent within this time, of those that are answered by now."""
        found: list[float] = []
        for shard in shards:
            sent, answered = self.sent[shard], self.answered[shard]
            first = bisect_left(answered, begin_ms)  # an answer comes behind its command
            found += [a - s for s, a in zip(sent[first:], answered[first:], strict=True) if begin_ms <= s < end_ms]
        return found

    def gap_ms(self, shard: int, begin_ms: float, end_ms: float) -> float:
        """The longest time without an answer of a shard, of those that touch this time."""
        answered = self.answered[shard]
        first, last = bisect_left(answered, begin_ms), bisect_left(answered, end_ms)
        times = answered[max(0, first - 1) : last + 1]
        return max((after - before for before, after in pairwise(times)), default=0.0)


async def until(missing: Callable[[], str | None], within_s: float, look_s: float = 0.02) -> None:
    """Until nothing is missing any more. Raises `Overdue`, with what is, if that takes too long."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while (what := missing()) is not None:
        if loop.time() > deadline:
            raise Overdue(f"after {within_s:g} s: {what}")
        await asyncio.sleep(look_s)


class Overdue(Exception):
    """What a bench has waited for did not come; the message says what is missing."""
