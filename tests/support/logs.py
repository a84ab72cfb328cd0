"""The three logs under one handle, and a process that appends to one.

python tests/support/logs.py sqlite:///log.sqlite orders/0 100 a-      appends 100 batches, one line for each
"""

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from rekindle.events.embedded import EmbeddedLog
from rekindle.events.errors import AppendUnknown
from rekindle.events.kafka import KafkaLog
from rekindle.events.log import Entry, EventLog, Keyed, Partition, Reader
from rekindle.events.simulated import SimulatedLog
from rekindle.events.urls import open_log

BATCH: Final = 3
"""How many records are in a batch of the appending process."""

WAIT_S: Final = 30.0
"""How long a reader waits for what must come."""


@dataclass(frozen=True)
class Place:
    """Where a log is. make: one more log object there; all of them see the same records.

    url: for another process; None: no other process can reach it.
    """

    make: Callable[[], EventLog]
    url: str | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[EventLog]:
        """One more log object, open."""
        log = self.make()
        await log.open()
        try:
            yield log
        finally:
            await log.close()


def simulated() -> Place:
    """In this process, without faults."""
    log = SimulatedLog(Random(0))
    return Place(lambda: log)


def embedded(folder: Path) -> Place:
    """A file in the folder."""
    path = folder / "log.sqlite"
    return Place(lambda: EmbeddedLog(path), f"sqlite://{path}")


def kafka(bootstrap: str) -> Place:
    """The single broker at that address."""
    return Place(lambda: KafkaLog(bootstrap, single_broker=True), f"kafka://{bootstrap}?single_broker=true")


def numbered(first: int, count: int) -> list[Keyed]:
    """Records that say which they are."""
    return [(b"key", str(number).encode()) for number in range(first, first + count)]


async def read(reader: Reader, count: int) -> list[Entry]:
    """The next `count` entries, or more if they come together."""
    entries: list[Entry] = []
    while len(entries) < count:
        found = await reader.next(WAIT_S)
        assert found, f"expected {count} entries, only {len(entries)} came"
        entries += found
    return entries


async def read_all(log: EventLog, partition: Partition) -> list[Entry]:
    """Everything that is in the partition. It must not have holes."""
    start, end = await log.bounds(partition)
    async with log.reader(partition, start) as reader:
        return await read(reader, end - start)


def values(entries: Sequence[Entry]) -> list[str]:
    """What the entries say."""
    return [(entry.value or b"").decode() for entry in entries]


def appending(place: Place, partition: Partition, count: int, name: str) -> list[str]:
    """The command of a process that runs `append_all`."""
    assert place.url, "no other process can reach this log"
    return [sys.executable, __file__, place.url, str(partition), str(count), name]


async def append_all(url: str, place: str, count: int, name: str) -> None:
    """Append batches one after the other and print the offset of each as soon as it is acknowledged."""
    topic, _, index = place.rpartition("/")
    partition = Partition(topic, int(index))
    async with Place(lambda: open_log(url)).opened() as log:
        for number in range(count):
            try:
                offset = await log.append(partition, [(b"key", f"{name}{number}".encode())] * BATCH)
                print(offset, f"{name}{number}", flush=True)
            except AppendUnknown as doubt:
                print("?", doubt, flush=True)


if __name__ == "__main__":
    asyncio.run(append_all(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
