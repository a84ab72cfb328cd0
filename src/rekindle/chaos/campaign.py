"""Many runs, on several processes of this machine."""

from __future__ import annotations

import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

from rekindle.chaos.judge import End
from rekindle.chaos.world import Report, simulate

WORKERS: Final = 2
SEEDS_AT_ONCE: Final = 8
"""How many seeds a worker is handed at a time."""


def explore(seeds: Iterable[int], workers: int = WORKERS) -> Iterator[Report]:
    """The reports, in the order of the seeds. The trace of a clean run is left out: its seed gives it again."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), be_quiet) as pool:
        yield from pool.map(_brief, seeds, chunksize=SEEDS_AT_ONCE)


def be_quiet() -> None:
    """What a simulated process has to say is in its trace, not on this one's terminal."""
    logging.getLogger("rekindle").setLevel(logging.CRITICAL)


def _brief(seed: int) -> Report:
    report = simulate(seed)
    return report if report.faults or not report.counts else replace(report, lines=())


@dataclass
class Figures:
    """What came of many runs. idle: runs in which too little has happened to mean anything."""

    runs: int = 0
    acknowledged: int = 0
    struck: int = 0
    operated: int = 0
    seconds: float = 0.0
    ends: Counter[End] = field(default_factory=Counter[End])
    took: Counter[str] = field(default_factory=Counter[str])
    failed: list[int] = field(default_factory=list[int])
    idle: list[int] = field(default_factory=list[int])

    def add(self, report: Report) -> None:
        """One more."""
        self.runs += 1
        self.acknowledged += report.acknowledged
        self.struck += report.struck
        self.operated += report.operated
        self.seconds += report.seconds
        self.ends.update(report.ends)
        self.took.update(report.took)
        if report.faults:
            self.failed.append(report.seed)
        if not report.counts:
            self.idle.append(report.seed)

    def __str__(self) -> str:
        ends = ", ".join(f"{self.ends[end]} {end.value}" for end in End)
        return (
            f"{self.runs} runs, {len(self.failed)} failed, {len(self.idle)} idle; {self.acknowledged} commands "
            f"acknowledged ({ends}); {self.struck} faults; {self.seconds / 3600:.1f} simulated hours; an operator was needed {self.operated} times"
        )


def replay_line(seed: int) -> str:
    """The command that gives one run again, with its trace."""
    return f"python -m rekindle.chaos --seed {seed}"
