"""Snapshots: a shard's state at one record of its log, so that a replay need not begin at the first one.

A snapshot decides nothing. It is written only after its `Snapshotted` record was verified by rule 3, so everything in
it counts; a reader that does not find a whole one takes the one before, else replays the log from its start, and says so.

The blob is a msgpack header that names its segments, followed by the segments' bytes:

    RKSN | format | length of the header | header: {"segments": [[name, size], ...]} | segment | segment ...

Segments now: `fold` (what the rules know at that record) and `entities` (key -> encoded state). A reader ignores
segments it does not know and misses none that it needs, so an increment can become a segment later.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgpack

from rekindle.events.errors import SnapshotDamaged, SnapshotError
from rekindle.events.log import Partition

MAGIC = b"RKSN"
FORMAT = 1
KEPT = 2
"""How many pointers of a shard are kept: the newest and, should its blob be damaged, the one before."""

_PREFIX = struct.Struct(">4sHI")


@dataclass(frozen=True, slots=True)
class Pointer:
    """Where a whole snapshot is and what it stands for. Immutable; written after everything it points to.

    offset, sequence: the `Snapshotted` record; replay goes on at offset + 1.
    blob: where the store keeps the blob, in the store's own terms.
    """

    partition: Partition
    offset: int
    sequence: int
    blob: str
    size: int
    digest: bytes


class SnapshotStore(Protocol):
    """Blobs and pointers of many shards.

    A blob is written under a name that is never used again; a pointer becomes visible at once and whole, and only
    after its blob is durable. Every method may raise `SnapshotError` when the store cannot be reached.
    """

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def put(self, name: str, blob: bytes) -> str:
        """Store a blob durably; the word to keep in the pointer (`Pointer.blob`)."""
        ...

    async def get(self, blob: str) -> bytes:
        """The blob's bytes as they are. Raises `SnapshotMissing`."""
        ...

    async def remove(self, blob: str) -> None:
        """Delete a blob; nothing happens if it is gone already."""
        ...

    async def point(self, pointer: Pointer) -> None:
        """Add a pointer. Adding the same one again changes nothing."""
        ...

    async def pointers(self, partition: Partition) -> list[Pointer]:
        """All pointers of the shard, the newest (highest offset) first."""
        ...

    async def unpoint(self, pointer: Pointer) -> None:
        """Remove a pointer; nothing happens if it is gone already."""
        ...


def digest(blob: bytes) -> bytes:
    """The checksum that a pointer keeps of its blob: 16 bytes of BLAKE2b."""
    return hashlib.blake2b(blob, digest_size=16).digest()


def pack_blob(segments: Mapping[str, bytes]) -> bytes:
    """One blob of named segments."""
    header = msgpack.packb({"segments": [[name, len(data)] for name, data in segments.items()]})
    return b"".join([_PREFIX.pack(MAGIC, FORMAT, len(header)), header, *segments.values()])


def unpack_blob(blob: bytes) -> dict[str, memoryview]:
    """The segments by name. Raises `SnapshotDamaged` where the blob is not of this format or not whole."""
    try:
        magic, version, length = _PREFIX.unpack_from(blob)
        header: dict[str, Any] = msgpack.unpackb(blob[_PREFIX.size : _PREFIX.size + length])
        sizes = [(str(name), int(size)) for name, size in header["segments"]]
    except Exception as error:
        raise SnapshotDamaged(f"a snapshot of {len(blob)} bytes has no readable header: {error!r}") from error
    if (magic, version) != (MAGIC, FORMAT):
        raise SnapshotDamaged(
            f"a snapshot begins with {magic!r} format {version}, this build reads {MAGIC!r} format {FORMAT}"
        )
    return _cut(memoryview(blob), _PREFIX.size + length, sizes)


def _cut(blob: memoryview, position: int, sizes: list[tuple[str, int]]) -> dict[str, memoryview]:
    expected = position + sum(size for _, size in sizes)
    if expected != len(blob):
        raise SnapshotDamaged(f"a snapshot of {len(blob)} bytes should have {expected}")
    segments: dict[str, memoryview] = {}
    for name, size in sizes:
        segments[name] = blob[position : position + size]
        position += size
    return segments


async def save(
    store: SnapshotStore, partition: Partition, offset: int, sequence: int, name: str, blob: bytes
) -> Pointer:
    """Store the blob, then its pointer, then drop what neither of the two newest pointers needs."""
    where = await store.put(name, blob)
    pointer = Pointer(partition, offset, sequence, where, len(blob), digest(blob))
    await store.point(pointer)
    for old in (await store.pointers(partition))[KEPT:]:
        await store.unpoint(old)
        await store.remove(old.blob)
    return pointer


async def fetch(store: SnapshotStore, pointer: Pointer) -> dict[str, memoryview]:
    """The segments of one snapshot. Raises `SnapshotMissing` or `SnapshotDamaged`."""
    blob = await store.get(pointer.blob)
    if len(blob) != pointer.size or digest(blob) != pointer.digest:
        raise SnapshotDamaged(
            f"snapshot {pointer.blob!r} of {pointer.partition} at offset {pointer.offset} is not the one that was written: "
            f"{len(blob)} bytes instead of {pointer.size}, or another checksum"
        )
    return unpack_blob(blob)


async def newest_whole(
    store: SnapshotStore, partition: Partition, at_most: int | None = None
) -> tuple[Pointer | None, dict[str, memoryview], list[SnapshotError]]:
    """The newest snapshot that is whole (at or below offset `at_most`), its segments, and what was wrong with newer ones.

    (None, {}, errors) means: replay the log from its start.
    """
    errors: list[SnapshotError] = []
    for pointer in await store.pointers(partition):
        if at_most is not None and pointer.offset > at_most:
            continue
        try:
            return pointer, await fetch(store, pointer), errors
        except SnapshotError as error:
            errors.append(error)
    return None, {}, errors
