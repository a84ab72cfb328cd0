"""Many seeds of the model, judged from the clients' side alone.

python -m tests.model.explore 30000         the rules as they stand, then each mutant, which must be caught
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from tests.model.claims import MUTANTS, Commit, Fold, Kind, Name, Op, World

Counted = dict[tuple[Name, int], list[int]]
"""When each command landed in the log with an effect."""


def judge(world: World) -> str | None:
    """What is wrong with the run, if anything."""
    fold, counted = Fold(), Counted()
    for offset, record in enumerate(world.log):
        if fold.feed(record) and isinstance(record, Commit) and record.session and record.reply.kind is Kind.OK:
            counted.setdefault((record.session, record.number), []).append(world.landed[offset])
    return verdict(world.ops, counted)


def verdict(ops: list[Op], counted: Counted) -> str | None:
    """What is wrong with what clients were told, given what counts."""
    for key, times in counted.items():
        if len(times) > 1:
            return f"doubled {key}"
    commands = ((op, counted.get((op.session.name, op.number), [])) for op in ops if op.session)
    faults = [_judge_command(op, times) for op, times in commands]
    faults += [_judge_order([op for op in ops if op.key == key]) for key in sorted({op.key for op in ops})]
    return next((fault for fault in faults if fault), None)


def _judge_command(op: Op, counted: list[int]) -> str | None:
    definite = {reply for reply in op.answers if reply.kind is not Kind.FORGOTTEN}
    kinds = {reply.kind for reply in definite}
    if Kind.REFUSED in kinds and counted:
        return f"refused and yet counted: {op.kind} {op.number}"
    if Kind.OK in kinds and not counted:
        return f"lost: {op.kind} {op.number}"
    if len(definite) > 1:
        return f"two answers: {definite}"
    if counted and counted[0] > op.forgotten:
        return f"given up and yet run later: {op.kind} {op.number}"
    return None


def _judge_order(ops: list[Op]) -> str | None:
    """Linearizability of a counter: an operation sees at least what was answered before it began."""
    seen = [(op, op.answers[0]) for op in ops if op.answers and op.answers[0].kind is not Kind.FORGOTTEN]
    answered = sorted((op.ended or 0, reply.value) for op, reply in seen)
    floor = upto = 0
    for op, reply in sorted(seen, key=lambda pair: pair[0].began):
        while answered[upto][0] < op.began:
            floor, upto = max(floor, answered[upto][1]), upto + 1
        adds = op.session is not None and reply.kind is Kind.OK
        if reply.value < floor + adds:
            return f"stale {op.kind}: saw {reply.value}, {floor} was answered before it began"
    return None


# --- the figures -------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """What came of many seeds."""

    violations: int = 0
    first: tuple[int, str] | None = None
    answers: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))


def explore(seeds: range, mutant: str | None = None, until: int = sys.maxsize) -> Found:
    """Run the seeds, up to so many violations."""
    found = Found()
    for seed in seeds:
        world = World(seed, mutant).run()
        for reply in (op.answers[0] for op in world.ops if op.answers):
            found.answers[reply.kind] += 1
        if verdict := judge(world):
            found.violations += 1
            found.first = found.first or (seed, verdict)
            if found.violations >= until:
                break
    return found


def main(seeds: int) -> bool:
    """Print figures; whether anything is not as it must be."""
    failed = False
    for mutant in (None, *MUTANTS):
        found = explore(range(seeds if mutant is None else max(200, seeds // 5)), mutant)
        answers = ", ".join(f"{count} {kind.value}" for kind, count in found.answers.items())
        print(f"{mutant or 'the rules'}: {found.violations} violations, first {found.first}; {answers}", flush=True)
        failed |= bool(found.violations) == (mutant is None)
    return failed


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000))
