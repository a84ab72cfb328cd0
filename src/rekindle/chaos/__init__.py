"""Chaos: the simulator, its faults, and the judge, who reads the log by itself and trusts nothing of the system.

Reading order: `loop` (virtual time, processes), `simwire`, `simcluster`, `simhost` (the simulated seams), `plan` and
`weather` (what goes wrong), `ledger` and `workload` (what is asked), `world` (one run), `campaign` (many); `reading` and
`judge` stand apart and share no code with the rest.
"""

from rekindle.chaos.campaign import Figures, explore, replay_line
from rekindle.chaos.judge import End, History, Op, judge
from rekindle.chaos.loop import Deadlock, Process, SimLoop, new_loop, outside
from rekindle.chaos.plan import Fault, Plan, draw_plan
from rekindle.chaos.reading import Counted, Reading, Reign, read
from rekindle.chaos.simcluster import SimCluster
from rekindle.chaos.simwire import Net, SimWire, WireFaults
from rekindle.chaos.world import Report, World, simulate

__all__ = [
    "Counted",
    "Deadlock",
    "End",
    "Fault",
    "Figures",
    "History",
    "Net",
    "Op",
    "Plan",
    "Process",
    "Reading",
    "Reign",
    "Report",
    "SimCluster",
    "SimLoop",
    "SimWire",
    "WireFaults",
    "World",
    "draw_plan",
    "explore",
    "judge",
    "new_loop",
    "outside",
    "read",
    "replay_line",
    "simulate",
]
