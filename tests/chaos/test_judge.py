"""The judge sees each kind of fault: every history here is wrong in one way, beside one that is not wrong."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import pytest

from rekindle.chaos import Counted, End, History, Op, Reading, judge

TAGS = ["a", "b", "c"]


def digest(count: int) -> int:
    """Of the first so many tags."""
    value = 0
    for tag in TAGS[:count]:
        value = crc32(tag.encode(), value)
    return value


def reading(tags: list[str], number: int = 1) -> Reading:
    """A log in which these entries were made, each by a command of its own."""
    commits = [
        Counted(at, at, 0, b"s", at * number or 1, "k", at, None, [["Appended", 1, {"tag": tag}]])
        for at, tag in enumerate(tags, 1)
    ]
    return Reading([], commits, 0)


def append(at: int, tag: str, **changes: Any) -> Op:
    """An acknowledged command: the entry at this place, made in the second with its number."""
    return _changed(Op("k", "append", tag, at, at + 0.5, End.OK, (at, digest(at))), changes)


def look(at: float, count: int, **changes: Any) -> Op:
    """A query that saw so many entries."""
    return _changed(Op("k", "look", None, at, at + 0.1, End.OK, (count, digest(count))), changes)


def _changed(op: Op, changes: dict[str, Any]) -> Op:
    for name, value in changes.items():
        setattr(op, name, value)
    return op


def history(*changed: Op) -> History:
    """Three commands, one after the other, of which some are replaced; and whatever else there is."""
    ops = {op.tag: op for op in (append(1, "a"), append(2, "b"), append(3, "c"))} | {op.tag: op for op in changed}
    return History(list(ops.values()))


def test_a_clean_run() -> None:
    assert judge(history(look(1.6, 1)), [reading(TAGS)]) == []


def test_what_nobody_knows_may_be_there_or_not() -> None:
    unknown = append(3, "c", end=End.UNKNOWN, seen=None)
    assert judge(history(unknown), [reading(TAGS)]) == []
    assert judge(history(unknown), [reading(TAGS[:2])]) == []


def test_two_at_the_same_time_may_come_in_either_order() -> None:
    early = look(1.4, 2, ended=2.1)
    assert judge(history(early), [reading(TAGS)]) == []


@pytest.mark.parametrize(
    ("changed", "log", "fault"),
    [
        (append(3, "c"), TAGS[:2], "lost: append c"),
        (append(3, "c"), [*TAGS, "c"], "doubled: c is 2 times"),
        (append(3, "c"), [*TAGS, "x"], "nobody asked for x"),
        (append(3, "c", end=End.REFUSED, seen=(2, digest(2))), TAGS, "refused and yet there: append c"),
        (append(3, "c", end=End.FAILED, seen=None), TAGS, "refused and yet there: append c"),
        (append(3, "c", seen=(2, digest(2))), TAGS, "is not where it was told: append c"),
        (append(3, "c", seen=(3, 7)), TAGS, "saw a past that never was: append c"),
        (look(4, 4, seen=(4, 7)), TAGS, "saw a past that never was: look"),
        (look(4, 2), TAGS, "stale: look"),
        (look(1.6, 3), TAGS, "from the future: look"),
        (look(4, 3, seen=None), TAGS, "an answer that says nothing: look"),
    ],
)
def test_a_fault_is_named(changed: Op, log: list[str], fault: str) -> None:
    faults = judge(history(changed), [reading(log)])
    assert any(found.startswith(fault) for found in faults), faults


def test_a_command_with_two_outcomes() -> None:
    assert judge(history(), [reading(TAGS, number=0)]) == [f"command {(0, b's', 1)} has 3 outcomes in the log"]
