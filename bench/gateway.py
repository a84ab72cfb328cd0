"""Commands over HTTP: the gateway against a bare FastAPI route that does nothing, on the same server, in the same run.

64 clients keep their connections, each sends a command, waits for its answer, and sends the next. The two sides take turns;
the clients are the same, and so cheap that they are not what is measured.

    python -m bench.gateway serve --app app --log URL --address A     # first line: the address
    python -m bench.gateway bare
    python -m bench.gateway load --address A --callers 64              # one line: the figures
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import cast

import uvloop
from fastapi import FastAPI

from bench import Run, benchmark, die_with_parent, first_line, rekindle, spawned
from bench.load import LoadResult, closed_loop
from bench.stock import Stock
from bench.table import Row, judged
from rekindle import App
from rekindle.actors import WebsocketWire
from rekindle.gateway import build
from rekindle.gateway.serving import Server, listening
from rekindle.supervisors import Operator, leader, load, opened

CALLERS = 64
ROUNDS = 3
SHARE_OF_BARE = 0.5
BIND = "127.0.0.1:0"
KEYS = 256
OPENING_STOCK = 10**12
RESERVE = "/v1/services/stock/entities/sku-{key}/commands/reserve"
EMBEDDED = "SQLite, on disk (fsync) before the answer"
KEYED = ", with an Idempotency-Key"


# --- the servers ------------------------------------------------------------------------------------------------------


async def serve(name: str, log: str, instance: str) -> None:
    """The gateway, with a client that knows the one instance."""
    app = load(rekindle.target(name))
    assert isinstance(app, App), f"{name} is no application"
    async with (
        opened(log, app.snapshots, app.name) as (event_log, store),
        rekindle.client_of(instance, app) as client,
        Operator(app.name, leader(app.name, event_log, store), WebsocketWire()) as operator,
    ):
        for number in range(KEYS):
            await client.get(Stock, f"sku-{number}", timeout=60.0).receive(OPENING_STOCK)
        await _serve(build(app, client, operator, event_log, store))


async def bare() -> None:
    """A route that does nothing, behind the same server."""
    gateway = FastAPI()

    async def nothing() -> int:
        return 1

    gateway.add_api_route(RESERVE, nothing, methods=["POST"])
    gateway.state.feed = _NoFeed()
    await _serve(gateway)


class _NoFeed:
    def close(self) -> None:
        """Nobody listens."""


async def _serve(gateway: FastAPI) -> None:
    listener = listening(BIND, None)
    print(f"127.0.0.1:{listener.getsockname()[1]}", flush=True)
    server = Server(gateway)
    serving = asyncio.ensure_future(server.serve([listener]))
    await asyncio.to_thread(sys.stdin.read)
    server.should_exit = True
    await serving


# --- the clients ------------------------------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """One connection: a request at a time, as little work as there can be."""

    def __init__(self) -> None:
        self._data = b""
        self._answered: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if found and len(body) >= int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            assert head.startswith(b"HTTP/1.1 200"), f"not answered as it should be: {self._data!r}"
            assert self._answered is not None, "an answer that nobody asked for"
            self._data = b""
            self._answered.set_result(body)

    async def ask(self, request: bytes) -> bytes:
        """Send a request; the body of its answer."""
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answered


def request_of(number: int, keyed: int) -> bytes:
    """The bytes of a command. keyed: 0, or which keys it is to use."""
    body = b'{"order": "order-%d", "qty": 1}' % number
    path = RESERVE.format(key=number % KEYS).encode()
    key = b"Idempotency-Key: %d-%d\r\n" % (keyed, number) if keyed else b""
    head = b"POST %s HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n"
    return head % (path, key, len(body)) + body


async def run_load(address: str, callers: int, warmup_s: float, window_s: float, keyed: int) -> LoadResult:
    """Closed loops of commands, each caller with a connection of its own."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    free = [(await loop.create_connection(Connection, host, int(port)))[1] for _ in range(callers)]

    async def call(number: int) -> None:
        connection = free.pop()
        await connection.ask(request_of(number, keyed))
        free.append(connection)

    return await closed_loop(call, callers, warmup_s, window_s)


# --- the benchmark ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def server(*arguments: str) -> AsyncGenerator[str]:
    """A server in a process of its own; its address."""
    async with spawned("bench.gateway", *arguments, stop_s=10.0) as process:
        yield await first_line(process)


async def measured(run: Run, address: str, *flags: str) -> LoadResult:
    """The load, in a process of its own."""
    window = ("--warmup", str(run.warmup_s), "--seconds", str(run.window_s))
    async with spawned("bench.gateway", "load", "--address", address, *window, *flags) as process:
        return LoadResult(**json.loads(await first_line(process, within_s=run.warmup_s + run.window_s + 60.0)))


@benchmark("gateway")
async def gateway(run: Run) -> AsyncIterator[Row]:
    """Commands per second over HTTP, without and with a key, against a route that does nothing."""
    found: list[tuple[LoadResult, LoadResult, LoadResult]] = []
    with tempfile.TemporaryDirectory(prefix="rekindle-bench-") as folder:
        log = str(Path(folder) / "log.sqlite")
        async with (
            rekindle.server("app", log) as instance,
            server("serve", "--app", "app", "--log", log, "--instance", instance) as address,
            server("bare") as bare_address,
        ):
            for turn in range(1 if run.quick else ROUNDS):
                results = await measured(run, bare_address), await measured(run, address)
                found.append((*results, await measured(run, address, "--keyed", str(turn + 1))))
    for which, suffix, at_least in ((1, "", SHARE_OF_BARE), (2, KEYED, None)):
        rate = statistics.median(results[which].per_second for results in found)
        ratio = statistics.median(results[which].per_second / results[0].per_second for results in found)
        name = f"commands over HTTP, {CALLERS} clients{suffix}"
        yield judged(name, rate, "commands/s", durable=EMBEDDED, baseline=rate / ratio, at_least=at_least)
        p50 = statistics.median(results[which].p50_ms for results in found)
        yield Row(f"{name}, p50", p50, "ms", durable=EMBEDDED)


def main() -> None:
    """A child process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("serve", "bare", "load"))
    parser.add_argument("--app", default="")
    parser.add_argument("--log", default="")
    parser.add_argument("--instance", default="")
    parser.add_argument("--address", default="")
    parser.add_argument("--callers", type=int, default=CALLERS)
    parser.add_argument("--keyed", type=int, default=0)
    parser.add_argument("--warmup", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    die_with_parent()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if options.role == "serve":
            runner.run(serve(options.app, options.log, options.instance))
        elif options.role == "bare":
            runner.run(bare())
        else:
            load_of = run_load(options.address, options.callers, options.warmup, options.seconds, options.keyed)
            print(json.dumps(asdict(runner.run(load_of))), flush=True)


if __name__ == "__main__":
    main()
