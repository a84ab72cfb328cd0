"""The judge itself: it sees every kind of damage, and nothing in a run without any.

Goal: a verdict without faults means something. Method: a run of a few operations that was worked out by hand, as a
history and as raw records; it is clean. Then one thing at a time is damaged, in the log or in what callers were told.
The records are packed here, field by field, as the head of `rekindle.events.records` documents them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgpack
import pytest

from rekindle import CommandFailed, OutcomeUnknown
from rekindle.events import Partition, Topic
from rekindle.events.urls import open_log
from tests.support.judge import End, History, Owner, Raw, Reading, Verdict, judge, raw_log
from tests.support.service import OutOfStock
from tests.support.watch import Watch

Log: TypeAlias = list[bytes]

SESSION: Final = b"\x00\x00\x00\x00\x00\x01session"
BARRIER_AT: Final = 10


def claim(number: int, incarnation: str) -> bytes:
    return packed(["rk", 1, 1, number, incarnation, 0], [])


def barrier(term: int, sequence: int) -> bytes:
    return packed(["rk", 1, 3, term, sequence, sequence, b"", 0, 0, "", 0, b"", None], [])


def commit(
    term: int, sequence: int, number: int, event: list[Any], entity: str = "a", time: int | None = None
) -> bytes:
    time = sequence if time is None else time
    return packed(["rk", 1, 2, term, sequence, time, SESSION, number, 1, entity, 0, b"", None], [event])


def packed(*record: list[Any]) -> bytes:
    data: bytes = msgpack.packb(record)
    return data


def appended(op: str) -> list[Any]:
    return ["Appended", 1, {"op": op}]


def received(qty: int) -> list[Any]:
    return ["Received", 1, {"qty": qty}]


def reserved(order: str, qty: int) -> list[Any]:
    return ["Reserved", 1, {"order": order, "qty": qty}]


def clean_log() -> Log:
    """Two owners of one partition. The first was in doubt, and wrote on when the second had taken over."""
    return [
        claim(1, "x"),
        commit(0, 1, 1, appended("1")),
        commit(0, 2, 2, appended("2")),
        commit(0, 1, 1, appended("1")),  # 3: a duplicate
        claim(1, "x"),  # 4: doubt
        commit(0, 3, 3, appended("3")),  # 5: a straggler of the term before it
        commit(4, 3, 3, appended("3")),
        claim(2, "y"),  # 7
        commit(4, 4, 4, appended("late")),  # 8: late
        claim(1, "x"),  # 9: late
        barrier(7, 4),
        commit(7, 5, 5, appended("4")),
        commit(7, 6, 6, received(5), "b"),
        commit(7, 7, 7, reserved("some", 2), "b"),
    ]


def clean_history() -> History:
    """What the callers of that log saw."""
    history = History()
    tell(history, "append 1", 1, End.OK, 1)
    tell(history, "append 2", 1, End.OK, 2)
    ask(history, 2)
    tell(history, "append 3", 1, End.OK, 3)
    tell(history, "append late", 1, End.UNKNOWN)
    tell(history, "append never", 1, End.FAILED)
    ask(history, 3)
    tell(history, "append 4", 1, End.UNKNOWN)
    ask(history, 4)
    tell(history, "reserve early", -1, End.REFUSED, 0, "b")
    tell(history, "receive 5", 5, End.OK, 5, "b")
    tell(history, "reserve some", -2, End.OK, 3, "b")
    tell(history, "reserve more", -4, End.REFUSED, 3, "b")
    ask(history, 3, "b")
    return history


def tell(history: History, effect: str, amount: int, end: End, seen: int | None = None, entity: str = "a") -> None:
    history.end(history.begin(f"s/{entity}", effect, amount), end, seen)


def ask(history: History, seen: int, entity: str = "a") -> None:
    history.end(history.begin(f"s/{entity}"), End.OK, seen)


def laid_down(log: Log) -> list[Raw]:
    return list(enumerate(log))


def verdict_on(log: Log, history: History) -> Verdict:
    return judge(history, {"s": [laid_down(log)]})


def test_a_clean_run_has_no_faults() -> None:
    verdict = verdict_on(clean_log(), clean_history())
    assert verdict.faults == []
    assert verdict.late == {Owner("x", 1): 2}
    figures = {"claims": 4, "doubts": 1, "duplicates": 1, "stragglers": 1, "late": 2, "void claims": 1}
    ends = {"ok": 9, "refused": 2, "failed": 1, "unknown": 2, "unknown and in the log": 1}
    assert verdict.figures == figures | ends


@pytest.mark.parametrize(
    ("at", "record", "fault"),
    [
        (6, barrier(4, 3), "'append 3' is ok, and 0 times in the log"),
        (BARRIER_AT, commit(7, 4, 9, appended("1")), "'append 1' is ok, and 2 times in the log"),
        (BARRIER_AT, commit(7, 4, 9, appended("4")), "'append 4' is unknown, and 2 times in the log"),
        (BARRIER_AT, commit(7, 4, 9, appended("never")), "'append never' is failed, and 1 times in the log"),
        (BARRIER_AT, commit(7, 4, 9, reserved("early", 1), "b"), "'reserve early' is refused, and 1 times in the log"),
        (BARRIER_AT, commit(7, 4, 9, appended("ghost")), "'append ghost' is in the log, and nobody asked for it"),
        (BARRIER_AT, commit(7, 4, 1, appended("late")), "counts for the second time"),
        (BARRIER_AT, commit(7, 4, 9, appended("late"), time=2), "time 2 after 3"),
        (BARRIER_AT, barrier(7, 5), "sequence 5 of term 7 after 3 of term 7"),
        (BARRIER_AT, barrier(6, 4), "sequence 4 of term 6 after 3 of term 7"),
        (12, commit(7, 6, 6, received(6), "b"), "'receive 5' is ok, and 0 times in the log"),
        (13, commit(7, 7, 7, reserved("some", 1), "b"), "'reserve some' was answered 3, it made 4"),
    ],
)
def test_a_damaged_log(at: int, record: bytes, fault: str) -> None:
    log = clean_log()
    log[at] = record
    assert any(fault in found for found in verdict_on(log, clean_history()).faults)


def test_effects_in_another_order() -> None:
    log = clean_log()
    log[1], log[2] = commit(0, 1, 2, appended("2")), commit(0, 2, 1, appended("1"))
    faults = verdict_on(log, clean_history()).faults
    assert any("'append 1' was answered 1, it made 2" in fault for fault in faults)
    assert any("'append 1' was answered before 'append 2' was asked for" in fault for fault in faults)


def test_records_that_are_not_there_any_more() -> None:
    records = laid_down(clean_log())
    assert "1 records are not there any more" in Reading("s/0", records[:3] + records[4:]).faults[0]


def test_a_key_in_two_partitions() -> None:
    stray = [claim(1, "x"), commit(0, 1, 9, appended("late"))]
    verdict = judge(clean_history(), {"s": [laid_down(clean_log()), laid_down(stray)]})
    assert "s/a is in two partitions" in verdict.faults


def test_effects_without_their_log() -> None:
    assert len(verdict_on([], clean_history()).faults) >= len(["1", "2", "3", "5", "some"])


@pytest.mark.parametrize(
    ("operation", "seen"),
    [(1, 3), (2, 1), (2, 3), (6, 2), (6, 4), (8, 2), (9, 1), (11, 2), (12, 4), (13, 5)],
    ids=lambda value: str(value),
)
def test_an_answer_that_cannot_be(operation: int, seen: int) -> None:
    history = clean_history()
    history.operations[operation].seen = seen
    assert verdict_on(clean_log(), history).faults


def test_a_refusal_without_a_reason() -> None:
    history = clean_history()
    tell(history, "reserve less", -3, End.REFUSED, 3, "b")
    assert any("reserve less" in fault for fault in verdict_on(clean_log(), history).faults)


def test_two_commands_of_one_name() -> None:
    history = clean_history()
    tell(history, "append 1", 1, End.OK, 1)
    assert any("two commands have one name" in fault for fault in verdict_on(clean_log(), history).faults)


@pytest.mark.parametrize(("first", "second", "clean"), [(0, 0, True), (0, 1, True), (1, 1, True), (1, 0, False)])
def test_reads_beside_a_command_that_takes_effect_at_some_time(first: int, second: int, clean: bool) -> None:
    history = History()
    command = history.begin("s/a", "append 1", 1)
    ask(history, first)
    ask(history, second)
    history.end(command, End.OK, 1)
    assert (verdict_on([claim(1, "x"), commit(0, 1, 1, appended("1"))], history).faults == []) is clean


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 0)])
def test_reads_at_the_same_time_may_see_either(first: int, second: int) -> None:
    history = History()
    command, one, other = history.begin("s/a", "append 1", 1), history.begin("s/a"), history.begin("s/a")
    for operation, seen in ((one, first), (other, second), (command, 1)):
        history.end(operation, End.OK, seen)
    assert verdict_on([claim(1, "x"), commit(0, 1, 1, appended("1"))], history).faults == []


# --- the history and the raw log ----------------------------------------------------------------------------------------


def answers(error: Exception | None = None) -> Awaitable[int]:
    async def call() -> int:
        if error is not None:
            raise error
        return 7

    return call()


def test_what_callers_learn_is_written_down() -> None:
    async def run() -> list[tuple[End, int | None]]:
        history = History()
        for name, error in enumerate([None, OutOfStock(left=3), CommandFailed("no"), OutcomeUnknown("who knows")]):
            await history.tell("s/a", f"append {name}", 1, answers(error))
        return [(operation.end, operation.seen) for operation in history.operations]

    assert asyncio.run(run()) == [(End.OK, 7), (End.REFUSED, 3), (End.FAILED, None), (End.UNKNOWN, None)]


def test_who_is_cancelled_knows_nothing() -> None:
    async def run() -> End:
        history = History()
        never = asyncio.get_running_loop().create_future()
        telling = asyncio.create_task(history.tell("s/a", "append 1", 1, never))
        await asyncio.sleep(0)
        telling.cancel()
        await asyncio.wait([telling])
        return history.operations[0].end

    assert asyncio.run(run()) is End.UNKNOWN


def test_waiting_ends_with_its_condition_or_its_deadline() -> None:
    async def run() -> None:
        watch, seen = Watch(), list[int]()

        def see() -> None:
            seen.append(1)
            watch.changed()

        asyncio.get_running_loop().call_soon(see)
        await watch.until("it is there", lambda: bool(seen), 10.0)
        with pytest.raises(AssertionError, match=r"expected within 0\.01 s that a second one is there"):
            await watch.until("a second one is there", lambda: len(seen) > 1, 0.01)

    asyncio.run(run())


def raw_after_appends(url: str, topic: str) -> list[list[Raw]]:
    async def run() -> list[list[Raw]]:
        log = open_log(url)
        await log.open()
        await log.create(Topic(topic, 3))
        await log.append(Partition(topic, 0), [(None, b"a"), (b"k", b"b")])
        await log.append(Partition(topic, 2), [(None, b"c")])
        await log.append(Partition(topic, 0), [(None, b"d")])
        await log.close()
        return await raw_log(url, topic, 3)

    return asyncio.run(run())


RAW: Final = [[(0, b"a"), (1, b"b"), (2, b"d")], [], [(0, b"c")]]


def test_raw_records_of_the_embedded_log(tmp_path: Path) -> None:
    assert raw_after_appends(str(tmp_path / "log.sqlite"), "app.s") == RAW


def test_raw_records_of_kafka(kafka: str, unique: str) -> None:
    assert raw_after_appends(f"kafka://{kafka}?single_broker=true", unique) == RAW
