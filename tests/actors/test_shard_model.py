"""The real shard in the model's world: thousands of seeds, judged from outside, and proof that the judge can see.

Goal: what `tests.model.claims` shows of the rules is true of the code: `Shard`, `Fold`, `Entities`, records, snapshots.
Method: `tests.actors.shard_world`. A mutant is one rule taken out of the real code, here and only here, by a patch of
one method; a run that raises is a run that was caught, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

import pytest

from rekindle.actors import outcomes
from rekindle.actors import shard as shard_module
from rekindle.actors.entities import Active, Entities
from rekindle.actors.requests import Request
from rekindle.actors.shard import Shard
from rekindle.events import Commit, Fold, RekindleError, Verdict
from rekindle.events.rules import Session
from tests.actors.shard_world import ShardWorld, judge
from tests.model.claims import MUTANTS as RULES_LEFT_OUT
from tests.model.claims import Kind

SEEDS: Final = 1_000
SEEDS_OF_A_MUTANT: Final = 3_000
RECORDS_IN_A_BATCH: Final = 3
"""So small that what is staged often takes several appends."""


def verdict_of(seed: int) -> tuple[ShardWorld, str | None]:
    """One run; what is wrong with it, if anything."""
    world = ShardWorld(seed)
    try:
        return world, judge(world.run())
    except (AssertionError, LookupError, RekindleError) as error:
        return world, f"{type(error).__name__}: {error}"


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_module, "BATCH_RECORDS_MAX", RECORDS_IN_A_BATCH)


def test_the_shard_keeps_the_rules() -> None:
    answers, snapshots = dict.fromkeys(Kind, 0), 0
    for seed in range(SEEDS):
        world, verdict = verdict_of(seed)
        assert verdict is None, f"seed {seed}: {verdict}"
        snapshots += len(world.snapshots)
        for reply in (op.answers[0] for op in world.ops if op.answers):
            answers[reply.kind] += 1
    assert min(*answers.values(), snapshots) > SEEDS, f"too little to mean anything: {answers}, {snapshots} snapshots"


def test_a_seed_is_a_run() -> None:
    assert ShardWorld(7).run().log == ShardWorld(7).run().log


# --- mutants -------------------------------------------------------------------------------------------------------

Patch = tuple[type, str, Callable[..., Any]]

# pyright: reportPrivateUsage=false
_appended, _answer_read, _end, _verified = Shard.appended, Shard._answer_read, Shard._end, Shard._verified
_feed, _dump, _judge, _new_session = Fold.feed, Fold.dump, Fold.judge, Fold._new_session


def appended_whatever_the_offset(shard: Shard, base: int) -> bool:
    """Rule 3 without its question: nobody wrote in between."""
    shard.fold.offset = base
    return _appended(shard, base)


def drop_what_is_in_doubt(shard: Shard) -> None:
    """Rule 4 without its second half: what did not count is not appended again."""
    shard.term, shard.sequence = shard.fold.term, shard.fold.sequence
    shard.flight.clear()
    shard.staged.clear()


def answer_queries_at_once(shard: Shard, request: Request, payload: bytes) -> None:
    """A query does not wait for the log."""
    if request.number:
        _answer_read(shard, request, payload)
    else:
        request.sink.reply(request.call, payload)


def answer_retries_at_once(shard: Shard, request: Request, payload: bytes) -> None:
    """A stored reply does not wait for the log."""
    if request.number:
        request.sink.reply(request.call, payload)
    else:
        _answer_read(shard, request, payload)


def ride_in_flight(shard: Shard, request: Request, payload: bytes) -> None:
    """A query rides on an append that was sent before it came."""
    if shard.flight and not request.number:
        last = shard.flight[-1].commit.sequence
        shard.reads.setdefault(last, []).append((request.sink, request.call, payload))
    else:
        _answer_read(shard, request, payload)


def answer_refusals_at_once(
    shard: Shard, request: Request, active: Active, emitted: list[bytes], outcome: bytes
) -> None:
    """A refusal is neither written nor waited for."""
    if outcome[1] == outcomes.REJECTED:
        request.sink.reply(request.call, outcome)
    else:
        _end(shard, request, active, emitted, outcome)


def write_no_refusals(shard: Shard, request: Request, active: Active, emitted: list[bytes], outcome: bytes) -> None:
    """A refusal waits for a barrier, as a query does, and leaves no record."""
    if outcome[1] == outcomes.REJECTED:
        shard._answer_read(request, outcome)
    else:
        _end(shard, request, active, emitted, outcome)


def feed_any_own(shard: Shard, record: Commit) -> None:
    """A commit that counts is taken for this owner's, by its sequence alone."""
    if shard.flight and shard.flight[0].commit.sequence == record.sequence:
        shard._verified(shard.flight.popleft())


def judge_as(wrong: Verdict) -> Callable[[Fold, bytes, int], Verdict | bytes]:
    """A verdict that is not respected."""

    def judge(fold: Fold, session: bytes, number: int) -> Verdict | bytes:
        verdict = _judge(fold, session, number)
        return Verdict.RUN if verdict is wrong else verdict

    return judge


def forget_by_count(fold: Fold, now: int) -> None:
    """Only the two newest sessions are kept."""
    for name in list(fold.sessions)[:-2]:
        del fold.sessions[name]


def let_it_come_back(fold: Fold, name: bytes, low: int, time: int) -> Session:
    """A session that was forgotten is known again with its next commit, without what it had done."""
    return _new_session(fold, name, low, time) or fold.sessions.setdefault(name, Session(low, time))


def ignore_its_birth(fold: Fold, name: bytes, low: int, time: int) -> Session | None:
    """A session born ahead of the log is forgotten while it would still be taken for new."""
    session = _new_session(fold, name, low, time)
    if session is not None:
        session.seen = time
    return session


def is_new_unless_verified(shard: Shard, request: Request) -> bool:
    """What was run and is not verified yet is not known."""
    return shard.fold.judge(request.session, request.number) is Verdict.RUN


def count_any_term(fold: Fold, offset: int, record: Any) -> bool:
    """Rule 2 without terms."""
    if isinstance(record, Commit):
        record = record._replace(term=fold.term)
    return _feed(fold, offset, record)


def dump_without_sessions(fold: Fold) -> list[Any]:
    """A snapshot that forgets what was answered."""
    return [*_dump(fold)[:-1], []]


def capture_when_verified(shard: Shard, staged: Any) -> None:
    """A snapshot of the state as it is when its mark is verified, later commands included."""
    if staged.commit.sequence in shard.capturing:
        shard.capturing[staged.commit.sequence] = shard.entities.capture()
    _verified(shard, staged)


def undo_nothing(entities: Entities, active: Active) -> None:
    """What a refused or failed command has emitted stays applied."""


MUTANTS: Final[dict[str, Patch]] = {
    "no contiguity": (Shard, "appended", appended_whatever_the_offset),
    "no doubt": (Shard, "_renew", drop_what_is_in_doubt),
    "read from memory": (Shard, "_answer_read", answer_queries_at_once),
    "Rejected without barrier": (Shard, "_end", answer_refusals_at_once),
    "stored reply early": (Shard, "_answer_read", answer_retries_at_once),
    "below the mark": (Fold, "judge", judge_as(Verdict.STALE)),
    "not my commit": (Shard, "_feed_own", feed_any_own),
    "ride in flight": (Shard, "_answer_read", ride_in_flight),
    "refusal without a trace": (Shard, "_end", write_no_refusals),
    "unknown session is new": (Fold, "judge", judge_as(Verdict.FORGOTTEN)),
    "sessions forgotten by count": (Fold, "_forget", forget_by_count),
    "forgotten session comes back": (Fold, "_new_session", let_it_come_back),
    "born ahead of the log": (Fold, "_new_session", ignore_its_birth),
    "unverified commands are new": (Shard, "_is_new", is_new_unless_verified),
    "any term counts": (Fold, "feed", count_any_term),
    "snapshot without sessions": (Fold, "dump", dump_without_sessions),
    "snapshot too late": (Shard, "_verified", capture_when_verified),
    "nothing is undone": (Entities, "undo", undo_nothing),
}


def test_every_mutant_of_the_model_is_one_of_the_code() -> None:
    assert set(RULES_LEFT_OUT) <= set(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_rule_taken_out_of_the_code_is_missed(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, replacement = MUTANTS[mutant]
    assert callable(inspect.getattr_static(owner, name)), f"{owner.__name__}.{name} is not there any more"
    monkeypatch.setattr(owner, name, replacement)
    found = ((seed, verdict) for seed in range(SEEDS_OF_A_MUTANT) if (verdict := verdict_of(seed)[1]))
    assert next(found, None) is not None
