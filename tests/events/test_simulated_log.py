"""The simulated log: what its faults do, and that a seed replays them.

Goal: a fault that is asked for happens, means what it says and is counted; without faults there are none.
Method: virtual time, so that a straggler of five seconds costs nothing; one fault at a time with probability 1, then
all of them together.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from dataclasses import fields, replace
from random import Random

import pytest

from rekindle.events.errors import AppendUnknown, LogError, LogTruncated, LogUnavailable
from rekindle.events.log import Bounds, Partition, Topic
from rekindle.events.simulated import LogFaults, SimulatedLog
from tests.support.logs import numbered, read, read_all, values
from tests.support.loops import pass_time, run_virtually

EVENTS = Topic("events", 2)
PARTITION = Partition("events", 0)
TIMEOUT_S = 1.0
EVERYTHING = LogFaults(
    slow_append=0.1,
    slow_ack=0.1,
    slow_s=2.0,
    lost_append=0.1,
    lost_ack=0.1,
    duplicate=0.1,
    straggler=0.1,
    no_offset=0.1,
    unavailable=0.05,
)


async def one_append(log: SimulatedLog) -> int | str:
    """The outcome of one append: its offset, or the name of its error."""
    try:
        return await log.append(PARTITION, numbered(0, 2))
    except LogError as error:
        return type(error).__name__


async def tried(faults: LogFaults) -> tuple[SimulatedLog, int | str]:
    """A log, and the outcome of one append under these faults."""
    log = SimulatedLog(Random(1))
    await log.create(EVENTS)
    log.faults = faults
    outcome = await one_append(log)
    return log, outcome


def test_without_faults_nothing_goes_wrong() -> None:
    async def main() -> None:
        log, outcome = await tried(LogFaults())
        assert outcome == 0
        assert await log.append(PARTITION, numbered(2, 1)) == 2
        assert +log.took == Counter()

    run_virtually(main())


def test_a_lost_append_never_arrives() -> None:
    async def main() -> None:
        log, outcome = await tried(LogFaults(lost_append=1))
        await pass_time(3600)
        assert outcome == "AppendUnknown"
        assert log.records(PARTITION) == []
        assert log.took["lost_append"] == 1

    run_virtually(main())


def test_a_lost_answer_leaves_the_records_in_the_log() -> None:
    async def main() -> None:
        log, outcome = await tried(LogFaults(lost_ack=1))
        assert outcome == "AppendUnknown"
        assert values(log.records(PARTITION)) == ["0", "1"]
        assert log.took["lost_ack"] == 1

    run_virtually(main())


def test_a_straggler_arrives_after_its_caller_gave_up() -> None:
    async def main() -> None:
        log, outcome = await tried(LogFaults(straggler=1))
        assert outcome == "AppendUnknown"
        assert log.records(PARTITION) == []
        await pass_time(log.faults.late_s)
        assert values(log.records(PARTITION)) == ["0", "1"]
        assert log.took["straggler"] == 1

    run_virtually(main())


def test_a_duplicate_is_in_the_log_twice_and_either_copy_is_answered() -> None:
    async def main() -> set[int | str]:
        log = SimulatedLog(Random(2))
        await log.create(EVENTS)
        log.faults = LogFaults(duplicate=1, late_s=0.5)
        outcomes: set[int | str] = set()
        for count in range(1, 21):
            outcomes.add(await one_append(log))
            await pass_time(1)
            assert len(log.records(PARTITION)) == 4 * count
        assert log.took["duplicate"] == 20
        return outcomes

    outcomes = run_virtually(main())
    assert {int(outcome) % 4 for outcome in outcomes} == {0, 2}


@pytest.mark.parametrize("way", ["slow_append", "slow_ack"])
def test_a_slow_way_takes_longer_and_may_be_a_doubt(way: str) -> None:
    async def main() -> list[int | str]:
        outcomes: list[int | str] = []
        for seed in range(20):
            log = SimulatedLog(Random(seed))
            await log.create(EVENTS)
            log.faults = replace(LogFaults(slow_s=2 * TIMEOUT_S, timeout_s=TIMEOUT_S), **{way: 1.0})
            outcomes.append(await one_append(log))
            await pass_time(2 * TIMEOUT_S)
            assert len(log.records(PARTITION)) == 2
            assert log.took[way] == 1
        return outcomes

    assert set(run_virtually(main())) == {0, "AppendUnknown"}


def test_an_answer_may_lack_the_offset() -> None:
    async def main() -> None:
        log, outcome = await tried(LogFaults(no_offset=1))
        assert outcome == -1
        assert len(log.records(PARTITION)) == 2
        assert log.took["no_offset"] == 1

    run_virtually(main())


def test_while_the_log_is_away_nothing_works_and_what_is_on_its_way_arrives() -> None:
    async def main() -> None:
        log = SimulatedLog(Random(1), LogFaults(append_s=0.5))
        await log.create(EVENTS)
        under_way = asyncio.create_task(log.append(PARTITION, numbered(0, 1)))
        async with log.reader(PARTITION, 0) as reader:
            await asyncio.sleep(0)
            log.go_away(10.0)
            assert await one_append(log) == "LogUnavailable"
            with pytest.raises(LogUnavailable):
                await log.bounds(PARTITION)
            with pytest.raises(LogUnavailable):
                await reader.next(1.0)
            assert await under_way == 0
            await pass_time(10.0)
            assert values(await read(reader, 1)) == ["0"]
        assert log.took["unavailable"] == 3

    run_virtually(main())


def test_the_log_goes_away_by_chance_and_comes_back() -> None:
    async def main() -> None:
        log, outcome = await tried(LogFaults(unavailable=1, unavailable_s=5))
        assert outcome == "LogUnavailable"
        log.faults = LogFaults()
        await pass_time(5)
        assert await one_append(log) == 0

    run_virtually(main())


def test_the_crash_of_an_owner_does_not_recall_what_it_sent() -> None:
    async def main() -> None:
        log = SimulatedLog(Random(1), LogFaults(append_s=0.5))
        await log.create(EVENTS)
        owner = asyncio.create_task(log.append(PARTITION, numbered(0, 1)))
        await asyncio.sleep(0)
        owner.cancel()
        await pass_time(0.5)
        assert values(log.records(PARTITION)) == ["0"]

    run_virtually(main())


def test_a_truncated_log_ends_earlier_and_its_followers_notice() -> None:
    async def main() -> None:
        log = SimulatedLog(Random(1))
        await log.create(EVENTS)
        await log.append(PARTITION, numbered(0, 10))
        async with log.reader(PARTITION, 10) as reader:
            following = asyncio.create_task(reader.next(60.0))
            await pass_time(1)
            log.truncate(PARTITION, 7)
            with pytest.raises(LogTruncated, match="expected at least offset 10, found 7"):
                await following
        assert await log.append(PARTITION, numbered(7, 1)) == 7

    run_virtually(main())


def test_a_recreated_topic_starts_again_at_offset_0() -> None:
    async def main() -> None:
        log = SimulatedLog(Random(1))
        await log.create(EVENTS)
        await log.append(PARTITION, numbered(0, 10))
        log.recreate("events")
        assert await log.bounds(PARTITION) == Bounds(0, 0)
        assert await log.append(PARTITION, numbered(0, 1)) == 0

    run_virtually(main())


async def busy_hour(seed: int) -> tuple[list[object], Counter[str]]:
    """What three owners and a reader see in a log where everything goes wrong now and then."""
    log = SimulatedLog(Random(seed), EVERYTHING)
    seen: list[object] = []

    async def note(call: Awaitable[object]) -> None:
        try:
            seen.append(await call)
        except LogError as error:
            seen.append(f"{asyncio.get_running_loop().time():.9f} {error}")

    async def owner(name: int) -> None:
        for number in range(100):
            await note(log.append(PARTITION, numbered(name * 1000 + number, 1)))

    while None not in seen:
        await note(log.create(EVENTS))
    await asyncio.gather(*map(owner, range(3)))
    await pass_time(60)
    log.faults = LogFaults()
    seen += values(await read_all(log, PARTITION))
    return seen, log.took


def test_a_seed_replays_the_same_history() -> None:
    first, again, other = (run_virtually(busy_hour(seed)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_every_fault_takes_effect_in_a_busy_hour() -> None:
    _, took = run_virtually(busy_hour(7))
    asked_for = {field.name for field in fields(LogFaults) if not field.name.endswith("_s")}
    assert {name for name, times in took.items() if times} == asked_for


def test_a_doubt_says_how_long_it_waited() -> None:
    async def main() -> None:
        log, _ = await tried(LogFaults())
        log.faults = LogFaults(lost_append=1, timeout_s=0.25)
        before = asyncio.get_running_loop().time()
        with pytest.raises(AppendUnknown, match=r"no answer for an append to events/0 in 0.25 s"):
            await log.append(PARTITION, numbered(0, 1))
        assert asyncio.get_running_loop().time() - before == pytest.approx(0.25)

    run_virtually(main())
