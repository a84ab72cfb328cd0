"""What an idle entity weighs, and what a linearizable read writes."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from bench import Run, benchmark, die_with_parent, first_line, spawned
from bench.filled import history
from bench.rekindle import client_of, server
from bench.stock import SHARDS, Stock, app, one_shard_app
from bench.table import Row, judged
from rekindle.actors.entities import Entities
from rekindle.events import Commit, EventLog, Partition, decode
from rekindle.events.records import BARRIER
from rekindle.supervisors import opened
from rekindle.supervisors.hosting import resident_bytes

ENTITIES = 1_000_000
ENTITIES_QUICK = 100_000
BYTES_MAX = 300
READS = 200
CALLERS = 64
NOTHING = "nothing is stored"
EMBEDDED = "SQLite, on disk (fsync) before the answer"


@benchmark("memory")
async def memory(run: Run) -> AsyncIterator[Row]:
    """Resident memory per idle entity, beyond its encoded state: the slope over the second half of the entities."""
    count = ENTITIES_QUICK if run.quick else ENTITIES
    async with spawned("bench.memory", str(count)) as child:
        weight = json.loads(await first_line(child, within_s=600.0))
    name = f"memory per idle entity beyond its state, {count:,} entities"
    yield judged(name, weight["beyond"], "bytes", durable=NOTHING, at_most=BYTES_MAX)
    yield Row("encoded state of such an entity", weight["encoded"], "bytes", durable=NOTHING)


def weigh(count: int) -> dict[str, float]:
    """Replay one event into each of `count` entities, let them be encoded, and look at the resident memory."""
    kind = one_shard_app.services[0].hosted(one_shard_app.name).kind
    entities = Entities(kind, lambda reason: sys.exit(f"quarantined: {reason}"))
    half = count // 2
    _replay(entities, range(half))
    at_half, encoded_at_half = _settled(entities)
    _replay(entities, range(half, count))
    at_end, encoded_at_end = _settled(entities)
    assert len(entities.idle) == count, f"{len(entities.idle)} of {count} entities are idle"
    encoded = (encoded_at_end - encoded_at_half) / (count - half)
    return {"beyond": (at_end - at_half) / (count - half) - encoded, "encoded": encoded}


def _replay(entities: Entities, numbers: range) -> None:
    for number in numbers:
        _, (key, value) = history(1, 1, [f"sku-{number}"])
        commit = decode(value)
        assert isinstance(commit, Commit), f"{key!r} is no commit"
        entities.replay(commit, value or b"")
        if number % 1_000 == 0:
            entities.sweep(4_000)


def _settled(entities: Entities) -> tuple[int, int]:
    while entities.active:
        entities.sweep(10_000)
    gc.collect()
    return resident_bytes(), sum(map(len, entities.idle.values()))


@benchmark("reads")
async def reads(run: Run) -> AsyncIterator[Row]:
    """Bytes that a linearizable read adds to the log: on an idle shard, and among commands."""
    with tempfile.TemporaryDirectory(prefix="rekindle-bench-") as folder:
        log_url = str(Path(folder) / "reads.sqlite")
        async with server("app", log_url) as address, client_of(address, app) as client:
            stock = client.get(Stock, "sku-0")
            for _ in range(READS):
                await stock.available()
            idle = await _barrier_bytes(log_url)
            await asyncio.gather(*(_busy(client.get(Stock, f"sku-{n}")) for n in range(CALLERS)))
            busy = await _barrier_bytes(log_url) - idle
    yield Row("log bytes per linearizable read, idle shard, 1 caller", idle / READS, "bytes", durable=EMBEDDED)
    name = f"log bytes per linearizable read, busy shards, {CALLERS} callers, 1 read in 2"
    yield Row(name, busy / (CALLERS * READS), "bytes", durable=EMBEDDED)


async def _busy(stock: Stock) -> None:
    for _ in range(READS):
        await stock.receive(1)
        await stock.available()


async def _barrier_bytes(log_url: str) -> int:
    async with opened(log_url, "", app.name) as (log, _):
        topic = app.services[0].hosted(app.name).partition(0).topic
        return sum([await _barriers_of(log, Partition(topic, shard)) for shard in range(SHARDS)])


async def _barriers_of(log: EventLog, partition: Partition) -> int:
    end, position, size = (await log.bounds(partition)).end, 0, 0
    async with log.reader(partition, 0) as reader:
        while position < end:
            for entry in await reader.next(5.0):
                record = decode(entry.value)
                position = entry.offset + 1
                if isinstance(record, Commit) and record.kind == BARRIER:
                    size += len(entry.value or b"")
    return size


if __name__ == "__main__":
    die_with_parent()
    sys.stdout.write(json.dumps(weigh(int(sys.argv[1]))) + "\n")
