"""The closed-loop load generator, the same one for the hand-written loop and for Rekindle.

A fixed number of callers each send one command, wait for its reply, and send the next. Throughput and latency are
therefore tied (callers = throughput x latency), and a slow server slows its own load down: read p99 as "what one of
so many patient callers saw", not as "what an open stream of users would have seen".

Invariants:
- A reply counts if it arrives within the window, wherever its command began: warm-up never counts, and the calls
  still open at the end of the window are waited for and not counted.
- Per call the generator costs one clock reading, one number and one list append; nothing is sorted before the end.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

DRAIN_S = 30.0
"""How long the calls that are open at the end of the window may take before the run is given up."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What the callers saw within the window."""

    per_second: float
    p50_ms: float
    p99_ms: float
    n: int


async def closed_loop(
    call: Callable[[int], Awaitable[object]], callers: int, warmup_s: float, window_s: float
) -> LoadResult:
    """Run `callers` closed loops over `call` and measure them for `window_s` seconds after `warmup_s`.

    `call` gets a number that no other call of this run gets: 0, 1, 2, ... The first call that raises ends the run
    with its error.
    """
    assert callers > 0, f"a load needs callers, got {callers}"
    assert window_s > 0, f"a load needs a window, got {window_s} s"
    numbers = itertools.count()
    latencies_s: list[float] = []
    clock = time.perf_counter
    begin = clock() + warmup_s
    end = begin + window_s

    async def caller() -> None:
        finished = clock()
        while finished < end:
            started = finished
            await call(next(numbers))
            finished = clock()
            if begin <= finished < end:
                latencies_s.append(finished - started)

    async with asyncio.timeout(warmup_s + window_s + DRAIN_S), asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return summarize(latencies_s, window_s)


def summarize(latencies_s: list[float], window_s: float) -> LoadResult:
    """Rate, median and 99th percentile (nearest rank) of the replies of one window."""
    if not latencies_s:
        raise RuntimeError(f"no reply came within the window of {window_s} s: is the server alive?")
    ordered = sorted(latencies_s)
    return LoadResult(
        per_second=len(ordered) / window_s,
        p50_ms=1_000 * percentile(ordered, 0.50),
        p99_ms=1_000 * percentile(ordered, 0.99),
        n=len(ordered),
    )


def percentile(ordered: list[float], fraction: float) -> float:
    """The smallest value that at least `fraction` of the sorted values do not exceed."""
    rank = -(-len(ordered) * fraction // 1)
    return ordered[max(0, int(rank) - 1)]
