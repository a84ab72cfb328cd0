"""Rekindle's side of the comparison: one instance in one process, its callers in another, as the hand-written loop.

    python -m bench.rekindle serve --app app --log URL            # first line: the address
    python -m bench.rekindle load --app app --address A ...        # one line: the figures

The controller is not part of it: the bench assigns the shards itself, once, before the load begins.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict

from bench import Run, die_with_parent, first_line, spawned
from bench.baseline import GC_THRESHOLD
from bench.load import LoadResult, closed_loop
from bench.stock import Stock
from rekindle import App
from rekindle.actors import Client, Floor, Hosted, Route, Table, WebsocketWire
from rekindle.actors.frames import ASSIGN, CONTROLLER, HELLO, LOST, PROTOCOL, SERVING, TABLE, frame, parse
from rekindle.supervisors import InstanceThread, Launch
from rekindle.supervisors import load as load_app
from rekindle.supervisors.hosting import now_ms
from rekindle.up import create_topics

KEYS = 256
OPENING_STOCK = 10**12


def target(name: str) -> str:
    """An application of `bench.stock`, as processes import it."""
    return f"bench.stock:{name}"


async def assign(address: str, hosted: Hosted, number: int) -> None:
    """Give all shards to the instance at this address; back when it serves them."""
    connection = await WebsocketWire().connect(address)
    await connection.send(frame(HELLO, PROTOCOL, None, CONTROLLER))
    await connection.receive()
    routes: dict[str, list[Route | None]] = {hosted.name: [Route(address, number)] * hosted.shards}
    await connection.send(frame(TABLE, *Table((1, number), routes).dump()))
    waiting = set(range(hosted.shards))
    await connection.send(frame(ASSIGN, 1, [[shard, number, Floor(), False, []] for shard in waiting]))
    while waiting:
        fields = parse(await connection.receive())
        assert fields[0] != LOST, f"the instance gave a shard up: {fields}"
        if fields[0] == SERVING:
            waiting.discard(fields[1])
    await connection.close()


@asynccontextmanager
async def client_of(address: str, app: App) -> AsyncGenerator[Client]:
    """A client that knows this one instance."""

    async def seeds() -> list[str]:
        return [address]

    async with Client(app.name, [app.services[0].hosted(app.name)], WebsocketWire(), seeds, now_ms) as client:
        yield client


async def run_load(address: str, app: App, callers: int, warmup_s: float, window_s: float) -> LoadResult:
    """Closed loops of `Stock.reserve` over all keys."""
    async with client_of(address, app) as client:
        stocks = [client.get(Stock, f"sku-{number}", timeout=60.0) for number in range(KEYS)]
        await asyncio.gather(*(stock.receive(OPENING_STOCK) for stock in stocks))
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        return await closed_loop(
            lambda number: stocks[number % KEYS].reserve(f"order-{number}", 1), callers, warmup_s, window_s
        )


@asynccontextmanager
async def server(name: str, log: str, *, fsync: bool = False) -> AsyncGenerator[str]:
    """An instance in a process of its own, serving all shards; its address."""
    app = load_app(target(name))
    await create_topics(app, log, fsync=fsync)
    async with spawned("bench.rekindle", "serve", "--app", name, "--log", log) as process:
        address = await first_line(process)
        await assign(address, app.services[0].hosted(app.name), now_ms())  # above those of earlier runs on this log
        yield address


async def load(name: str, address: str, callers: int, run: Run) -> LoadResult:
    """The load in a process of its own."""
    window = ("--warmup", str(run.warmup_s), "--seconds", str(run.window_s))
    arguments = ("--app", name, "--address", address, "--callers", str(callers), *window)
    async with spawned("bench.rekindle", "load", *arguments) as process:
        return LoadResult(**json.loads(await first_line(process, within_s=run.warmup_s + run.window_s + 60.0)))


def serve(name: str, log: str) -> None:
    """Be the instance until stdin closes."""
    instance = InstanceThread(Launch(target(name), log=log), "stock", f"bench-{time.time_ns()}")
    sys.stdout.write(instance.start()[0] + "\n")
    sys.stdout.flush()
    sys.stdin.read()


def main() -> None:
    """A child process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("serve", "load"))
    parser.add_argument("--app", required=True)
    parser.add_argument("--log", default="")
    parser.add_argument("--address", default="")
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--warmup", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    die_with_parent()
    if options.role == "serve":
        serve(options.app, options.log)
        return
    app = load_app(target(options.app))
    assert isinstance(app, App), f"{options.app} is no application"
    result = asyncio.run(run_load(options.address, app, options.callers, options.warmup, options.seconds))
    sys.stdout.write(json.dumps(asdict(result)) + "\n")


if __name__ == "__main__":
    main()
