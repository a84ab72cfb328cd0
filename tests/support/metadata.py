"""What one broker knows of its cluster: who serves, who leads, who is in sync. Kafka's Metadata request, version 1.

Spoken by hand because the harness is plain blocking code: aiokafka would want an event loop for it, and it logs an
error for every broker that is still starting, which is what the harness asks most.
"""

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Final, TypeVar

T = TypeVar("T")

_ANSWER_DEADLINE_S: Final = 2.0
_METADATA, _VERSION, _CORRELATION, _NO_CLIENT_ID, _ALL_TOPICS = 3, 1, 0, -1, -1
_REQUEST: Final = struct.pack(">hhihi", _METADATA, _VERSION, _CORRELATION, _NO_CLIENT_ID, _ALL_TOPICS)


@dataclass(frozen=True, slots=True)
class PartitionState:
    """One partition, as the broker that was asked sees it. A leader of -1 is none."""

    topic: str
    index: int
    leader: int
    replicas: frozenset[int]
    in_sync: frozenset[int]


@dataclass(frozen=True, slots=True)
class Metadata:
    """The cluster, as the broker that was asked sees it."""

    brokers: frozenset[int]
    partitions: tuple[PartitionState, ...]

    def is_in_sync(self, broker: int) -> bool:
        """Whether that broker serves, and has caught up with every partition that it holds a replica of."""
        return broker in self.brokers and all(broker in p.in_sync for p in self.partitions if broker in p.replicas)

    def leader_of(self, topic: str, index: int) -> int | None:
        """The broker that leads the partition; None while there is no such partition or no leader."""
        found = (p.leader for p in self.partitions if (p.topic, p.index) == (topic, index))
        return next((leader for leader in found if leader in self.brokers), None)


def ask_metadata(port: int) -> Metadata | None:
    """What the broker at that loopback port knows; None while it does not answer."""
    try:
        with socket.create_connection(("127.0.0.1", port), _ANSWER_DEADLINE_S) as connection:
            connection.sendall(_framed(_REQUEST))
            with connection.makefile("rb") as stream:
                return _Answer(stream.read(int.from_bytes(stream.read(4), "big"))).metadata()
    except OSError:
        return None


def _framed(request: bytes) -> bytes:
    return len(request).to_bytes(4, "big") + request


class _Answer:
    """Reads Kafka's encoding: numbers in network order, text and arrays behind their length."""

    def __init__(self, data: bytes) -> None:
        self._data = BytesIO(data)

    def metadata(self) -> Metadata:
        self._number(4)  # correlation id
        brokers = frozenset(self._array(self._broker))
        self._number(4)  # the controller
        topics = self._array(self._topic)
        return Metadata(brokers, tuple(partition for topic in topics for partition in topic))

    def _broker(self) -> int:
        number = self._number(4)
        self._text()  # host
        self._number(4)  # port
        self._text()  # rack
        return number

    def _topic(self) -> list[PartitionState]:
        self._number(2)  # error
        name = self._text()
        self._number(1)  # whether it is one of Kafka's own
        return self._array(lambda: self._partition(name))

    def _partition(self, topic: str) -> PartitionState:
        self._number(2)  # error
        return PartitionState(topic, self._number(4), self._number(4), self._numbers(), self._numbers())

    def _numbers(self) -> frozenset[int]:
        return frozenset(self._array(lambda: self._number(4)))

    def _array(self, item: Callable[[], T]) -> list[T]:
        return [item() for _ in range(self._number(4))]

    def _text(self) -> str:
        return self._data.read(max(0, self._number(2))).decode()

    def _number(self, width: int) -> int:
        return int.from_bytes(self._data.read(width), "big", signed=True)
