"""What goes wrong in a run, as data, drawn from its seed.

Every seed draws its own mixture: some kinds of faults not at all, others often. A run with a little of everything meets
the same weather every time; it is the lopsided ones that find what nobody thought of (swarm testing).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from rekindle.chaos.simwire import WireFaults
from rekindle.events.simulated import LogFaults

FAULTS_S: Final = 12.0
"""For so long things go wrong; then it is quiet."""

KINDS: Final = (
    "kill an instance",
    "stop an instance",
    "slow an instance",
    "kill a node",
    "kill the controller",
    "stop the controller",
    "stop a client",
    "cut two hosts",
    "cut a host from the log",
    "break connections",
    "slander an instance",
    "send the cluster away",
    "send the log away",
    "let the log refuse",
    "scale",
    "drain a node",
    "pause the plans",
)
"""The last three are an operator's doing, not faults; they come in between all the same."""

INSTANCES: Final = (2, 4)
"""An operator scales to as few, or as many."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. pick: which of those that it can meet, 0 to 1. for_s: how long it lasts, where that means anything."""

    at_s: float
    kind: str
    pick: float
    for_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that goes wrong. skew_ms: by how much clocks may be wrong. retention: whether owners delete what their
    snapshots do not need. standbys: of each shard. zones: how many there are."""

    faults: tuple[Fault, ...]
    log: LogFaults
    wire: WireFaults
    skew_ms: int
    retention: bool
    standbys: int
    zones: int


def draw_plan(random: Random) -> Plan:
    """The plan of a seed."""
    kinds = random.sample(KINDS, random.randint(3, len(KINDS)))
    count = random.randint(6, 16)
    faults = [Fault(_time(random), random.choice(kinds), random.random(), _duration(random)) for _ in range(count)]
    skew_ms = random.choice([0, 0, 50, 5_000, 5_000, 900_000])
    faults.sort(key=lambda fault: fault.at_s)
    retention, standbys, zones = random.random() < 0.5, random.choice([0, 0, 1]), random.choice([1, 2])
    return Plan(tuple(faults), _draw_log(random), _draw_wire(random), skew_ms, retention, standbys, zones)


def _time(random: Random) -> float:
    return random.random() * FAULTS_S


def _duration(random: Random) -> float:
    """Mostly shorter than what makes an instance suspect, sometimes far longer."""
    return random.choice([0.3, 1.5, 6.0]) * (0.5 + random.random())


def _often(random: Random, most: float) -> float:
    """Never, sometimes, or often."""
    return random.choice([0.0, most / 10, most]) * random.random()


def _draw_log(random: Random) -> LogFaults:
    return LogFaults(
        append_s=random.choice([0.0005, 0.005]),
        ack_s=random.choice([0.0005, 0.005]),
        slow_append=_often(random, 0.1),
        slow_ack=_often(random, 0.1),
        slow_s=random.choice([0.1, 1.5]),
        lost_append=_often(random, 0.05),
        lost_ack=_often(random, 0.05),
        duplicate=_often(random, 0.1),
        straggler=_often(random, 0.05),
        late_s=2.0,
        no_offset=_often(random, 0.05),
        unavailable=_often(random, 0.01),
        unavailable_s=random.choice([0.1, 1.0]),
    )


def _draw_wire(random: Random) -> WireFaults:
    return WireFaults(
        delay_s=random.choice([0.0005, 0.005]),
        slow=_often(random, 0.1),
        slow_s=random.choice([0.05, 0.5]),
        loss=_often(random, 0.002),
    )
