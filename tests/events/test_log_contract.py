"""The contract of `EventLog`, kept by all three logs.

Goal: whatever stands above a log cannot tell which one it is. Method: every test runs on each of them; `place` makes as
many log objects of the same log as a test wants, as owners in different processes would have.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from rekindle.events.errors import (
    AppendRefused,
    LogTruncated,
    LogUnavailable,
    RecordTooLarge,
    TopicContractBroken,
    TopicMissing,
)
from rekindle.events.log import BATCH_BYTES_MAX, RECORD_BYTES_MAX, Bounds, EventLog, Partition, Reader, Topic
from tests.support import logs
from tests.support.child import start_child
from tests.support.logs import BATCH, WAIT_S, Place, numbered, read, read_all, values
from tests.support.loops import DEADLINE_S, eventually, run

Opened = Callable[[EventLog, Partition, int], AbstractAsyncContextManager[Reader]]

BETWEEN_PROCESSES = ["embedded", pytest.param("kafka", marks=pytest.mark.kafka)]


@pytest.fixture(params=["simulated", *BETWEEN_PROCESSES])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A log of each kind."""
    match request.param:
        case "simulated":
            return logs.simulated()
        case "embedded":
            return logs.embedded(tmp_path)
        case _:
            return logs.kafka(request.getfixturevalue("kafka"))


@pytest.fixture
def topic(unique: str) -> Topic:
    return Topic(unique, partitions=2)


@asynccontextmanager
async def fresh(place: Place, topic: Topic) -> AsyncGenerator[tuple[EventLog, Partition]]:
    """An open log with the topic, and the topic's second partition."""
    async with place.opened() as log:
        await log.create(topic)
        yield log, Partition(topic.name, 1)


@pytest.fixture(params=["reader", "follow"])
def opened(request: pytest.FixtureRequest) -> Opened:
    """Both ways to open a log at an offset."""

    def open_at(log: EventLog, partition: Partition, offset: int) -> AbstractAsyncContextManager[Reader]:
        return log.reader(partition, offset) if request.param == "reader" else log.follow(partition, offset)

    return open_at


# Appending


def test_offsets_are_consecutive_and_count_every_record(place: Place, topic: Topic) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, partition):
            sizes = [1, 3, 1, 200, 2]
            offsets = [await log.append(partition, numbered(0, size)) for size in sizes]
            assert offsets == [sum(sizes[:i]) for i in range(len(sizes))]
            assert await log.bounds(partition) == Bounds(0, sum(sizes))
            assert await log.bounds(Partition(topic.name, 0)) == Bounds(0, 0)

    run(main())


def test_what_was_appended_is_read_as_it_was(place: Place, topic: Topic) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, partition):
            records = [(None, b"no key"), (b"", b""), (b"\x00\xff", b"\xff\x00"), ("ключ".encode(), b"v" * 5000)]
            await log.append(partition, records)
            entries = await read_all(log, partition)
            assert [(entry.offset, entry.key, entry.value) for entry in entries] == [
                (offset, key, value) for offset, (key, value) in enumerate(records)
            ]

    run(main())


def test_batches_of_many_tasks_lie_whole_and_apart(place: Place, topic: Topic) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, partition), place.opened() as other:

            async def batches(task: int) -> list[tuple[int, int]]:
                through = (log, other)[task % 2]
                return [
                    (await through.append(partition, numbered(task * 1000 + i * BATCH, BATCH)), task * 1000 + i * BATCH)
                    for i in range(5)
                ]

            acknowledged = [pair for pairs in await asyncio.gather(*map(batches, range(20))) for pair in pairs]
            found = values(await read_all(log, partition))
            assert len(found) == 20 * 5 * BATCH
            for offset, first in acknowledged:
                assert found[offset : offset + BATCH] == [str(first + i) for i in range(BATCH)]

    run(main())


def test_appends_of_a_task_that_is_cancelled_do_no_harm(place: Place, topic: Topic) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, partition):
            doomed = [asyncio.create_task(log.append(partition, numbered(i, 2))) for i in range(10)]
            await asyncio.sleep(0)
            for task in doomed:
                task.cancel()
            await asyncio.gather(*doomed, return_exceptions=True)
            offset = await log.append(partition, numbered(1000, 1))
            found = values(await read_all(log, partition))
            assert found[offset] == "1000"
            assert len(found) % 2 == 1, "half a batch is in the log"

    run(main())


# Reading


@pytest.mark.parametrize("offset", [0, 1, 499, 500])
def test_a_reader_starts_at_any_offset(place: Place, topic: Topic, opened: Opened, offset: int) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, partition):
            for first in range(0, 500, 100):
                await log.append(partition, numbered(first, 100))
            async with opened(log, partition, offset) as reader:
                entries = await read(reader, 500 - offset)
                assert [entry.offset for entry in entries] == list(range(offset, 500))
                assert values(entries) == [str(number) for number in range(offset, 500)]

    run(main())


def test_a_long_log_is_read_to_its_end_in_order(place: Place, topic: Topic) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, partition):
            for first in range(0, 10_000, 500):
                await log.append(partition, numbered(first, 500))
            entries = await read_all(log, partition)
            assert all(after.offset == before.offset + 1 for before, after in pairwise(entries))
            assert values(entries) == [str(number) for number in range(10_000)]

    run(main())


def test_a_reader_at_the_end_gets_nothing_until_something_comes(place: Place, topic: Topic, opened: Opened) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, partition):
            await log.append(partition, numbered(0, 1))
            async with opened(log, partition, 1) as reader:
                assert not await reader.next(0)
                assert not await reader.next(0.05)
                await log.append(partition, numbered(1, 1))
                assert values(await read(reader, 1)) == ["1"]

    run(main())


@pytest.mark.parametrize("from_elsewhere", [False, True])
def test_a_waiting_reader_is_woken_by_an_append(
    place: Place, topic: Topic, opened: Opened, from_elsewhere: bool
) -> None:
    async def main() -> None:
        async with (
            fresh(place, topic) as (log, partition),
            place.opened() as other,
            opened(log, partition, 0) as reader,
        ):
            waiting = asyncio.create_task(reader.next(WAIT_S))
            for _ in range(100):
                await asyncio.sleep(0)
            assert not waiting.done()
            await (other if from_elsewhere else log).append(partition, numbered(7, 1))
            assert values(await waiting) == ["7"]

    run(main())


def test_many_readers_follow_at_once(place: Place, topic: Topic, opened: Opened) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, partition):

            async def follow(start: int) -> list[str]:
                async with opened(log, partition, 0) as reader:
                    started.append(start)
                    return values(await read(reader, 30))

            started: list[int] = []
            followers = [asyncio.create_task(follow(i)) for i in range(12)]
            await eventually(lambda: len(started) == len(followers))
            for first in range(0, 30, 3):
                await log.append(partition, numbered(first, 3))
            expected = [str(number) for number in range(30)]
            assert await asyncio.gather(*followers) == [expected] * len(followers)

    run(main())


def test_readers_come_and_go(place: Place, topic: Topic, opened: Opened) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, partition):
            await log.append(partition, numbered(0, 10))
            for offset in [0, 9, 3, 3, 10, 0, 5]:
                async with opened(log, partition, offset) as reader:
                    if offset < 10:
                        assert (await reader.next(WAIT_S))[0].offset == offset
            with pytest.raises(ZeroDivisionError):
                async with opened(log, partition, 0):
                    raise ZeroDivisionError
            assert len(await read_all(log, partition)) == 10

    run(main())


@pytest.mark.parametrize(("offset", "found"), [(4, 5), (0, 5), (11, 10), (1000, 10)])
def test_outside_of_the_log_there_is_nothing_to_read(
    place: Place, topic: Topic, opened: Opened, offset: int, found: int
) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, partition):
            await log.append(partition, numbered(0, 10))
            await log.trim(partition, 5)
            with pytest.raises(LogTruncated) as caught:
                async with opened(log, partition, offset) as reader:
                    await reader.next(WAIT_S)
            assert (caught.value.expected, caught.value.found) == (offset, found)
            assert str(partition) in str(caught.value)

    run(main())


# Trimming


def test_trimmed_records_are_gone_and_offsets_go_on(place: Place, topic: Topic) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, partition):
            await log.append(partition, numbered(0, 10))
            for before in [4, 4, 2]:
                await log.trim(partition, before)
                assert await log.bounds(partition) == Bounds(4, 10)
            assert values(await read_all(log, partition)) == [str(number) for number in range(4, 10)]
            await log.trim(partition, 10)
            assert await log.bounds(partition) == Bounds(10, 10)
            assert await log.append(partition, numbered(10, 1)) == 10

    run(main())


def test_what_was_never_there_cannot_be_trimmed(place: Place, topic: Topic) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, partition):
            await log.append(partition, numbered(0, 3))
            with pytest.raises(LogTruncated, match="expected at least offset 4, found 3"):
                await log.trim(partition, 4)
            assert await log.bounds(partition) == Bounds(0, 3)

    run(main())


def test_a_reader_never_steps_over_trimmed_records_in_silence(place: Place, topic: Topic) -> None:
    """It may have fetched them before they were deleted, or say that they are gone."""

    async def main() -> None:
        async with fresh(place, topic) as (log, partition), log.reader(partition, 0) as reader:
            await log.append(partition, numbered(0, 10))
            assert len(await read(reader, 10)) == 10
            await log.append(partition, numbered(10, 10))
            await log.trim(partition, 20)
            await log.append(partition, numbered(20, 1))
            try:
                rest = values(await read(reader, 11))
            except LogTruncated as truncated:
                rest = [f"from {truncated.expected} to {truncated.found}"]
            assert rest in ([str(number) for number in range(10, 21)], ["from 10 to 20"])

    run(main())


# Topics


def test_a_topic_that_was_never_created_is_missing(place: Place, unique: str) -> None:
    nowhere = Partition(unique, 0)
    uses: list[Callable[[EventLog], Awaitable[object]]] = [
        lambda log: log.append(nowhere, numbered(0, 1)),
        lambda log: log.bounds(nowhere),
        lambda log: log.check(Topic(unique, 1)),
        lambda log: log.trim(nowhere, 0),
        lambda log: read_all(log, nowhere),
    ]

    async def main() -> None:
        async with place.opened() as log:
            for use in uses:
                with pytest.raises(TopicMissing, match=f"topic '{unique}' does not exist"):
                    await use(log)

    run(main())


def test_a_partition_beyond_the_last_is_missing(place: Place, topic: Topic) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, _):
            for index in (-1, 2):
                with pytest.raises(TopicMissing, match=f"partitions 0 to 1, no {index}"):
                    await log.append(Partition(topic.name, index), numbered(0, 1))
                with pytest.raises(TopicMissing, match=f"partitions 0 to 1, no {index}"):
                    await log.bounds(Partition(topic.name, index))

    run(main())


def test_creating_again_is_checking(place: Place, topic: Topic) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, partition), place.opened() as other:
            await log.append(partition, numbered(0, 1))
            await asyncio.gather(*(through.create(topic) for through in (log, other, log)))
            await other.check(topic)
            assert await other.bounds(partition) == Bounds(0, 1)

    run(main())


def test_a_topic_is_created_once_by_many_at_once(place: Place, topic: Topic) -> None:
    async def main() -> None:
        async with place.opened() as log, place.opened() as other:
            await asyncio.gather(*(through.create(topic) for through in (log, other) * 3))
            assert await log.append(Partition(topic.name, 0), numbered(0, 1)) == 0

    run(main())


def test_every_broken_term_of_the_contract_is_named(place: Place, topic: Topic) -> None:
    wrong = Topic(topic.name, partitions=3, compacted=True, record_bytes_max=2 * RECORD_BYTES_MAX)

    async def main() -> None:
        async with fresh(place, topic) as (log, _):
            for insist in (log.check, log.create):
                with pytest.raises(TopicContractBroken, match=f"topic '{topic.name}' breaks") as caught:
                    await insist(wrong)
                faults = "; ".join(sorted(caught.value.faults))
                assert "cleanup.policy: expected compact, found delete" in faults
                assert "partitions: expected 3, found 2" in faults
                assert "max" in faults
            await log.check(topic)

    run(main())


# What cannot be appended


def test_tombstones_belong_into_compacted_topics(place: Place, topic: Topic, unique: str) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, events):
            with pytest.raises(AppendRefused, match=r"a tombstone for .*: only compacted topics"):
                await log.append(events, [(b"a", b"1"), (b"a", None)])
            latest = Partition(f"{unique}-latest", 0)
            await log.create(Topic(latest.topic, 1, compacted=True))
            await log.append(latest, [(b"a", b"1"), (b"b", b"2")])
            await log.append(latest, [(b"a", None), (b"b", b"3")])
            with pytest.raises(AppendRefused, match="without a key"):
                await log.append(latest, [(None, b"4")])
            async with log.reader(latest, 0) as reader:
                found: dict[bytes | None, bytes | None] = {}
                while found.get(b"b") != b"3":
                    found |= {entry.key: entry.value for entry in await reader.next(WAIT_S)}
            assert found == {b"a": None, b"b": b"3"}

    run(main())


def test_the_largest_record_and_the_largest_batch_fit(place: Place, topic: Topic) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, partition):
            key = b"k" * 100
            await log.append(partition, [(key, b"v" * (RECORD_BYTES_MAX - len(key)))])
            await log.append(partition, [(key, b"v" * 100)] * (BATCH_BYTES_MAX // 200))
            await log.append(partition, [(b"k", b"v" * 39)] * 5_000)
            entries = await read_all(log, partition)
            assert len(entries) == 1 + BATCH_BYTES_MAX // 200 + 5_000
            assert len(entries[0].value or b"") == RECORD_BYTES_MAX - len(key)

    run(main())


def test_what_is_too_large_is_refused_whole(place: Place, topic: Topic) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, partition):
            with pytest.raises(RecordTooLarge) as caught:
                await log.append(partition, [(b"k", b"small"), (b"k", b"v" * RECORD_BYTES_MAX)])
            assert (caught.value.size, caught.value.limit) == (RECORD_BYTES_MAX + 1, RECORD_BYTES_MAX)
            with pytest.raises(AppendRefused, match=f"2 records .* take {BATCH_BYTES_MAX + 2} bytes"):
                await log.append(partition, [(b"k", b"v" * (BATCH_BYTES_MAX // 2))] * 2)
            assert await log.bounds(partition) == Bounds(0, 0)

    run(main())


# Opening and closing


def test_a_log_that_is_opened_again_has_everything(place: Place, topic: Topic) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, partition):
            await log.append(partition, numbered(0, 10))
        async with place.opened() as again:
            assert values(await read_all(again, partition)) == [str(number) for number in range(10)]
            await again.check(topic)
            assert await again.append(partition, numbered(10, 1)) == 10

    run(main())


def test_closing_is_harmless_twice_and_without_opening(place: Place, topic: Topic) -> None:
    async def main() -> None:
        await place.make().close()
        async with fresh(place, topic) as (log, _):
            await log.close()
            await log.close()

    run(main())


@pytest.mark.parametrize("place", BETWEEN_PROCESSES, indirect=True)
def test_a_closed_log_is_unavailable(place: Place, topic: Topic) -> None:
    async def main() -> None:
        async with fresh(place, topic) as (log, partition):
            await log.append(partition, numbered(0, 1))
            await log.close()
            with pytest.raises(LogUnavailable):
                await log.append(partition, numbered(1, 1))
            with pytest.raises(LogUnavailable):
                await log.bounds(partition)

    run(main())


# Between processes


@pytest.mark.parametrize("place", BETWEEN_PROCESSES, indirect=True)
def test_batches_of_many_processes_lie_whole_and_apart(place: Place, topic: Topic, tmp_path: Path) -> None:
    names = ["a-", "b-", "c-"]
    count = 40

    def acknowledged(name: str) -> list[tuple[int, str]]:
        lines = (tmp_path / name).read_text().splitlines()
        return [(int(offset), value) for offset, value in (line.split() for line in lines)]

    def append_from_processes(partition: Partition) -> list[tuple[int, str]]:
        children = [start_child(logs.appending(place, partition, count, name), tmp_path / name) for name in names]
        assert [child.wait(DEADLINE_S) for child in children] == [0] * len(names), acknowledged(names[0])
        return [pair for name in names for pair in acknowledged(name)]

    async def main() -> None:
        async with fresh(place, topic) as (log, partition):
            pairs = await asyncio.to_thread(append_from_processes, partition)
            found = values(await read_all(log, partition))
            assert len(pairs) == len(names) * count
            assert len(found) == len(pairs) * BATCH
            assert all(found[offset : offset + BATCH] == [value] * BATCH for offset, value in pairs)

    run(main())
