"""Simulate: `python -m rekindle.chaos --seeds 5000` explores, `python -m rekindle.chaos --seed 42` replays one run.

A replay prints its trace: a line for everything that happened, with virtual time and a mark (`!` a fault, `>` asked,
`<` answered, `-` said, `=` a phase).
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Final

from rekindle.chaos.campaign import WORKERS, Figures, be_quiet, explore, replay_line
from rekindle.chaos.world import Report, simulate

PROGRESS_EVERY: Final = 100


def main() -> int:
    """Run what the arguments say; 1 if a run has failed."""
    parser = argparse.ArgumentParser(prog="python -m rekindle.chaos", description="Simulate the whole system.")
    parser.add_argument("--seed", type=int, help="replay this one run, or (with --seeds) begin with this seed")
    parser.add_argument("--seeds", type=int, help="how many runs")
    parser.add_argument("--workers", type=int, default=WORKERS, help="processes to run them on")
    arguments = parser.parse_args()
    if arguments.seeds is None and arguments.seed is not None:
        return _replay(arguments.seed)
    return _explore(arguments.seed or 0, arguments.seeds or PROGRESS_EVERY, arguments.workers)


def _replay(seed: int) -> int:
    be_quiet()
    report = simulate(seed)
    print("\n".join(report.lines))
    print(f"seed {seed}: digest {report.digest:08x}, {report.acknowledged} acknowledged, {report.struck} faults")
    _print_faults(report)
    return bool(report.faults)


def _explore(first: int, count: int, workers: int) -> int:
    figures, began = Figures(), time.monotonic()
    for report in explore(range(first, first + count), workers):
        figures.add(report)
        if report.faults:
            print(f"seed {report.seed} failed: {replay_line(report.seed)}")
            _print_faults(report)
        if figures.runs % PROGRESS_EVERY == 0:
            print(f"{time.monotonic() - began:7.1f} s  {figures}", flush=True)
    print(figures)
    print(", ".join(f"{name} {times}" for name, times in figures.took.most_common()))
    return bool(figures.failed)


def _print_faults(report: Report) -> None:
    for fault in report.faults:
        print(f"    {fault}")


if __name__ == "__main__":
    sys.exit(main())
