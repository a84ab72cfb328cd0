"""The contract of `SnapshotStore`, kept by every store, and what `save` and `newest_whole` make of it.

Goal: a snapshot that is found is whole, a damaged one costs a longer replay and never a wrong state, and nothing that
is needed is deleted. Method: every test runs on every store; `damage` breaks a blob in the way the store allows.
"""

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rekindle.events import stores
from rekindle.events.embedded import EmbeddedLog
from rekindle.events.errors import AppendUnknown, SnapshotDamaged, SnapshotError, SnapshotMissing, TopicMissing
from rekindle.events.log import EventLog, Partition
from rekindle.events.simulated import LogFaults, SimulatedLog
from rekindle.events.snapshots import Pointer, SnapshotStore, digest, fetch, newest_whole, pack_blob, save
from rekindle.events.stores import DirectoryStore, LogStore, SqliteStore
from rekindle.events.urls import open_log, open_store
from tests.support import logs
from tests.support.loops import run, run_virtually

SHARD = Partition("shop.stock", 3)
OTHER = Partition("shop.stock", 4)
KINDS = ["sqlite", "beside the log", "local", "memory", "log", pytest.param("kafka", marks=pytest.mark.kafka)]


@dataclass(frozen=True)
class Shelf:
    """Where snapshots are kept. make: one more store object for them, over one more log object.

    lazy: what was removed is only marked, and goes when Kafka compacts.
    """

    make: Callable[[EventLog], SnapshotStore]
    place: logs.Place
    lazy: bool = False

    async def is_gone(self, store: SnapshotStore, blob: str) -> bool:
        """Whether a blob that was removed is as gone as this store makes it."""
        try:
            return bool(await store.get(blob)) and self.lazy
        except SnapshotMissing:
            return True

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[SnapshotStore]:
        async with self.place.opened() as log:
            store = self.make(log)
            await store.open()
            try:
                yield store
            finally:
                await store.close()


@pytest.fixture(params=KINDS)
def shelf(request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> Shelf:
    """A store of each kind."""
    if request.param == "kafka":
        place = logs.kafka(request.getfixturevalue("kafka"))
        return Shelf(lambda log: open_store("", log, unique, create=True), place, lazy=True)
    url = {
        "sqlite": f"sqlite://{tmp_path}/snapshots.sqlite",
        "beside the log": "",
        "local": f"file://{tmp_path}/snapshots",
        "memory": f"memory://{unique}",
        "log": "log:",
    }[request.param]
    return Shelf(lambda log: open_store(url, log, unique, create=True), logs.embedded(tmp_path))


def pointer(offset: int, blob: str = "blob", partition: Partition = SHARD) -> Pointer:
    return Pointer(partition, offset, sequence=offset - 1, blob=blob, size=3, digest=digest(b"abc"))


async def saved(store: SnapshotStore, offset: int, partition: Partition = SHARD) -> Pointer:
    """A snapshot whose state is its offset."""
    blob = pack_blob({"fold": b"fold", "entities": str(offset).encode()})
    return await save(store, partition, offset, offset - 1, f"{partition}-{offset}", blob)


async def newest(store: SnapshotStore, partition: Partition = SHARD) -> tuple[str | None, list[type[SnapshotError]]]:
    """The state in the newest whole snapshot, and what was wrong with newer ones."""
    found, segments, errors = await newest_whole(store, partition)
    return (bytes(segments["entities"]).decode() if found else None), [type(error) for error in errors]


# Blobs


@pytest.mark.parametrize("size", [0, 1, stores.CHUNK_BYTES, stores.CHUNK_BYTES + 1, 3 * stores.CHUNK_BYTES])
def test_a_blob_comes_back_byte_for_byte(shelf: Shelf, size: int) -> None:
    blob = Random(size).randbytes(size)

    async def main() -> None:
        async with shelf.opened() as store:
            word = await store.put("a name: with/odd ..characters", blob)
            assert await store.get(word) == blob
        async with shelf.opened() as again:
            assert await again.get(word) == blob

    run(main())


def test_blobs_that_are_written_at_once_do_not_mix(shelf: Shelf) -> None:
    blobs = {f"blob-{number}": bytes([number]) * (2 * stores.CHUNK_BYTES) for number in range(6)}

    async def main() -> None:
        async with shelf.opened() as store, shelf.opened() as other:
            words = await asyncio.gather(
                *((store, other)[number % 2].put(name, blob) for number, (name, blob) in enumerate(blobs.items()))
            )
            assert len(set(words)) == len(blobs)
            assert [await store.get(word) for word in words] == list(blobs.values())

    run(main())


def test_a_removed_blob_is_missing(shelf: Shelf) -> None:
    async def main() -> None:
        async with shelf.opened() as store:
            kept = await store.put("kept", b"kept")
            word = await store.put("gone", b"gone" * stores.CHUNK_BYTES)
            await store.remove(word)
            await store.remove(word)
            assert await shelf.is_gone(store, word)
            assert await store.get(kept) == b"kept"

    run(main())


# Pointers


def test_pointers_come_newest_first_and_each_shard_has_its_own(shelf: Shelf) -> None:
    async def main() -> None:
        async with shelf.opened() as store, shelf.opened() as other:
            assert await store.pointers(SHARD) == []
            for offset in (9, 1000, 20):
                await store.point(pointer(offset))
            await other.point(pointer(7, partition=OTHER))
            for through in (store, other):
                assert [found.offset for found in await through.pointers(SHARD)] == [1000, 20, 9]
                assert await through.pointers(OTHER) == [pointer(7, partition=OTHER)]

    run(main())


def test_the_same_pointer_twice_is_one(shelf: Shelf) -> None:
    async def main() -> None:
        async with shelf.opened() as store:
            for _ in range(2):
                await store.point(pointer(5))
            assert await store.pointers(SHARD) == [pointer(5)]

    run(main())


def test_a_removed_pointer_is_gone_for_everyone(shelf: Shelf) -> None:
    async def main() -> None:
        async with shelf.opened() as store, shelf.opened() as other:
            await store.point(pointer(5))
            await store.point(pointer(6))
            assert len(await other.pointers(SHARD)) == 2
            for _ in range(2):
                await store.unpoint(pointer(6))
            assert await other.pointers(SHARD) == [pointer(5)]
        async with shelf.opened() as again:
            assert await again.pointers(SHARD) == [pointer(5)]

    run(main())


# Saving and finding


def test_the_newest_snapshot_is_found(shelf: Shelf) -> None:
    async def main() -> None:
        async with shelf.opened() as store:
            assert await newest(store) == (None, [])
            for offset in (10, 20, 30):
                await saved(store, offset)
            assert await newest(store) == ("30", [])
            found, _, _ = await newest_whole(store, SHARD, at_most=29)
            assert found is not None
            assert found.offset == 20

    run(main())


def test_a_damaged_snapshot_is_passed_over_for_the_one_before(shelf: Shelf) -> None:
    async def main() -> None:
        async with shelf.opened() as store:
            await saved(store, 10)
            last = await saved(store, 20)
            await store.unpoint(last)
            await store.point(replace(last, digest=digest(b"what was written")))
            assert await newest(store) == ("10", [SnapshotDamaged])
            await store.unpoint((await store.pointers(SHARD))[-1])
            assert await newest(store) == (None, [SnapshotDamaged])

    run(main())


def test_saving_keeps_what_the_two_newest_need_and_no_more(shelf: Shelf) -> None:
    async def main() -> None:
        async with shelf.opened() as store:
            pointers = [await saved(store, offset) for offset in (10, 20, 30, 40)]
            beside = await saved(store, 5, OTHER)
            assert await store.pointers(SHARD) == [pointers[3], pointers[2]]
            for kept in (pointers[3], pointers[2], beside):
                assert await fetch(store, kept)
            for dropped in (pointers[0], pointers[1]):
                assert await shelf.is_gone(store, dropped.blob)

    run(main())


def test_a_snapshot_without_its_blob_is_passed_over(shelf: Shelf) -> None:
    async def main() -> None:
        async with shelf.opened() as store:
            await saved(store, 10)
            last = await saved(store, 20)
            await store.remove(last.blob)
            assert await newest(store) == (("20", []) if shelf.lazy else ("10", [SnapshotMissing]))

    run(main())


# Single stores


def test_a_pointer_that_cannot_be_read_is_passed_over_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        store = DirectoryStore(f"file://{tmp_path}")
        await store.open()
        await saved(store, 10)
        await saved(store, 20)
        damaged = tmp_path / "pointers" / SHARD.topic / str(SHARD.index) / "20.pointer"
        await asyncio.to_thread(damaged.write_bytes, b"\xc1")
        assert await newest(store) == ("10", [])

    with caplog.at_level(logging.WARNING):
        run(main())
    assert "a pointer of 1 bytes cannot be read" in caplog.text


def test_a_local_store_leaves_nothing_half_written_behind(tmp_path: Path) -> None:
    async def main() -> None:
        store = DirectoryStore(f"file://{tmp_path}")
        await store.open()
        await store.put("blob", b"blob")
        await store.point(pointer(1))

    run(main())
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["1.pointer", "blob.blob"]


def test_a_store_that_cannot_be_reached_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "blobs").write_text("a file where a folder should be")
        directory = DirectoryStore(f"file://{tmp_path}")
        await directory.open()
        with pytest.raises(SnapshotError, match="snapshot store failed"):
            await directory.put("blob", b"blob")
        with pytest.raises(SnapshotError, match="nosuchprotocol"):
            await DirectoryStore("nosuchprotocol://somewhere").open()
        closed = SqliteStore(tmp_path / "snapshots.sqlite")
        with pytest.raises(SnapshotError, match="not open"):
            await closed.put("blob", b"blob")
        with pytest.raises(SnapshotError, match="not open"):
            await closed.get("blob")

    run(main())


def test_topics_are_created_only_when_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with logs.embedded(tmp_path).opened() as log:
            with pytest.raises(TopicMissing, match=r"shop\.snapshots"):
                await LogStore(log, "shop").open()
            await LogStore(log, "shop", create=True).open()
            await LogStore(log, "shop").open()

    run(main())


class Counting(SimulatedLog):
    """Counts how many entries are read."""

    entries = 0

    async def _look(self, partition: Partition, offset: int):  # type: ignore[no-untyped-def]
        found = await super()._look(partition, offset)
        self.entries += len(found)
        return found


def test_the_index_is_read_once_for_all_shards() -> None:
    shards = [Partition("shop.stock", index) for index in range(32)]

    async def main() -> None:
        log = Counting(Random(1))
        store = LogStore(log, "shop", create=True)
        await store.open()
        for offset in range(10):
            for shard in shards:
                await store.point(pointer(offset, partition=shard))
        taking_over = LogStore(log, "shop")
        found = await asyncio.gather(*(taking_over.pointers(shard) for shard in shards))
        assert [len(pointers) for pointers in found] == [10] * 32
        assert log.entries == 320
        await store.point(pointer(10))
        assert (await taking_over.pointers(SHARD))[0] == pointer(10)
        assert log.entries == 321

    run_virtually(main())


def test_an_index_that_was_made_anew_is_read_anew() -> None:
    async def main() -> None:
        log = SimulatedLog(Random(1))
        store = LogStore(log, "shop", create=True)
        await store.open()
        last = await saved(store, 10)
        assert await newest(store) == ("10", [])
        log.recreate("shop.snapshots")
        assert await newest(store) == (None, [SnapshotMissing])
        log.recreate("shop.snapshot-index")
        assert await newest(store) == (None, [])
        await store.point(last)
        assert len(await store.pointers(SHARD)) == 1

    run_virtually(main())


def test_a_log_that_fails_is_a_store_that_fails() -> None:
    async def main() -> None:
        log = SimulatedLog(Random(1))
        store = LogStore(log, "shop", create=True)
        await store.open()
        for faults in (LogFaults(lost_append=1), LogFaults(no_offset=1), LogFaults(unavailable=1)):
            log.faults = faults
            with pytest.raises(SnapshotError):
                await store.put("blob", b"blob")
        with pytest.raises(SnapshotError):
            await store.pointers(SHARD)

    run_virtually(main())


def test_a_reading_whose_askers_are_gone_fails_in_silence() -> None:
    """asyncio complains of a failure that nobody has heard of, here of a follower that was ended while it asked."""
    complaints: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
        log = SimulatedLog(Random(1))
        store = LogStore(log, "shop", create=True)
        await store.open()
        log.faults = LogFaults(unavailable=1)
        asking = asyncio.create_task(store.pointers(SHARD))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        with pytest.raises(SnapshotError):
            await store.pointers(SHARD)

    run_virtually(main())
    gc.collect()
    assert complaints == []


def test_what_could_not_be_stored_whole_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        log = SimulatedLog(Random(1))
        store = LogStore(log, "shop", create=True)
        await store.open()
        appends = 0

        async def second_fails(*append: Any) -> int:
            nonlocal appends
            appends += 1
            if appends == 2:
                raise AppendUnknown("lost")
            return await SimulatedLog.append(log, *append)

        monkeypatch.setattr(log, "append", second_fails)
        with pytest.raises(SnapshotError, match="lost"):
            await store.put("blob", b"b" * 3 * stores.CHUNK_BYTES)
        chunks = [log.records(Partition("shop.snapshots", index)) for index in range(stores.CHUNK_PARTITIONS)]
        assert [(entry.key, entry.value is None) for entries in chunks for entry in entries] == [
            (b"blob/0", False),
            (b"blob/0", True),
            (b"blob/1", True),
            (b"blob/2", True),
        ]

    run_virtually(main())


# Addresses


def test_addresses_lead_to_logs_and_stores(tmp_path: Path) -> None:
    log = open_log(str(tmp_path / "log.sqlite"))
    assert isinstance(log, EmbeddedLog)
    assert log.path == tmp_path / "log.sqlite"
    assert isinstance(open_log(f"sqlite://{tmp_path}/log.sqlite"), EmbeddedLog)
    assert type(open_log("kafka://one:9092,two:9092?single_broker=true")).__name__ == "KafkaLog"
    assert isinstance(open_store("", log, "shop"), SqliteStore)
    assert isinstance(open_store("", SimulatedLog(Random(1)), "shop"), LogStore)
    assert isinstance(open_store("log:", log, "shop"), LogStore)
    assert isinstance(open_store("s3://bucket/path", log, "shop"), DirectoryStore)


@pytest.mark.parametrize("query", ["?single_broker", "?single_broker=yes", "?replication=1"])
def test_an_address_with_unknown_options_is_refused(query: str) -> None:
    with pytest.raises(ValueError, match="expected kafka://host:port"):
        open_log(f"kafka://127.0.0.1:9092{query}")
