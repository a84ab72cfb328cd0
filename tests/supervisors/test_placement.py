"""Placement as arithmetic: orphans first and nothing else, then balance, with as few moves as that takes.

Method: hypothesis makes owners and instances, some of them gone. Loads are what the properties are about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from rekindle.supervisors.placement import balance, place

NAMES = [f"instance-{number}" for number in range(8)]
GONE = ["gone-0", "gone-1"]
ENOUGH = 1_000

instances = st.lists(st.sampled_from(NAMES), min_size=1, unique=True)
owners = st.lists(st.none() | st.sampled_from(NAMES + GONE), max_size=40)
moves = st.integers(0, 10)


def loads(placed: Sequence[str | None], instances: Sequence[str]) -> list[int]:
    """How many shards each instance has."""
    counted = Counter(placed)
    return [counted[name] for name in instances]


def spread(placed: Sequence[str | None], instances: Sequence[str]) -> int:
    """How many shards the fullest has more than the emptiest."""
    return max(loads(placed, instances)) - min(loads(placed, instances))


def moved(before: Sequence[str | None], after: Sequence[str | None]) -> list[int]:
    """The shards whose owner changes."""
    return [shard for shard, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]


@given(owners)
def test_without_instances_nobody_owns_anything(owners: list[str | None]) -> None:
    assert place(owners, []) == balance(owners, [], ENOUGH) == [None] * len(owners)


@given(owners, instances)
def test_orphans_are_given_away_and_nothing_else_moves(owners: list[str | None], instances: list[str]) -> None:
    placed = place(owners, instances)
    assert set(placed) <= set(instances)
    assert moved(owners, placed) == [shard for shard, owner in enumerate(owners) if owner not in instances]


@given(owners, instances)
def test_orphans_go_to_those_that_have_the_fewest(owners: list[str | None], instances: list[str]) -> None:
    """Nobody that was given one has more than one above anybody else."""
    placed = place(owners, instances)
    given_to = {placed[shard] for shard in moved(owners, placed)}
    counted = Counter(placed)
    assert all(counted[name] <= min(loads(placed, instances)) + 1 for name in given_to)


@given(owners, instances, moves, st.randoms(use_true_random=False))
def test_the_answer_does_not_depend_on_the_order_of_instances(
    owners: list[str | None], instances: list[str], moves_max: int, random: Random
) -> None:
    shuffled = random.sample(instances, len(instances))
    assert place(owners, instances) == place(owners, shuffled)
    assert balance(owners, instances, moves_max) == balance(owners, shuffled, moves_max)


@given(owners, instances)
def test_with_moves_enough_nobody_has_more_than_one_above_another(
    owners: list[str | None], instances: list[str]
) -> None:
    assert spread(balance(owners, instances, ENOUGH), instances) <= 1


@given(owners, instances, moves)
def test_healthy_shards_move_no_more_than_allowed_and_no_more_than_it_takes(
    owners: list[str | None], instances: list[str], moves_max: int
) -> None:
    placed = place(owners, instances)
    balanced = balance(owners, instances, moves_max)
    even = len(placed) // len(instances)
    surplus = sum(max(0, load - even - 1) for load in loads(placed, instances))
    missing = sum(max(0, even - load) for load in loads(placed, instances))
    assert len(moved(placed, balanced)) == min(moves_max, max(surplus, missing))


@given(owners, instances, moves)
def test_what_is_balanced_stays_as_it_is(owners: list[str | None], instances: list[str], moves_max: int) -> None:
    balanced = balance(owners, instances, ENOUGH)
    assert balance(balanced, instances, moves_max) == balanced


@given(owners, instances, st.integers(1, 3))
def test_round_after_round_comes_to_the_same_balance(
    owners: list[str | None], instances: list[str], moves_max: int
) -> None:
    """The controller moves a few at a time; each round brings it nearer."""
    before = place(owners, instances)
    for _ in range(len(owners) + 1):
        after = balance(before, instances, moves_max)
        assert spread(after, instances) <= spread(before, instances)
        before = after
    assert spread(before, instances) <= 1


def test_ten_thousand_shards_are_placed_when_half_of_the_instances_are_gone() -> None:
    """Every second one of a hundred: each survivor takes as many as it had."""
    all_of_them = [f"instance-{number:03d}" for number in range(100)]
    placed = place([None] * 10_000, all_of_them)
    survivors = all_of_them[::2]
    assert loads(place(placed, survivors), survivors) == [200] * 50
