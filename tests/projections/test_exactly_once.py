"""Every event that counts is in the rows once, whatever happens to those who write them.

Goal: rows = a fold over what counts, after any interleaving of commits, void records, restarts and rival projectors.
Method: a log is drawn (commits, duplicates, stragglers of fenced owners, barriers, claims, strangers), and who reads how far of
it, who writes, who is forgotten in between, whose commit's answer is lost. Readings and writers are the real ones, on a real
SQLite; only the loop and its log are missing. Expected rows come from a fold that is no projector's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.events import Claim, LogDamaged, Stored, encode
from rekindle.projections import Database, DatabaseAway, Declared, ProjectionFenced
from rekindle.projections.books import Progress
from rekindle.projections.reading import Reading, Share
from rekindle.projections.tables import open_projection
from rekindle.projections.writing import Writer, adopted, first_of
from tests.support.viewed import (
    HOSTED,
    POISON,
    SHARDS,
    TIME_MS,
    Received,
    Reserved,
    bound,
    expected_stock,
    parking,
    record,
    stock,
    stock_rows,
)

NO_LAG: Final = Progress(0.0, 0, 0.0, TIME_MS)
KEYS: Final = ("a", "b", "c")


@dataclass
class Script:
    """The log of one shard, as it grows."""

    entries: list[Stored] = field(default_factory=list[Stored])
    term: int = -1
    old_term: int = -1
    sequence: int = 0
    assignment: int = 0

    def put(self, value: bytes) -> None:
        """One more record."""
        self.entries.append(Stored(len(self.entries), b"key", value))

    def play(self, act: str, key: str, qty: int) -> None:
        """Let one thing happen."""
        if self.term < 0 or act == "claim":
            self.assignment += 1
            self.old_term, self.term = self.term, len(self.entries)
            self.put(encode(Claim(self.assignment, f"owner-{self.assignment}", TIME_MS)))
            if act == "claim":
                return
        match act:
            case "commit":
                self.sequence += 1
                self.put(record(self.term, self.sequence, key, [Received(qty=qty), Reserved(order="o", qty=1)]))
            case "barrier":
                self.sequence += 1
                self.put(record(self.term, self.sequence, key, []))
            case "duplicate":
                self.put(record(self.term, self.sequence, key, [Received(qty=qty)]))
            case "straggler":
                self.put(record(self.old_term, self.sequence + 1, key, [Received(qty=qty)]))
            case "late claim":
                self.put(encode(Claim(self.assignment - 1, "late", TIME_MS)))
            case _:
                self.put(b"not ours")


class Rival:
    """A projector without a loop: reads some, writes some, may be forgotten at any time."""

    def __init__(self, database: Database, declared: Declared = stock) -> None:
        self.writer, positions = open_projection(database, bound(declared), lambda: TIME_MS)
        self.readings = [Reading(HOSTED, shard, positions["stock", shard]) for shard in range(SHARDS)]
        self.fenced = False

    def read(self, shard: int, entries: Sequence[Stored], count: int) -> None:
        """Read so many records more."""
        reading = self.readings[shard]
        reading.feed(entries[reading.fold.offset : reading.fold.offset + count])

    def write(self, events: int, in_doubt: bool = False) -> None:
        """Write a batch. in_doubt: the answer to the first attempt is lost."""
        if self.fenced:
            return
        shares = [share for r in self.readings if (share := r.take(events)).before != share.after]
        if not shares:
            return
        try:
            done = self.writer.write(shares, NO_LAG)
            if in_doubt:
                done = self.writer.write(shares, NO_LAG, in_doubt=True)
        except ProjectionFenced:
            self.fenced = True
        else:
            assert [share.after for share in done] == [share.after for share in shares]


ACTS = st.sampled_from(["commit"] * 6 + ["barrier", "duplicate", "straggler", "late claim", "claim", "stranger"])
MOVES = st.one_of(
    st.tuples(st.just("log"), st.integers(0, SHARDS - 1), ACTS, st.sampled_from(KEYS), st.integers(1, 9)),
    st.tuples(st.just("read"), st.integers(0, 1), st.integers(0, SHARDS - 1), st.integers(1, 5)),
    st.tuples(st.just("write"), st.integers(0, 1), st.integers(1, 6), st.booleans()),
    st.tuples(st.just("restart"), st.integers(0, 1)),
)


@settings(max_examples=60, deadline=None)
@given(moves=st.lists(MOVES, min_size=10, max_size=60))
def test_rows_are_the_fold_of_what_counts(
    tmp_path_factory: pytest.TempPathFactory, moves: Sequence[tuple[Any, ...]]
) -> None:
    scripts: list[Script] = [Script() for _ in range(SHARDS)]
    with closing(Database(str(tmp_path_factory.mktemp("views") / "views.sqlite"))) as database:
        rivals: list[Rival] = [Rival(database), Rival(database)]
        for move in moves:
            kind: str = move[0]
            who: int = move[1]
            rest: list[Any] = list(move[2:])
            if kind == "log":
                scripts[who].play(*rest)
            elif kind == "read":
                shard, count = rest
                rivals[who].read(shard, scripts[int(shard)].entries, count)
            elif kind == "write":
                rivals[who].write(*rest)
            else:
                rivals[who] = Rival(database)  # the one before is gone, with all that it had read
        last = Rival(database)
        for shard, script in enumerate(scripts):
            last.read(shard, script.entries, len(script.entries))
        last.write(10_000)
        assert not last.fenced
        logs = [script.entries for script in scripts]
        assert stock_rows(database) == expected_stock(logs)
        for rival in rivals:  # whoever was overtaken, and wakes up now, changes nothing
            for shard, script in enumerate(scripts):
                rival.read(shard, script.entries, len(script.entries))
            rival.write(10_000)
        assert stock_rows(database) == expected_stock(logs)


# One thing at a time


def of_commits(*quantities: int) -> Script:
    """A log of one shard with these deliveries, all of one key."""
    script = Script()
    for qty in quantities:
        script.play("commit", "a", qty)
    return script


@pytest.fixture
def database(tmp_path: Path) -> Any:
    with closing(Database(str(tmp_path / "views.sqlite"))) as database:
        yield database


def read_all(database: Database, script: Script, declared: Declared = stock) -> Rival:
    """One that has read everything and written nothing."""
    rival = Rival(database, declared)
    rival.read(0, script.entries, len(script.entries))
    return rival


def test_one_that_was_overtaken_is_fenced_and_says_where(database: Database) -> None:
    script = of_commits(1, 2, 3)
    paused, other = read_all(database, script), read_all(database, script)
    other.write(100)
    (share,) = [paused.readings[0].take(100)]
    with pytest.raises(
        ProjectionFenced, match="was left at offset 0, term -1, sequence 0 and is at offset 4, term 0, sequence 3"
    ):
        paused.writer.write([share], NO_LAG)
    assert stock_rows(database) == expected_stock([script.entries])


def test_one_whose_doubt_was_unfounded_goes_on(database: Database) -> None:
    script = of_commits(1, 2, 3)
    rival = read_all(database, script)
    rival.write(1, in_doubt=True)
    rival.write(100, in_doubt=True)
    assert not rival.fenced
    assert stock_rows(database) == expected_stock([script.entries])


def test_a_doubt_is_settled_by_the_positions_also_when_only_a_part_was_done(database: Database) -> None:
    script = of_commits(1, 2, 3)
    rival = read_all(database, script)
    share = rival.readings[0].take(100)
    rival.writer.write([share.cut(2)], NO_LAG)
    assert rival.writer.write([share], NO_LAG, in_doubt=True) == [share.cut(2)]
    assert adopted([share], [share.after]) == [share]
    assert adopted([share], [share.after._replace(digest="another")]) is None


def test_a_restart_folds_on_from_the_stored_position(database: Database) -> None:
    script = of_commits(1, 2)
    first = read_all(database, script)
    first.write(100)
    script.play("duplicate", "a", 100)
    script.play("claim", "a", 0)
    script.play("straggler", "a", 100)
    script.play("commit", "a", 5)
    second = Rival(database)
    assert second.readings[0].position == first.readings[0].position
    assert second.readings[0].fold.offset == 3
    second.read(0, script.entries, 100)
    second.write(100)
    assert stock_rows(database) == expected_stock([script.entries]) == {"a": (5, 3)}


def test_rows_and_position_are_one_transaction(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    script = of_commits(1, 2)
    rival = read_all(database, script)
    share = rival.readings[0].take(100)

    def fail(*_: object) -> list[Share]:
        raise DatabaseAway("pulled the plug before the commit")

    with monkeypatch.context() as broken:
        broken.setattr(Writer, "_cut", fail)
        with pytest.raises(DatabaseAway):
            rival.writer.write([share], NO_LAG)
    assert stock_rows(database) == {}
    assert Rival(database).readings[0].fold.offset == 0
    assert rival.writer.write([share], NO_LAG, in_doubt=True) == [share]
    assert stock_rows(database) == expected_stock([script.entries])


def test_handlers_that_take_too_long_end_the_batch_at_a_commit(database: Database) -> None:
    script = Script()
    for _ in range(200):
        script.play("commit", "a", 1)
    rival = read_all(database, script)
    times = iter([0.0, 0.1, 0.2] + [100.0] * 100)
    rival.writer.clock = lambda: next(times)
    share = rival.readings[0].take(10_000)
    (done,) = rival.writer.write([share], NO_LAG)
    assert 0 < len(done.facts) < len(share.facts)
    assert stock_rows(database) == {"a": (0, len(done.facts))}
    rival.readings[0].put_back(share.facts[len(done.facts) :], done.after)
    rival.writer.clock = lambda: 0.0
    rival.write(10_000)
    assert stock_rows(database) == expected_stock([script.entries])


def test_a_batch_is_cut_at_facts() -> None:
    script = of_commits(1, 2, 3)
    script.put(b"a stranger behind")
    reading = Reading(HOSTED, 0)
    reading.feed(script.entries)
    share = reading.take(100)
    (cut,) = first_of([share], 2)
    assert (cut.before.offset, cut.after.offset, len(cut.facts)) == (0, 3, 2)
    assert first_of([share], 3) == [share]
    assert share.after.offset == 5
    assert first_of([share, share], 0)[1].after == share.before


def test_what_cannot_be_read_is_not_passed_by_a_position(database: Database) -> None:
    script = of_commits(1, 2)
    script.put(record(script.term, 9, "a", [Received(qty=1)]))  # a hole under its own term: something was lost
    rival = Rival(database)
    with pytest.raises(LogDamaged):
        rival.read(0, script.entries, 100)
    rival.write(100)
    assert Rival(database).readings[0].fold.offset == 3
    assert stock_rows(database) == expected_stock([script.entries[:3]])


# Poison


def poisoned() -> Script:
    """Two good commits, one whose second event is poison, two good ones, two poison ones."""
    script = of_commits(1, 2)
    script.sequence += 1
    script.put(record(script.term, script.sequence, "a", [Received(qty=3), Received(qty=POISON), Received(qty=4)]))
    for qty in (5, 6, POISON, POISON):
        script.play("commit", "a", qty)
    return script


def test_poison_stops_behind_everything_before_it(database: Database) -> None:
    script = poisoned()
    rival = read_all(database, script)
    share = rival.readings[0].take(100)
    with pytest.raises(Exception, match="offset 3, sequence 3") as caught:
        rival.writer.write([share], NO_LAG)
    error: Any = caught.value
    assert (type(error).__name__, error.service, error.key, error.shard) == ("PoisonEvent", "stock", "a", 0)
    assert (error.offset, error.sequence, error.event) == (3, 3, "Received")
    assert "ValueError: 666 is too much" in error.why
    assert stock_rows(database) == {"a": (1 + 2 - 2, 2)}
    assert Rival(database).readings[0].fold.offset == 3


def test_parked_poison_is_kept_and_its_neighbours_count(database: Database) -> None:
    script = poisoned()
    rival = read_all(database, script, parking)
    rival.write(100)
    assert stock_rows(database) == expected_stock([script.entries], without_poison=True)
    with database.transaction() as connection:
        parked = connection.exec_driver_sql(
            "SELECT record_offset, number, sequence, entity, event, error FROM rk_parked ORDER BY record_offset"
        ).all()
    text = "ValueError: 666 is too much"
    assert [tuple(row) for row in parked] == [
        (3, 1, 3, "a", "Received", text),
        (6, 0, 6, "a", "Received", text),
        (7, 0, 7, "a", "Received", text),
    ]


@pytest.mark.parametrize("events", [1, 3, 100])
def test_parking_is_the_same_whatever_the_batches(database: Database, events: int) -> None:
    script = poisoned()
    rival = read_all(database, script, parking)
    while rival.readings[0].facts:
        rival.write(events)
    assert stock_rows(database) == expected_stock([script.entries], without_poison=True)


def test_what_the_database_refuses_is_poison_too(database: Database) -> None:
    script = of_commits(1, 2)
    script.sequence += 1
    script.put(record(script.term, script.sequence, "a", [Received(qty=2**62), Received(qty=2**62)]))
    script.play("commit", "b", 7)
    rival = read_all(database, script)
    written: list[Share] = []
    error: Exception | None = None
    while error is None and rival.readings[0].facts:
        share = rival.readings[0].take(rival.writer.events_max)
        try:
            (done,) = rival.writer.write([share], NO_LAG)
        except Exception as raised:  # noqa: BLE001
            error = raised
        else:
            written.append(done)
            rival.readings[0].put_back(share.facts[len(done.facts) :], done.after)
    assert type(error).__name__ == "PoisonEvent"
    assert "offset 3, sequence 3" in str(error)
    assert stock_rows(database) == {"a": (1, 2)}
    parker = read_all(database, script, parking)
    while parker.readings[0].facts:
        share = parker.readings[0].take(parker.writer.events_max)
        (done,) = parker.writer.write([share], NO_LAG)
        parker.readings[0].put_back(share.facts[len(done.facts) :], done.after)
    assert stock_rows(database) == {"a": (1, 2), "b": (6, 1)}
