"""What a simulated process has of the world: the shared log, a store in it, the wire, a clock, chance.

The log and its faults are the world's: an append is on its way once it was sent, whatever becomes of its sender. A host
that is cut off from the log finds it away, or does not learn what became of its append. Clocks differ from process to
process; chance comes from the seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random
from typing import Final

from rekindle.actors import Host
from rekindle.chaos.loop import Process, outside
from rekindle.chaos.simwire import REFUSED_S, Net
from rekindle.events import (
    AppendRefused,
    AppendUnknown,
    Bounds,
    Entry,
    EventLog,
    Keyed,
    LogUnavailable,
    Partition,
    Reader,
    Stored,
    Topic,
)
from rekindle.events.simulated import SimulatedLog
from rekindle.events.stores import LogStore

EPOCH_MS: Final = 1_700_000_000_000
TOKEN: Final = "simulated"
LOG_HOST: Final = "log"
"""The name of the log's host, for cuts."""


class KeptLog(SimulatedLog):
    """The world's log. What owners delete of it is kept for the judge. refuses_until: it takes no append before."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.refuses_until = 0.0
        self._deleted: dict[Partition, list[Stored]] = {}

    async def append(self, partition: Partition, records: Sequence[Keyed]) -> int:
        """See `EventLog`."""
        if asyncio.get_running_loop().time() < self.refuses_until:
            await asyncio.sleep(REFUSED_S)
            raise AppendRefused(f"{partition} takes nothing now")
        return await super().append(partition, records)

    async def trim(self, partition: Partition, before: int) -> None:
        """See `EventLog`."""
        known = self.records(partition)
        await super().trim(partition, before)
        start = self.records(partition)[0].offset
        self._deleted.setdefault(partition, []).extend(record for record in known if record.offset < start)

    def everything(self, partition: Partition) -> list[Stored]:
        """All records that the partition ever had."""
        return [*self._deleted.get(partition, ()), *self.records(partition)]


class LogView:
    """The shared log as one process reaches it."""

    def __init__(self, log: SimulatedLog, net: Net, process: Process) -> None:
        self._log = log
        self._net = net
        self._process = process

    async def open(self) -> None:
        """See `EventLog`."""

    async def close(self) -> None:
        """See `EventLog`."""

    async def create(self, topic: Topic) -> None:
        """See `EventLog`."""
        await self._reach()
        await outside(self._log.create(topic))

    async def check(self, topic: Topic) -> None:
        """See `EventLog`."""
        await self._reach()
        await outside(self._log.check(topic))

    async def append(self, partition: Partition, records: Sequence[Keyed]) -> int:
        """See `EventLog`."""
        await self._reach()
        offset = await outside(self._log.append(partition, records))
        if self._is_cut:
            raise AppendUnknown(f"{self._process.host} was cut off before the log had answered")
        return offset

    async def bounds(self, partition: Partition) -> Bounds:
        """See `EventLog`."""
        await self._reach()
        return await outside(self._log.bounds(partition))

    async def trim(self, partition: Partition, before: int) -> None:
        """See `EventLog`."""
        await self._reach()
        await outside(self._log.trim(partition, before))

    @asynccontextmanager
    async def reader(self, partition: Partition, offset: int) -> AsyncGenerator[Reader]:
        """See `EventLog`."""
        await self._reach()
        manager = self._log.reader(partition, offset)
        reader = await outside(manager.__aenter__())
        yield _ReaderView(reader, self._reach)
        await outside(manager.__aexit__(None, None, None))

    def follow(self, partition: Partition, offset: int) -> AbstractAsyncContextManager[Reader]:
        """See `EventLog`."""
        return self.reader(partition, offset)

    @property
    def _is_cut(self) -> bool:
        return self._net.is_cut(self._process.host, LOG_HOST)

    async def _reach(self) -> None:
        if self._is_cut:
            await asyncio.sleep(REFUSED_S)
            raise LogUnavailable(f"{self._process.host} is cut off from the log")


class _ReaderView:
    def __init__(self, reader: Reader, reach: Callable[[], Awaitable[None]]) -> None:
        self._reader = reader
        self._reach = reach

    async def next(self, wait_s: float) -> Sequence[Entry]:
        """See `Reader`."""
        await self._reach()
        return await outside(self._reader.next(wait_s))


def host_of(
    process: Process, net: Net, log: SimulatedLog, app: str, random: Random, skew_ms: int, say: Callable[[str], None]
) -> Host:
    """What the process gives to an instance, a controller or a client."""
    view: EventLog = LogView(log, net, process)
    loop = process.loop

    def now_ms() -> int:
        return EPOCH_MS + round(loop.time() * 1000) + skew_ms

    async def offload(work: Callable[[], bytes]) -> bytes:
        await asyncio.sleep(0)
        return work()

    return Host(
        view,
        LogStore(view, app),
        net.join(process),
        now_ms,
        offload,
        say,
        monotonic=loop.time,
        token=TOKEN,
        randomness=random.randbytes,
    )
