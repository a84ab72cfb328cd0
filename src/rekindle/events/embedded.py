"""The embedded log: one SQLite file on one machine, for many processes, with every append on disk.

    topics      name -> its contract
    partitions  slot -> topic, number, start, next     slot: a small number for (topic, number)
    records     id -> key, value                       id: slot and offset in one integer, so a partition is one range

Invariants:
- `next` only grows, also when records are deleted: offsets never come back. A file that was made anew shows as lower
  offsets, for which every owner looks.
- The records of one append, and `next`, change in one transaction.
- A compacted partition keeps the last record of every key, and tombstones for a while.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from rekindle.events.checks import check_append, check_partition, check_position, check_topic, check_trim, missing
from rekindle.events.errors import AppendUnknown, LogError, LogUnavailable, RekindleError
from rekindle.events.followers import Followers, FollowingReader, Look
from rekindle.events.log import Bounds, Keyed, Partition, Stored, Topic
from rekindle.events.sqlite import MaybeWritten, NotWritten, SqliteFile, one_by_one

FOLLOW_INTERVAL_S: Final = 0.01
"""How often readers at the end look for appends of other processes; those of their own process wake them at once."""

READ_ENTRIES_MAX: Final = 2_000
"""At most this many entries come from one `next`."""

READ_BYTES_MAX: Final = 8 * 1024 * 1024
"""`next` stops behind the record that reaches this."""

TRIM_RECORDS_MAX: Final = 10_000
"""How many records one transaction deletes, so that appends need not wait long."""

TOMBSTONES_KEPT: Final = 1_000
"""A tombstone goes when this many records came after it. A reader that is further behind takes a dead key for alive."""

_OFFSET_BITS: Final = 40

_TABLES: Final = (
    "topics (name TEXT PRIMARY KEY, partitions INTEGER, compacted INTEGER, record_bytes_max INTEGER)",
    "partitions (slot INTEGER PRIMARY KEY, topic TEXT, number INTEGER, start INTEGER, next INTEGER, UNIQUE (topic, number))",
    "records (id INTEGER PRIMARY KEY, key BLOB, value BLOB)",
)


class _Batch(NamedTuple):
    """What one append puts into a partition."""

    slot: int
    records: Sequence[Keyed]
    compacted: bool


_Found = tuple[Bounds, list[Stored]]
_Row = tuple[int, bytes | None, bytes | None]


class EmbeddedLog:
    """An `EventLog` in a SQLite file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = SqliteFile(self.path, _TABLES)
        self._topics: dict[str, Topic] = {}
        self._slots: dict[Partition, int] = {}
        self._followers = Followers()
        self._looks = _Looks(self._file)
        self._readers = 0
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """See `EventLog`."""
        with _translated():
            await self._file.open()

    async def close(self) -> None:
        """See `EventLog`."""
        if self._watching:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        await self._file.close()

    async def create(self, topic: Topic) -> None:
        """See `EventLog`."""
        with _translated():
            live = await self._file.write(_create, topic)
        check_topic(topic, live)

    async def check(self, topic: Topic) -> None:
        """See `EventLog`."""
        check_topic(topic, await self._topic(topic.name))

    async def append(self, partition: Partition, records: Sequence[Keyed]) -> int:
        """See `EventLog`."""
        slot = self._slots.get(partition) or await self._slot(partition)
        topic = self._topics[partition.topic]
        check_append(topic, partition, records)
        try:
            first = await self._file.write(_append, _Batch(slot, records, topic.compacted))
        except (NotWritten, MaybeWritten) as error:
            raise _as_log_error(error, in_doubt=AppendUnknown) from error
        self._followers.wake(partition)
        return first

    async def bounds(self, partition: Partition) -> Bounds:
        """See `EventLog`."""
        slot = await self._slot(partition)
        with _translated():
            return await self._file.read(partial(_bounds, slot=slot))

    async def trim(self, partition: Partition, before: int) -> None:
        """See `EventLog`."""
        check_trim(partition, before, await self.bounds(partition))
        slot = await self._slot(partition)
        with _translated():
            await self._file.write(_lift_start, (slot, before))
            while await self._file.write(_delete_some, (slot, before)):
                pass

    def reader(self, partition: Partition, offset: int) -> AbstractAsyncContextManager[FollowingReader]:
        """See `EventLog`."""
        return self._reader(partition, offset, self._look)

    def follow(self, partition: Partition, offset: int) -> AbstractAsyncContextManager[FollowingReader]:
        """See `EventLog`."""
        return self._reader(partition, offset, self._look_together)

    @asynccontextmanager
    async def _reader(self, partition: Partition, offset: int, look: Look) -> AsyncGenerator[FollowingReader]:
        check_position(partition, offset, await self.bounds(partition))
        self._readers += 1
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        try:
            yield FollowingReader(self._followers, partition, offset, look)
        finally:
            self._readers -= 1

    async def _look(self, partition: Partition, offset: int) -> list[Stored]:
        slot = await self._slot(partition)
        with _translated():
            bounds, entries = await self._file.read(partial(_read, slot=slot, offset=offset))
        check_position(partition, offset, bounds)
        return entries

    async def _look_together(self, partition: Partition, offset: int) -> list[Stored]:
        slot = await self._slot(partition)
        bounds, entries = await self._looks.look(slot, offset)
        check_position(partition, offset, bounds)
        return entries

    async def _watch(self) -> None:
        """Wake followers of partitions that other processes have appended to, as long as there are readers."""
        ends: dict[Partition, int] = {}
        while self._readers:
            await asyncio.sleep(FOLLOW_INTERVAL_S)
            if waited_for := self._followers.waited_for():
                ends = await self._wake_moved(waited_for, ends)
        self._watching = None

    async def _wake_moved(self, waited_for: list[Partition], before: dict[Partition, int]) -> dict[Partition, int]:
        slots = [self._slots[partition] for partition in waited_for]
        try:
            ends = dict(zip(waited_for, await self._file.read(partial(_ends, slots=slots)), strict=True))
        except (sqlite3.Error, ValueError):
            # Each of them looks and meets the error where it can be raised.
            self._followers.wake_all()
            return {}
        for partition, end in ends.items():
            if end != before.get(partition):
                self._followers.wake(partition)
        return ends

    async def _topic(self, name: str) -> Topic:
        if name not in self._topics:
            with _translated():
                found = await self._file.read(partial(_find_topic, name=name))
            if found is None:
                raise missing(name)
            topic, slots = found
            self._topics[name] = topic
            self._slots |= {Partition(name, index): slot for index, slot in enumerate(slots)}
        return self._topics[name]

    async def _slot(self, partition: Partition) -> int:
        check_partition(await self._topic(partition.topic), partition)
        return self._slots[partition]


class _Looks:
    """What those who follow look for, in one turn of the loop, is read at once: to wake a thread costs more than to read."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._asked: list[tuple[int, int, asyncio.Future[_Found]]] = []
        self._reading: asyncio.Task[None] | None = None

    async def look(self, slot: int, offset: int) -> _Found:
        """What is in a partition from an offset on. Raises `LogUnavailable`."""
        answer: asyncio.Future[_Found] = asyncio.get_running_loop().create_future()
        self._asked.append((slot, offset, answer))
        if len(self._asked) == 1:
            self._reading = asyncio.create_task(self._read())
        return await answer

    async def _read(self) -> None:
        asked, self._asked = self._asked, []
        try:
            with _translated():
                found = await self._file.read(lambda connection: [_read(connection, *place) for *place, _ in asked])
        except LogUnavailable as error:
            for *_, answer in asked:
                if not answer.done():
                    answer.set_exception(error)
        else:
            for (*_, answer), entries in zip(asked, found, strict=True):
                if not answer.done():
                    answer.set_result(entries)


@contextmanager
def _translated() -> Generator[None, None, None]:
    try:
        yield
    except (NotWritten, MaybeWritten, sqlite3.Error) as error:
        raise _as_log_error(error) from error


def _as_log_error(error: Exception, in_doubt: type[LogError] = LogUnavailable) -> LogError:
    """An error of the file as one of the log. All but appends can simply be done again, so to them a doubt is none."""
    return in_doubt(str(error)) if isinstance(error, MaybeWritten) else LogUnavailable(str(error))


# --- what is done to the file, in a thread and, where it writes, in a transaction ---


@one_by_one
def _create(connection: sqlite3.Connection, topic: Topic) -> Topic:
    found = _find_topic(connection, topic.name)
    if found:
        return found[0]
    values = (topic.name, topic.partitions, topic.compacted, topic.record_bytes_max)
    connection.execute("INSERT INTO topics VALUES (?, ?, ?, ?)", values)
    rows = [(topic.name, index) for index in range(topic.partitions)]
    connection.executemany("INSERT INTO partitions (topic, number, start, next) VALUES (?, ?, 0, 0)", rows)
    return topic


def _find_topic(connection: sqlite3.Connection, name: str) -> tuple[Topic, list[int]] | None:
    rows = connection.execute("SELECT partitions, compacted, record_bytes_max FROM topics WHERE name = ?", (name,))
    for partitions, compacted, record_bytes_max in rows.fetchall():
        slots = connection.execute("SELECT slot FROM partitions WHERE topic = ? ORDER BY number", (name,))
        topic = Topic(name, partitions, bool(compacted), record_bytes_max, fsync=True)
        return topic, [slot for (slot,) in slots.fetchall()]
    return None


def _append(connection: sqlite3.Connection, batches: list[_Batch]) -> list[int | RekindleError]:
    slots = list({batch.slot for batch in batches})
    ends = dict(zip(slots, _ends(connection, slots), strict=True))
    firsts: list[int | RekindleError] = []
    rows: list[_Row] = []
    for slot, records, _ in batches:
        first = ends[slot]
        place = _id(slot, first)
        rows += [(place + index, key, value) for index, (key, value) in enumerate(records)]
        ends[slot] = first + len(records)
        firsts.append(first)
    connection.executemany("INSERT INTO records VALUES (?, ?, ?)", rows)
    connection.executemany("UPDATE partitions SET next = ? WHERE slot = ?", [(end, slot) for slot, end in ends.items()])
    _compact(connection, {batch.slot for batch in batches if batch.compacted}, rows)
    return firsts


def _compact(connection: sqlite3.Connection, slots: set[int], rows: list[_Row]) -> None:
    """Delete what the new rows replace; by a scan, because a compacted partition is never large."""
    for place, key, _ in rows:
        slot = place >> _OFFSET_BITS
        if slot in slots:
            zero = _id(slot, 0)
            connection.execute("DELETE FROM records WHERE id >= ? AND id < ? AND key = ?", (zero, place, key))
            stale = (zero, place - TOMBSTONES_KEPT)
            connection.execute("DELETE FROM records WHERE id >= ? AND id < ? AND value IS NULL", stale)


def _bounds(connection: sqlite3.Connection, slot: int) -> Bounds:
    ((start, end),) = connection.execute("SELECT start, next FROM partitions WHERE slot = ?", (slot,)).fetchall()
    return Bounds(start, end)


def _ends(connection: sqlite3.Connection, slots: list[int]) -> list[int]:
    marks = ", ".join("?" * len(slots))
    found = dict(connection.execute(f"SELECT slot, next FROM partitions WHERE slot IN ({marks})", slots).fetchall())
    return [found[slot] for slot in slots]


def _read(connection: sqlite3.Connection, slot: int, offset: int) -> tuple[Bounds, list[Stored]]:
    bounds = _bounds(connection, slot)
    limits = (_id(slot, offset), _id(slot, bounds.end), READ_ENTRIES_MAX)
    rows = connection.execute("SELECT id, key, value FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT ?", limits)
    entries: list[Stored] = []
    zero, size = _id(slot, 0), 0
    for place, key, value in rows:
        entries.append(Stored(place - zero, key, value))
        size += len(value or b"")
        if size >= READ_BYTES_MAX:
            break
    return bounds, entries


@one_by_one
def _lift_start(connection: sqlite3.Connection, cut: tuple[int, int]) -> None:
    slot, before = cut
    connection.execute("UPDATE partitions SET start = max(start, ?) WHERE slot = ?", (before, slot))


@one_by_one
def _delete_some(connection: sqlite3.Connection, cut: tuple[int, int]) -> int:
    slot, before = cut
    limits = (_id(slot, 0), _id(slot, before), TRIM_RECORDS_MAX)
    chosen = "SELECT id FROM records WHERE id >= ? AND id < ? LIMIT ?"
    return connection.execute(f"DELETE FROM records WHERE id IN ({chosen})", limits).rowcount


def _id(slot: int, offset: int) -> int:
    return slot << _OFFSET_BITS | offset
