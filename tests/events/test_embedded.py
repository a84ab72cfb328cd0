"""The embedded log where it is more than the contract: processes that are killed, stopped or in each other's way.

Goal: what was acknowledged is on disk, whoever dies; nobody waits for ever; a file that was exchanged is noticed.
Method: processes that print every offset as soon as they have it, and are then stopped by signals.
"""

import asyncio
import os
import signal
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from rekindle.events import embedded, sqlite
from rekindle.events.embedded import EmbeddedLog
from rekindle.events.errors import AppendUnknown, LogTruncated, LogUnavailable
from rekindle.events.log import Bounds, Partition, Topic
from tests.support import logs
from tests.support.child import start_child
from tests.support.logs import BATCH, Place, numbered, read_all, values
from tests.support.loops import eventually, run

EVENTS = Topic("events", 4)
PARTITION = Partition("events", 1)
ENDLESS = 1_000_000


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return logs.embedded(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.sqlite"


@contextmanager
def appender(place: Place, output: Path) -> Generator[int]:
    """A process that appends until it is killed; its pid."""
    child = start_child(logs.appending(place, PARTITION, ENDLESS, f"{output.name}-"), output)
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()


def acknowledged(output: Path) -> list[tuple[int, str]]:
    """Offset and value of every append that the process has heard of; without doubts, and a last line that is torn."""
    lines = output.read_text().splitlines(keepends=True) if output.exists() else []
    pairs = [line.split() for line in lines if line.endswith("\n") and line[0] != "?"]
    return [(int(offset), value) for offset, value in pairs]


async def created(log: EmbeddedLog) -> EmbeddedLog:
    await log.open()
    await log.create(EVENTS)
    return log


def test_what_a_killed_process_had_acknowledged_is_there(place: Place, tmp_path: Path) -> None:
    outputs = [tmp_path / f"process-{number}" for number in range(3)]

    async def main() -> None:
        async with place.opened() as log:
            await log.create(EVENTS)
        for output in outputs:
            with appender(place, output):
                await eventually(lambda output=output: len(acknowledged(output)) >= 20)  # type: ignore[misc]
        async with place.opened() as log:
            found = values(await read_all(log, PARTITION))
            for output in outputs:
                for offset, value in acknowledged(output):
                    assert found[offset : offset + BATCH] == [value] * BATCH
            assert len(found) % BATCH == 0, "half a batch is in the log"
            assert await log.append(PARTITION, numbered(0, 1)) == len(found)

    run(main())


def test_a_process_that_is_killed_while_others_append_does_not_stop_them(place: Place, tmp_path: Path) -> None:
    async def main() -> None:
        async with place.opened() as log:
            await log.create(EVENTS)
            with appender(place, tmp_path / "victim"):
                await eventually(lambda: acknowledged(tmp_path / "victim"))
                offsets = [await log.append(PARTITION, numbered(0, 1)) for _ in range(20)]
            offsets += [await log.append(PARTITION, numbered(0, 1)) for _ in range(20)]
            assert offsets == sorted(set(offsets))

    run(main())


def test_a_wait_for_a_stopped_writer_is_bounded_and_nothing_was_appended(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "WRITE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(sqlite, "CLOSE_TIMEOUT_S", 0.2)

    async def main() -> None:
        log = await created(EmbeddedLog(path))
        await log.append(PARTITION, numbered(0, 1))
        with _turn_taken(path):
            with pytest.raises(LogUnavailable, match="not to be had"):
                await log.append(PARTITION, numbered(1, 1))
            assert await log.bounds(PARTITION) == Bounds(0, 1), "a stopped writer must not stop readers"
        assert await log.append(PARTITION, numbered(2, 1)) == 1
        with _turn_taken(path):
            await log.close()

    run(main())


@contextmanager
def _turn_taken(path: Path) -> Generator[None]:
    """Another process has the turn to write, and does nothing."""
    turns = sqlite._Turns(path)  # pyright: ignore[reportPrivateUsage]
    try:
        with turns:
            yield
    finally:
        turns.close()


def test_a_stopped_process_that_wakes_up_goes_on(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "sleeper"

    async def main() -> None:
        async with place.opened() as log:
            await log.create(EVENTS)
            with appender(place, output) as pid:
                await eventually(lambda: acknowledged(output))
                os.kill(pid, signal.SIGSTOP)
                before = len(acknowledged(output))
                # It may have been stopped in the middle of a write; then ours gives up, before or after it began.
                with monkeypatch.context() as impatient, suppress(LogUnavailable, AppendUnknown):
                    impatient.setattr(sqlite, "WRITE_TIMEOUT_S", 0.2)
                    await log.append(PARTITION, numbered(0, 1))
                os.kill(pid, signal.SIGCONT)
                await eventually(lambda: len(acknowledged(output)) > before)
                await log.append(PARTITION, numbered(1, 1))

    run(main())


def test_the_queue_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "WRITES_QUEUED_MAX", 5)

    async def main() -> None:
        log = await created(EmbeddedLog(path))
        await log.append(PARTITION, numbered(0, 1))
        with _turn_taken(path):
            queued = [asyncio.create_task(log.append(PARTITION, numbered(i, 1))) for i in range(1, 6)]
            await asyncio.sleep(0)
            with pytest.raises(LogUnavailable, match="behind by 5 writes"):
                await log.append(PARTITION, numbered(6, 1))
        assert sorted(await asyncio.gather(*queued)) == [1, 2, 3, 4, 5]
        await log.close()

    run(main())


def test_a_commit_that_fails_is_a_doubt(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        log = await created(EmbeddedLog(path))
        await log.append(PARTITION, numbered(0, 1))
        with monkeypatch.context() as broken:
            broken.setattr(sqlite, "_commit", _fail)
            with pytest.raises(AppendUnknown, match="disk I/O error"):
                await log.append(PARTITION, numbered(1, 1))
        assert await log.append(PARTITION, numbered(2, 1)) in (1, 2)
        await log.close()

    run(main())


def _fail(connection: sqlite3.Connection) -> None:
    raise sqlite3.OperationalError("disk I/O error")


def test_a_file_that_was_removed_or_replaced_is_not_used_any_more(path: Path) -> None:
    async def main() -> None:
        log = await created(EmbeddedLog(path))
        await log.append(PARTITION, numbered(0, 3))
        remove(path)
        with pytest.raises(LogUnavailable, match="removed or replaced"):
            await log.append(PARTITION, numbered(3, 1))
        await (await created(EmbeddedLog(path))).close()
        with pytest.raises(LogUnavailable, match="removed or replaced"):
            await log.append(PARTITION, numbered(3, 1))
        with pytest.raises(LogUnavailable, match="removed or replaced"):
            await log.bounds(PARTITION)
        await log.close()

    run(main())


def remove(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def test_a_file_that_was_made_anew_shows_as_truncated(path: Path) -> None:
    async def main() -> None:
        log = await created(EmbeddedLog(path))
        await log.append(PARTITION, numbered(0, 3))
        await log.close()
        remove(path)
        again = await created(EmbeddedLog(path))
        with pytest.raises(LogTruncated, match="expected at least offset 3, found 0"):
            async with again.reader(PARTITION, 3):
                pytest.fail("it could be opened")
        await again.close()

    run(main())


def test_a_file_that_is_no_log_is_unavailable(path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)

    async def main() -> None:
        log = EmbeddedLog(path)
        with pytest.raises(LogUnavailable, match="file is not a database"):
            await log.open()
        await log.close()

    run(main())


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")

    async def main() -> None:
        log = EmbeddedLog(tmp_path / "file" / "log.sqlite")
        with pytest.raises(LogUnavailable, match="cannot write to"):
            await log.open()
        await log.close()

    run(main())


def test_a_file_of_a_newer_build_is_not_touched(path: Path) -> None:
    async def main() -> None:
        await (await created(EmbeddedLog(path))).close()
        with sqlite3.connect(path) as connection:
            connection.execute(f"PRAGMA user_version = {sqlite.FORMAT + 1}")
        connection.close()
        log = EmbeddedLog(path)
        with pytest.raises(LogUnavailable, match=f"the file has format {sqlite.FORMAT + 1}"):
            await log.open()
        await log.close()

    run(main())


def test_an_acknowledged_append_is_synced(path: Path) -> None:
    """Not just written: the setting that makes SQLite sync the log of every commit is on where it writes."""

    async def main() -> None:
        log = await created(EmbeddedLog(path))
        settings = await log._file.write(_settings, None)  # pyright: ignore[reportPrivateUsage]
        assert settings == {"journal_mode": "wal", "synchronous": 2}
        await log.close()

    run(main())


@sqlite.one_by_one
def _settings(connection: sqlite3.Connection, _: None) -> dict[str, object]:
    names = ("journal_mode", "synchronous")
    return {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names}


def test_a_compacted_partition_keeps_the_last_of_every_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "TOMBSTONES_KEPT", 3)

    async def main() -> None:
        log = await created(EmbeddedLog(path))
        latest = Partition("latest", 0)
        await log.create(Topic("latest", 1, compacted=True))
        await log.append(latest, [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")])
        await log.append(latest, [(b"b", None)])
        assert await _contents(log, latest) == [(2, b"a", b"3"), (3, b"b", None)]
        for number in range(4):
            await log.append(latest, [(b"c", str(number).encode())])
        assert await _contents(log, latest) == [(2, b"a", b"3"), (7, b"c", b"3")]
        assert await log.bounds(latest) == Bounds(0, 8)
        await log.close()

    run(main())


async def _contents(log: EmbeddedLog, partition: Partition) -> list[tuple[int, bytes | None, bytes | None]]:
    async with log.reader(partition, 0) as reader:
        return [tuple(entry) for entry in await reader.next(0)]  # type: ignore[misc]


def test_a_log_object_can_be_opened_again(path: Path) -> None:
    async def main() -> None:
        log = EmbeddedLog(path)
        for start in (0, 1):
            await created(log)
            assert await log.append(PARTITION, numbered(start, 1)) == start
            async with log.reader(PARTITION, start) as reader:
                assert values(await reader.next(1)) == [str(start)]
            await log.close()

    run(main())


def test_trimming_much_leaves_room_for_appends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "TRIM_RECORDS_MAX", 10)

    async def main() -> None:
        log = await created(EmbeddedLog(path))
        await log.append(PARTITION, numbered(0, 95))
        _, offset = await asyncio.gather(log.trim(PARTITION, 90), log.append(PARTITION, numbered(95, 1)))
        assert offset == 95
        assert values(await read_all(log, PARTITION)) == [str(number) for number in range(90, 96)]
        await log.close()

    run(main())
