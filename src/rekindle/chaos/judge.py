"""The judge of a run: its own history of what was asked and answered, its own reading of the log, and nothing else.

It knows what clients know (as in Jepsen): an operation was answered, was refused or failed for certain, or nobody knows.
The log gives all entries of a key in one order; the run is clean if that order explains everything that was said:

- what was acknowledged is there once, at the place and with the past that its answer named;
- what was refused or failed is not there, and never comes; what is unknown is there at most once;
- nothing is there that nobody asked for, and no command has two outcomes;
- whoever looked saw a past of that order; nothing older than what was answered before it looked, nothing of what began
  after it had its answer (so the history is linearizable).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import accumulate
from math import inf
from zlib import crc32

from rekindle.chaos.reading import Reading

Seen = tuple[int, int]


class End(Enum):
    """What became of an operation, as its caller knows it."""

    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Op:
    """One operation. tag: what a command writes; None for a query. seen: the past that its answer named."""

    key: str
    kind: str
    tag: str | None
    began: float
    ended: float = inf
    end: End = End.UNKNOWN
    seen: Seen | None = None

    @property
    def adds(self) -> bool:
        """Whether it was told that it had an effect."""
        return self.tag is not None and self.end is End.OK

    def __str__(self) -> str:
        return f"{self.kind} {self.tag or ''} of {self.key!r} ({self.began:.4f} to {self.ended:.4f}, {self.end.value} {self.seen})"


@dataclass(slots=True)
class History:
    """Everything that was asked, and what came of it. Times are the callers' own; here they share one clock."""

    ops: list[Op] = field(default_factory=list[Op])

    def begin(self, key: str, kind: str, tag: str | None, now: float) -> Op:
        """An operation begins."""
        op = Op(key, kind, tag, now)
        self.ops.append(op)
        return op

    def count(self, end: End) -> int:
        """How many operations have ended like this."""
        return sum(op.end is end for op in self.ops)


def judge(history: History, readings: Sequence[Reading]) -> list[str]:
    """What is wrong; nothing if the run was clean."""
    entries, faults = _entries(readings)
    asked = {op.tag: op for op in history.ops if op.tag is not None}
    for key in sorted({op.key for op in history.ops} | set(entries)):
        order = entries.get(key, [])
        ops = [op for op in history.ops if op.key == key]
        pasts = _pasts(order)
        faults += _judge_entries(key, order, asked)
        faults += [fault for op in ops if (fault := _judge_op(op, order, pasts))]
        faults += _judge_order(ops, [asked[tag] for tag in order if tag in asked])
    return faults


def _entries(readings: Sequence[Reading]) -> tuple[dict[str, list[str]], list[str]]:
    """The tags of each key in the order of the log; commands with two outcomes, which no log may have."""
    entries: dict[str, list[str]] = {}
    outcomes: Counter[tuple[int, bytes, int]] = Counter()
    for shard, reading in enumerate(readings):
        for commit in reading.commands:
            outcomes[shard, commit.session, commit.number] += 1
            entries.setdefault(commit.entity, []).extend(fields["tag"] for _, _, fields in commit.events)
    twice = [f"command {key} has {count} outcomes in the log" for key, count in outcomes.items() if count > 1]
    return entries, twice


def _judge_entries(key: str, order: list[str], asked: dict[str, Op]) -> list[str]:
    twice = [f"doubled: {tag} is {count} times in {key!r}" for tag, count in Counter(order).items() if count > 1]
    strange = [f"nobody asked for {tag} in {key!r}" for tag in order if tag not in asked or asked[tag].key != key]
    return twice + strange


def _pasts(order: list[str]) -> list[int]:
    """The digests of the empty past, of the first entry, of the first two, and so on."""
    digests = [0]
    for tag in order:
        digests.append(crc32(tag.encode(), digests[-1]))
    return digests


def _judge_op(op: Op, order: list[str], pasts: list[int]) -> str | None:
    """Whether the log has what the operation was told."""
    if op.end in (End.REFUSED, End.FAILED) and op.tag in order:
        return f"refused and yet there: {op}"
    if op.adds and op.tag not in order:
        return f"lost: {op}"
    if op.seen is None:
        return f"an answer that says nothing: {op}" if op.end is End.OK else None
    count, digest = op.seen
    if count >= len(pasts) or pasts[count] != digest:
        return f"saw a past that never was: {op}, the log has {len(order)} entries"
    if op.adds and order[count - 1] != op.tag:
        return f"is not where it was told: {op}, entry {count} is {order[count - 1]}"
    return None


def _judge_order(ops: list[Op], entries: list[Op]) -> list[str]:
    """Linearizability, given the order of the effects: real time and the log must not contradict each other."""
    seen = [(op, op.seen[0]) for op in ops if op.seen is not None]
    answered = sorted((op.ended, count) for op, count in seen)
    newest = [0.0, *accumulate((op.began for op in entries), max)]
    faults: list[str] = []
    floor = upto = 0
    for op, count in sorted(seen, key=lambda pair: pair[0].began):
        while upto < len(answered) and answered[upto][0] < op.began:
            floor, upto = max(floor, answered[upto][1]), upto + 1
        if count < floor + op.adds:
            faults.append(f"stale: {op}, {floor} entries were answered before it began")
        if count < len(newest) and newest[count] > op.ended:
            faults.append(f"from the future: {op} saw an entry that was asked for at {newest[count]:.4f}")
    return faults
