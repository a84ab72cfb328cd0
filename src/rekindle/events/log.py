"""The `EventLog` seam: ordered, append-only partitions, and nothing that decides what a record means.

Three implementations (Kafka, embedded, simulated) pass one contract suite; everything above runs unchanged on each.

What an implementation promises:
- `append` puts one batch at consecutive offsets of one partition, all of it or nothing, and answers with the offset
  of its first record. When it raises `LogUnavailable` or `AppendRefused` nothing was appended; when it raises
  `AppendUnknown` the batch may be there already, may come later, may come twice, or never.
- An acknowledged append is durable in the sense of the log (Kafka: min.insync.replicas brokers; embedded: on disk).
- Offsets of a partition never come back: a reader at offset N sees N, then whatever is next above it.

What it does not promise, and why the rules (`rekindle.events.rules`) exist: that only one process appends.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

Keyed = tuple[bytes | None, bytes | None]
"""What is appended: (key, value). A value of None is a tombstone, for compacted topics only."""

RECORD_BYTES_MAX = 1_000_000
"""Default limit of one encoded record, below Kafka's default `max.message.bytes` (1,048,588)."""

BATCH_BYTES_MAX = 1_000_000
"""Limit of all records of one append together: an append is one Kafka record batch."""


class Partition(NamedTuple):
    """One partition of one topic: the log of one shard."""

    topic: str
    index: int  # type: ignore[assignment]  # the word for it; nobody asks where in the tuple an item is

    def __str__(self) -> str:
        return f"{self.topic}/{self.index}"


@dataclass(frozen=True, slots=True)
class Topic:
    """The contract of a topic: what `create` makes and `check` insists on.

    partitions: fixed for ever (a key's shard is computed from it).
    compacted: only for the snapshot index and chunks; event topics are `cleanup.policy=delete` with no limit.
    record_bytes_max: limit of one encoded record; the topic's `max.message.bytes` leaves room for a whole batch.
    fsync: an fsync for every batch (Kafka: `flush.messages=1`; the embedded log always does it).
    """

    name: str
    partitions: int
    compacted: bool = False
    record_bytes_max: int = RECORD_BYTES_MAX
    fsync: bool = False


class Entry(Protocol):
    """One record as it lies in the log. aiokafka's `ConsumerRecord` is one as it is."""

    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


class Stored(NamedTuple):
    """The plain `Entry` of the logs that are ours."""

    offset: int
    key: bytes | None
    value: bytes | None


class Bounds(NamedTuple):
    """start: the first offset that is still there. end: the offset that the next record will get."""

    start: int
    end: int


class Reader(Protocol):
    """A position in a partition."""

    async def next(self, wait_s: float) -> Sequence[Entry]:
        """The next entries in order, at least one; none only if nothing came within `wait_s`.

        Raises `LogTruncated` if the position is below the start or above the end of the log, `LogUnavailable`
        if the log cannot be reached.
        """
        ...


class EventLog(Protocol):
    """Ordered partitions that many processes append to and read."""

    async def open(self) -> None:
        """Connect. Raises `LogUnavailable`."""
        ...

    async def close(self) -> None:
        """Disconnect; safe to call twice, or without `open`. Bounded in time."""
        ...

    async def create(self, topic: Topic) -> None:
        """Create the topic, or check the one that is there. Raises `TopicContractBroken`, `LogUnavailable`."""
        ...

    async def check(self, topic: Topic) -> None:
        """Raises `TopicMissing` or `TopicContractBroken` unless the topic is as declared."""
        ...

    async def append(self, partition: Partition, records: Sequence[Keyed]) -> int:
        """Append one batch; the offset of its first record, or -1 if the log does not say (doubt)."""
        ...

    async def bounds(self, partition: Partition) -> Bounds:
        """Where the partition starts and ends now. Raises `TopicMissing`, `LogUnavailable`."""
        ...

    def reader(self, partition: Partition, offset: int) -> AbstractAsyncContextManager[Reader]:
        """Read from `offset` on, also what is appended later. Raises `LogTruncated` if it is not in the log."""
        ...

    def follow(self, partition: Partition, offset: int) -> AbstractAsyncContextManager[Reader]:
        """As `reader`, for who stays at the end: many of them share what readers have of their own, and may be told a
        few milliseconds later. Not for a replay: what others wait for would come behind it."""
        ...

    async def trim(self, partition: Partition, before: int) -> None:
        """Delete the records below offset `before`; what an owner does for a service with retention."""
        ...
