"""Placement as arithmetic: what must hold of every answer, whatever has happened to the cluster before.

Method: hypothesis makes clusters (seats on nodes, nodes in zones, capacities, weights) and lets nodes and zones die and
come back and seats close and open. After every event `place` answers, then `balance`; each property is checked on every
step. The oracles are written as definitions, without heaps: a few shards on a few seats can be asked one by one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.supervisors.placement import DEADBAND, GAIN_MIN, IDLE_SHARE, SHARE_MAX, Placement, Seat, balance, place
from tests.support import SOURCE

ROUNDS_MAX = 2_000
"""Calls of `balance` until it is at rest: more than shards x seats of these clusters, far more than any needs."""

ROUNDING = 1e-9

UNHURRIED = settings(deadline=None)
AT_REST = settings(deadline=None, max_examples=50)
"""Every example is many calls."""


@dataclass(frozen=True)
class History:
    """A service, and the seats there are at one moment after the other."""

    shards: int
    standbys: int
    weights: list[float] | None
    moves_max: int
    moments: list[list[Seat]]

    def place(self, current: Placement, seats: Sequence[Seat], pinned: Sequence[int] = ()) -> Placement:
        return place(current, seats, weights=self.weights, standbys=self.standbys, pinned=pinned)

    def balance(self, current: Placement, seats: Sequence[Seat], pinned: Sequence[int] = ()) -> Placement:
        return balance(
            current,
            seats,
            moves_max=self.moves_max,
            weights=self.weights,
            standbys=self.standbys,
            pinned=pinned,
        )

    def placed(self) -> Iterator[tuple[Placement, list[Seat], Placement]]:
        """Every answer of `place`: before, seats, after."""
        yield from ((before, seats, after) for before, seats, after, _ in self.steps())

    def balanced(self) -> Iterator[tuple[Placement, list[Seat], Placement]]:
        """Every answer of `balance`, from what `place` would have answered: before, seats, after."""
        yield from ((before, seats, after) for _, seats, before, after in self.steps())

    def steps(self) -> Iterator[tuple[Placement, list[Seat], Placement, Placement]]:
        current = nothing(self.shards)
        for seats in self.moments:
            placed = self.place(current, seats)
            balanced = self.balance(placed, seats)
            yield current, seats, placed, balanced
            current = balanced

    def at_rest(self) -> Iterator[tuple[list[Seat], Placement]]:
        """What each moment comes to if it lasts."""
        for current, seats, _, _ in self.steps():
            yield seats, settled(self, current, seats)[-1]


@st.composite
def histories(draw: st.DrawFn, standbys_max: int = 2, weighted: bool = True) -> History:
    """Events switch a node, a zone or a seat off and on again; a seat that is off is closed."""
    nodes, zones, per_node = draw(st.integers(1, 7)), draw(st.integers(1, 4)), draw(st.integers(1, 2))
    capacities = draw(st.lists(st.sampled_from([1.0, 1.0, 2.0, 0.5]), min_size=nodes, max_size=nodes))
    seats = [
        Seat(f"seat-{node}-{number}", f"node-{node}", f"zone-{node % zones}", capacities[node])
        for node in range(nodes)
        for number in range(per_node)
    ]
    names = sorted({*(s.node for s in seats), *(s.zone for s in seats), *(s.name for s in seats)})
    off: set[str] = set()
    moments: list[list[Seat]] = []
    for event in [None, *draw(st.lists(st.sampled_from(names), max_size=6))]:
        off ^= {event} if event else set()
        alive = [seat for seat in seats if not {seat.node, seat.zone} & off]
        moments.append([replace(seat, open=seat.name not in off) for seat in alive])
    shards = draw(st.integers(0, 24))
    loads = st.lists(st.floats(0, 10) | st.just(0.0), min_size=shards, max_size=shards)
    weights = draw(st.none() | loads) if weighted else None
    return History(shards, draw(st.integers(0, standbys_max)), weights, draw(st.integers(0, 5)), moments)


def nothing(shards: int) -> Placement:
    return Placement.of([None] * shards)


def settled(history: History, current: Placement, seats: Sequence[Seat]) -> list[Placement]:
    """Call after call of `balance`, until nothing moves any more."""
    path, history = [current], replace(history, moves_max=max(history.moves_max, 1))
    while len(path) < ROUNDS_MAX:
        path.append(history.balance(path[-1], seats))
        if path[-1] == path[-2]:
            return path
    raise AssertionError(f"no rest after {ROUNDS_MAX} calls: {path[-2]} became {path[-1]}")


def copies(placement: Placement, shard: int) -> list[str]:
    owner = placement.owners[shard]
    return [*([] if owner is None else [owner]), *placement.standbys[shard]]


def moved(before: Placement, after: Placement) -> list[int]:
    """The shards whose owner changes."""
    return [s for s, (old, new) in enumerate(zip(before.owners, after.owners, strict=True)) if old != new]


def costs(history: History) -> list[float]:
    """What each shard counts, by definition: its load, and a share of the average load."""
    if not history.weights or not sum(history.weights):
        return [1.0] * history.shards
    idle = IDLE_SHARE * sum(history.weights) / history.shards
    return [weight + idle for weight in history.weights]


def levels(history: History, placement: Placement, seats: Sequence[Seat]) -> dict[str, float]:
    """What each seat owns, per capacity."""
    owned: defaultdict[str | None, float] = defaultdict(float)
    for owner, cost in zip(placement.owners, costs(history), strict=True):
        owned[owner] += cost
    return {seat.name: owned[seat.name] / seat.capacity for seat in seats}


# What holds of every answer


@UNHURRIED
@given(histories())
def test_copies_of_a_shard_never_share_a_node(history: History) -> None:
    for _, seats, placed, balanced in history.steps():
        nodes = {seat.name: seat.node for seat in seats}
        for answer in (placed, balanced):
            for shard in range(history.shards):
                on = [nodes[name] for name in copies(answer, shard)]
                assert len(on) == len(set(on)), f"shard {shard} is on {on}"


@UNHURRIED
@given(histories())
def test_every_shard_has_an_owner_that_is_there_while_a_seat_is_open(history: History) -> None:
    for _, seats, placed, balanced in history.steps():
        there = {seat.name for seat in seats}
        if any(seat.open for seat in seats):
            assert {*placed.owners, *balanced.owners} <= there
        else:
            assert {*placed.owners, *balanced.owners} <= there | {None}


@UNHURRIED
@given(histories())
def test_a_standby_is_missing_only_where_no_node_is_free(history: History) -> None:
    for _, seats, placed, balanced in history.steps():
        nodes = {seat.name: seat.node for seat in seats}
        for answer in (placed, balanced):
            for shard, (owner, standbys) in enumerate(zip(answer.owners, answer.standbys, strict=True)):
                taken = {nodes[name] for name in copies(answer, shard)}
                free = {seat.node for seat in seats if seat.open} - taken
                assert len(standbys) <= history.standbys
                assert owner is None or len(standbys) == history.standbys or not free


@UNHURRIED
@given(histories(), st.randoms(use_true_random=False))
def test_the_answer_does_not_depend_on_the_order_of_seats(history: History, random: Random) -> None:
    for current, seats, placed, balanced in history.steps():
        shuffled = random.sample(seats, len(seats))
        assert history.place(current, shuffled) == placed
        assert history.balance(placed, shuffled) == balanced


@UNHURRIED
@given(histories(), st.sets(st.integers(0, 23)))
def test_a_pinned_shard_stays_as_it_is(history: History, pinned: set[int]) -> None:
    pinned = {shard for shard in pinned if shard < history.shards}
    for current, seats, _, _ in history.steps():
        for answer in (history.place(current, seats, [*pinned]), history.balance(current, seats, [*pinned])):
            for shard in pinned:
                assert answer.owners[shard] == current.owners[shard]
                assert answer.standbys[shard] == current.standbys[shard]


def test_the_answer_does_not_depend_on_the_hashes_of_strings() -> None:
    """Sets of names are in another order in every process."""
    program = """
from rekindle.supervisors.placement import Placement, Seat, balance, place
seats = [Seat(f"seat-{n}", f"node-{n}", f"zone-{n % 3}", open=n % 5 > 0) for n in range(20)]
weights = [n % 7 for n in range(100)]
first = place(Placement.of([None] * 100), seats, weights=weights, standbys=2)
print(balance(first, seats[3:], weights=weights, standbys=2, moves_max=9))
"""
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(SOURCE.parent)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(answers) == 1


# The emergency


@UNHURRIED
@given(histories())
def test_place_moves_orphans_and_nothing_else(history: History) -> None:
    for before, seats, after in history.placed():
        there = {seat.name for seat in seats}
        assert all(before.owners[shard] not in there for shard in moved(before, after))
        for shard, old in enumerate(before.standbys):
            kept = [name for name in old if name in there and name != after.owners[shard]]
            promoted = after.owners[shard] in old
            if promoted or shard not in moved(before, after):
                assert list(after.standbys[shard][: len(kept)]) == kept


@UNHURRIED
@given(histories())
def test_an_orphan_goes_to_its_first_open_standby(history: History) -> None:
    for before, seats, after in history.placed():
        opened = {seat.name for seat in seats if seat.open}
        for shard in moved(before, after):
            heirs = [name for name in before.standbys[shard] if name in opened]
            assert not heirs or after.owners[shard] == heirs[0]


@UNHURRIED
@given(histories())
def test_place_gives_nothing_to_a_closed_seat(history: History) -> None:
    for before, seats, after in history.placed():
        closed = {seat.name for seat in seats if not seat.open}
        for shard in range(history.shards):
            assert not closed & (set(copies(after, shard)) - set(copies(before, shard)))
            assert after.owners[shard] not in closed or after.owners[shard] == before.owners[shard]


@UNHURRIED
@given(histories())
def test_a_new_standby_shares_no_zone_while_another_zone_is_open(history: History) -> None:
    for before, seats, after in history.placed():
        zones = {seat.name: seat.zone for seat in seats}
        opened = {seat.zone for seat in seats if seat.open}
        for shard in range(history.shards):
            on = copies(after, shard)
            for number, name in enumerate(on[1:], 1):
                if name not in before.standbys[shard]:
                    taken = {zones[other] for other in on[:number]}
                    assert zones[name] not in taken or opened <= taken


@UNHURRIED
@given(histories(standbys_max=0))
def test_orphans_go_where_there_is_room(history: History) -> None:
    """The coolest with one more shard is never hotter than all of them together with one more shard each."""
    for before, seats, after in history.placed():
        level = levels(history, after, seats)
        given_to = {after.owners[shard] for shard in moved(before, after)}
        opened = [seat for seat in seats if seat.open]
        capacity = sum(seat.capacity for seat in opened)
        for seat in opened:
            if seat.name in given_to:
                most = max(costs(history)[shard] for shard in moved(before, after))
                assert level[seat.name] * capacity <= (sum(costs(history)) + len(opened) * most) * (1 + ROUNDING)


# Quiet times


@UNHURRIED
@given(histories())
def test_balance_moves_no_more_than_allowed(history: History) -> None:
    for before, seats, after in history.balanced():
        there = {seat.name: seat for seat in seats}
        changed = moved(before, after)
        standbys = [s for s in range(history.shards) if before.standbys[s] != after.standbys[s] and s not in changed]
        assert len(changed) <= history.moves_max
        assert len(standbys) <= history.moves_max
        levelled = [s for s in changed if (owner := before.owners[s]) is not None and there[owner].open]
        share = SHARE_MAX * sum(costs(history)) * (1 + ROUNDING)
        assert len(levelled) <= 1 or sum(costs(history)[shard] for shard in levelled) <= share + max(costs(history))


@AT_REST
@given(histories())
def test_balance_comes_to_rest(history: History) -> None:
    for current, seats, _, _ in history.steps():
        path = settled(history, current, seats)
        assert history.balance(path[-1], seats) == path[-1] == history.place(path[-1], seats)


@AT_REST
@given(histories())
def test_no_call_makes_the_hottest_seat_hotter(history: History) -> None:
    for current, seats, placed, _ in history.steps():
        path = settled(history, placed, seats)
        if current.owners and all(seat.open for seat in seats) and seats:
            hottest = [max(levels(history, placement, seats).values()) for placement in path]
            assert all(later <= earlier * (1 + ROUNDING) for earlier, later in pairwise(hottest))


@AT_REST
@given(histories())
def test_at_rest_closed_seats_own_nothing(history: History) -> None:
    for seats, placement in history.at_rest():
        closed = {seat.name for seat in seats if not seat.open}
        if any(seat.open for seat in seats):
            assert not closed & set(placement.owners)


@AT_REST
@given(histories())
def test_at_rest_a_standby_is_on_a_closed_seat_only_where_no_node_is_free(history: History) -> None:
    for seats, placement in history.at_rest():
        by_name = {seat.name: seat for seat in seats}
        for shard, standbys in enumerate(placement.standbys):
            if not all(by_name[name].open for name in standbys):
                taken = {by_name[name].node for name in copies(placement, shard) if by_name[name].open}
                others = {by_name[name].node for name in copies(placement, shard) if not by_name[name].open}
                assert {seat.node for seat in seats if seat.open} <= taken | others


@AT_REST
@given(histories())
def test_at_rest_the_copies_of_a_shard_are_in_as_many_zones_as_there_can_be(history: History) -> None:
    for seats, placement in history.at_rest():
        by_name = {seat.name: seat for seat in seats}
        zones = {seat.zone for seat in seats if seat.open}
        for shard in range(history.shards):
            on = {by_name[name].zone for name in copies(placement, shard)}
            if zones:
                assert len(on) >= min(1 + history.standbys, len(zones))


@AT_REST
@given(histories(standbys_max=0))
def test_at_rest_no_move_is_left_that_is_worth_it(history: History) -> None:
    """By definition: from a seat above the band, or to one below it, so that the hotter of the two is cooler after."""
    for seats, placement in history.at_rest():
        level = levels(history, placement, seats)
        opened = [seat for seat in seats if seat.open]
        mean = sum(costs(history)) / sum(seat.capacity for seat in opened) if opened else 0.0
        for owner, cost in zip(placement.owners, costs(history), strict=True):
            for seat in opened if owner is not None else []:
                hot, cool = level[owner or ""], level[seat.name]
                added = cost / seat.capacity
                apart = hot > mean * (1 + DEADBAND + ROUNDING) or cool < mean * (1 - DEADBAND - ROUNDING)
                assert not (apart and cool + (1 + GAIN_MIN) * added < hot * (1 - ROUNDING)), (hot, cool, cost)


# Examples: what one wants to see with one's own eyes


def cluster(nodes: int, zones: int = 1) -> list[Seat]:
    """One seat a node."""
    return [Seat(f"seat-{number:03d}", f"node-{number:03d}", f"zone-{number % zones}") for number in range(nodes)]


def owned(placement: Placement, seats: Sequence[Seat]) -> list[int]:
    counted = Counter(placement.owners)
    return [counted[seat.name] for seat in seats]


def rest(current: Placement, seats: Sequence[Seat], standbys: int = 0) -> tuple[Placement, int]:
    """What ten moves at a time come to, and how many owners that changes."""
    moves = 0
    while (after := balance(current, seats, moves_max=10, standbys=standbys)) != current:
        moves += len(moved(current, after))
        current = after
    return current, moves


def test_without_seats_nobody_owns_anything() -> None:
    first = place(nothing(3), cluster(2), standbys=1)
    assert place(first, [], standbys=1) == balance(first, [], moves_max=9, standbys=1) == nothing(3)


def test_a_standby_takes_over_and_another_one_is_found() -> None:
    first = Placement(("seat-000",), (("seat-001", "seat-002"),))
    after = place(first, cluster(5)[1:], standbys=2)
    assert after == Placement(("seat-001",), (("seat-002", "seat-003"),))


def test_an_owner_is_more_important_than_a_standby_on_a_closed_seat_of_the_only_node() -> None:
    seats = [Seat("closed", "node-000", open=False), Seat("open", "node-000")]
    assert place(Placement(("gone",), (("closed",),)), seats, standbys=1) == Placement(("open",), ((),))
    draining = [Seat("draining", "node-001", open=False), *seats]
    after = balance(Placement(("draining",), (("closed",),)), draining, moves_max=1, standbys=1)
    assert after == Placement(("open",), ((),))


def test_what_is_left_of_a_shard_that_has_lost_its_owner_counts() -> None:
    """Seat 0 inherits a shard, so it is not the one with the most room for the standby that seat 1 lacks."""
    after = place(Placement(("gone", "seat-001"), (("seat-000",), ())), cluster(4), standbys=1)
    assert after.owners == ("seat-000", "seat-001")
    assert {*after.standbys} == {("seat-002",), ("seat-003",)}


def test_a_hot_seat_and_its_standby_change_places() -> None:
    """Nobody replays: the old owner is the most caught-up standby there is."""
    hot = Placement(("seat-000", "seat-000", "seat-001"), (("seat-001",), ("seat-002",), ("seat-002",)))
    after = balance(hot, cluster(3), moves_max=9, standbys=1)
    assert after == Placement(("seat-000", "seat-002", "seat-001"), (("seat-001",), ("seat-000",), ("seat-002",)))


def test_among_the_shards_of_a_hot_seat_one_moves_whose_standby_is_cool() -> None:
    owners = ("seat-000",) * 4 + ("seat-001",) * 4 + ("seat-002", "seat-003")
    standbys = (("seat-002",),) + (("seat-001",),) * 3 + (("seat-000",),) * 6
    after = balance(Placement(owners, standbys), cluster(4), moves_max=1, standbys=1)
    assert moved(Placement(owners, standbys), after) == [0]
    assert (after.owners[0], after.standbys[0]) == ("seat-002", ("seat-000",))


def test_a_seat_above_the_band_gives_even_if_none_is_below_it() -> None:
    owners = [seat.name for seat in cluster(10) for _ in range(12 if seat.name == "seat-000" else 10)]
    after, moves = rest(Placement.of(owners), cluster(10))
    assert (max(owned(after, cluster(10))), moves) == (11, 1)


def test_the_owner_on_a_draining_seat_hands_over_to_its_standby() -> None:
    seats = [replace(cluster(3)[0], open=False), *cluster(3)[1:]]
    after = balance(Placement(("seat-000",), (("seat-002",),)), seats, moves_max=1, standbys=1)
    assert after == Placement(("seat-002",), (("seat-001",),))


def test_a_new_seat_is_filled_from_the_others_and_no_further_than_the_band() -> None:
    first = place(nothing(100), cluster(9))
    after, moves = rest(first, cluster(10))
    assert max(owned(after, cluster(10))) - min(owned(after, cluster(10))) <= 3
    assert moves == owned(after, cluster(10))[-1] == 9


def test_a_single_shard_moves_even_if_that_is_more_than_the_share_of_a_call() -> None:
    after, moves = rest(Placement.of(["seat-000"] * 4), cluster(2))
    assert (owned(after, cluster(2)), moves) == ([2, 2], 2)


def test_a_seat_of_twice_the_capacity_owns_twice_as_much() -> None:
    seats = [replace(seat, capacity=2.0 if seat.name == "seat-001" else 1.0) for seat in cluster(4)]
    assert owned(place(nothing(100), seats), seats) == [20, 40, 20, 20]


def test_one_hot_shard_has_a_seat_for_itself() -> None:
    weights = [*[1.0] * 300, 200.0]
    after = place(nothing(301), cluster(4), weights=weights)
    assert sorted(owned(after, cluster(4))) == [1, 100, 100, 100]


@pytest.mark.parametrize("weights", [[0.0] * 40, [0.0] * 39 + [1.0]])
def test_shards_without_load_do_not_pile_up(weights: list[float]) -> None:
    after = place(nothing(40), cluster(4), weights=weights)
    assert max(owned(after, cluster(4))) <= 14


@pytest.mark.parametrize("weights", [None, [1.0 + number / 1_000 for number in range(1_000)]])
def test_the_shards_of_a_dead_node_are_inherited_by_many(weights: list[float] | None) -> None:
    """Its 50 shards have their standbys all over the cluster, not all on one neighbour."""
    seats = cluster(20)
    first = place(nothing(1_000), seats, weights=weights, standbys=1)
    for dead in seats:
        survivors = [seat for seat in seats if seat != dead]
        after = place(first, survivors, weights=weights, standbys=1)
        assert max(owned(after, survivors)) <= 62


def test_standbys_are_levelled_too_when_a_zone_comes_back_empty() -> None:
    """Most that a seat stands by for cannot move, because the third zone is where the owner is."""
    seats = cluster(3, zones=3)
    weights = [1.0 + number / 300 for number in range(300)]
    current = place(place(nothing(300), seats, weights=weights, standbys=1), seats[1:], weights=weights, standbys=1)
    while (after := balance(current, seats, moves_max=50, weights=weights, standbys=1)) != current:
        current = after
    followed = Counter(standby for standbys in current.standbys for standby in standbys)
    assert all(80 <= followed[seat.name] <= 120 for seat in seats)


def test_standbys_spread_to_a_new_zone_a_few_at_a_time() -> None:
    two, three = [seat for seat in cluster(6, zones=3) if seat.zone != "zone-2"], cluster(6, zones=3)
    first = place(nothing(30), two, standbys=2)
    assert place(first, three, standbys=2) == first
    once = balance(first, three, moves_max=5, standbys=2)
    changed = [shard for shard in range(30) if first.standbys[shard] != once.standbys[shard]]
    assert len({*changed} - {*moved(first, once)}) <= 5
    after, _ = rest(first, three, standbys=2)
    zones = {seat.name: seat.zone for seat in three}
    assert all(len({zones[name] for name in copies(after, shard)}) == 3 for shard in range(30))


def test_a_node_in_two_zones_is_refused() -> None:
    with pytest.raises(AssertionError, match="node 'n' is said to be in zone 'a' and in zone 'b'"):
        place(nothing(1), [Seat("1", "n", "a"), Seat("2", "n", "b")])
