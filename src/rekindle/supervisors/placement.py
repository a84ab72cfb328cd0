"""Who owns each shard of a service, and who stands by: a pure, deterministic function of what is there.

`place` is for the emergency: it repairs what was lost, at once, and touches nothing else. `balance` is for quiet times:
it empties seats that are closed, spreads standbys over zones and levels the load, a few shards in each call, until there
is nothing left that is worth a move. A seat is an instance as placement sees it; the copies of a shard are its owner
and its standbys. Neither function knows of time, nor of a second service.

Invariants:
- Two copies of a shard are never on one node. A copy goes to a zone that has none of the shard as long as such a zone
  is open: with as many open zones as copies, no two of them end up in one zone. Where no node is free, one is missing.
- Owners are levelled by what seats own, standbys by all copies on a seat: so a death does not hit a crowded seat.
- Equal inputs give equal answers on every machine: seats are taken by name, nothing depends on the order of a set.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush, heapreplace
from itertools import chain, dropwhile
from typing import Final
from zlib import crc32

DEADBAND: Final = 0.1
"""A seat whose load per capacity is within this share of the mean is neither hot nor cool: nothing moves for its sake."""

GAIN_MIN: Final = 0.1
"""A move must leave the receiver cooler than the giver was, by at least this share of what the shard adds to it.

Less is not worth a replay. And it is far above any rounding, so that a move is never taken back by the next call."""

SHARE_MAX: Final = 0.09
"""The share of all weight that one call may move to level owners (likewise standbys); one shard may always move."""

IDLE_SHARE: Final = 0.05
"""What a shard costs without any load, as a share of the average load: idle ones would else pile up on one seat."""

TRIES_MAX: Final = 64
"""How many shards of a hot seat that may move are looked at for one that can change places with its standby."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A place for copies of shards: an instance. name: its incarnation. zone: what fails together.

    capacity: more than 0; loads are compared per capacity. open: it takes copies. A closed one (draining, suspect)
    keeps what it has in `place`, and is emptied by `balance`: do not call that for the sake of a mere suspicion.
    """

    name: str
    node: str
    zone: str = ""
    capacity: float = 1.0
    open: bool = True

    def __post_init__(self) -> None:
        assert self.capacity > 0, f"seat {self.name!r} needs a capacity above 0, got {self.capacity}"


@dataclass(frozen=True, slots=True)
class Placement:
    """The owner (None: nobody) and the standbys of each shard, the most caught-up standby first."""

    owners: tuple[str | None, ...]
    standbys: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        owners, standbys = len(self.owners), len(self.standbys)
        assert owners == standbys, f"owners of {owners} shards, but standbys of {standbys}"

    @classmethod
    def of(cls, owners: Iterable[str | None]) -> Placement:
        """These owners, and no standbys."""
        taken = tuple(owners)
        return cls(taken, ((),) * len(taken))


def place(
    current: Placement,
    seats: Iterable[Seat],
    *,
    weights: Sequence[float] | None = None,
    standbys: int = 0,
    pinned: Collection[int] = (),
) -> Placement:
    """Give an owner to every shard whose owner is gone, then fill in missing standbys. Nothing else changes.

    An orphan goes to its first open standby, one without to the open seat that has the least load per capacity with it.
    weights: the load of each shard, in any unit (None: all alike). standbys: wanted per shard. pinned: shards that stay
    as they are. A shard that has all its copies is not looked at: `current` is taken to have no two of them on one node.
    """
    board = _Board(current, seats, weights, standbys, pinned)
    board.mend()
    return board.placement()


def balance(
    current: Placement,
    seats: Iterable[Seat],
    *,
    moves_max: int,
    weights: Sequence[float] | None = None,
    standbys: int = 0,
    pinned: Collection[int] = (),
) -> Placement:
    """`place`, then at most `moves_max` shards change their owner and at most as many standbys change their seat.

    First closed seats give up what they own, as far as an open one can take it; then hot seats give to cool ones. A
    shard moves to one of its standbys where that helps: the two change places, and nobody replays. Called again with what
    it answered, it comes to rest: from then on nothing moves until the seats or the weights change.
    """
    board = _Board(current, seats, weights, standbys, pinned)
    board.mend()
    emptied = board.empty_closed(moves_max)
    _Levelling(board, board.owned, list(zip(board.owners))).run(moves_max - emptied)
    spread = board.spread_standbys(moves_max)
    _Levelling(board, board.copied, board.standbys).run(moves_max - spread)
    return board.placement()


class _Coolest:
    """The seats with the least load, by group (zone or node): a heap of seats in each group, and a heap of the groups.

    Every seat and every group has one entry. It may be out of date, and is then corrected when it comes to the top, never
    pushed again: seats that take copies only get warmer, so no seat that is cooler than it says is hidden below.
    One that gives is put right by the next call: it is too hot to take any in this one.
    """

    def __init__(self, level: Callable[[str], float], groups: Mapping[str, str]) -> None:
        self.level = level
        self.seats: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
        for name, group in groups.items():
            self.seats[group].append((level(name), name))
        for heap in self.seats.values():
            heapify(heap)
        self.groups = [(heap[0], group) for group, heap in self.seats.items()]
        heapify(self.groups)

    def outside(self, avoided: Collection[str]) -> str | None:
        """The coolest seat of all groups but these; of equally cool ones the first by name."""
        passed: list[tuple[tuple[float, str], str]] = []
        while self.groups:
            entry, group = self.groups[0]
            current = self._first_of(group)
            if entry != current:
                heapreplace(self.groups, (current, group))
            elif group in avoided:
                passed.append(heappop(self.groups))
            else:
                break
        found = self.groups[0][0][1] if self.groups else None
        for entry_and_group in passed:
            heappush(self.groups, entry_and_group)
        return found

    def _first_of(self, group: str) -> tuple[float, str]:
        heap = self.seats[group]
        while (level := self.level(name := heap[0][1])) != heap[0][0]:
            heapreplace(heap, (level, name))
        return heap[0]


class _Load:
    """What each seat carries, and which open seat carries the least for its capacity."""

    def __init__(self, seats: Mapping[str, Seat], amounts: dict[str, float]) -> None:
        self.seats = seats
        self.amounts = amounts

    def level(self, name: str, weight: float = 0.0) -> float:
        """The seat's load per capacity, with so much more on it."""
        return (self.amounts[name] + weight) / self.seats[name].capacity

    def shift(self, weight: float, giver: str | None, receiver: str | None) -> None:
        if giver is not None:
            self.amounts[giver] -= weight
        if receiver is not None:
            self.amounts[receiver] += weight

    def coolest(self, weight: float = 0.0, others: Collection[str] = ()) -> str | None:
        """The seat that is coolest with one more copy, of a shard that has copies on `others`."""
        return next(iter(self.candidates(weight, others)), None)

    def candidates(self, weight: float, others: Collection[str]) -> list[str]:
        """The coolest seat of each size, the best one first: in another zone, else on another node."""
        return self.candidates_apart(weight, others) or self._ranked(
            weight, self._by_node, {self.seats[name].node for name in others}
        )

    def candidates_apart(self, weight: float, others: Collection[str]) -> list[str]:
        """The same, but in another zone or nowhere."""
        return self._ranked(weight, self._by_zone, {self.seats[name].zone for name in others})

    def _ranked(self, weight: float, sizes: Iterable[_Coolest], avoided: Collection[str]) -> list[str]:
        found = [name for seats in sizes if (name := seats.outside(avoided)) is not None]
        return sorted(found, key=lambda name: (self.level(name, weight), name)) if len(found) > 1 else found

    @cached_property
    def _by_zone(self) -> list[_Coolest]:
        return [_Coolest(self.level, {seat.name: seat.zone for seat in seats}) for seats in self._by_size()]

    @cached_property
    def _by_node(self) -> list[_Coolest]:
        return [_Coolest(self.level, {seat.name: seat.node for seat in seats}) for seats in self._by_size()]

    def _by_size(self) -> Collection[list[Seat]]:
        """Open seats by their capacity, in powers of two: which of two is cooler with one more shard depends on it."""
        sizes: defaultdict[int, list[Seat]] = defaultdict(list)
        for seat in self.seats.values():
            if seat.open:
                sizes[math.frexp(seat.capacity)[1]].append(seat)
        return sizes.values()


class _Board:
    """A placement on which copies are moved: it knows what each seat carries, and which shards have lost a copy."""

    def __init__(
        self,
        current: Placement,
        seats: Iterable[Seat],
        weights: Sequence[float] | None,
        standbys: int,
        pinned: Collection[int],
    ) -> None:
        self.seats = _by_name(seats)
        self.owners = list(current.owners)
        self.standbys = list(current.standbys)
        self.weights = _costs(weights, len(self.owners))
        self.wanted = standbys
        self.pinned = pinned
        owned: dict[str | None, float] = dict.fromkeys(self.seats, 0.0)
        followed = dict.fromkeys(self.seats, 0.0)
        self.lost = [shard for shard in self._count(owned, followed) if shard not in pinned]
        self.owned = _Load(self.seats, {name: owned[name] for name in self.seats})
        self.copied = _Load(self.seats, {name: owned[name] + followed[name] for name in self.seats})

    def _count(self, owned: dict[str | None, float], followed: dict[str, float]) -> list[int]:
        """Sum up what seats own and stand by for; the shards that lack a copy, or have too many.

        The one pass that `place` makes over what has not changed: to be told of a seat that is gone by a `KeyError`
        costs the others nothing, to ask for every copy would double the time of it.
        """
        lost: list[int] = []
        copies = zip(range(len(self.owners)), self.owners, self.standbys, self.weights, strict=True)
        for shard, owner, names, weight in copies:
            try:
                owned[owner] += weight
                for name in names:
                    followed[name] += weight
            except KeyError:
                lost.append(shard)
                for copy in dropwhile(owned.__contains__, (owner, *names)):  # behind the first that is gone
                    if copy in followed:
                        followed[copy] += weight
            else:
                if len(names) != self.wanted:
                    lost.append(shard)
        return lost

    def placement(self) -> Placement:
        return Placement(tuple(self.owners), tuple(self.standbys))

    def copies(self, shard: int, but: str | None = None) -> list[str]:
        """Where the shard is, owner first, without the copy on `but`."""
        return [name for name in (self.owners[shard], *self.standbys[shard]) if name is not None and name != but]

    def move(self, shard: int, giver: str | None, receiver: str) -> None:
        """One copy goes from `giver` to `receiver`. If the receiver was a standby, the two change places."""
        weight, names = self.weights[shard], self.standbys[shard]
        if giver == self.owners[shard]:
            self.owners[shard] = receiver
            self.owned.shift(weight, giver, receiver)
            if receiver in names:
                rest = [name for name in names if name != receiver]
                self.standbys[shard] = tuple(rest if giver is None else [giver, *rest])
                return
        else:
            self.standbys[shard] = tuple(receiver if name == giver else name for name in names)
        self.copied.shift(weight, giver, receiver)

    # --- the emergency -----------------------------------------------------------------------------------------

    def mend(self) -> None:
        """Owners for the orphans, heirs before all others, heavy shards before light ones; then missing standbys."""
        orphans: list[int] = []
        for shard in self.lost:
            self.standbys[shard] = tuple(name for name in self.standbys[shard] if name in self.seats)
            if self.owners[shard] not in self.seats:
                self.owners[shard] = None
                orphans.append(shard)
        for shard in sorted(orphans, key=lambda shard: (self._heir(shard) is None, -self.weights[shard], shard)):
            home = self._home(shard)
            if home is not None:
                self.move(shard, None, home)
        for shard in sorted(self.lost, key=self._scattered):
            self._fill(shard)

    def _heir(self, shard: int) -> str | None:
        return next((name for name in self.standbys[shard] if self.seats[name].open), None)

    def _home(self, shard: int) -> str | None:
        """The next owner. If every open seat is on a node with a (closed) standby, that has to give way."""
        weight, names = self.weights[shard], self.standbys[shard]
        return self._heir(shard) or self.owned.coolest(weight, names) or self.owned.coolest(weight)

    def _scattered(self, shard: int) -> tuple[int, int]:
        """Heavy shards before light ones, by powers of two; those that are alike in an order that looks like chance.

        Else shards that were given away one after the other would have owner after owner and standby after standby in
        step, and one seat would inherit all of another."""
        return -math.frexp(self.weights[shard])[1], crc32(b"%d" % shard)

    def _fill(self, shard: int) -> None:
        """Drop standbys that are too many or on a node with another copy, then choose those that are missing."""
        owner, weight = self.owners[shard], self.weights[shard]
        if owner is None:
            return
        copies = [owner]
        for name in self.standbys[shard]:
            if len(copies) <= self.wanted and self.seats[name].node not in {self.seats[copy].node for copy in copies}:
                copies.append(name)
            else:
                self.copied.shift(weight, name, None)
        while len(copies) <= self.wanted and (seat := self.copied.coolest(weight, copies)) is not None:
            copies.append(seat)
            self.copied.shift(weight, None, seat)
        self.standbys[shard] = tuple(copies[1:])

    # --- quiet times -------------------------------------------------------------------------------------------

    def empty_closed(self, moves_max: int) -> int:
        """Give away what closed seats own, heavy shards first; how many moved. Nothing, where no seat is open."""
        leaving = [
            shard
            for shard, owner in enumerate(self.owners)
            if owner is not None and shard not in self.pinned and not self.seats[owner].open
        ]
        moved = 0
        for shard in sorted(leaving, key=lambda shard: (-self.weights[shard], shard))[:moves_max]:
            home = self._home(shard)
            if home is not None:
                self.move(shard, self.owners[shard], home)
                self._fill(shard)
                moved += 1
        return moved

    def spread_standbys(self, moves_max: int) -> int:
        """Move standbys from closed seats, and out of zones they share while another zone has none; how many moved."""
        zones = {seat.zone for seat in self.seats.values() if seat.open}
        moved = 0
        for shard, names in enumerate(self.standbys):
            for name in reversed(() if shard in self.pinned else names):
                better = self._better(shard, name, zones) if moved < moves_max else None
                if better is not None:
                    self.move(shard, name, better)
                    moved += 1
        return moved

    def _better(self, shard: int, name: str, zones: Collection[str]) -> str | None:
        """The seat that the shard's standby on `name` should leave it for, if there is one."""
        seat, weight, others = self.seats[name], self.weights[shard], self.copies(shard, but=name)
        if not seat.open:
            return self.copied.coolest(weight, others)
        taken = {self.seats[other].zone for other in others}
        if seat.zone not in taken or taken.issuperset(zones):
            return None
        return self.copied.candidates_apart(weight, others)[0]


class _Levelling:
    """Hot seats give to cool ones, what they own or what they stand by for, until no move is worth it.

    Every move leaves the hotter of its two seats cooler than it was, so the sorted levels fall and it comes to an end.
    """

    def __init__(self, board: _Board, load: _Load, copies: Sequence[Iterable[str | None]]) -> None:
        self.board = board
        self.load = load
        self.copies = copies
        self.tries_max = TRIES_MAX if load is board.owned and board.wanted else 1
        self.open = [seat for seat in board.seats.values() if seat.open]
        mean = sum(load.amounts.values()) / sum(seat.capacity for seat in self.open) if self.open else 0.0
        self.low, self.high = mean * (1 - DEADBAND), mean * (1 + DEADBAND)

    def run(self, moves_max: int) -> None:
        """Move at most so many shards, and at most `SHARE_MAX` of all weight or one shard."""
        hottest = [(-self.load.level(seat.name), seat.name) for seat in self.open]
        heapify(hottest)
        moved, spare = 0, SHARE_MAX * sum(self.board.weights)
        while hottest and moved < moves_max and not self._is_level(-hottest[0][0]):
            level, giver = heappop(hottest)
            found = self._relief(giver) if -level == self.load.level(giver) else None
            if found is None:  # out of date, or stuck until it is given something
                continue
            weight, shard, receiver = found
            if moved and weight > spare:
                break
            self.board.move(shard, giver, receiver)
            self._held[giver].remove((weight, shard))
            insort(self._held[receiver], (weight, shard))
            for name in (giver, receiver):
                heappush(hottest, (-self.load.level(name), name))
            moved, spare = moved + 1, spare - weight

    @cached_property
    def _held(self) -> dict[str | None, list[tuple[float, int]]]:
        """The shards that may move, by seat: weight and number, light ones first."""
        held: defaultdict[str | None, list[tuple[float, int]]] = defaultdict(list)
        for shard, names in enumerate(self.copies):
            if shard not in self.board.pinned:
                for name in names:
                    held[name].append((self.board.weights[shard], shard))
        for shards in held.values():
            shards.sort()
        return held

    def _is_level(self, hottest: float) -> bool:
        return hottest <= self.high and self._coolest_level() >= self.low

    def _coolest_level(self, weight: float = 0.0) -> float:
        coolest = self.load.coolest(weight)
        return math.inf if coolest is None else self.load.level(coolest, weight)

    def _relief(self, giver: str) -> tuple[float, int, str] | None:
        """The move that helps a seat most: weight, shard, receiver. None: there is none that is worth it.

        Shards that cannot move are not asked again: givers get cooler and receivers warmer, so their time does not come
        in this call.
        """
        found, tries, stuck = None, 0, set[tuple[float, int]]()
        for weight, shard in self._nearest(giver):
            receiver = self._receiver(weight, shard, giver)
            if receiver is None:
                stuck.add((weight, shard))
                continue
            tries, changes_places = tries + 1, receiver in self.board.standbys[shard]
            if found is None or changes_places:
                found = weight, shard, receiver
            if changes_places or tries == self.tries_max:
                break
        if stuck:
            self._held[giver] = [held for held in self._held[giver] if held not in stuck]
        return found

    def _receiver(self, weight: float, shard: int, giver: str) -> str | None:
        """Who should take the shard: a standby that takes it as well as anybody would, else the coolest seat."""
        copies = self.board.copies(shard)
        if copies[0] == giver:
            cool = max(self.high, self._coolest_level(weight))
            for standby in copies[1:]:
                is_cool = self.board.seats[standby].open and self.load.level(standby, weight) <= cool
                if is_cool and self._is_worth(weight, giver, standby):
                    return standby
        others = [name for name in copies if name != giver]
        strangers = self.load.candidates(weight, others)
        return next((name for name in strangers if self._is_worth(weight, giver, name)), None)

    def _nearest(self, giver: str) -> Iterator[tuple[float, int]]:
        """The giver's shards, first the heaviest that leaves it no cooler than it makes the coolest, then lighter ones."""
        seats, held = self.board.seats, self._held[giver]
        coolest = self.load.coolest() or giver
        gap = self.load.level(giver) - self.load.level(coolest)
        even = gap / (1 / seats[giver].capacity + 1 / seats[coolest].capacity)
        fits = bisect_right(held, (even, math.inf))
        return chain(reversed(held[:fits]), held[fits:])

    def _is_worth(self, weight: float, giver: str, receiver: str) -> bool:
        """Whether one of the two leaves the band for it, and the hotter one ends up well below where it was."""
        before, at = self.load.level(giver), self.load.level(receiver)
        after = self.load.level(receiver, (1 + GAIN_MIN) * weight)
        return (before > self.high or at < self.low) and after <= before


def _by_name(seats: Iterable[Seat]) -> dict[str, Seat]:
    ordered = sorted(seats, key=lambda seat: seat.name)
    zones: dict[str, str] = {}
    for seat in ordered:
        zone = zones.setdefault(seat.node, seat.zone)
        assert zone == seat.zone, f"node {seat.node!r} is said to be in zone {zone!r} and in zone {seat.zone!r}"
    by_name = {seat.name: seat for seat in ordered}
    assert len(by_name) == len(ordered), f"{len(ordered)} seats have only {len(by_name)} names"
    return by_name


def _costs(weights: Sequence[float] | None, shards: int) -> list[float]:
    """What each shard counts: its load, and what it costs without any."""
    if weights is None:
        return [1.0] * shards
    assert len(weights) == shards, f"weights of {len(weights)} shards, expected {shards}"
    idle = IDLE_SHARE * sum(weights) / max(shards, 1)
    return [weight + idle for weight in weights] if idle > 0 else [1.0] * shards
