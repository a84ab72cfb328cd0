"""A shard's log as the judge reads it: the rules of the design (section 4), written a second time.

Nothing of `rekindle.events` is in here, so that a bug in the rules or in the codec cannot hide itself: the bytes are
taken apart with msgpack alone, and what counts is found in another way. `rules.Fold` goes through the log record by
record and keeps a state; here the claims come first and cut the log into reigns, then each commit is looked up.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgpack

CLAIM: Final = 1
COMMAND: Final = 2


@dataclass(frozen=True, slots=True)
class Reign:
    """A claim that counts, and so the time until the next one. offset: the term of all commits under it."""

    offset: int
    assignment: int
    incarnation: str


@dataclass(frozen=True, slots=True)
class Counted:
    """A commit that counts. number: 0 for barriers and snapshots. events: [name, version, fields] each."""

    offset: int
    sequence: int
    time: int
    session: bytes
    number: int
    entity: str
    version: int
    reply: Any
    events: list[Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a log means: who owned the shard, what counts, how many of our records do not."""

    reigns: list[Reign]
    counted: list[Counted]
    void: int

    @property
    def commands(self) -> list[Counted]:
        """What counts and was asked for by somebody."""
        return [commit for commit in self.counted if commit.number]


def read(records: Iterable[tuple[int, bytes | None]]) -> Reading:
    """What the records, (offset, value) in order, mean."""
    ours = [(offset, taken) for offset, value in records if (taken := _take_apart(value)) is not None]
    claims = [(offset, head) for offset, (head, _) in ours if head[2] == CLAIM]
    commits = [(offset, head, events) for offset, (head, events) in ours if head[2] >= COMMAND]
    reigns = _reigns(claims)
    counted = _counted(reigns, commits)
    return Reading(reigns, counted, len(ours) - len(reigns) - len(counted))


def _take_apart(value: bytes | None) -> tuple[list[Any], list[Any]] | None:
    """The head and the events of a record of ours, None for anything else."""
    try:
        head, events = msgpack.unpackb(value, strict_map_key=False)
        return (head, events) if head[0] == "rk" else None
    except (ValueError, TypeError, LookupError):  # whatever else lies there
        return None


def _reigns(claims: list[tuple[int, list[Any]]]) -> list[Reign]:
    """Rule 1: a claim counts if its assignment is higher, or equal and of the same incarnation."""
    reigns: list[Reign] = []
    for offset, (_, _, _, assignment, incarnation, _) in claims:
        last = reigns[-1] if reigns else Reign(-1, -1, "")
        if (assignment, incarnation) == (last.assignment, last.incarnation) or assignment > last.assignment:
            reigns.append(Reign(offset, assignment, incarnation))
    return reigns


def _counted(reigns: list[Reign], commits: list[tuple[int, list[Any], list[Any]]]) -> list[Counted]:
    """Rule 2: a commit counts under the term in force at its place, if it is the next one."""
    starts = [reign.offset for reign in reigns]
    counted: list[Counted] = []
    for offset, head, events in commits:
        _, _, _, term, sequence, time, session, number, _, entity, version, reply, _ = head
        in_force = bisect_right(starts, offset) - 1
        if in_force >= 0 and starts[in_force] == term and sequence == len(counted) + 1:
            outcome = msgpack.unpackb(reply, strict_map_key=False) if reply else None
            counted.append(Counted(offset, sequence, time, session, number, entity, version, outcome, events))
    return counted
