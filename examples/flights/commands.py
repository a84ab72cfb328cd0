"""What happened to each aircraft, as commands: the input of the demo.

A row of the file is a finished flight. It becomes what the aircraft would have reported:

    flown      Depart, Arrive
    diverted   Depart, Divert      left, but has no arrival delay: it did not land where it was to
    cancelled  Cancel

Commands keep the order of the file, and the commands of one flight stand together. So one aircraft's commands have
one order, which the digest of its state holds. Commands of different aircraft may be sent in any order, or at once.

`scheduled` is not sent: no state depends on it. A row without a tail number has no aircraft to be sent to; such
rows are counted, and whoever runs the stream prints the count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from examples.flights.extract import NO_VALUE, Row, read_rows


@dataclass(frozen=True, slots=True)
class Depart:
    """The aircraft left the gate, `delay` minutes late (negative: early)."""

    tailnum: str
    flight: str
    carrier: str
    origin: str
    delay: int


@dataclass(frozen=True, slots=True)
class Arrive:
    """It landed where it was to, `delay` minutes late, after `air_time` minutes and `distance` miles."""

    tailnum: str
    flight: str
    delay: int
    air_time: int
    distance: int


@dataclass(frozen=True, slots=True)
class Divert:
    """It did not land where it was to."""

    tailnum: str
    flight: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """The flight never left."""

    tailnum: str
    flight: str
    carrier: str


Command: TypeAlias = Depart | Arrive | Divert | Cancel


@dataclass(frozen=True, slots=True)
class Stream:
    """The commands in order, and what became of every row: `rows` is all of them, `without_tailnum` those not sent."""

    commands: tuple[Command, ...]
    rows: int
    without_tailnum: int


def read_stream(path: Path) -> Stream:
    """The stream of a file as `extract` writes it."""
    return stream_of(list(read_rows(path)))


def stream_of(rows: Sequence[Row]) -> Stream:
    """The stream of these rows. The same rows always give the same stream."""
    sendable = [row for row in rows if row["tailnum"] != NO_VALUE]
    commands = tuple(command for row in sendable for command in _commands_of(row))
    return Stream(commands, rows=len(rows), without_tailnum=len(rows) - len(sendable))


def by_aircraft(commands: Iterable[Command]) -> dict[str, list[Command]]:
    """Each aircraft's commands, in the order in which that aircraft must get them."""
    found: defaultdict[str, list[Command]] = defaultdict(list)
    for command in commands:
        found[command.tailnum].append(command)
    return dict(found)


def _commands_of(row: Row) -> list[Command]:
    if row["dep_time"] == NO_VALUE:
        return [Cancel(row["tailnum"], _flight(row), row["carrier"])]
    return [_departure(row), _end(row)]


def _departure(row: Row) -> Depart:
    return Depart(row["tailnum"], _flight(row), row["carrier"], row["origin"], int(row["dep_delay"]))


def _end(row: Row) -> Arrive | Divert:
    # Not by `arr_time`: 70 flights of January have one and no delay. They landed, but somewhere else.
    if row["arr_delay"] == NO_VALUE:
        return Divert(row["tailnum"], _flight(row))
    minutes_late, minutes_up = int(row["arr_delay"]), int(row["air_time"])
    return Arrive(row["tailnum"], _flight(row), minutes_late, minutes_up, int(row["distance"]))


def _flight(row: Row) -> str:
    """The flight's key as people write it: `2013-01-01 UA1545 EWR`."""
    day = f"{row['year']}-{int(row['month']):02}-{int(row['day']):02}"
    return f"{day} {row['carrier']}{row['flight']} {row['origin']}"
