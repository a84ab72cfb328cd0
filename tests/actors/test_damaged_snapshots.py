"""Snapshots that are damaged, gone, of another build or of another log: the state is right all the same, and it is said.

Goal: a snapshot decides nothing. Method: three of them are made (two are kept), then spoiled in the store; whether one
was used shows when the log below it is gone.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rekindle import Entity, RekindleError, query
from rekindle.actors import Hosted
from rekindle.events import Partition, Pointer, SnapshotError, SnapshotStore
from rekindle.events.stores import DirectoryStore
from tests.support.inprocess import Added, GatedLog, Stage, Tally, hosted_of, in_loop, key_in, running

SNAPSHOTS = 3
TALLY = hosted_of(Tally, snapshot_every=4)
KEY = key_in(0)


class TallyOfMore(Entity):
    """What `Tally` will be: it remembers more."""

    total: int = 0
    count: int = 0

    def apply(self, event: Added) -> None:
        self.total += event.n
        self.count += 1

    @query
    def read(self) -> int:
        return self.total

    @query
    def counted(self) -> int:
        return self.count


class FailingStore(DirectoryStore):
    """A store of which some methods fail."""

    def __init__(self, folder: Path, *failing: str) -> None:
        super().__init__(str(folder))
        self.failing = set(failing)

    async def put(self, name: str, blob: bytes) -> str:
        self._fail("put")
        return await super().put(name, blob)

    async def pointers(self, partition: Partition) -> list[Pointer]:
        self._fail("pointers")
        return await super().pointers(partition)

    def _fail(self, what: str) -> None:
        if what in self.failing:
            raise SnapshotError(f"the disk is on strike ({what})")


class Scene:
    """A log, and two snapshots of its first shard in a folder, the newest first."""

    def __init__(self, log: GatedLog, folder: Path, pointers: list[Pointer], total: int) -> None:
        self.log = log
        self.folder = folder
        self.pointers = pointers
        self.total = total

    def blob(self, index: int) -> Path:
        """The file of the newest snapshot (0), or of the one before (1)."""
        return self.folder / "blobs" / self.pointers[index].blob

    @asynccontextmanager
    async def taken_over(self, hosted: Hosted = TALLY, store: SnapshotStore | None = None) -> AsyncGenerator[Stage]:
        """The next owner. It must come to the right total."""
        if store is None:
            store = DirectoryStore(str(self.folder))
        await store.open()
        async with running(hosted, self.log, store) as stage:
            assert await stage.client.get(hosted.kind.cls, KEY).read() == self.total  # type: ignore[attr-defined]
            yield stage


async def scene(folder: Path) -> Scene:
    store = DirectoryStore(str(folder))
    await store.open()
    total = 0
    async with running(TALLY, log := GatedLog(), store) as stage:
        while await stage.snapshots() < SNAPSHOTS:
            total = await stage.client.get(Tally, KEY).add(1)
        pointers = await store.pointers(stage.partition())
        assert len(pointers) == 2
        return Scene(log, folder, pointers, total)


def flip(path: Path) -> None:
    """One bit is wrong."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """The end is missing."""
    path.write_bytes(path.read_bytes()[:-1])


@in_loop
async def test_a_whole_snapshot_is_used(tmp_path: Path) -> None:
    found = await scene(tmp_path)
    await found.log.trim(TALLY.partition(0), found.pointers[0].offset)
    async with found.taken_over() as stage:
        assert stage.said == []


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@in_loop
async def test_the_one_before_is_used_if_the_newest_is_damaged(damage: Callable[[Path], None], tmp_path: Path) -> None:
    found = await scene(tmp_path)
    damage(found.blob(0))
    await found.log.trim(TALLY.partition(0), found.pointers[1].offset)
    async with found.taken_over() as stage:
        assert stage.heard("app.tally/0: a snapshot is not usable, trying the one before: ")


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@in_loop
async def test_the_log_is_replayed_if_all_are_damaged(damage: Callable[[Path], None], tmp_path: Path) -> None:
    found = await scene(tmp_path)
    for index in range(2):
        damage(found.blob(index))
    async with found.taken_over() as stage:
        assert sum("a snapshot is not usable" in line for line in stage.said) == 2


@in_loop
async def test_a_pointer_that_cannot_be_read_is_as_good_as_none(tmp_path: Path) -> None:
    found = await scene(tmp_path)
    (newest,) = (tmp_path / "pointers").rglob(f"{found.pointers[0].offset}.pointer")
    newest.write_bytes(b"garbage")
    await found.log.trim(TALLY.partition(0), found.pointers[1].offset)
    async with found.taken_over():
        pass


@in_loop
async def test_a_snapshot_of_a_class_with_other_fields_is_not_used(tmp_path: Path) -> None:
    found = await scene(tmp_path)
    more = hosted_of(TallyOfMore, name="tally")
    async with found.taken_over(more) as stage:
        assert await stage.client.get(TallyOfMore, KEY).counted() == found.total
        assert stage.heard("has other fields than TallyOfMore has now, full replay")


@in_loop
async def test_a_store_that_cannot_be_reached_stops_nobody(tmp_path: Path) -> None:
    found = await scene(tmp_path)
    async with found.taken_over(store=FailingStore(tmp_path, "pointers", "put")) as stage:
        assert stage.heard("app.tally/0: snapshots cannot be read, full replay: the disk is on strike (pointers)")
        while not stage.heard("failed, the log is whole without it: the disk is on strike (put)"):
            await stage.client.get(Tally, KEY).add(1)
        assert stage.controller.lost == []


@in_loop
async def test_a_snapshot_of_what_the_log_does_not_have_stops_the_shard(tmp_path: Path) -> None:
    """It was taken of this log, so records are missing. To start from it would hide that."""
    found = await scene(tmp_path)
    found.log.truncate(TALLY.partition(0), found.pointers[0].offset - 1)
    await assert_truncated(found, f"expected at least offset {found.pointers[0].offset}, found ")


@in_loop
async def test_a_snapshot_of_another_log_stops_the_shard(tmp_path: Path) -> None:
    """The log was made anew and has grown beyond it: at its place is another record."""
    found = await scene(tmp_path)
    found.log.recreate(TALLY.partition(0).topic)
    async with running(TALLY, found.log) as stage:
        while stage.owner().position.offset <= found.pointers[0].offset + 1:
            await stage.client.get(Tally, KEY).add(1)
    await assert_truncated(found, "the record of its snapshot is not at offset ")


async def assert_truncated(found: Scene, text: str) -> None:
    store = DirectoryStore(str(found.folder))
    await store.open()
    async with running(TALLY, found.log, store, shards=[1]) as stage:
        await stage.controller.assign(0)
        lost = await stage.controller.wait_lost(0)
        assert (lost.error, text in lost.reason) == ("LogTruncated", True), lost
        with pytest.raises(RekindleError):
            await stage.client.get(Tally, KEY, timeout=0.3).read()
        assert await stage.client.get(Tally, key_in(1)).add(1) == 1
