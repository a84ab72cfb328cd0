"""Durable exactly-once commands: rate and latency, against the hand-written loop in the same run.

The two sides take turns, several times; a row holds the median of the rounds and of the rounds' ratios, because the
machine is shared and what slows one round slows both sides of it.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from bench import Run, baseline, benchmark, rekindle
from bench.load import LoadResult
from bench.table import Row, judged

ROUNDS = 3
CALLERS = (64, 256, 1024)
SHARE_OF_LOOP = 0.4
LATENCY_OF_LOOP = 1.5
FLOOR_PER_SECOND = 30_000
PEKKO = {1: 465.0, 64: 2_389.0, 256: 3_065.0}
"""Pekko 1.1.5 on PostgreSQL 15, measured once on such a machine (commands/s by callers)."""

EMBEDDED = "SQLite, on disk (fsync) before the answer"


@dataclass(frozen=True)
class Pair:
    """One round: what both sides did, one right after the other."""

    loop: LoadResult
    ours: LoadResult


async def pairs(run: Run, callers: int, *, fsync: bool) -> list[Pair]:
    """The rounds at one number of callers."""
    bootstrap = await run.kafka()
    settings, name = (baseline.FSYNC, "fsync_app") if fsync else (baseline.AS_USUAL, "app")
    found: list[Pair] = []
    for _ in range(1 if run.quick else ROUNDS):
        async with baseline.fresh_topic(bootstrap, settings) as topic, baseline.server(bootstrap, topic) as address:
            loop = await baseline.load(address, callers, run)
        async with rekindle.server(name, f"kafka://{bootstrap}?single_broker=true", fsync=fsync) as address:
            found.append(Pair(loop, await rekindle.load(name, address, callers, run)))
    return found


def _rate(name: str, rounds: list[Pair], durable: str) -> Row:
    ours = statistics.median(pair.ours.per_second for pair in rounds)
    ratio = statistics.median(pair.ours.per_second / pair.loop.per_second for pair in rounds)
    return judged(name, ours, "commands/s", durable=durable, baseline=ours / ratio, at_least=SHARE_OF_LOOP)


@benchmark("commands")
async def commands(run: Run) -> AsyncIterator[Row]:
    """Rates at 64, 256 and 1,024 callers, latency at one; as Kafka is usually run and with an fsync for every batch."""
    for fsync, durable, suffix in ((False, baseline.IN_MEMORY, ""), (True, baseline.ON_DISK, ", fsync")):
        for callers in CALLERS:
            rounds = await pairs(run, callers, fsync=fsync)
            row = _rate(f"commands, {callers} callers{suffix}", rounds, durable)
            yield row
            if callers == CALLERS[-1] and not fsync:
                name = f"commands, {callers} callers, floor"
                yield judged(name, row.value, "commands/s", durable=durable, at_least=FLOOR_PER_SECOND)
        rounds = await pairs(run, 1, fsync=fsync)
        p50 = statistics.median(pair.ours.p50_ms for pair in rounds)
        ratio = statistics.median(pair.ours.p50_ms / pair.loop.p50_ms for pair in rounds)
        name = f"commit latency p50, 1 caller{suffix}"
        yield judged(name, p50, "ms", durable=durable, baseline=p50 / ratio, at_most=LATENCY_OF_LOOP)


@benchmark("embedded")
async def embedded(run: Run) -> AsyncIterator[Row]:
    """The same on the embedded log, against Pekko on PostgreSQL as measured on such a machine."""
    with tempfile.TemporaryDirectory(prefix="rekindle-bench-") as folder:
        for callers, pekko in PEKKO.items():
            async with rekindle.server("app", str(Path(folder) / f"{callers}.sqlite")) as address:
                result = await rekindle.load("app", address, callers, run)
            name = f"commands, embedded log, {callers} caller{'s' if callers > 1 else ''}"
            yield judged(name, result.per_second, "commands/s", durable=EMBEDDED, baseline=pekko, at_least=1.0)
            yield Row(f"{name}, p50", result.p50_ms, "ms", durable=EMBEDDED)
