"""Rekindle's side of the comparison: one instance in one process, its callers in another, as the hand-written loop.

    python -m bench.rekindle serve --log URL                       # first line: the address
    python -m bench.rekindle load --address A --callers 64 ...     # one line: the figures

The controller is not part of it: the load assigns the shards itself, once, before it begins.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict

from bench import Run, die_with_parent, first_line, spawned
from bench.baseline import GC_THRESHOLD
from bench.load import LoadResult, closed_loop
from bench.stock import SHARDS, Stock, app
from rekindle.actors import Client, Floor, Hosted, Route, Table, WebsocketWire
from rekindle.actors.frames import ASSIGN, CONTROLLER, HELLO, PROTOCOL, SERVING, TABLE, frame, parse
from rekindle.supervisors import InstanceThread, Launch
from rekindle.supervisors.hosting import now_ms
from rekindle.up import create_topics

KEYS = 256
OPENING_STOCK = 10**12
TARGET = "bench.stock:app"


def hosted() -> Hosted:
    """The one service."""
    return app.services[0].hosted(app.name)


async def assign(address: str, number: int = 1, shards: Sequence[int] = range(SHARDS)) -> None:
    """Give the shards to the instance at this address; back when it serves them all."""
    connection = await WebsocketWire().connect(address)
    await connection.send(frame(HELLO, PROTOCOL, None, CONTROLLER))
    await connection.receive()
    routes = {hosted().name: [Route(address, number)] * hosted().shards}
    await connection.send(frame(TABLE, *Table((1, number), routes).dump()))
    await connection.send(frame(ASSIGN, 1, [[shard, number, Floor(), False, []] for shard in shards]))
    waiting = set(shards)
    while waiting:
        fields = parse(await connection.receive())
        if fields[0] == SERVING:
            waiting.discard(fields[1])
    await connection.close()


@asynccontextmanager
async def client_of(address: str) -> AsyncGenerator[Client]:
    """A client that knows this one instance."""

    async def seeds() -> list[str]:
        return [address]

    async with Client(app.name, [hosted()], WebsocketWire(), seeds, now_ms) as client:
        yield client


async def run_load(address: str, callers: int, warmup_s: float, window_s: float) -> LoadResult:
    """Closed loops of `Stock.reserve` over all keys."""
    await assign(address, now_ms())  # above every assignment of an earlier run on this log
    async with client_of(address) as client:
        stocks = [client.get(Stock, f"sku-{number}", timeout=60.0) for number in range(KEYS)]
        await asyncio.gather(*(stock.receive(OPENING_STOCK) for stock in stocks))
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        return await closed_loop(
            lambda number: stocks[number % KEYS].reserve(f"order-{number}", 1), callers, warmup_s, window_s
        )


@asynccontextmanager
async def server(log: str, snapshots: str = "") -> AsyncGenerator[str]:
    """An instance in a process of its own; its address."""
    async with spawned("bench.rekindle", "serve", "--log", log, "--snapshots", snapshots) as process:
        yield await first_line(process)


async def load(address: str, callers: int, run: Run) -> LoadResult:
    """The load in a process of its own."""
    arguments = (
        "--address",
        address,
        "--callers",
        str(callers),
        "--warmup",
        str(run.warmup_s),
        "--seconds",
        str(run.window_s),
    )
    async with spawned("bench.rekindle", "load", *arguments) as process:
        return LoadResult(**json.loads(await first_line(process, within_s=run.warmup_s + run.window_s + 60.0)))


def serve(log: str, snapshots: str) -> None:
    """Be the instance until stdin closes."""
    asyncio.run(create_topics(app, log))
    instance = InstanceThread(Launch(TARGET, log=log, snapshots=snapshots or None), "stock", f"bench-{time.time_ns()}")
    sys.stdout.write(instance.start()[0] + "\n")
    sys.stdout.flush()
    sys.stdin.read()


def main() -> None:
    """A child process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("serve", "load"))
    parser.add_argument("--log", default="")
    parser.add_argument("--snapshots", default="")
    parser.add_argument("--address", default="")
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--warmup", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    die_with_parent()
    if options.role == "serve":
        serve(options.log, options.snapshots)
    else:
        result = asyncio.run(run_load(options.address, options.callers, options.warmup, options.seconds))
        sys.stdout.write(json.dumps(asdict(result)) + "\n")


if __name__ == "__main__":
    main()
