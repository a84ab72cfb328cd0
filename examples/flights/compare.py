"""The verdict: what the system remembers against what the batch says, in numbers and in words.

    compare_aircraft   the state of every aircraft, field by field
    compare_flights    the events in the log: every flight's events exactly once

Two questions, as neither sees all: a state can be right on top of a wrong log, and a log right under a wrong state.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from examples.flights.batch import Batch

DIFFERENCES_SHOWN: Final = 5
_NOTHING: Final = "nothing"


@dataclass(frozen=True, slots=True)
class Report:
    """One comparison. `compared`: those that both sides know. `events`: how many had to be applied, one per command.

    `lost` and `doubled` count events that are too few and too many, each within one aircraft or one flight, so a loss
    here never pays for a double there. `differing` also has those whose count is right and whose state is not:
    reordered, altered, or one lost and another doubled. `differences` tells the first few in words.
    """

    subject: str
    compared: int
    events: int
    lost: int
    doubled: int
    differing: int
    differences: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Nothing differs, and there was something to compare: an empty run proves nothing."""
        return self.compared > 0 and self.lost == self.doubled == self.differing == 0

    def __str__(self) -> str:
        """The verdict in one line, then the differences, a line each."""
        verdict = "PASSED" if self.passed else "FAILED"
        counts = f"{self.lost:,} lost, {self.doubled:,} doubled, {self.differing:,} {self.subject} differ"
        head = f"{verdict}: {self.compared:,} {self.subject} compared, {self.events:,} events expected: {counts}"
        return "\n  ".join([head, *self.differences])


def compare_aircraft(system: Mapping[str, Mapping[str, object]], batch: Batch) -> Report:
    """The summaries that the system gave, by tail number, against the batch; both sides' aircraft are compared."""
    expected = {tailnum: asdict(state) for tailnum, state in batch.aircraft.items()}
    pairs = {tailnum: (expected.get(tailnum, {}), system.get(tailnum, {})) for tailnum in {**expected, **system}}
    return _report(
        subject="aircraft",
        compared=len(expected.keys() & system.keys()),
        events=sum(map(_count, expected.values())),
        surplus=[_count(found) - _count(should) for should, found in pairs.values()],
        words=[_differences(tailnum, should, found) for tailnum, (should, found) in pairs.items()],
    )


def compare_flights(applied: Iterable[tuple[str, str]], batch: Batch) -> Report:
    """The events in the log as (flight key, event name), in any order, against the batch's table of flights."""
    expected = Counter((flight, name) for flight, names in batch.flights.items() for name in names)
    found = Counter(applied)
    surplus = {event: found[event] - expected[event] for event in expected | found}
    words: defaultdict[str, list[str]] = defaultdict(list)
    for (flight, name), count in surplus.items():
        if count:
            times = expected[flight, name]
            words[flight].append(f"{flight}: {name} was applied {times + count} times, should be {times}")
    return _report(
        subject="flights",
        compared=len({flight for flight, _ in found} & batch.flights.keys()),
        events=expected.total(),
        surplus=list(surplus.values()),
        words=list(words.values()),
    )


def _report(
    *, subject: str, compared: int, events: int, surplus: Sequence[int], words: Sequence[Sequence[str]]
) -> Report:
    return Report(
        subject=subject,
        compared=compared,
        events=events,
        lost=-sum(count for count in surplus if count < 0),
        doubled=sum(count for count in surplus if count > 0),
        differing=sum(bool(its) for its in words),
        differences=tuple(told for its in words for told in its)[:DIFFERENCES_SHOWN],
    )


def _count(state: Mapping[str, object]) -> int:
    """The events that this state has taken in; a state that does not say has taken in none."""
    events = state.get("events")
    return events if isinstance(events, int) else 0


def _differences(tailnum: str, should: Mapping[str, object], found: Mapping[str, object]) -> list[str]:
    if not found or not should:
        return [f"{tailnum}: unknown to the {'system' if should else 'batch'}"]
    return [
        f"{tailnum}: {field} is {found.get(field, _NOTHING)}, should be {should.get(field, _NOTHING)}"
        for field in dict.fromkeys([*should, *found])
        if found.get(field, _NOTHING) != should.get(field, _NOTHING)
    ]
