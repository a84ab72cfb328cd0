"""What every log refuses, in the same words: batches, positions and topics that break the contract of `EventLog`."""

from __future__ import annotations

from collections.abc import Sequence

from rekindle.events.errors import AppendRefused, LogTruncated, RecordTooLarge, TopicContractBroken, TopicMissing
from rekindle.events.log import BATCH_BYTES_MAX, Bounds, Keyed, Partition, Topic


def missing(name: str) -> TopicMissing:
    """The error for a topic that is not there."""
    return TopicMissing(f"topic {name!r} does not exist: create it first (`rekindle up` does)")


def check_partition(topic: Topic, partition: Partition) -> None:
    """Raises `TopicMissing` unless the topic has the partition."""
    if not 0 <= partition.index < topic.partitions:
        raise TopicMissing(f"topic {topic.name!r} has partitions 0 to {topic.partitions - 1}, no {partition.index}")


def check_append(topic: Topic, partition: Partition, records: Sequence[Keyed]) -> None:
    """Refuse a batch that could not be appended whole, before anything of it is sent.

    One record may take `record_bytes_max` of its topic, several together `BATCH_BYTES_MAX`; counted are keys and
    values, every log leaves room for its own headers.
    """
    assert records, f"an append to {partition} without records"
    check_partition(topic, partition)
    total = 0
    for key, value in records:
        if value is None or key is None:
            _check_shape(topic, partition, key, value)
        size = (len(key) if key else 0) + (len(value) if value else 0)
        if size > topic.record_bytes_max:
            raise RecordTooLarge(f"a record for {partition}", size, topic.record_bytes_max)
        total += size
    if total > BATCH_BYTES_MAX and len(records) > 1:
        raise AppendRefused(f"{len(records)} records for {partition} take {total} bytes, one append {BATCH_BYTES_MAX}")


def _check_shape(topic: Topic, partition: Partition, key: bytes | None, value: bytes | None) -> None:
    if topic.compacted and key is None:
        raise AppendRefused(
            f"a record without a key for {partition}: the topic is compacted, so every record needs one"
        )
    if value is None and not topic.compacted:
        raise AppendRefused(f"a tombstone for {partition}: only compacted topics take them, and this one is not")


def check_position(partition: Partition, offset: int, bounds: Bounds) -> None:
    """Raises `LogTruncated` unless a reader can stand at the offset: at a record, or right behind the last one."""
    if not bounds.start <= offset <= bounds.end:
        raise LogTruncated(str(partition), offset, bounds.start if offset < bounds.start else bounds.end)


def check_trim(partition: Partition, before: int, bounds: Bounds) -> None:
    """Raises `LogTruncated` if records are to be deleted that the log never had."""
    if before > bounds.end:
        raise LogTruncated(str(partition), before, bounds.end)


def check_topic(declared: Topic, live: Topic) -> None:
    """Raises `TopicContractBroken`, which lists everything in which the live topic is not as declared."""
    faults: list[str] = []
    if live.partitions != declared.partitions:
        faults.append(f"partitions: expected {declared.partitions}, found {live.partitions}")
    if live.compacted != declared.compacted:
        faults.append(f"cleanup.policy: expected {_policy(declared)}, found {_policy(live)}")
    if live.record_bytes_max < declared.record_bytes_max:
        faults.append(f"record_bytes_max: expected {declared.record_bytes_max}, found {live.record_bytes_max}")
    if faults:
        raise TopicContractBroken(declared.name, faults)


def _policy(topic: Topic) -> str:
    return "compact" if topic.compacted else "delete"
