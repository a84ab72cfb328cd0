"""How long a plan takes when a node or a zone dies, and how many shards it moves: the pure function, nothing around it."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench import Run, benchmark
from bench.table import Row, judged
from rekindle.supervisors.placement import Placement, Seat, place

SHARDS = 10_000
NODES = 1_000
ZONES = 3
NODE_MS_MAX = 5.0
ZONE_MS_MAX = 100.0
MOVED_MAX = 1.05
PLANS = {"node": 100, "zone": 15}
"""Of how many deaths a row is the median; every plan is for another node, or for the next zone."""

PLANS_QUICK = {"node": 10, "zone": 3}
NOTHING = "nothing is stored"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one death came to. moved, least: copies that were placed, and that had to be."""

    ms: float
    moved: int
    least: int
    hottest: float


@benchmark("placement")
def placement(run: Run) -> Iterator[Row]:
    """Plans for the death of a node and of a zone, of one seat a node, without and with a standby for each shard."""
    seats = [Seat(f"stock-{number}", f"node-{number}", f"zone-{number % ZONES}") for number in range(NODES)]
    for standbys in (0, 1):
        started = time.perf_counter()
        whole = place(Placement.of([None] * SHARDS), seats, standbys=standbys)
        yield Row(_name("cold start", standbys), 1_000 * (time.perf_counter() - started), "ms", durable=NOTHING)
        for what, ms_max in (("node", NODE_MS_MAX), ("zone", ZONE_MS_MAX)):
            count = (PLANS_QUICK if run.quick else PLANS)[what]
            plans = [_plan(whole, _survivors(seats, what, number), standbys) for number in range(count)]
            yield from _rows(f"{what} death", standbys, plans, ms_max)


def _rows(what: str, standbys: int, plans: Sequence[Plan], ms_max: float) -> Iterator[Row]:
    name, ms = _name(what, standbys), [plan.ms for plan in plans]
    moved = max(plan.moved / plan.least for plan in plans)
    hottest = max(plan.hottest for plan in plans)
    yield judged(f"{name}: median", statistics.median(ms), "ms", durable=NOTHING, at_most=ms_max)
    yield Row(f"{name}: worst of {len(ms)}", max(ms), "ms", durable=NOTHING)
    yield judged(f"{name}: copies moved / minimum", moved, "x", durable=NOTHING, at_most=MOVED_MAX)
    yield Row(f"{name}: shards of the fullest / mean", hottest, "x", durable=NOTHING)


def _name(what: str, standbys: int) -> str:
    return f"plan for a {what}, {SHARDS:,} shards on {NODES:,} nodes, standbys={standbys}"


def _survivors(seats: Sequence[Seat], what: str, number: int) -> list[Seat]:
    if what == "node":
        return [seat for seat in seats if seat is not seats[number]]
    return [seat for seat in seats if seat.zone != f"zone-{number % ZONES}"]


def _plan(whole: Placement, seats: Sequence[Seat], standbys: int) -> Plan:
    started = time.perf_counter()
    after = place(whole, seats, standbys=standbys)
    ms = 1_000 * (time.perf_counter() - started)
    there, counted = {seat.name for seat in seats}, Counter(after.owners)
    assert counted.keys() <= there, "a shard was left to the dead"
    moved = sum(len(_copies(after, shard) - _copies(whole, shard)) for shard in range(SHARDS))
    least = sum(len(_copies(whole, shard) - there) for shard in range(SHARDS))
    return Plan(ms, moved, least, max(counted.values()) * len(seats) / SHARDS)


def _copies(placement: Placement, shard: int) -> set[str | None]:
    return {placement.owners[shard], *placement.standbys[shard]}
