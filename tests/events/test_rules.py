"""The rules as properties: what any log means, whoever wrote to it, in whatever order it arrived.

Method: hypothesis plays several owners that append to one log. They act on what they last read, and the log lets their
batches arrive late, twice, never, and among bytes of strangers. What the rules make of it is held against
`rekindle.chaos.reading`, which reads the same log in another way and shares no code with them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekindle.chaos import read
from rekindle.events import (
    Claim,
    Commit,
    Fold,
    LogDamaged,
    Record,
    Stranger,
    Verdict,
    birth_of,
    decode,
    encode,
    pack,
    session_name,
    unpack,
)
from rekindle.events.records import BARRIER, COMMAND, NO_SESSION

TTL_MS = 100
SESSIONS = [session_name(birth, b"%d" % birth) for birth in (0, 50, 150, 1_000)]


def commit(
    term: int, sequence: int, session: bytes = NO_SESSION, number: int = 0, low: int = 0, time: int = 0
) -> Commit:
    """A commit with a reply that tells it from every other one."""
    kind = COMMAND if number else BARRIER
    reply = pack([0, f"{term}/{sequence}"]) if number else b""
    return Commit(kind, term, sequence, time, session, number, low, "key", sequence, reply, None, [])


# --- any log ---------------------------------------------------------------------------------------------------


@dataclass
class Writer:
    """An owner as the log sees it: it acts on what it last read, which may be long ago."""

    name: str
    seen: Fold = field(default_factory=lambda: Fold(TTL_MS))
    sure: bool = False  # everything that it sent under its term is in the log, as far as it knows

    def batch(self, count: int, session: bytes) -> list[Record]:
        """The commits that it would append now; its commands' numbers are its sequences."""
        first = self.seen.sequence + 1
        return [commit(self.seen.term, n, session, n, 1, self.seen.time) for n in range(first, first + count)]


@st.composite
def logs(draw: st.DrawFn) -> list[bytes]:
    """What several owners wrote to one shard, with everything that can happen to an append."""
    log: list[Record] = []
    late: list[list[Record]] = []
    writers = [Writer("a"), Writer("b"), Writer("c")]
    for _ in range(draw(st.integers(0, 30))):
        writer = draw(st.sampled_from(writers))
        match draw(
            st.sampled_from(["claim", "take", "read", "append", "append", "lose", "twice", "arrive", "stranger"])
        ):
            case "claim":
                log.append(Claim(writer.seen.assignment + draw(st.integers(0, 1)), writer.name, 0))
            case "take":
                _read_on(writer, log)
                log.append(Claim(writer.seen.assignment + 1, writer.name, 0))
                _read_on(writer, log)
            case "read":
                _read_on(writer, log)
            case "stranger":
                log.append(Stranger(draw(st.integers(0, 3))))
            case "arrive" if late:
                log += late.pop(draw(st.integers(0, len(late) - 1)))
            case how if writer.sure:
                _append(writer, draw(st.integers(1, 3)), how, log, late)
            case _:
                pass
    return [encode(record) if isinstance(record, Claim | Commit) else b"?" * record.size for record in log]


def _read_on(writer: Writer, log: list[Record]) -> None:
    for offset in range(writer.seen.offset, len(log)):
        if writer.seen.feed(offset, log[offset]) is False and isinstance(log[offset], Claim):
            writer.sure = writer.seen.term == offset and writer.seen.incarnation == writer.name


def _append(writer: Writer, count: int, how: str, log: list[Record], late: list[list[Record]]) -> None:
    """One append, and what becomes of it. Whoever has no answer must claim again before it sends anything else."""
    batch = writer.batch(count, SESSIONS[0])
    if how != "lose":
        log += batch
    if how != "append":
        late.append(batch)
    writer.sure = False


def folds_of(values: list[bytes]) -> list[Fold]:
    """The fold of every prefix, each fed from the start."""
    folds: list[Fold] = []
    for end in range(len(values) + 1):
        fold = Fold(TTL_MS)
        for offset in range(end):
            fold.feed(offset, decode(values[offset]))
        folds.append(fold)
    return folds


@given(logs())
def test_every_prefix_means_the_same_to_every_reader(values: list[bytes]) -> None:
    for end, fold in enumerate(folds_of(values)):
        reading = read(enumerate(values[:end]))
        reign = reading.reigns[-1] if reading.reigns else None
        assert fold.term == (reign.offset if reign else -1)
        assert reign is None or fold.owned_by(reign.assignment, reign.incarnation)
        assert (fold.sequence, fold.void) == (len(reading.counted), reading.void)


@given(logs())
def test_what_counts_is_dense_and_under_the_claim_in_force(values: list[bytes]) -> None:
    fold, sequences = Fold(TTL_MS), list[int]()
    for offset, value in enumerate(values):
        record, term = decode(value), fold.term
        if fold.feed(offset, record):
            assert isinstance(record, Commit)
            assert record.term == term
            sequences.append(record.sequence)
    assert sequences == list(range(1, len(sequences) + 1))


@given(logs())
def test_what_does_not_count_changes_nothing(values: list[bytes]) -> None:
    fold = Fold(TTL_MS)
    for offset, value in enumerate(values):
        before, claims = fold.dump()[1:], isinstance(decode(value), Claim)
        if not fold.feed(offset, decode(value)) and not claims:
            assert fold.dump()[1:] == before


@given(logs())
def test_a_fold_that_was_put_away_goes_on_like_the_one_that_was_not(values: list[bytes]) -> None:
    whole = folds_of(values)[-1].dump()
    for fold in folds_of(values):
        loaded = Fold.load(unpack(pack(fold.dump())))
        assert loaded.dump() == fold.dump()
        for offset in range(loaded.offset, len(values)):
            loaded.feed(offset, decode(values[offset]))
        assert loaded.dump() == whole


@given(st.lists(st.integers(2, 5), min_size=1, max_size=4), st.data())
def test_a_lost_record_is_noticed_by_the_next_one_of_its_reign(reigns: list[int], data: st.DataObject) -> None:
    log: list[Record] = []
    sequence, followed = 0, list[int]()
    for number, count in enumerate(reigns):
        term = len(log)
        log.append(Claim(number, "a", 0))
        followed += range(len(log), len(log) + count - 1)
        log += [commit(term, sequence + n) for n in range(1, count + 1)]
        sequence += count
    lost = data.draw(st.sampled_from(followed))
    with pytest.raises(LogDamaged, match="was never seen"):
        _feed_all([(offset, record) for offset, record in enumerate(log) if offset != lost])


def _feed_all(log: list[tuple[int, Record]]) -> None:
    fold = Fold()
    for offset, record in log:
        fold.feed(offset, record)


# --- claims, one by one ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "in_force"),
    [
        ([(1, "a"), (2, "b")], 1),
        ([(2, "b"), (1, "a")], 0),
        ([(1, "a"), (1, "a")], 1),
        ([(1, "a"), (1, "b")], 0),
        ([(1, "a"), (2, "b"), (1, "a")], 1),
        ([(0, "a")], 0),
    ],
    ids=["higher", "lower", "same incarnation", "same assignment, another", "a straggling claim", "the first"],
)
def test_rule_1(claims: list[tuple[int, str]], in_force: int) -> None:
    fold = Fold()
    for offset, (assignment, incarnation) in enumerate(claims):
        fold.feed(offset, Claim(assignment, incarnation, 0))
    assert fold.term == in_force
    assert fold.owned_by(*claims[in_force])


def test_offsets_need_not_be_dense() -> None:
    """Kafka keeps control records in between."""
    fold = Fold()
    fold.feed(5, Claim(1, "a", 0))
    assert fold.feed(9, commit(5, 1))
    assert (fold.term, fold.offset) == (5, 10)


def test_records_out_of_order_are_refused() -> None:
    fold = Fold()
    fold.feed(3, Claim(1, "a", 0))
    with pytest.raises(AssertionError, match="out of order"):
        fold.feed(3, Claim(1, "a", 0))


# --- sessions --------------------------------------------------------------------------------------------------


def after(*commits: tuple[bytes, int, int, int]) -> Fold:
    """The fold after commits that count: (session, number, low, time) each."""
    fold = Fold(TTL_MS)
    fold.feed(0, Claim(1, "a", 0))
    for sequence, (session, number, low, time) in enumerate(commits, 1):
        assert fold.feed(sequence, commit(0, sequence, session, number, low, time))
    return fold


OLD, NEW = session_name(0, b"old"), session_name(TTL_MS + 1, b"new")


def test_a_retry_gets_the_stored_outcome_and_a_straggler_nothing() -> None:
    fold = after((OLD, 1, 1, 0), (OLD, 2, 2, 0))
    assert fold.judge(OLD, 1) is Verdict.STALE
    assert fold.judge(OLD, 2) == commit(0, 2, OLD, 2).reply
    assert fold.judge(OLD, 3) is Verdict.RUN


def test_an_unknown_session_is_new_until_the_log_is_older_than_its_birth_and_the_ttl() -> None:
    assert after((NEW, 1, 1, TTL_MS)).judge(OLD, 1) is Verdict.RUN
    assert after((NEW, 1, 1, TTL_MS + 1)).judge(OLD, 1) is Verdict.FORGOTTEN


def test_a_session_is_forgotten_when_the_ttl_has_passed_and_another_one_comes() -> None:
    assert after((OLD, 1, 1, 0), (NEW, 1, 1, TTL_MS)).judge(OLD, 1) == commit(0, 1, OLD, 1).reply
    assert after((OLD, 1, 1, 0), (NEW, 1, 1, TTL_MS + 1)).judge(OLD, 1) is Verdict.FORGOTTEN


def test_a_session_lives_as_long_as_it_commits() -> None:
    fold = after((OLD, 1, 1, 0), (OLD, 2, 1, TTL_MS), (NEW, 1, 1, 2 * TTL_MS))
    assert fold.judge(OLD, 1) == commit(0, 1, OLD, 1).reply


def test_a_session_born_ahead_of_the_log_is_kept_until_it_would_not_be_taken_for_new() -> None:
    ahead = session_name(5 * TTL_MS, b"ahead")
    fold = after((ahead, 1, 1, 0), (NEW, 1, 1, 5 * TTL_MS))
    assert fold.judge(ahead, 1) == commit(0, 1, ahead, 1).reply


def test_a_forgotten_session_does_not_come_back() -> None:
    """Its owner runs ahead of the log: when it judged OLD's second command, NEW's was not in the log yet."""
    fold = after((OLD, 1, 1, 0), (NEW, 1, 1, TTL_MS + 1), (OLD, 2, 1, TTL_MS + 1))
    assert fold.judge(OLD, 1) is Verdict.FORGOTTEN
    assert fold.judge(OLD, 2) is Verdict.FORGOTTEN


Asked = tuple[bytes, int, int, int]


@given(
    st.lists(st.tuples(st.sampled_from(SESSIONS), st.integers(1, 4), st.integers(0, 3), st.integers(0, 90))),
    st.integers(0, 3),
)
def test_nothing_that_counts_is_ever_to_be_run_again(asked: list[Asked], ahead: int) -> None:
    """Any sessions, any low marks that keep what is waited for, any jumps of the clock, an owner that runs ahead."""
    fold, verified = Fold(TTL_MS), [Fold(TTL_MS).dump()]
    ran: dict[tuple[bytes, int], bytes] = {}
    time, sequence = 0, 0
    fold.feed(0, Claim(1, "a", 0))
    for session, number, waits, step in asked:
        known = Fold.load(verified[max(0, len(verified) - 1 - ahead)])
        if (session, number) in ran or known.judge(session, number) is not Verdict.RUN:
            continue
        time, sequence = time + step, sequence + 1
        ran[session, number] = commit(0, sequence, session, number).reply
        assert fold.feed(sequence, commit(0, sequence, session, number, max(1, number - waits), time))
        verified.append(fold.dump())
        for key, reply in ran.items():
            assert fold.judge(*key) in (reply, Verdict.STALE, Verdict.FORGOTTEN)


@given(st.integers(0, 2**48 - 1), st.binary(max_size=8))
def test_a_session_says_when_it_was_born(birth: int, randomness: bytes) -> None:
    assert birth_of(session_name(birth, randomness)) == birth


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 12)), min_size=1))
def test_a_session_keeps_exactly_what_is_waited_for(steps: list[tuple[int, int]]) -> None:
    """Whatever jumps the low mark makes, up or (a late frame) down, no reply below it stays and none above is lost."""
    numbers = list(accumulate(step for step, _ in steps))
    lows = [max(1, number - waits) for number, (_, waits) in zip(numbers, steps, strict=True)]
    known = after(*((OLD, number, low, 0) for number, low in zip(numbers, lows, strict=True))).sessions[OLD]
    assert known.low == max(lows)
    assert set(known.replies) == {number for number in numbers if number >= known.low}
