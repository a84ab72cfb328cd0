"""A Kafka that is there and does not answer.

Goal: what the client library says of brokers that are away is not taken for a word about the topic, which would keep
its shards down for good. Method: all brokers are frozen before the log's producer has ever heard of the topic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from rekindle.events import LogUnavailable, Partition, Topic
from rekindle.events.kafka import KafkaLog
from tests.support.kafka import KafkaCluster
from tests.support.listeners import listener_at


@contextmanager
def frozen(kafka: KafkaCluster) -> Generator[None]:
    """No broker does anything within the block."""
    brokers = [listener_at(address) for address in kafka.bootstrap.split(",")]
    for broker in brokers:
        broker.suspend()
    try:
        yield
    finally:
        for broker in brokers:
            broker.resume()


def test_a_topic_that_cannot_be_found_now_is_not_missing(kafka3: KafkaCluster, unique: str) -> None:
    async def main() -> None:
        log = KafkaLog(kafka3.bootstrap)
        await log.open()
        await log.create(Topic(unique, 1))
        with frozen(kafka3), pytest.raises(LogUnavailable):
            await log.append(Partition(unique, 0), [(None, b"a")])
        assert await _append_patiently(log, Partition(unique, 0)) == 0  # the first one was never sent
        await log.close()

    asyncio.run(main())


async def _append_patiently(log: KafkaLog, partition: Partition) -> int:
    """Until the brokers have found each other again."""
    async with asyncio.timeout(60.0):
        while True:
            try:
                return await log.append(partition, [(None, b"a")])
            except LogUnavailable:
                continue
