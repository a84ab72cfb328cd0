"""The log on Kafka, by aiokafka: the one module that knows it. Its errors become ours here, once, at this edge.

An append is one record batch from a plain producer (`acks=all`, no idempotence: rule 2 voids duplicates, and aiokafka's
idempotent producer never recovers from a failed append). The library resends a batch while `REQUEST_TIMEOUT_S` have not
passed; nothing else is ever retried, because only the owner of a shard can resolve a doubt (rule 4).

A reader is a consumer without a group, that starts where it is told and never jumps: outside of the log is an error.
Reading order: `KafkaLog`, `_Reader`, `_Consumers`, `_Admin`, then the translation of errors.
"""

# aiokafka has no types: what comes out of it is Any, and leaves this module as what `EventLog` says.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerStoppedError, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from rekindle.events import kafka_topics
from rekindle.events.checks import check_append, check_partition, check_position, check_trim, missing
from rekindle.events.errors import (
    AppendRefused,
    AppendUnknown,
    LogDamaged,
    LogError,
    LogUnavailable,
    TopicContractBroken,
)
from rekindle.events.kafka_tail import Tail
from rekindle.events.kafka_topics import HEADERS_BYTES_MAX, LiveTopic
from rekindle.events.log import BATCH_BYTES_MAX, Bounds, Entry, Keyed, Partition, Topic

REQUEST_TIMEOUT_S: Final = 3.0
"""How long one request may take, and how old a batch may get that the library still sends again."""

APPEND_TIMEOUT_S: Final = 5.0
"""How long an append may take altogether. Longer than a request, so that the library's own answer comes first."""

RETRY_PAUSE_S: Final = 0.1
"""Between two attempts of the library, or of ours where repeating is harmless."""

METADATA_MAX_AGE_S: Final = 3.0
"""How old the library's knowledge of who leads what may get. It asks anew when a leader's connection breaks, but not
when the leader is frozen or cut off: by its default it would go on asking that one for five minutes."""

ADMIN_TIMEOUT_S: Final = 10.0
"""How long creating or trimming may take, with all attempts."""

CLOSE_TIMEOUT_S: Final = 2 * REQUEST_TIMEOUT_S
"""How long each client may take to stop. It waits for its batches, and with no broker they have to expire."""

CONSUMERS_IDLE_MAX: Final = 4
"""How many consumers are kept for the next reader: to make one costs connections and some 10 ms."""

READERS_MAX: Final = 256
"""How many readers one log has open at once: each has a consumer, with connections and up to `FETCH_BYTES` of memory."""

FETCH_BYTES: Final = 8 * 1024 * 1024
"""What one fetch may bring: replay is as fast as fetches are large."""

FETCH_WAIT_S: Final = 0.25
"""How long the broker holds a fetch when there is nothing new. New records are sent at once."""

READ_ENTRIES_MAX: Final = 2_000
"""At most this many entries come from one `next`: to decode them takes some 4 ms, in which the loop stands still."""

SILENCE_MAX_S: Final = 2 * REQUEST_TIMEOUT_S
"""How long a reader waits without any answer from the broker before it says so."""

LOOKS_MAX: Final = 3
"""How often a topic is looked for before it is missing: a broker may hear of a new one later than another."""

_SLICE_S: Final = 1.0
_SINGLE_BROKER_HINT: Final = "a cluster of one broker has to be declared: kafka://host:port?single_broker=true"

Answer = TypeVar("Answer")
_FAILURES: Final = (errors.KafkaError, OSError, TimeoutError, ConsumerStoppedError, AssertionError)
"""What aiokafka raises when something is wrong with the cluster or with itself: its state checks are asserts."""

_REFUSALS: Final = (
    errors.MessageSizeTooLargeError,
    errors.RecordListTooLargeError,
    errors.InvalidTopicError,
    errors.InvalidTimestampError,
    errors.UnsupportedForMessageFormatError,
    errors.PolicyViolationError,
    errors.TopicAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
)


class KafkaLog:
    """An `EventLog` in Kafka.

    single_broker: the cluster is declared to have one broker, so nothing is replicated; it is never guessed, or a
    cluster with two brokers down would quietly get topics with a single copy.
    connection: more arguments for aiokafka's clients: security_protocol, ssl_context, sasl_mechanism and so on.
    """

    def __init__(
        self, bootstrap: str, *, single_broker: bool = False, connection: Mapping[str, Any] | None = None
    ) -> None:
        self._single_broker = single_broker
        self._connection: dict[str, Any] = {
            "bootstrap_servers": bootstrap,
            "request_timeout_ms": int(REQUEST_TIMEOUT_S * 1000),
            "retry_backoff_ms": int(RETRY_PAUSE_S * 1000),
            "metadata_max_age_ms": int(METADATA_MAX_AGE_S * 1000),
            **(connection or {}),
        }
        self._topics: dict[str, Topic] = {}
        self._producer: Any = None
        self._bounds: Any = None
        self._admin: _Admin | None = None
        self._consumers: _Consumers | None = None
        self._tail: Tail | None = None

    async def open(self) -> None:
        """See `EventLog`."""
        # Our batches are the library's batches: nothing waits for more to come, and nothing is cut.
        self._producer = AIOKafkaProducer(
            **self._connection, acks="all", linger_ms=0, max_batch_size=BATCH_BYTES_MAX + HEADERS_BYTES_MAX
        )
        self._bounds = _consumer(self._connection)
        self._admin = _Admin(AIOKafkaAdminClient(**self._connection))
        self._consumers = _Consumers(self._connection)
        self._tail = Tail(self._started_consumer, _stop_consumer)
        try:
            for start in (self._producer.start, self._bounds.start, self._admin.start):
                await start()
        except _FAILURES as error:
            await self.close()
            raise LogUnavailable(f"no Kafka at {self._connection['bootstrap_servers']}: {error!r}") from error

    async def close(self) -> None:
        """See `EventLog`."""
        if self._producer is None or self._admin is None or self._consumers is None or self._tail is None:
            return
        stops = (self._producer.stop, self._bounds.stop, self._admin.close, self._consumers.close, self._tail.close)
        self._producer = self._bounds = self._admin = self._consumers = self._tail = None
        await asyncio.gather(*map(_stop, stops))

    # --- topics ---

    async def create(self, topic: Topic) -> None:
        """See `EventLog`. Returns when every partition has a leader."""
        await self._opened(self._admin).create(topic, self._single_broker)
        await self.check(topic)

    async def check(self, topic: Topic) -> None:
        """See `EventLog`."""
        live = await self._opened(self._admin).find(topic.name)
        if wrong := kafka_topics.faults(topic, self._single_broker, live):
            raise TopicContractBroken(topic.name, wrong)
        self._topics[topic.name] = topic

    async def _topic(self, name: str) -> Topic:
        """The contract of a topic that is there, asked for once."""
        if name not in self._topics:
            self._topics[name] = (await self._opened(self._admin).find(name)).as_topic(name)
        return self._topics[name]

    def _opened(self, client: Answer | None) -> Answer:
        if client is None:
            raise LogUnavailable("the log is not open")
        return client

    # --- appending ---

    async def append(self, partition: Partition, records: Sequence[Keyed]) -> int:
        """See `EventLog`."""
        producer = self._opened(self._producer)
        topic = self._topics.get(partition.topic) or await self._topic(partition.topic)
        check_append(topic, partition, records)
        batch = _filled(producer.create_batch(), partition, records)
        delivery: Any = None
        sent = time.monotonic()
        try:
            async with asyncio.timeout(APPEND_TIMEOUT_S):
                delivery = await producer.send_batch(batch, partition.topic, partition=partition.index)
                delivery.add_done_callback(_hear)
                return (await asyncio.shield(delivery)).offset  # type: ignore[no-any-return]
        except _FAILURES as error:
            if delivery is None:
                raise await self._not_sent(partition, error) from error
            raise self._append_failure(partition, error, time.monotonic() - sent) from error

    async def _not_sent(self, partition: Partition, error: Exception) -> LogError:
        """The library had nobody to send it to. It says the same of a topic that is gone and of brokers that are away."""
        if isinstance(error, _REFUSALS):
            return AppendRefused(f"an append to {partition} was refused: {error!r}")
        self._topics.pop(partition.topic, None)
        await self._topic(partition.topic)
        return LogUnavailable(f"nobody takes an append to {partition}: {error!r}")

    def _append_failure(self, partition: Partition, error: Exception, took_s: float) -> LogError:
        if getattr(error, "invalid_metadata", False):
            # It may have been deleted. If the library does not know, the next append will look.
            self._topics.pop(partition.topic, None)
        # A refusal of a later attempt says nothing about the first, which may have been appended all the same.
        if isinstance(error, _REFUSALS) and took_s < RETRY_PAUSE_S:
            return AppendRefused(f"an append to {partition} was refused: {error!r}")
        return AppendUnknown(f"an append to {partition} has no known outcome: {error!r}")

    # --- reading ---

    async def bounds(self, partition: Partition) -> Bounds:
        """See `EventLog`."""
        check_partition(await self._topic(partition.topic), partition)
        place = TopicPartition(*partition)
        asking = self._opened(self._bounds)
        try:
            start = await asking.beginning_offsets([place])
            end = await asking.end_offsets([place])
        except _FAILURES as error:
            self._topics.pop(partition.topic, None)
            await self._topic(partition.topic)
            raise LogUnavailable(f"the bounds of {partition} are not to be had: {error!r}") from error
        return Bounds(start[place], end[place])

    @asynccontextmanager
    async def reader(self, partition: Partition, offset: int) -> AsyncGenerator[_Reader]:
        """See `EventLog`."""
        check_position(partition, offset, await self.bounds(partition))
        async with self._opened(self._consumers).placed(partition, offset) as consumer:
            yield _Reader(self, consumer, partition, offset)

    @asynccontextmanager
    async def follow(self, partition: Partition, offset: int) -> AsyncGenerator[_Reader]:
        """See `EventLog`. The second who follows a partition here has a consumer of its own."""
        check_position(partition, offset, await self.bounds(partition))
        tail, place = self._opened(self._tail), TopicPartition(*partition)
        consumers = self._opened(self._consumers)
        async with consumers.placed(partition, offset) if tail.has(place) else tail.placed(place, offset) as consumer:
            yield _Reader(self, consumer, partition, offset)

    async def _started_consumer(self) -> Any:
        consumer = _consumer(self._connection)
        try:
            await consumer.start()
        except BaseException as error:
            await _stop(consumer.stop)
            if isinstance(error, _FAILURES):
                raise LogUnavailable(f"cannot connect those who follow: {error!r}") from error
            raise
        return consumer

    async def trim(self, partition: Partition, before: int) -> None:
        """See `EventLog`."""
        bounds = await self.bounds(partition)
        check_trim(partition, before, bounds)
        if before > bounds.start:
            await self._opened(self._admin).trim(partition, before)


def _filled(batch: Any, partition: Partition, records: Sequence[Keyed]) -> Any:
    put = batch.append
    now_ms = int(time.time() * 1000)
    for key, value in records:
        if put(timestamp=now_ms, key=key, value=value) is None:
            raise AppendRefused(f"{len(records)} records for {partition} do not fit into one batch with their headers")
    return batch


def _hear(delivery: Any) -> None:
    """Of an append that was given up nobody asks any more how it ended: asyncio would complain of that."""
    if not delivery.cancelled():
        delivery.exception()


async def _stop(stop: Callable[[], Awaitable[None]]) -> None:
    # aiokafka's `stop` fails half way, and leaks its connections, if a task of its own has not taken its first step.
    await asyncio.sleep(0)
    with contextlib.suppress(*_FAILURES):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await stop()


async def _stop_consumer(consumer: Any) -> None:
    await _stop(consumer.stop)


class _Reader:
    """A `Reader`: a consumer that belongs to it as long as it is open."""

    def __init__(self, log: KafkaLog, consumer: Any, partition: Partition, offset: int) -> None:
        self._log = log
        self._consumer = consumer
        self._partition = partition
        self._place = TopicPartition(*partition)
        self._offset = offset
        self._answered_ms: int | None = None
        self._silent_s = 0.0

    async def next(self, wait_s: float) -> Sequence[Entry]:
        """See `Reader`."""
        while True:
            slice_s = min(wait_s, _SLICE_S)
            entries = await self._poll(slice_s)
            wait_s -= slice_s
            if entries:
                return await self._taken(entries)
            self._listen(slice_s)
            if wait_s <= 0:
                return ()

    async def _poll(self, wait_s: float) -> Sequence[Entry]:
        try:
            found = await self._consumer.getmany(self._place, timeout_ms=wait_s * 1000, max_records=READ_ENTRIES_MAX)
        except errors.OffsetOutOfRangeError:
            check_position(self._partition, self._offset, await self._log.bounds(self._partition))
            return ()
        except errors.CorruptRecordException as error:
            raise LogDamaged(f"{self._partition} at offset {self._offset} or behind it: {error}") from error
        except _FAILURES as error:
            raise LogUnavailable(f"{self._partition} cannot be read: {error!r}") from error
        return found.get(self._place, ())  # type: ignore[no-any-return]

    async def _taken(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        self._offset = entries[-1].offset + 1
        self._silent_s = 0.0
        # Entries that are fetched already come without a pause: a replay must not hold the loop to its end.
        await asyncio.sleep(0)
        return entries

    def _listen(self, waited_s: float) -> None:
        """The library tries again for ever and says nothing; but it does note when a broker last answered."""
        answered_ms = self._consumer.last_poll_timestamp(self._place)
        self._silent_s = 0.0 if answered_ms != self._answered_ms else self._silent_s + waited_s
        self._answered_ms = answered_ms
        if self._silent_s >= SILENCE_MAX_S:
            raise LogUnavailable(f"no broker has answered for {self._partition} in {self._silent_s} s")


class _Consumers:
    """The consumers of readers. A few are kept when their readers are done with them."""

    def __init__(self, connection: Mapping[str, Any]) -> None:
        self._connection = connection
        self._idle: deque[tuple[float, Any]] = deque()
        """Since when, and which; the one that has been idle longest first."""
        self._kept_max = CONSUMERS_IDLE_MAX
        self._lent = 0

    @asynccontextmanager
    async def placed(self, partition: Partition, offset: int) -> AsyncGenerator[Any]:
        """A consumer that reads this partition from this offset on, and nothing else."""
        if self._lent >= READERS_MAX:
            raise LogUnavailable(f"{READERS_MAX} readers are open already")
        self._lent += 1
        consumer = self._take()
        sound = False
        try:
            await self._place(consumer, partition, offset)
            yield consumer
            sound = True
        finally:
            self._lent -= 1
            await self._take_back(consumer, partition, sound)

    def _take(self) -> Any:
        # A broker serves one request of a connection after the other: before its last fetch has run out, a consumer
        # would start later than a new one does.
        if self._idle and time.monotonic() - self._idle[0][0] > FETCH_WAIT_S:
            return self._idle.popleft()[1]
        return _consumer(self._connection)

    async def _place(self, consumer: Any, partition: Partition, offset: int) -> None:
        try:
            if not consumer.assignment():
                await consumer.start()
        except _FAILURES as error:
            raise LogUnavailable(f"cannot connect a reader of {partition}: {error!r}") from error
        place = TopicPartition(*partition)
        consumer.assign([place])
        consumer.seek(place, offset)

    async def _take_back(self, consumer: Any, partition: Partition, sound: bool) -> None:
        if sound and len(self._idle) < self._kept_max:
            place = TopicPartition(*partition)
            consumer.pause(place)
            consumer.seek(place, 0)  # drops what was fetched
            self._idle.append((time.monotonic(), consumer))
        else:
            await _stop(consumer.stop)

    async def close(self) -> None:
        """Stop those that are idle, and from now on every other as soon as its reader is done."""
        self._kept_max = 0
        while self._idle:
            await _stop(self._idle.pop()[1].stop)


def _consumer(connection: Mapping[str, Any]) -> Any:
    return AIOKafkaConsumer(
        **connection,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_uncommitted",
        fetch_max_bytes=FETCH_BYTES,
        max_partition_fetch_bytes=FETCH_BYTES,
        fetch_max_wait_ms=int(FETCH_WAIT_S * 1000),
    )


class _Admin:
    """Topics: find, create, trim. All of it can be repeated without harm, so it is, within a bound."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.start = client.start
        self.close = client.close

    async def find(self, name: str) -> LiveTopic:
        """The topic as it is. Raises `TopicMissing`."""
        async with _within(REQUEST_TIMEOUT_S):
            for _ in range(LOOKS_MAX):
                if live := await self._describe(name):
                    return live
                await asyncio.sleep(RETRY_PAUSE_S)
        raise missing(name)

    async def _describe(self, name: str) -> LiveTopic | None:
        """The topic as one broker knows it now."""
        # All topics are asked for: asking for one would create it where brokers do that.
        for topic in await _insisting(self._client.describe_topics):
            if topic["topic"] == name:
                partitions = topic["partitions"]
                replication = min(len(partition["replicas"]) for partition in partitions)
                led = all(partition["leader"] >= 0 for partition in partitions)
                settings = await _insisting(lambda: self._settings(name))
                return LiveTopic(len(partitions), replication, led, settings)
        return None

    async def _settings(self, name: str) -> dict[str, str]:
        (response,) = await self._client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
        ((code, message, _, _, entries),) = response.resources
        if code:
            raise errors.for_code(code)(message)
        return {setting: value for setting, value, *_ in entries}

    async def create(self, topic: Topic, single_broker: bool) -> None:
        """Create the topic if it is not there, and wait until all of it can be written to."""
        async with _within(ADMIN_TIMEOUT_S):
            if await self._describe(topic.name) is None:
                await self._check_brokers(topic, single_broker)
                await self._create(topic, single_broker)
                await self._wait_for_leaders(topic.name)

    async def _check_brokers(self, topic: Topic, single_broker: bool) -> None:
        brokers = len((await _insisting(self._client.describe_cluster))["brokers"])
        if single_broker and brokers > 1:
            raise TopicContractBroken(topic.name, [f"declared is a single broker, the cluster has {brokers}"])

    async def _create(self, topic: Topic, single_broker: bool) -> None:
        settings = kafka_topics.wanted(topic, single_broker)
        copies = kafka_topics.replication(single_broker)
        new = NewTopic(topic.name, topic.partitions, copies, topic_configs=settings)
        # It may be there by now: somebody else's, or ours after an answer that did not come.
        code, message = await _insisting(lambda: self._request_creation(new))
        if code not in (errors.NoError.errno, errors.TopicAlreadyExistsError.errno):
            hint = f"; {_SINGLE_BROKER_HINT}" if code == errors.InvalidReplicationFactorError.errno else ""
            raise TopicContractBroken(topic.name, [f"cannot be created: {message}{hint}"])

    async def _request_creation(self, new: NewTopic) -> tuple[int, str]:
        response = await self._client.create_topics([new])
        ((_, code, message),) = response.topic_errors
        error = errors.for_code(code)
        if error.retriable:
            raise error(message)
        return code, f"{error.__name__}: {message}"

    async def _wait_for_leaders(self, name: str) -> None:
        while not ((live := await self._describe(name)) and live.led):  # noqa: ASYNC110  (nobody tells us: we have to ask)
            await asyncio.sleep(RETRY_PAUSE_S)

    async def trim(self, partition: Partition, before: int) -> None:
        """Delete the records below the offset."""
        cut = {TopicPartition(*partition): RecordsToDelete(before)}
        async with _within(ADMIN_TIMEOUT_S):
            await _insisting(lambda: self._client.delete_records(cut))


@asynccontextmanager
async def _within(seconds: float) -> AsyncGenerator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except _FAILURES as error:
        raise LogUnavailable(f"Kafka did not do what was asked within {seconds} s: {error!r}") from error


async def _insisting(request: Callable[[], Awaitable[Answer]]) -> Answer:
    while True:
        try:
            return await request()
        except errors.KafkaError as error:
            if not error.retriable:
                raise
        await asyncio.sleep(RETRY_PAUSE_S)
