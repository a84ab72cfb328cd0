"""Where snapshots are kept: in a directory or object store, in SQLite, or in the log itself. One contract suite for all.

A store may lose a race with a crash only in one way: bytes that no pointer names. It never shows a pointer whose blob
is not whole, because a blob is durable before its pointer is written, and no name is used twice.
"""

# fsspec has no types: what comes out of it is Any.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sqlite3
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from rekindle.events.codec import pack, unpack
from rekindle.events.errors import LogError, LogTruncated, SnapshotDamaged, SnapshotError, SnapshotMissing
from rekindle.events.log import Entry, EventLog, Keyed, Partition, Topic
from rekindle.events.snapshots import Pointer
from rekindle.events.sqlite import MaybeWritten, NotWritten, SqliteFile, one_by_one, sync_directory

CALL_TIMEOUT_S: Final = 60.0
"""How long one call of a directory or object store may take."""

CHUNK_BYTES: Final = 900_000
"""Blobs are cut into pieces of this size: one record of a log; one short transaction in SQLite, so that appends to the
same file need not wait for a whole snapshot."""

CHUNK_PARTITIONS: Final = 8
"""Of the topic that holds chunks: blobs that are written at the same time should not lie in between each other."""

READ_WAIT_S: Final = 10.0
"""How long a log may take for the next record of a blob or of the index. Longer than any log needs to notice that it
cannot be reached, so nothing within this time means that there is nothing."""

Answer = TypeVar("Answer")
_say = logging.getLogger(__name__)


def _dump(pointer: Pointer) -> bytes:
    place, *rest = (pointer.partition, pointer.offset, pointer.sequence, pointer.blob, pointer.size, pointer.digest)
    return pack([*place, *rest])


def _load(data: bytes) -> Pointer:
    try:
        topic, index, offset, sequence, blob, size, digest = unpack(data)
    except (ValueError, TypeError) as error:
        raise SnapshotDamaged(f"a pointer of {len(data)} bytes cannot be read: {error}") from error
    return Pointer(Partition(topic, index), offset, sequence, blob, size, digest)


def _readable(stored: Iterable[bytes]) -> list[Pointer]:
    """The pointers that can be read, the newest first. One that cannot be read is as good as none, but is reported."""
    pointers: list[Pointer] = []
    for data in stored:
        try:
            pointers.append(_load(data))
        except SnapshotDamaged as damage:
            _say.warning("%s", damage)
    return sorted(pointers, key=lambda pointer: -pointer.offset)


def _chunks(blob: bytes) -> Iterator[bytes]:
    """The pieces of a blob, at least one."""
    for start in range(0, max(len(blob), 1), CHUNK_BYTES):
        yield blob[start : start + CHUNK_BYTES]


@contextmanager
def _translated(*failures: type[Exception]) -> Generator[None]:
    try:
        yield
    except SnapshotError:
        raise
    except failures as error:
        raise SnapshotError(f"the snapshot store failed: {error!r}") from error


@asynccontextmanager
async def _undone(remove: Callable[[str], Awaitable[None]], blob: str) -> AsyncGenerator[None]:
    """Try to remove what is there of a blob that could not be stored whole."""
    try:
        yield
    except SnapshotError:
        with suppress(SnapshotError):
            await remove(blob)
        raise


class DirectoryStore:
    """A directory, local or of an object store, by its fsspec URL.

    blobs/<name>                             written whole: a local file under another name first, an object as one
    pointers/<topic>/<index>/<offset>        likewise
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._files: Any = None
        self._root = ""

    async def open(self) -> None:
        """See `SnapshotStore`."""
        self._files, self._root = await self._call(fsspec.core.url_to_fs, self._url)

    async def close(self) -> None:
        """See `SnapshotStore`."""

    async def put(self, name: str, blob: bytes) -> str:
        """See `SnapshotStore`."""
        word = quote(name, safe="") + ".blob"
        await self._call(self._write, self._path("blobs", word), blob)
        return word

    async def get(self, blob: str) -> bytes:
        """See `SnapshotStore`."""
        found: bytes | None = await self._call(self._read, self._path("blobs", blob))
        if found is None:
            raise SnapshotMissing(f"{self._url} has no blob {blob!r}")
        return found

    async def remove(self, blob: str) -> None:
        """See `SnapshotStore`."""
        await self._call(self._remove, self._path("blobs", blob))

    async def point(self, pointer: Pointer) -> None:
        """See `SnapshotStore`."""
        await self._call(self._write, self._path_of(pointer), _dump(pointer))

    async def pointers(self, partition: Partition) -> list[Pointer]:
        """See `SnapshotStore`."""
        return _readable(await self._call(self._read_all, self._folder_of(partition)))

    async def unpoint(self, pointer: Pointer) -> None:
        """See `SnapshotStore`."""
        await self._call(self._remove, self._path_of(pointer))

    def _path(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    def _folder_of(self, partition: Partition) -> str:
        return self._path("pointers", quote(partition.topic, safe=""), str(partition.index))

    def _path_of(self, pointer: Pointer) -> str:
        return f"{self._folder_of(pointer.partition)}/{pointer.offset}.pointer"

    async def _call(self, work: Callable[..., Answer], *arguments: Any) -> Answer:
        with _translated(Exception):  # every file system raises errors of its own
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await asyncio.to_thread(work, *arguments)

    # --- in a thread ---

    def _write(self, path: str, data: bytes) -> None:
        if isinstance(self._files, LocalFileSystem):
            _write_durably(Path(path), data)
        else:
            self._files.pipe_file(path, data)

    def _read(self, path: str) -> bytes | None:
        try:
            return self._files.cat_file(path)  # type: ignore[no-any-return]
        except FileNotFoundError:
            return None

    def _read_all(self, folder: str) -> list[bytes]:
        self._files.invalidate_cache(folder)
        try:
            paths = self._files.ls(folder, detail=False)
        except FileNotFoundError:
            return []
        found = [self._read(path) for path in paths if path.endswith(".pointer")]
        return [data for data in found if data is not None]

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._files.rm_file(path)


def _write_durably(path: Path, data: bytes) -> None:
    """Write a local file so that it is there whole or not at all, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_directory(path.parent)


class SqliteStore:
    """A SQLite file; it may be that of the embedded log."""

    _TABLES: Final = (
        "blobs (name TEXT, number INTEGER, chunk BLOB, PRIMARY KEY (name, number))",
        "pointers (topic TEXT, number INTEGER, offset INTEGER, pointer BLOB, PRIMARY KEY (topic, number, offset))",
    )

    def __init__(self, path: str | Path) -> None:
        self._file = SqliteFile(Path(path), self._TABLES)

    async def open(self) -> None:
        """See `SnapshotStore`."""
        with _sqlite_translated():
            await self._file.open()

    async def close(self) -> None:
        """See `SnapshotStore`."""
        await self._file.close()

    async def put(self, name: str, blob: bytes) -> str:
        """See `SnapshotStore`."""
        async with _undone(self.remove, name):
            with _sqlite_translated():
                for number, chunk in enumerate(_chunks(blob)):
                    await self._file.write(_execute, ("INSERT INTO blobs VALUES (?, ?, ?)", name, number, chunk))
        return name

    async def get(self, blob: str) -> bytes:
        """See `SnapshotStore`."""
        chunks = await self._select("SELECT chunk FROM blobs WHERE name = ? ORDER BY number", blob)
        if not chunks:
            raise SnapshotMissing(f"there is no blob {blob!r}")
        return b"".join(chunks)

    async def remove(self, blob: str) -> None:
        """See `SnapshotStore`."""
        one = "DELETE FROM blobs WHERE name = ?1 AND number = (SELECT max(number) FROM blobs WHERE name = ?1)"
        with _sqlite_translated():
            while await self._file.write(_execute, (one, blob)):
                pass

    async def point(self, pointer: Pointer) -> None:
        """See `SnapshotStore`."""
        statement = "INSERT OR REPLACE INTO pointers VALUES (?, ?, ?, ?)"
        with _sqlite_translated():
            await self._file.write(_execute, (statement, *pointer.partition, pointer.offset, _dump(pointer)))

    async def pointers(self, partition: Partition) -> list[Pointer]:
        """See `SnapshotStore`."""
        return _readable(await self._select("SELECT pointer FROM pointers WHERE topic = ? AND number = ?", *partition))

    async def unpoint(self, pointer: Pointer) -> None:
        """See `SnapshotStore`."""
        statement = "DELETE FROM pointers WHERE topic = ? AND number = ? AND offset = ?"
        with _sqlite_translated():
            await self._file.write(_execute, (statement, *pointer.partition, pointer.offset))

    async def _select(self, statement: str, *values: object) -> list[bytes]:
        with _sqlite_translated():
            return await self._file.read(partial(_select, statement=statement, values=values))


def _sqlite_translated() -> Any:
    return _translated(sqlite3.Error, NotWritten, MaybeWritten)


@one_by_one
def _execute(connection: sqlite3.Connection, statement: tuple[Any, ...]) -> int:
    sql, *values = statement
    return connection.execute(sql, values).rowcount


def _select(connection: sqlite3.Connection, statement: str, values: tuple[object, ...]) -> list[bytes]:
    return [column for (column,) in connection.execute(statement, values).fetchall()]


@dataclass(frozen=True, slots=True)
class _Extent:
    """Where the chunks of a blob are: the word that a pointer keeps. Other blobs may have chunks in between."""

    index: int
    first: int
    last: int
    chunks: int
    name: str

    def chunk_keys(self) -> list[bytes]:
        return [f"{self.name}/{number}".encode() for number in range(self.chunks)]

    def __str__(self) -> str:
        return f"{self.index}:{self.first}:{self.last}:{self.chunks}:{self.name}"

    @classmethod
    def parse(cls, word: str) -> _Extent:
        index, first, last, chunks, name = word.split(":", 4)
        return cls(int(index), int(first), int(last), int(chunks), name)


class LogStore:
    """The log itself: a compacted topic of chunks and a small one of pointers.

    The index is read once and from then on only what is new in it, so to ask for the pointers of many shards costs
    one scan. Nothing in here is needed to rebuild a state, so the topics may be created when the store is opened.
    """

    def __init__(self, log: EventLog, prefix: str, *, create: bool = False) -> None:
        self._log = log
        self._create = create
        self._chunk_topic = Topic(f"{prefix}.snapshots", CHUNK_PARTITIONS, compacted=True)
        self._index_topic = Topic(f"{prefix}.snapshot-index", 1, compacted=True)
        self._index = Partition(self._index_topic.name, 0)
        self._known: dict[Partition, dict[int, bytes]] = {}
        self._read_to = 0
        self._reading = asyncio.Lock()
        self._next_reading: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """See `SnapshotStore`. Raises what `EventLog.create` and `check` raise."""
        for topic in (self._chunk_topic, self._index_topic):
            await (self._log.create(topic) if self._create else self._log.check(topic))

    async def close(self) -> None:
        """See `SnapshotStore`. The log belongs to somebody else."""

    async def put(self, name: str, blob: bytes) -> str:
        """See `SnapshotStore`."""
        index = zlib.crc32(name.encode()) % CHUNK_PARTITIONS
        chunks = list(_chunks(blob))
        extent = _Extent(index, 0, 0, len(chunks), name)
        records = zip(extent.chunk_keys(), chunks, strict=True)
        async with _undone(self.remove, str(extent)):
            offsets = [await self._append(self._place(extent), [record]) for record in records]
        return str(replace(extent, first=offsets[0], last=offsets[-1]))

    async def get(self, blob: str) -> bytes:
        """See `SnapshotStore`."""
        extent = _Extent.parse(blob)
        keys = extent.chunk_keys()
        with _translated(LogError):
            found = await self._collect(extent, set(keys))
        if len(found) < extent.chunks:
            raise SnapshotMissing(f"{len(found)} of {extent.chunks} chunks of blob {blob!r} are there")
        return b"".join(found[key] for key in keys)

    async def remove(self, blob: str) -> None:
        """See `SnapshotStore`."""
        extent = _Extent.parse(blob)
        await self._append(self._place(extent), [(key, None) for key in extent.chunk_keys()])

    async def point(self, pointer: Pointer) -> None:
        """See `SnapshotStore`."""
        await self._append(self._index, [(_index_key(pointer), _dump(pointer))])

    async def pointers(self, partition: Partition) -> list[Pointer]:
        """See `SnapshotStore`."""
        with _translated(LogError):
            if self._next_reading is None:
                self._next_reading = asyncio.get_running_loop().create_task(self._read_next())
                self._next_reading.add_done_callback(_hear)
            await asyncio.shield(self._next_reading)
        return _readable(self._known.get(partition, {}).values())

    async def unpoint(self, pointer: Pointer) -> None:
        """See `SnapshotStore`."""
        await self._append(self._index, [(_index_key(pointer), None)])

    def _place(self, extent: _Extent) -> Partition:
        return Partition(self._chunk_topic.name, extent.index)

    async def _append(self, partition: Partition, records: list[Keyed]) -> int:
        with _translated(LogError):
            offset = await self._log.append(partition, records)
        if offset < 0:
            raise SnapshotError(f"the log does not say where in {partition} it put a chunk or a pointer")
        return offset

    async def _collect(self, extent: _Extent, keys: set[bytes]) -> dict[bytes, bytes]:
        """The chunks that are there, by their key."""
        found: dict[bytes, bytes] = {}
        with suppress(LogTruncated):
            async with self._log.reader(self._place(extent), extent.first) as reader:
                while entries := await reader.next(READ_WAIT_S):
                    found |= {e.key: e.value for e in entries if e.key in keys and e.value is not None}
                    if len(found) == extent.chunks or entries[-1].offset >= extent.last:
                        break
        return found

    async def _read_next(self) -> None:
        """One reading for all who asked before it began: a takeover asks for many shards at once."""
        async with self._reading:
            self._next_reading = None
            await self._read_index()

    async def _read_index(self) -> None:
        bounds = await self._log.bounds(self._index)
        if not bounds.start <= self._read_to <= bounds.end:
            # The topic was made anew. What it said before is gone, and so are the chunks.
            self._known.clear()
            self._read_to = bounds.start
        if self._read_to < bounds.end:
            async with self._log.reader(self._index, self._read_to) as reader:
                while self._read_to < bounds.end:
                    entries = await reader.next(READ_WAIT_S)
                    for entry in entries:
                        self._learn(entry)
                    # Nothing: the last records were compacted away.
                    self._read_to = entries[-1].offset + 1 if entries else bounds.end

    def _learn(self, entry: Entry) -> None:
        topic, index, offset = (entry.key or b"").decode().rsplit("/", 2)
        known = self._known.setdefault(Partition(topic, int(index)), {})
        if entry.value is None:
            known.pop(int(offset), None)
        else:
            known[int(offset)] = entry.value


def _hear(reading: asyncio.Task[None]) -> None:
    """Whoever has asked for it may be gone: asyncio would complain of a failure that nobody heard of."""
    if not reading.cancelled():
        reading.exception()


def _index_key(pointer: Pointer) -> bytes:
    return f"{pointer.partition}/{pointer.offset}".encode()
