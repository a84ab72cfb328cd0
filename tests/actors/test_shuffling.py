"""Shards that are handed about all the time, warm and cold, in a world in which everything goes wrong.

Goal: what an owner takes over from a follower is what the log says, whatever becomes of either in between, and however
wrong the one is who decides. Method: the simulation of `rekindle.chaos` and its judge, with a controller that shuffles;
fresh seeds in every run, and planted bugs that the judge has to see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from secrets import randbelow
from typing import Any, Final

import pytest

from rekindle.actors import Replica
from rekindle.actors.follower import Follower
from rekindle.events import Entry
from tests.actors.shuffling import shuffle

SEEDS: Final = 16
FIRST: Final = randbelow(10**9)
INHERITED_MIN: Final = 10 * SEEDS
SEEDS_OF_A_MUTANT: Final = 24


def test_fresh_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    inherited, acknowledged = 0, 0
    for seed in range(FIRST, FIRST + SEEDS):
        report, world = shuffle(seed)
        assert report.faults == (), f"tests.actors.shuffling.shuffle({seed}) finds this again"
        inherited += world.inherited
        acknowledged += report.acknowledged
    with capsys.disabled():
        print(f"\n  {SEEDS} seeds from {FIRST}: {inherited} owners were warm, {acknowledged} commands acknowledged")
    assert inherited >= INHERITED_MIN


# --- mutants -------------------------------------------------------------------------------------------------------

_feed = Replica.feed
_turns = count()


def never_end(follower: Follower) -> None:
    """A follower that reads on when its state is an owner's."""


def lose_one(replica: Replica, entries: Iterable[Entry]) -> None:
    """A follower that now and then counts a commit and does not apply it."""
    if next(_turns) % 50:
        _feed(replica, entries)
        return
    kept, replica.entities.replay = replica.entities.replay, lambda commit, value: None  # type: ignore[method-assign]
    _feed(replica, entries)
    replica.entities.replay = kept  # type: ignore[method-assign]


MUTANTS: Final[dict[str, tuple[type, str, Callable[..., Any]]]] = {
    "two have one state": (Follower, "end", never_end),
    "a commit is lost on the way": (Replica, "feed", lose_one),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_planted_bug_is_seen(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, replacement = MUTANTS[mutant]
    monkeypatch.setattr(owner, name, replacement)
    assert any(shuffle(seed)[0].faults for seed in range(SEEDS_OF_A_MUTANT))
