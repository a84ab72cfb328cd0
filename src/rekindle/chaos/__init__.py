"""Chaos: faults, the simulator, and the judge, who reads the log by itself and trusts nothing of the system."""

from rekindle.chaos.reading import Counted, Reading, Reign, read

__all__ = [
    "Counted",
    "Reading",
    "Reign",
    "read",
]
