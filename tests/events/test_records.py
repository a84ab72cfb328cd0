"""The bytes of a shard's log: what is written can be read back, for ever, and what is not ours is told apart.

The golden file holds records as the first build wrote them. Add to it when a kind or a version is added; a line that
has to change means that logs which exist can no longer be read.
"""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekindle.chaos import read
from rekindle.events import Claim, Commit, LogDamaged, NewerRecord, Stranger, decode, encode, pack
from rekindle.events.records import BARRIER, COMMAND, MARK, SNAPSHOTTED, VERSION, encode_head, with_events
from tests.support import REPOSITORY

GOLDEN = REPOSITORY / "tests" / "golden" / "records.txt"
SESSION = bytes.fromhex("0192f0c1d2e3") + b"session!"

BARE = Commit(BARRIER, 7, 4, 1_730_000_000_004, b"", 0, 0, "", 0, b"", None, [])
RECORDS: dict[str, Claim | Commit] = {
    "claim": Claim(7, "stock-12.1-c0ffee", 1_730_000_000_000),
    "command": Commit(
        COMMAND,
        7,
        1,
        1_730_000_000_001,
        SESSION,
        3,
        2,
        "sku-42",
        1,
        pack([0, 5]),
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        [["Received", 2, {"qty": 5, "unit": "piece"}], ["Counted", 1, {}]],
    ),
    "refused": Commit(
        COMMAND, 7, 2, 1_730_000_000_002, SESSION, 4, 2, "sku-42", 1, pack([1, "OutOfStock", {"left": 5}]), None, []
    ),
    "deleted": Commit(
        COMMAND,
        7,
        3,
        1_730_000_000_003,
        SESSION,
        5,
        2,
        "größe-ß",
        0,
        pack([0, None]),
        None,
        [["rekindle.Deleted", 1, {}]],
    ),
    "barrier": BARE,
    "snapshotted": Commit(
        SNAPSHOTTED, 7, 5, 1_730_000_000_005, b"", 0, 0, "shop.stock/0003/00000000000000000005-a", 0, b"", None, []
    ),
}


def golden() -> dict[str, bytes]:
    """The records of the golden file: a name and hexadecimal bytes on each line."""
    lines = (line.split() for line in GOLDEN.read_text().splitlines())
    return {name: bytes.fromhex(value) for name, value in lines}


def test_every_kind_is_golden() -> None:
    assert sorted(golden()) == sorted(RECORDS)


@pytest.mark.parametrize("name", RECORDS)
def test_golden_bytes_are_what_is_written_and_read(name: str) -> None:
    assert encode(RECORDS[name]) == golden()[name]
    assert decode(golden()[name]) == RECORDS[name]


def test_the_judge_reads_the_golden_bytes_too() -> None:
    """It has a decoder of its own: both follow the same description."""
    offsets = {"claim": 7, "command": 8, "refused": 9, "deleted": 10, "barrier": 11, "snapshotted": 12}
    reading = read((offset, golden()[name]) for name, offset in offsets.items())
    assert [commit.offset for commit in reading.counted] == [8, 9, 10, 11, 12]
    assert [(c.session, c.number, c.entity, c.reply) for c in reading.commands] == [
        (SESSION, 3, "sku-42", [0, 5]),
        (SESSION, 4, "sku-42", [1, "OutOfStock", {"left": 5}]),
        (SESSION, 5, "größe-ß", [0, None]),
    ]


# --- there and back --------------------------------------------------------------------------------------------

NUMBERS = st.integers(-1, 2**63 - 1)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=5,
)
EVENTS = st.tuples(st.text(), st.integers(1, 9), st.dictionaries(st.text(), VALUES, max_size=3)).map(list)
CLAIMS = st.builds(Claim, NUMBERS, st.text(), NUMBERS)


@st.composite
def commits(draw: st.DrawFn, most_events: int = 4) -> Commit:
    """Any commit."""
    kind = draw(st.sampled_from([COMMAND, BARRIER, SNAPSHOTTED]))
    term, sequence, time, number, low, version = (draw(NUMBERS) for _ in range(6))
    session, reply = draw(st.binary(max_size=20)), draw(st.binary(max_size=40))
    entity, trace = draw(st.text(max_size=20)), draw(st.none() | st.text(max_size=20))
    events: list[Any] = draw(st.lists(EVENTS, max_size=most_events))
    return Commit(kind, term, sequence, time, session, number, low, entity, version, reply, trace, events)


@given(CLAIMS | commits())
def test_what_is_written_is_read(record: Claim | Commit) -> None:
    assert decode(encode(record)) == record


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 65_535, 65_536])
def test_any_number_of_events_that_were_packed_one_by_one(count: int) -> None:
    """The array's header has three sizes; each is what msgpack itself would write."""
    record = BARE._replace(events=[["E", 1, {}]] * count)
    value = with_events(encode_head(record), [pack(event) for event in record.events])
    assert value == msgpack.packb([[MARK, VERSION, *record[:-1]], record.events])
    assert decode(value) == record


# --- strangers ---------------------------------------------------------------------------------------------------


@given(st.binary(max_size=60))
def test_any_bytes_are_a_stranger_or_a_record(value: bytes) -> None:
    """Random bytes never look like ours."""
    assert decode(value) == Stranger(len(value))


@given(VALUES)
def test_what_other_programs_write_is_a_stranger(value: Any) -> None:
    assert decode(pack(value)) == Stranger(len(pack(value)))


@pytest.mark.parametrize("fields", [1, 3, 13])
def test_a_map_is_a_stranger_whatever_is_in_it(fields: int) -> None:
    """It has no front where our mark could stand, even if it knows the mark under 0."""
    value = pack([dict.fromkeys(range(fields), MARK), []])
    assert decode(value) == Stranger(len(value))


def test_a_tombstone_is_a_stranger() -> None:
    assert decode(None) == Stranger(0)


@given(st.data())
def test_a_record_that_was_cut_off_is_a_stranger(data: st.DataObject) -> None:
    """It does not even have an end: nobody can say whose it was."""
    value = golden()[data.draw(st.sampled_from(sorted(RECORDS)))]
    cut = value[: data.draw(st.integers(0, len(value) - 1))]
    assert decode(cut) == Stranger(len(cut))


# --- ours, but newer, or misshapen -------------------------------------------------------------------------------


def head_of(name: str) -> list[Any]:
    """The head of a golden record."""
    head, _ = msgpack.unpackb(golden()[name])
    return list(head)


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("fields", [0, 1, 20])
def test_a_newer_version_stops_the_reader_whatever_its_shape(name: str, fields: int) -> None:
    _, _, kind, *rest = head_of(name)
    with pytest.raises(NewerRecord, match=f"version {VERSION + 1}, kind {kind}; this build reads up to"):
        decode(pack([[MARK, VERSION + 1, kind, *rest, *([None] * fields)], []]))


def test_a_newer_kind_stops_the_reader() -> None:
    with pytest.raises(NewerRecord, match=f"kind {SNAPSHOTTED + 1}; this build reads up to"):
        decode(pack([[MARK, VERSION, SNAPSHOTTED + 1, "whatever"], []]))


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("change", [-1, 1])
def test_another_number_of_fields_is_damage(name: str, change: int) -> None:
    head = [*head_of(name), None]
    with pytest.raises(LogDamaged, match="fields in its head"):
        decode(pack([head[: len(head) - 1 + change], []]))


@pytest.mark.parametrize("head", [[MARK], [MARK, 1], [MARK, "1", 2], [MARK, 1, None], [MARK, 1, 0], [MARK, 0, 2]])
def test_a_head_that_nobody_writes_is_damage(head: list[Any]) -> None:
    with pytest.raises(LogDamaged, match="a record of ours"):
        decode(pack([head, []]))
