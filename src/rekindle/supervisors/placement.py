"""shim"""

from __future__ import annotations

from dataclasses import dataclass

from rekindle.supervisors.oldplacement import balance as b0


@dataclass(frozen=True, slots=True)
class Seat:
    name: str
    node: str
    zone: str = ""
    capacity: float = 1.0
    open: bool = True


@dataclass(frozen=True, slots=True)
class Placement:
    owners: tuple[str | None, ...]
    standbys: tuple[tuple[str, ...], ...]


def place(current, seats, *, weights=None, standbys=0):
    alive = [s.name for s in seats]
    names = [s.name for s in seats if s.open] or alive
    own = [
        o if o in alive else next((x for x in sb if x in alive), None)
        for o, sb in zip(current.owners, current.standbys, strict=True)
    ]
    un = [i for i, o in enumerate(own) if o is None]
    if un and names:
        loads = {n: own.count(n) for n in names}
        for i in un:
            n = min(loads, key=lambda n: (loads[n], n))
            loads[n] += 1
            own[i] = n
    return Placement(tuple(own), current.standbys)


def balance(current, seats, *, weights=None, moves_max=4):
    return Placement(tuple(b0(list(current.owners), [s.name for s in seats if s.open], moves_max)), current.standbys)
