"""The log on Kafka where it is more than the contract: settings, dead leaders, topics that were deleted and made again.

Goal: a topic that would lose data is refused setting by setting; what was acknowledged survives the leader; nothing
that Kafka forgets is taken for an empty log. Method: real brokers; aiokafka's own admin client plays the careless operator.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from rekindle.events import kafka as kafka_module
from rekindle.events import kafka_topics
from rekindle.events.errors import (
    AppendRefused,
    AppendUnknown,
    LogTruncated,
    LogUnavailable,
    TopicContractBroken,
    TopicMissing,
)
from rekindle.events.kafka import KafkaLog
from rekindle.events.kafka_topics import LiveTopic
from rekindle.events.log import Bounds, EventLog, Partition, Reader, Topic
from tests.support import logs
from tests.support.kafka import KafkaCluster
from tests.support.logs import WAIT_S, numbered, read, read_all, values
from tests.support.loops import run
from tests.support.ports import leased_ports


@asynccontextmanager
async def operator(bootstrap: str) -> AsyncGenerator[Any]:
    """Somebody with Kafka's own tools."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def settle(log: EventLog, topic: Topic, end: int) -> Partition:
    """The topic's first partition with records up to `end`."""
    await log.create(topic)
    partition = Partition(topic.name, 0)
    await log.append(partition, numbered(0, end))
    return partition


async def make_anew(bootstrap: str, topic: Topic) -> None:
    """Delete the topic and create it again, as the operator would."""
    async with operator(bootstrap) as admin:
        await admin.delete_topics([topic.name])
        new = NewTopic(topic.name, topic.partitions, 1, topic_configs=kafka_topics.wanted(topic, single_broker=True))
        while (response := await admin.create_topics([new])).topic_errors[0][1] != 0:
            assert "marked for deletion" in str(response) or "already exists" in str(response), response


# The contract of a topic


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("cleanup.policy", "compact", "cleanup.policy: expected delete, found compact"),
        ("cleanup.policy", "compact,delete", "cleanup.policy: expected delete, found compact,delete"),
        ("retention.ms", "604800000", "retention.ms: expected -1, found 604800000"),
        ("retention.bytes", "1000000", "retention.bytes: expected -1, found 1000000"),
        ("unclean.leader.election.enable", "true", "unclean.leader.election.enable: expected false, found true"),
        ("max.message.bytes", "1000000", "max.message.bytes: expected at least 1262144, found 1000000"),
        ("flush.messages", "10", "flush.messages: expected 1, found 10"),
    ],
)
def test_a_setting_that_would_lose_data_is_refused(
    kafka: str, unique: str, setting: str, value: str, said: str
) -> None:
    topic = Topic(unique, 2, fsync=True)
    settings = kafka_topics.wanted(topic, single_broker=True) | {setting: value}

    async def main() -> None:
        async with operator(kafka) as admin:
            await admin.create_topics([NewTopic(unique, 2, 1, topic_configs=settings)])
        async with logs.kafka(kafka).opened() as log:
            for insist in (log.create, log.check):
                with pytest.raises(TopicContractBroken) as caught:
                    await insist(topic)
                assert caught.value.faults == [said]

    run(main())


def test_replication_and_acknowledgements_are_insisted_on() -> None:
    topic = Topic("events", 2)
    settings = kafka_topics.wanted(topic, single_broker=False)
    sound = LiveTopic(partitions=2, replication=3, led=True, settings=settings)
    assert kafka_topics.faults(topic, single_broker=False, live=sound) == []
    alone = replace(sound, replication=1, settings=settings | {"min.insync.replicas": "1"})
    assert kafka_topics.faults(topic, single_broker=False, live=alone) == [
        "min.insync.replicas: expected at least 2, found 1",
        "replication: expected at least 3, found 1",
    ]
    assert kafka_topics.faults(topic, single_broker=True, live=alone) == []


def test_three_copies_need_three_brokers(kafka: str, unique: str) -> None:
    async def main() -> None:
        log = KafkaLog(kafka)
        await log.open()
        with pytest.raises(TopicContractBroken, match=r"only 1 broker.*single_broker=true"):
            await log.create(Topic(unique, 1))
        with pytest.raises(TopicMissing):
            await log.check(Topic(unique, 1))
        await log.close()

    run(main())


def test_three_brokers_are_not_a_single_one(kafka3: KafkaCluster, unique: str) -> None:
    async def main() -> None:
        async with logs.kafka(kafka3.bootstrap).opened() as log:
            with pytest.raises(TopicContractBroken, match="declared is a single broker, the cluster has 3"):
                await log.create(Topic(unique, 1))

    run(main())


# What Kafka forgets


def test_a_topic_that_was_made_anew_shows_lower_offsets(kafka: str, unique: str) -> None:
    topic = Topic(unique, 1)

    async def main() -> None:
        async with logs.kafka(kafka).opened() as log:
            partition = await settle(log, topic, end=10)
            await make_anew(kafka, topic)
            assert await log.append(partition, numbered(0, 1)) == 0
            with pytest.raises(LogTruncated, match="expected at least offset 10, found 1"):
                async with log.reader(partition, 10):
                    pytest.fail("it could be opened")

    run(main())


def test_a_reader_notices_that_its_topic_was_made_anew(kafka: str, unique: str) -> None:
    topic = Topic(unique, 1)

    async def main() -> None:
        async with logs.kafka(kafka).opened() as log:
            partition = await settle(log, topic, end=10)
            async with log.reader(partition, 0) as reader:
                await read(reader, 10)
                await make_anew(kafka, topic)
                with pytest.raises(LogTruncated, match="expected at least offset 10, found 0"):
                    await reader.next(WAIT_S)

    run(main())


def test_a_deleted_topic_is_missing(kafka: str, unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_module, "REQUEST_TIMEOUT_S", 0.5)

    async def main() -> None:
        async with logs.kafka(kafka).opened() as log:
            partition = await settle(log, Topic(unique, 1), end=1)
            async with operator(kafka) as admin:
                await admin.delete_topics([unique])
            with pytest.raises((AppendUnknown, TopicMissing)):
                await log.append(partition, numbered(1, 1))
            for use in (log.append(partition, numbered(1, 1)), log.bounds(partition)):
                with pytest.raises(TopicMissing):
                    await use

    run(main())


# Refusals and doubts


def test_a_batch_that_the_broker_finds_too_large_is_refused(
    kafka: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody lowered the limit after the topic had been checked."""

    async def main() -> None:
        async with logs.kafka(kafka).opened() as log:
            await log.create(Topic(f"{unique}-other", 1))
            async with operator(kafka) as admin:
                await admin.create_topics([NewTopic(unique, 1, 1, topic_configs={"max.message.bytes": "5000"})])
            monkeypatch.setattr(log, "_topics", {unique: Topic(unique, 1)})
            partition = Partition(unique, 0)
            with pytest.raises(AppendRefused, match="MessageSizeTooLarge"):
                await log.append(partition, [(b"k", b"v" * 6000)])
            assert await log.append(partition, numbered(0, 1)) == 0

    run(main())


def test_nothing_at_the_address_is_unavailable() -> None:
    async def main() -> None:
        with leased_ports(1) as (port,):
            log = KafkaLog(f"127.0.0.1:{port}")
            with pytest.raises(LogUnavailable, match=f"no Kafka at 127.0.0.1:{port}"):
                await log.open()
            await log.close()

    run(main())


def test_too_few_replicas_in_sync_make_a_doubt_and_pass(
    kafka3: KafkaCluster, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        kafka_module, "REQUEST_TIMEOUT_S", 3.0
    )  # not less: brokers share two cores with whatever else runs

    async def main() -> None:
        log = KafkaLog(kafka3.bootstrap)
        await log.open()
        partition = await settle(log, Topic(unique, 1), end=1)
        leader = await asyncio.to_thread(kafka3.leader_of, unique, 0)
        followers = [broker for broker in (1, 2, 3) if broker != leader]
        await asyncio.gather(*(asyncio.to_thread(kafka3.kill, broker) for broker in followers))
        with pytest.raises(AppendUnknown):
            await log.append(partition, numbered(1, 1))
        await asyncio.to_thread(kafka3.heal)
        offset = await insist(log, partition)
        assert values(await read_all(log, partition))[offset] == "again"
        await log.close()

    run(main())


async def insist(log: EventLog, partition: Partition) -> int:
    """Append until it is acknowledged."""
    while True:
        try:
            return await log.append(partition, [(b"key", b"again")])
        except AppendUnknown:
            continue


def test_nothing_acknowledged_is_lost_when_leaders_are_killed(kafka3: KafkaCluster, unique: str) -> None:
    topic = Topic(unique, 2)

    async def main() -> None:
        log = KafkaLog(kafka3.bootstrap)
        await log.open()
        await log.create(topic)
        done = asyncio.Event()
        appending = [asyncio.create_task(append_until(done, log, Partition(unique, index))) for index in (0, 1)]
        readers = [open_at(Partition(unique, index), 0) for open_at in (log.reader, log.follow) for index in (0, 1)]
        following = [asyncio.create_task(follow(done, reader)) for reader in readers]
        for _ in range(2):
            leader = await asyncio.to_thread(kafka3.leader_of, unique, 0)
            await asyncio.to_thread(kafka3.kill, leader)
            assert leader != await asyncio.to_thread(kafka3.leader_of, unique, 0)
            await asyncio.to_thread(kafka3.heal)
        done.set()
        for index, acknowledged in enumerate(await asyncio.gather(*appending)):
            found = values(await read_all(log, Partition(unique, index)))
            assert acknowledged
            assert all(found[offset] == value for offset, value in acknowledged)
            for followed in (await following[index], await following[index + 2]):
                assert followed
                assert followed == found[: len(followed)]
        await log.close()

    run(main())


async def append_until(done: asyncio.Event, log: EventLog, partition: Partition) -> list[tuple[int, str]]:
    """Append one by one; offset and value of each that was acknowledged."""
    acknowledged: list[tuple[int, str]] = []
    number = 0
    while not done.is_set():
        number += 1
        try:
            offset = await log.append(partition, numbered(number, 1))
        except AppendUnknown:
            continue
        acknowledged.append((offset, str(number)))
    return acknowledged


async def follow(done: asyncio.Event, opening: AbstractAsyncContextManager[Reader]) -> list[str]:
    """What one reader sees while leaders come and go."""
    seen: list[str] = []
    async with opening as reader:
        while not done.is_set():
            seen += values(await reader.next(0.5))
    return seen


def test_a_reader_says_when_no_broker_answers(unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_module, "SILENCE_MAX_S", 1.0)
    monkeypatch.setattr(
        kafka_module, "REQUEST_TIMEOUT_S", 3.0
    )  # not less: brokers share two cores with whatever else runs
    monkeypatch.setattr(kafka_module, "CLOSE_TIMEOUT_S", 1.0)

    async def main(cluster: KafkaCluster) -> None:
        async with logs.kafka(cluster.bootstrap).opened() as log:
            partition = await settle(log, Topic(unique, 1), end=1)
            async with log.reader(partition, 0) as reader:
                await read(reader, 1)
                cluster.kill(1)
                with pytest.raises(LogUnavailable, match="no broker has answered"):
                    await reader.next(WAIT_S)
            with pytest.raises(LogUnavailable):
                await log.bounds(partition)
            with pytest.raises((AppendUnknown, LogUnavailable)):
                await log.append(partition, numbered(1, 1))

    with KafkaCluster(1) as cluster:
        run(main(cluster))


# Readers


def test_readers_are_bounded(kafka: str, unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_module, "READERS_MAX", 1)

    async def main() -> None:
        async with logs.kafka(kafka).opened() as log:
            partition = await settle(log, Topic(unique, 1), end=3)
            async with log.reader(partition, 0) as reader:
                with pytest.raises(LogUnavailable, match="1 readers are open already"):
                    async with log.reader(partition, 0):
                        pytest.fail("it could be opened")
                assert len(await read(reader, 3)) == 3
            assert await log.bounds(partition) == Bounds(0, 3)

    run(main())


def test_a_consumer_serves_one_reader_after_the_other(kafka: str, unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_module, "FETCH_WAIT_S", 0.0)
    make = Mock(wraps=kafka_module._consumer)  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(kafka_module, "_consumer", make)

    async def main() -> None:
        async with logs.kafka(kafka).opened() as log:
            partition = await settle(log, Topic(unique, 1), end=10)
            for offset in (0, 9, 4, 0):
                async with log.reader(partition, offset) as reader:
                    assert values(await read(reader, 1))[0] == str(offset)

    run(main())
    assert make.call_count == 2, "one for bounds, one for all readers"


@pytest.mark.parametrize("way", ["reader", "follow"])
def test_a_reader_that_is_cancelled_or_outlives_its_log_leaves_nothing_behind(
    kafka: str, unique: str, way: str
) -> None:
    """Warnings are errors here: a connection that was not closed would fail this test."""

    async def main() -> None:
        async with logs.kafka(kafka).opened() as log:
            partition = await settle(log, Topic(unique, 1), end=3)

            async def follow_from(offset: int) -> None:
                async with getattr(log, way)(partition, offset) as reader:
                    while await reader.next(WAIT_S):
                        pass

            followers = [asyncio.create_task(follow_from(3)) for _ in range(5)]
            for steps, follower in enumerate(followers):
                for _ in range(steps * 20):
                    await asyncio.sleep(0)
                follower.cancel()
            await asyncio.gather(*followers, return_exceptions=True)
            async with getattr(log, way)(partition, 0) as reader:
                await read(reader, 3)
                await log.close()

    run(main())


# Many who follow


PARTITIONS = 6


@asynccontextmanager
async def full(kafka: str, name: str, end: int) -> AsyncGenerator[tuple[KafkaLog, list[Partition]]]:
    """A log with a topic of several partitions, all of them filled up to an offset."""
    async with logs.kafka(kafka).opened() as log:
        assert isinstance(log, KafkaLog)
        await log.create(Topic(name, PARTITIONS))
        partitions = [Partition(name, index) for index in range(PARTITIONS)]
        for partition in partitions:
            await log.append(partition, numbered(0, end))
        yield log, partitions


def test_who_follows_shares_a_consumer(kafka: str, unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Mock(wraps=kafka_module._consumer)  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(kafka_module, "_consumer", make)

    async def main() -> None:
        async with full(kafka, unique, end=3) as (log, partitions), AsyncExitStack() as stack:
            readers = [await stack.enter_async_context(log.follow(partition, 2)) for partition in partitions]
            for reader in readers:
                assert values(await read(reader, 1)) == ["2"]
            await log.append(partitions[0], numbered(3, 1))
            assert values(await read(readers[0], 1)) == ["3"]
            assert make.call_count == 2, "one for bounds, one for all who follow"
            async with log.follow(partitions[0], 0) as another:
                assert values(await read(another, 4)) == ["0", "1", "2", "3"]
            assert make.call_count == 3, "one more for the second who follows a partition"

    run(main())


def test_those_who_stay_miss_nothing_when_others_come_and_go(kafka: str, unique: str) -> None:
    async def main() -> None:
        async with full(kafka, unique, end=1) as (log, partitions):

            async def stay(partition: Partition) -> list[str]:
                async with log.follow(partition, 0) as reader:
                    return values(await read(reader, 200))

            async def come_and_go(partition: Partition) -> None:
                for turn in range(15):
                    offset = min(turn * 10, (await log.bounds(partition)).end)
                    async with log.follow(partition, offset) as reader:
                        if entries := await reader.next(0.01):
                            assert entries[0].offset == offset

            async def write(partition: Partition) -> None:
                for number in range(1, 200):
                    await log.append(partition, numbered(number, 1))

            staying = [asyncio.create_task(stay(partition)) for partition in partitions[:3]]
            await asyncio.gather(*map(write, partitions), *map(come_and_go, partitions[3:]))
            assert await asyncio.gather(*staying) == [[str(number) for number in range(200)]] * 3

    run(main())


def test_one_who_does_not_read_keeps_nobody_waiting(kafka: str, unique: str) -> None:
    async def main() -> None:
        async with (
            full(kafka, unique, end=1) as (log, (idle, busy, *_)),
            log.follow(idle, 0) as late,
            log.follow(busy, 0) as reader,
        ):
            for first in range(1, 5_000, 100):
                await log.append(idle, numbered(first, 100))
                await log.append(busy, numbered(first, 1))
            assert len(await read(reader, 51)) == 51
            assert values(await read(late, 5_001)) == [str(number) for number in range(5_001)]

    run(main())


def test_the_consumer_of_all_fails_for_all_and_each_goes_on(kafka: str, unique: str) -> None:
    other = Topic(f"{unique}-other", 1)

    async def main() -> None:
        async with full(kafka, unique, end=3) as (log, partitions):
            lost = await settle(log, other, end=10)
            async with log.follow(lost, 10) as one, log.follow(partitions[0], 3) as another:
                await make_anew(kafka, other)
                for reader in (one, another):
                    with pytest.raises(LogUnavailable, match="many readers share has failed: OffsetOutOfRange"):
                        await reader.next(WAIT_S)
            with pytest.raises(LogTruncated):
                async with log.follow(lost, 10):
                    pytest.fail("it could be opened")
            async with log.follow(partitions[0], 3) as reader:
                await log.append(partitions[0], numbered(3, 1))
                assert values(await read(reader, 1)) == ["3"]

    run(main())
