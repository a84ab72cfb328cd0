"""The hand-written loop that Rekindle is held against, and the raw replay.

What a good Python programmer writes in an afternoon when nothing may fail: a websocket server with one frame per loop
turn in each direction, a dict of entities, a pydantic event per command, and per shard one append in flight while the
next batch collects what arrives. It answers after the append is acknowledged, and that is all it promises: no claims,
no exactly-once, no retries, no framework. Stock asyncio, no uvloop.

    python -m bench.baseline serve --bootstrap 127.0.0.1:9092 --topic stock      # first line: {"ready": "ws://..."}
    python -m bench.baseline load --address ws://... --callers 64 --seconds 4    # one line: the figures
    python -m bench.baseline replay --bootstrap 127.0.0.1:9092 --topic stock --partition 0

Reading order: `Server`, `Shard`, `Outbox` (the loop), `Client`, `raw_replay`, then how they are started and measured.
"""

# msgpack has no types:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import time
import uuid
import zlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import msgpack
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from pydantic import BaseModel
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve

from bench import Run, benchmark, die_with_parent, first_line, spawned
from bench.load import DRAIN_S, LoadResult, closed_loop
from bench.table import Row

SHARDS = 8
KEYS = 256
KEY_NAMES = tuple(f"sku-{number}" for number in range(KEYS))
CALLERS = (1, 64, 256, 1024)
OPENING_STOCK = 10**12
"""More than any run reserves: no command of the measurement is refused."""

BATCH_BYTES_MAX = 1 << 20
FRAME_BYTES_MAX = 16 << 20

AS_USUAL: dict[str, str] = {"cleanup.policy": "delete", "retention.ms": "-1"}
"""Topic settings as Kafka is usually run: acknowledged = in memory of the in-sync brokers, not yet on disk."""

FSYNC: dict[str, str] = {**AS_USUAL, "flush.messages": "1"}
"""Topic settings with which a broker syncs every batch to its disk before it acknowledges it."""

IN_MEMORY = "acks=all, 1 broker, in its page cache"
ON_DISK = "acks=all, 1 broker, fsync for every batch"

GC_THRESHOLD = 50_000
"""Allocations between two garbage collections: at 1,024 callers Python's 700 costs some 5 %."""

FETCH_BYTES_MAX = 8 << 20
STALL_MS = 10_000
STOP_S = 5.0
REPLAY_RECORDS = 500_000
REPLAY_RECORDS_QUICK = 100_000

Command = tuple[int, str, str, int]
"""number, key, order, qty"""
Reply = tuple[int, int | None]
"""number, and what is left on hand, or None: out of stock"""


# One packer for the process: `msgpack.packb` makes a new one for every call, at twice the price.
_pack: Callable[[object], bytes] = msgpack.Packer().pack
_unpack: Callable[..., Any] = msgpack.unpackb


class Reserved(BaseModel):
    """The event."""

    order: str
    qty: int


def encode(number: int, event: Reserved) -> bytes:
    """The record of one command."""
    return _pack((number, "Reserved", event.__dict__))


@dataclass(slots=True)
class Stock:
    """The entity: what one key has on hand, and how many orders hold some of it."""

    key: bytes
    shard: Shard
    on_hand: int = OPENING_STOCK
    held: int = 0

    def apply(self, event: Reserved) -> None:
        self.on_hand -= event.qty
        self.held += 1


class Outbox:
    """What is to leave on one connection: all that is put in within one loop turn leaves as one frame."""

    def __init__(self, connection: ClientConnection | ServerConnection) -> None:
        self._connection = connection
        self._items: list[object] = []
        self._filled = asyncio.Event()

    def put(self, item: object) -> None:
        if not self._items:
            self._filled.set()
        self._items.append(item)

    async def run(self) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            items, self._items = self._items, []
            await self._connection.send(_pack(items))


@dataclass(slots=True)
class Batch:
    """Records that go to Kafka in one append, and the replies that wait for it."""

    records: Any
    replies: list[tuple[Outbox, Reply]] = field(default_factory=list[tuple[Outbox, Reply]])


class Shard:
    """One partition: at most one append in flight; what arrives meanwhile is the next batch, without a linger timer."""

    def __init__(self, producer: Any, topic: str, partition: int) -> None:
        self._producer = producer
        self._topic = topic
        self._partition = partition
        self._arrived = asyncio.Event()
        self._batches = deque([Batch(producer.create_batch())])

    def append(self, key: bytes, record: bytes, now_ms: int, outbox: Outbox, reply: Reply) -> None:
        batch = self._batches[-1]
        if batch.records.append(timestamp=now_ms, key=key, value=record) is None:  # full
            batch = Batch(self._producer.create_batch())
            self._batches.append(batch)
            if batch.records.append(timestamp=now_ms, key=key, value=record) is None:
                raise ValueError(f"a record of {len(record)} bytes does not fit into {BATCH_BYTES_MAX}")
        batch.replies.append((outbox, reply))
        self._arrived.set()

    async def run(self) -> None:
        while True:
            await self._arrived.wait()
            batch = self._batches.popleft()
            if not self._batches:
                self._batches.append(Batch(self._producer.create_batch()))
                self._arrived.clear()
            appended = await self._producer.send_batch(batch.records, self._topic, partition=self._partition)
            await appended  # an append that fails ends the server: this loop has no answer to doubt
            for outbox, reply in batch.replies:
                outbox.put(reply)


class Server:
    """The service: commands in, events to the log, replies out when the log has them."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._entities: dict[str, Stock] = {}

    async def on_connection(self, connection: ServerConnection) -> None:
        outbox = Outbox(connection)
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(outbox.run())
            async for frame in connection:
                self.on_frame(_unpack(frame, use_list=False), outbox)
            sending.cancel()

    def on_frame(self, commands: Sequence[Command], outbox: Outbox) -> None:
        now_ms = int(time.time() * 1_000)
        for number, key, order, qty in commands:
            stock = self._entities.get(key) or self._open(key)
            if qty > stock.on_hand:
                outbox.put((number, None))
                continue
            event = Reserved(order=order, qty=qty)
            stock.apply(event)
            stock.shard.append(stock.key, encode(number, event), now_ms, outbox, (number, stock.on_hand))

    def _open(self, key: str) -> Stock:
        encoded = key.encode()
        shard = self._shards[zlib.crc32(encoded) % len(self._shards)]
        stock = self._entities[key] = Stock(encoded, shard)
        return stock


class Client:
    """One connection for many callers: a future per call."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._outbox = Outbox(connection)
        self._calls: dict[int, asyncio.Future[int]] = {}
        self._loop = asyncio.get_running_loop()

    def call(self, number: int) -> asyncio.Future[int]:
        """Reserve one piece of one of the keys, round and round."""
        call = self._calls[number] = self._loop.create_future()
        self._outbox.put((number, KEY_NAMES[number % KEYS], f"o-{number}", 1))
        return call

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._outbox.run())
            group.create_task(self._receive())

    async def _receive(self) -> None:
        async for frame in self._connection:
            replies: Sequence[Reply] = _unpack(frame, use_list=False)
            for number, left in replies:
                call = self._calls.pop(number)
                if left is None:
                    call.set_exception(RuntimeError("out of stock"))
                else:
                    call.set_result(left)
        raise ConnectionError("the server closed the connection")


async def run_server(bootstrap: str, topic: str, producers: int = 1) -> None:
    """Serve for ever; the address is the first line of output.

    aiokafka sends one request at a time to each broker. With one producer all shards therefore travel together and
    clients, server and broker take turns; a second one lets two halves of the shards overlap, for more requests.
    """
    shards: list[Shard] = []
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        senders = [await stack.enter_async_context(_producer(bootstrap)) for _ in range(producers)]
        for partition in sorted(await senders[0].partitions_for(topic)):
            shards.append(Shard(senders[partition % producers], topic, partition))
            group.create_task(shards[-1].run())
        on_connection = Server(shards).on_connection
        async with serve(on_connection, "127.0.0.1", 0, compression=None, max_size=FRAME_BYTES_MAX) as listening:
            host, port = next(iter(listening.sockets)).getsockname()
            print(json.dumps({"ready": f"ws://{host}:{port}"}), flush=True)
            await listening.serve_forever()


async def run_load(address: str, callers: int, warmup_s: float, window_s: float) -> LoadResult:
    """The closed loop against a server, over one connection."""
    async with (
        connect(address, compression=None, max_size=FRAME_BYTES_MAX, proxy=None) as connection,
        asyncio.TaskGroup() as group,
    ):
        client = Client(connection)
        running = group.create_task(client.run())
        result = await closed_loop(client.call, callers, warmup_s, window_s)
        running.cancel()
    return result


async def raw_replay(bootstrap: str, topic: str, partition: int) -> float:
    """Records per second of reading a whole partition: `getmany`, and `msgpack.unpackb` of every value."""
    tp = TopicPartition(topic, partition)
    async with _consumer(bootstrap) as consumer:
        consumer.assign([tp])
        position, end = (await consumer.beginning_offsets([tp]))[tp], (await consumer.end_offsets([tp]))[tp]
        if position == end:
            raise RuntimeError(f"nothing to replay: {topic}/{partition} is empty")
        consumer.seek(tp, position)
        count = 0
        began = time.perf_counter()
        while position < end:
            records = (await consumer.getmany(tp, timeout_ms=STALL_MS)).get(tp)
            if not records:
                raise TimeoutError(f"no record of {topic}/{partition} within {STALL_MS} ms at {position} of {end}")
            for record in records:
                _unpack(record.value)
            count += len(records)
            position = records[-1].offset + 1
        return count / (time.perf_counter() - began)


async def fill(bootstrap: str, topic: str, partition: int, records: int, per_batch: int = 128) -> None:
    """Append `records` records like those of the server, in batches like those of 1,024 callers on 8 shards."""
    async with _producer(bootstrap) as producer:
        for first in range(0, records, per_batch):
            batch = producer.create_batch()
            for number in range(first, min(first + per_batch, records)):
                key, record = KEY_NAMES[number % KEYS], encode(number, Reserved(order=f"o-{number}", qty=1))
                assert batch.append(timestamp=None, key=key.encode(), value=record), f"{per_batch} do not fit"
            await (await producer.send_batch(batch, topic, partition=partition))


def _producer(bootstrap: str) -> Any:  # Any: aiokafka has no types
    return AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", enable_idempotence=False, max_batch_size=BATCH_BYTES_MAX
    )


def _consumer(bootstrap: str) -> Any:
    return AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        max_partition_fetch_bytes=FETCH_BYTES_MAX,
    )


# How it is measured: a topic for the run, the server and the load each in a process of its own.


@asynccontextmanager
async def fresh_topic(bootstrap: str, settings: dict[str, str], partitions: int = SHARDS) -> AsyncGenerator[str]:
    """A topic with these settings that lives as long as the block."""
    name = f"bench-{uuid.uuid4().hex[:12]}"
    admin: Any = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        created: Any = await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=settings)])
        for _, code, message in created.topic_errors:
            if code != 0:
                raise RuntimeError(f"the broker at {bootstrap} did not create {name}: {message} ({code})")
        try:
            yield name
        finally:
            await admin.delete_topics([name])
    finally:
        await admin.close()


@asynccontextmanager
async def server(bootstrap: str, topic: str, producers: int = 1) -> AsyncGenerator[str]:
    """The server in a child process, and its address."""
    arguments = ("serve", "--bootstrap", bootstrap, "--topic", topic, "--producers", str(producers))
    async with spawned("bench.baseline", *arguments) as child:
        yield json.loads(await first_line(child))["ready"]


async def load(address: str, callers: int, run: Run) -> LoadResult:
    """The load in a child process."""
    arguments = ("--callers", str(callers), "--seconds", str(run.window_s), "--warmup", str(run.warmup_s))
    async with spawned("bench.baseline", "load", "--address", address, *arguments, stop_s=STOP_S) as child:
        figures = json.loads(await first_line(child, run.warmup_s + run.window_s + DRAIN_S))
    return LoadResult(**{name: figures[name] for name in LoadResult.__dataclass_fields__})


async def replayed(bootstrap: str, topic: str, partition: int) -> float:
    """The raw replay in a child process: records per second."""
    arguments = ("--bootstrap", bootstrap, "--topic", topic, "--partition", str(partition))
    async with spawned("bench.baseline", "replay", *arguments, stop_s=STOP_S) as child:
        return float(json.loads(await first_line(child))["per_second"])


@benchmark("baseline")
async def baseline(run: Run) -> AsyncIterator[Row]:
    """The hand-written loop at every number of callers, as Kafka is usually run and with an fsync for every batch."""
    bootstrap = await run.kafka()
    for settings, durable, suffix in ((AS_USUAL, IN_MEMORY, ""), (FSYNC, ON_DISK, ", fsync")):
        async with fresh_topic(bootstrap, settings) as topic, server(bootstrap, topic) as address:
            for callers in CALLERS:
                noun = "caller" if callers == 1 else "callers"
                result = await load(address, callers, run)
                for row in rows(f"hand-written loop, {callers} {noun}{suffix}", result, durable):
                    yield row


@benchmark("replay")
async def replay(run: Run) -> AsyncIterator[Row]:
    """The raw replay of one partition."""
    bootstrap = await run.kafka()
    async with fresh_topic(bootstrap, AS_USUAL, partitions=1) as topic:
        await fill(bootstrap, topic, 0, REPLAY_RECORDS_QUICK if run.quick else REPLAY_RECORDS)
        yield Row("raw replay", await replayed(bootstrap, topic, 0), "records/s", durable="reads only")


def rows(name: str, result: LoadResult, durable: str) -> list[Row]:
    """The three rows of one load."""
    return [
        Row(f"{name}: rate", result.per_second, "commands/s", durable=durable),
        Row(f"{name}: p50", result.p50_ms, "ms", durable=durable),
        Row(f"{name}: p99", result.p99_ms, "ms", durable=durable),
    ]


def main() -> None:
    arguments = _arguments()
    die_with_parent()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    match arguments.command:
        case "serve":
            asyncio.run(run_server(arguments.bootstrap, arguments.topic, arguments.producers))
        case "load":
            result = asyncio.run(run_load(arguments.address, arguments.callers, arguments.warmup, arguments.seconds))
            print(json.dumps({"callers": arguments.callers, **asdict(result), "load_average": os.getloadavg()}))
        case _:
            rate = asyncio.run(raw_replay(arguments.bootstrap, arguments.topic, arguments.partition))
            print(json.dumps({"per_second": rate, "load_average": os.getloadavg()}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.baseline", description="The hand-written loop.")
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve", help="serve for ever; the first line of output is the address")
    loading = commands.add_parser("load", help="closed-loop callers against a server")
    replaying = commands.add_parser("replay", help="read a whole partition")
    for log in (serving, replaying):
        log.add_argument("--bootstrap", required=True)
        log.add_argument("--topic", required=True)
    serving.add_argument("--producers", type=int, default=1)
    replaying.add_argument("--partition", type=int, default=0)
    loading.add_argument("--address", required=True)
    loading.add_argument("--callers", type=int, default=64)
    loading.add_argument("--seconds", type=float, default=4.0, help="the measured window")
    loading.add_argument("--warmup", type=float, default=1.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
