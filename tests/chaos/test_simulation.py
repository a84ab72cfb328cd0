"""Fresh seeds through the whole simulated system in every run, and proof that the judge sees what is planted there.

A failing seed says so with the one line that replays it. `REKINDLE_SEED` sets the first seed, `REKINDLE_SEEDS` their
number; without them every run of this file explores seeds that nobody has tried before.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from secrets import randbelow
from typing import Any, Final

import pytest

from rekindle.actors import CallError, Client, DeadlineExceeded, Owner, Shard
from rekindle.actors.requests import Request
from rekindle.chaos import Figures, Report, explore, replay_line, simulate
from rekindle.events import Commit, Fold
from tests.support import REPOSITORY, SOURCE

SEEDS: Final = int(os.environ.get("REKINDLE_SEEDS", "300"))
FIRST: Final = int(os.environ.get("REKINDLE_SEED", randbelow(10**9)))
SHOWN_MAX: Final = 3
SEEDS_OF_A_MUTANT: Final = 60


def test_fresh_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n  simulating {SEEDS} seeds from REKINDLE_SEED={FIRST}", flush=True)
    figures, failed = Figures(), list[Report]()
    for report in explore(range(FIRST, FIRST + SEEDS)):
        figures.add(report)
        if report.faults or not report.counts:
            failed.append(report)
    with capsys.disabled():
        print(f"  {figures}")
    assert not failed, "\n".join(_described(report) for report in failed[:SHOWN_MAX])


def _described(report: Report) -> str:
    faults = report.faults or (f"too little has happened: {report.acknowledged} commands, {report.struck} faults",)
    return "\n    ".join([f"seed {report.seed}; to replay it: {replay_line(report.seed)}", *faults])


ONCE_FAILED: Final = {
    23: "a plan that waited for the log kept the plan for dead instances away",
    88: "a killer killed three: its last word, over the beacon, was not heard to the end",
    1005: "a drain waited for shards that nobody was to serve",
    2000: "the only survivors were to be emptied, and nobody gave them shards",
    5034: "an owner that others had trimmed past took its log for truncated",
    7055: "shards were placed before an instance was up, and not again",
    100275: "a controller decided while it was reading the records of the one that had fenced it",
    102176: "the same, over an incident that was never written down",
    733008747: "a leader whose log refused an append went on with what it had decided ahead of the log",
    766127094: "a leader died over its first words: everybody watched the beacon of the one before",
}
"""Real bugs, by the seed that found each."""


@pytest.mark.parametrize("seed", ONCE_FAILED)
def test_what_once_failed(seed: int) -> None:
    assert simulate(seed).faults == ()


# --- the same seed, the same run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 7])
def test_a_seed_is_a_run_byte_for_byte(seed: int) -> None:
    once, again = simulate(seed), simulate(seed)
    assert once.lines == again.lines
    assert once == again


def test_a_seed_is_the_same_run_in_another_process() -> None:
    """Whatever Python hashes strings to, and wherever objects lie."""
    script = "from rekindle.chaos import simulate; print(simulate(7).digest)"
    told = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": str(SOURCE.parent)},
            cwd=REPOSITORY,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for hashes in ("1", "2")
    ]
    assert told == [f"{simulate(7).digest}\n"] * 2


# --- mutants -------------------------------------------------------------------------------------------------------

# pyright: reportPrivateUsage=false
_appended, _answer_read, _verified, _feed, _resend = (
    Shard.appended,
    Shard._answer_read,
    Shard._verified,
    Fold.feed,
    Client._resend,
)


def appended_whatever_the_offset(shard: Shard, base: int) -> bool:
    """Rule 3 without its question."""
    shard.fold.offset = base
    return _appended(shard, base)


async def take_doubt_for_success(owner: Owner, shard: Shard) -> None:
    """Rule 4 left out: what was sent will have arrived."""
    while shard.flight:
        _verified(shard, shard.flight.popleft())


def answer_queries_at_once(shard: Shard, request: Request, payload: bytes) -> None:
    """A query does not wait for the log."""
    if request.number:
        _answer_read(shard, request, payload)
    else:
        request.sink.reply(request.call, payload)


def capture_when_verified(shard: Shard, staged: Any) -> None:
    """A snapshot of the state as it is when its mark is verified, later commands included."""
    if staged.commit.sequence in shard.capturing:
        shard.capturing[staged.commit.sequence] = shard.entities.capture()
    _verified(shard, staged)


def count_any_term(fold: Fold, offset: int, record: Any) -> bool:
    """Rule 2 without terms."""
    if isinstance(record, Commit):
        record = record._replace(term=fold.term)
    return _feed(fold, offset, record)


def resend_as_new(client: Client, call: Any) -> None:
    """A retry gets a number of its own."""
    if call.session is not None:
        call.wire[1] = call.session.next
        call.session.next += 1
    _resend(client, call)


def expire_for_certain(client: Client, call: Any) -> CallError:
    """What was not answered in time is said to have had no effect."""
    return DeadlineExceeded("no answer in time")


WORDS_OF_THE_JUDGE: Final = (
    "lost",
    "doubled",
    "refused and yet there",
    "saw a past that never was",
    "is not where it was told",
    "stale",
    "from the future",
    "command",
    "a replica",
)

MUTANTS: Final[dict[str, tuple[type, str, Callable[..., Any]]]] = {
    "no contiguity": (Shard, "appended", appended_whatever_the_offset),
    "doubt is taken for success": (Owner, "_resolve_doubt", take_doubt_for_success),
    "read from memory": (Shard, "_answer_read", answer_queries_at_once),
    "snapshot too late": (Shard, "_verified", capture_when_verified),
    "any term counts": (Fold, "feed", count_any_term),
    "a retry is a new command": (Client, "_resend", resend_as_new),
    "silence is failure": (Client, "_why_expired", expire_for_certain),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_planted_bug_is_seen(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, replacement = MUTANTS[mutant]
    monkeypatch.setattr(owner, name, replacement)
    seen = (fault for seed in range(SEEDS_OF_A_MUTANT) for fault in simulate(seed).faults)
    assert any(fault.startswith(WORDS_OF_THE_JUDGE) for fault in seen)
