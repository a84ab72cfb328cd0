"""What a death costs: how long the shards of a process, a node, a frozen node answer nobody; and everybody else meanwhile.

    python -m bench supervision [--quick]                  # all of it
    python -m bench supervision-nodes supervision-cold     # some of it

Every blow is struck under an even load (`bench.pressure`) on a settled stage (`bench.stage`); it is over when each shard
that was hit has acknowledged a command that was sent after the blow. Of each, all phases are printed:

    died -> seen (evidence) -> decided (assigned) -> claimed -> replayed -> serving (a command is acknowledged) -> whole

Seen and decided are the times of the records in the control log, claimed and replayed what the new owners report; whole is
when instances, standbys and balance are as before, too.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import psutil

from bench import Run, benchmark
from bench.baseline import IN_MEMORY
from bench.load import percentile
from bench.pressure import clock_ms, until
from bench.stage import UNHURRIED_S, Blow, Setting, Stage, on_stage
from bench.table import Row, judged
from rekindle.supervisors.controller import SUSPICION_ONCE_IN_S

PROCESSES, NODES, CONTROLLERS = 100, 30, 20
"""Blows: to instance processes; to nodes, dead or frozen; to the controller. Of a few kinds there are fewer:"""

PROCESSES_BARE, NODES_BARE = 20, 10
PROCESSES_DEFAULTS, NODES_DEFAULTS = 10, 3
QUICK = 2

SUSPECTED_APART_S = SUSPICION_ONCE_IN_S + 1.0
"""Between two frozen nodes: a shard that was moved on suspicion is moved on suspicion again only after that."""

LEADER_MAX_S = 30.0
LEADERLESS_WINDOW_S = 3.0
"""So long after the controller's death its absence may show: the next one leads, and Ray starts the third."""

STANDBY, BARE = Setting("standby_app"), Setting("bare_app")
STANDBY_DEFAULTS = Setting("standby_app", ray_defaults=True)


@dataclass(slots=True)
class Series:
    """Blows of one kind, and how long commands took before them and while they were recovered from. By blow."""

    blows: list[Blow] = field(default_factory=list[Blow])
    undisturbed_ms: list[float] = field(default_factory=list[float])
    healthy_ms: list[float] = field(default_factory=list[float])
    gaps_ms: list[float] = field(default_factory=list[float])

    def took_ms(self) -> list[float]:
        """How long each took, in order of length."""
        return sorted(blow.took_ms for blow in self.blows)


def often(run: Run, count: int) -> range:
    """So many times, or a few in a quick run."""
    return range(QUICK if run.quick else count)


# --- kinds of blows -----------------------------------------------------------------------------------------------


async def kill_processes(stage: Stage, times: Iterable[int]) -> Series:
    """SIGKILL of an instance's process, again and again; afterwards it is replaced, and shards move back: planned moves."""
    series = Series()
    for _ in times:
        await stage.calm(UNHURRIED_S)
        victim = stage.random.choice([name for name in stage.hosts() if stage.owned_by(name)])
        process = await stage.process_of(victim)
        series.blows.append(await stage.strike(victim, process.kill))
        await stage.recover(series.blows[-1])
    series.gaps_ms += planned_gaps_ms(stage, series.blows[0].died_ms)
    return series


def planned_gaps_ms(stage: Stage, since_ms: float) -> list[float]:
    """Of each planned move the longest time without an answer, of those between its decision and the word that it is done."""
    takeovers, gap_ms = stage.reports.takeovers, stage.pressure.gap_ms
    moves = [move for move in stage.chronicle.moves if move.is_planned and move.at_ms > since_ms]
    done = [(move, takeovers[move.shard, move.number]) for move in moves if (move.shard, move.number) in takeovers]
    return sorted(gap_ms(move.shard, move.at_ms, takeover.at_ms) for move, takeover in done)


async def strike_nodes(stage: Stage, times: Iterable[int], *, freeze: bool = False) -> Series:
    """SIGKILL, or SIGSTOP, of a raylet and everything below it, again and again."""
    series = Series()
    for _ in times:
        began_ms = await stage.calm()
        if freeze and series.blows:
            await asyncio.sleep(SUSPECTED_APART_S - (clock_ms() - series.blows[-1].died_ms) / 1000)
        victim, host = stage.random.choice(_on_expendable_nodes(stage))
        processes = await asyncio.to_thread(stage.nodes.tree, host)
        blow = await stage.strike(victim, partial(_signal, processes, freeze=freeze))
        series.undisturbed_ms += stage.pressure.latencies_ms(stage.shards, began_ms, blow.died_ms)
        _signal(processes, freeze=False)
        await stage.recover(blow)
        healthy = [shard for shard in stage.shards if shard not in blow.serving_ms]
        series.healthy_ms += stage.pressure.latencies_ms(healthy, blow.died_ms, blow.whole_ms)
        series.blows.append(blow)
        await stage.replace_node(host)
    return series


def _on_expendable_nodes(stage: Stage) -> list[tuple[str, str]]:
    """Instances with shards on nodes that are neither Ray's head nor the leading controller's, with their nodes."""
    kept = (stage.head, stage.leading_host)
    found = [(name, host) for name, host in stage.hosts().items() if host not in kept and stage.owned_by(name)]
    assert found, f"every instance is on one of {kept}: {stage.hosts()}"
    return found


def _signal(processes: Sequence[psutil.Process], *, freeze: bool) -> None:
    """All of them, the raylet first, within a millisecond or two."""
    for process in processes:
        try:
            process.suspend() if freeze else process.kill()
        except psutil.NoSuchProcess:  # the raylet's end takes others along
            continue


# --- rows ---------------------------------------------------------------------------------------------------------


def worst_row(what: str, series: Series, worst_ms: float) -> Row:
    """The longest of all."""
    return judged(f"{what}, worst", series.took_ms()[-1], "ms", durable=IN_MEMORY, at_most=worst_ms)


def share_row(what: str, series: Series, share: float, bound_ms: float) -> Row:
    """The median, or another percentile."""
    value = percentile(series.took_ms(), share)
    return judged(f"{what}, p{100 * share:g}", value, "ms", durable=IN_MEMORY, at_most=bound_ms)


def phase_rows(what: str, blows: Sequence[Blow]) -> Iterator[Row]:
    """Median and worst of each phase, since the death; of what every shard goes through alone, over all shards."""
    phases: dict[str, Callable[[Blow], Iterable[float]]] = {
        "seen": lambda blow: [blow.seen_ms],
        "decided": lambda blow: blow.decided_ms.values(),
        "claimed": lambda blow: blow.claimed_ms.values(),
        "replayed": lambda blow: blow.replayed_ms.values(),
        "serving": lambda blow: blow.serving_ms.values(),
        "whole": lambda blow: [blow.whole_ms],
    }
    for phase, of in phases.items():
        since = [at_ms - blow.died_ms for blow in blows for at_ms in of(blow)]
        yield Row(f"{what}: {phase}, median", statistics.median(since), "ms", durable=IN_MEMORY)
        yield Row(f"{what}: {phase}, worst", max(since), "ms", durable=IN_MEMORY)


def disturbed_row(what: str, disturbed_ms: Sequence[float], undisturbed_ms: Sequence[float], times: float) -> Row:
    """A p99 against the same of undisturbed windows."""
    value, usual = (percentile(sorted(found), 0.99) for found in (disturbed_ms, undisturbed_ms))
    return judged(what, value, "ms", durable=IN_MEMORY, baseline=usual, at_most=times)


def outcomes_row(what: str, stage: Stage) -> Row:
    """Commands that were given up since the last time this was asked."""
    failed, stage.pressure.failed = stage.pressure.failed, Counter()
    for error, times in failed.most_common(3):
        print(f"    {times} commands without an outcome: {error}", file=sys.stderr)
    name = f"{what}: commands without an outcome"
    return judged(name, sum(failed.values()), "commands", durable=IN_MEMORY, at_most=0)


# --- benchmarks ---------------------------------------------------------------------------------------------------


@benchmark("supervision-processes")
async def processes(run: Run) -> AsyncIterator[Row]:
    """SIGKILL of instance processes with standbys; and the planned moves that follow."""
    async with on_stage(run, STANDBY) as stage:
        series = await kill_processes(stage, often(run, PROCESSES))
        what = f"SIGKILL of an instance, standbys, {len(series.blows)} kills"
        for row in (share_row(what, series, 0.5, 200), share_row(what, series, 0.99, 500)):
            yield row
        for row in (*phase_rows(what, series.blows), outcomes_row(what, stage)):
            yield row
    name = f"longest gap of a planned move, {len(series.gaps_ms)} moves"
    yield Row(f"{name}, median", statistics.median(series.gaps_ms), "ms", durable=IN_MEMORY)
    yield judged(f"{name}, p99", percentile(series.gaps_ms, 0.99), "ms", durable=IN_MEMORY, at_most=100)


@benchmark("supervision-nodes")
async def nodes(run: Run) -> AsyncIterator[Row]:
    """SIGKILL of nodes with standbys; and what it does to the shards of others."""
    async with on_stage(run, STANDBY) as stage:
        series = await strike_nodes(stage, often(run, NODES))
        what = f"SIGKILL of a node, standbys, {len(series.blows)} kills"
        for row in (share_row(what, series, 0.5, 700), worst_row(what, series, 1_500)):
            yield row
        for row in (*phase_rows(what, series.blows), outcomes_row(what, stage)):
            yield row
    name = f"healthy shards' p99 while another node dies and recovers, {len(series.blows)} kills"
    yield disturbed_row(name, series.healthy_ms, series.undisturbed_ms, 2.0)


@benchmark("supervision-frozen")
async def frozen(run: Run) -> AsyncIterator[Row]:
    """SIGSTOP of nodes with standbys."""
    async with on_stage(run, STANDBY) as stage:
        series = await strike_nodes(stage, often(run, NODES), freeze=True)
        what = f"SIGSTOP of a node, standbys, {len(series.blows)} freezes"
        for row in (worst_row(what, series, 2_500), *phase_rows(what, series.blows), outcomes_row(what, stage)):
            yield row


@dataclass(slots=True)
class Depositions:
    """Deaths of the leading controller. By death: until another one leads, until its first table has reached a client."""

    leaderless_ms: list[float] = field(default_factory=list[float])
    tables_ms: list[float] = field(default_factory=list[float])
    undisturbed_ms: list[float] = field(default_factory=list[float])
    disturbed_ms: list[float] = field(default_factory=list[float])


async def depose(stage: Stage, found: Depositions) -> None:
    """SIGKILL of the controller that leads, once somebody stands by."""
    await stage.has_standby()
    pressure, leads = stage.pressure, stage.chronicle.leads
    began_ms, leader = await stage.calm(), await stage.leader()
    count, term = len(leads), pressure.client.table.version[0]
    died_ms = clock_ms()
    leader.kill()
    await until(lambda: None if pressure.client.table.version[0] > term else "no new table", LEADER_MAX_S, 0.001)
    found.tables_ms.append(clock_ms() - died_ms)
    await until(lambda: None if len(leads) > count else "no new leader", LEADER_MAX_S)
    found.leaderless_ms.append(leads[-1][0] - died_ms)
    await asyncio.sleep(LEADERLESS_WINDOW_S)
    found.undisturbed_ms += pressure.latencies_ms(stage.shards, began_ms, died_ms)
    found.disturbed_ms += pressure.latencies_ms(stage.shards, died_ms, died_ms + 1000 * LEADERLESS_WINDOW_S)


@benchmark("supervision-controller")
async def controller(run: Run) -> AsyncIterator[Row]:
    """SIGKILL of the controller that leads: until another one does, and what callers of services see of it."""
    found = Depositions()
    async with on_stage(run, STANDBY) as stage:
        for _ in often(run, CONTROLLERS):
            await depose(stage, found)
        what = f"SIGKILL of the controller, {len(found.leaderless_ms)} kills"
        yield outcomes_row(what, stage)
    yield Row(f"{what}: until another leads, median", statistics.median(found.leaderless_ms), "ms", durable=IN_MEMORY)
    yield judged(
        f"{what}: until another leads, worst", max(found.leaderless_ms), "ms", durable=IN_MEMORY, at_most=1_000
    )
    yield Row(f"{what}: until its first table is at a client, worst", max(found.tables_ms), "ms", durable=IN_MEMORY)
    yield disturbed_row(f"{what}: services' p99 meanwhile", found.disturbed_ms, found.undisturbed_ms, 1.5)


@benchmark("supervision-defaults")
async def defaults(run: Run) -> AsyncIterator[Row]:
    """The first three with Ray's own settings: nothing is to depend on them."""
    async with on_stage(run, STANDBY_DEFAULTS) as stage:
        series = await kill_processes(stage, often(run, PROCESSES_DEFAULTS))
        what = f"SIGKILL of an instance, standbys, Ray's defaults, {len(series.blows)} kills"
        for row in (share_row(what, series, 0.5, 200), share_row(what, series, 0.99, 500)):
            yield row
        series = await strike_nodes(stage, often(run, NODES_DEFAULTS))
        what = f"SIGKILL of a node, standbys, Ray's defaults, {len(series.blows)} kills"
        for row in (share_row(what, series, 0.5, 700), worst_row(what, series, 1_500)):
            yield row
        series = await strike_nodes(stage, often(run, NODES_DEFAULTS), freeze=True)
        yield worst_row(f"SIGSTOP of a node, standbys, Ray's defaults, {len(series.blows)} freezes", series, 2_500)
        yield outcomes_row("Ray's defaults", stage)


@benchmark("supervision-bare")
async def bare(run: Run) -> AsyncIterator[Row]:
    """The first three without standbys: snapshots as they are by default, and a replay from there."""
    async with on_stage(run, BARE) as stage:
        series = await kill_processes(stage, often(run, PROCESSES_BARE))
        what = f"SIGKILL of an instance, no standbys, {len(series.blows)} kills"
        for row in (worst_row(what, series, 2_500), *phase_rows(what, series.blows)):
            yield row
        series = await strike_nodes(stage, often(run, NODES_BARE))
        what = f"SIGKILL of a node, no standbys, {len(series.blows)} kills"
        for row in (worst_row(what, series, 2_500), *phase_rows(what, series.blows)):
            yield row
        series = await strike_nodes(stage, often(run, NODES_BARE), freeze=True)
        what = f"SIGSTOP of a node, no standbys, {len(series.blows)} freezes"
        for row in (worst_row(what, series, 4_000), *phase_rows(what, series.blows)):
            yield row
        yield outcomes_row("no standbys", stage)
