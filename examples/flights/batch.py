"""The judge's own answer: what every aircraft must remember, computed from the file in one go.

It shares not a line with the entities nor with the commands sent to them, it even reads the file by itself: a bug
that two sides share is a bug that no comparison sees. It does not fold events either. It groups the rows by
aircraft and takes sums, counts and maxima, so that it can be checked by reading.

The specification that both sides follow:

- A row without `dep_delay` is a cancelled flight; one with it but without `air_time` was diverted; the others were
  flown. Cancelled flights make one event, the others two. Rows without a tail number (`NA`) have no aircraft.
- A flight's key is `2013-01-01 UA1545 EWR`.
- `digest` starts empty. Each event, in file order, makes it blake2b-128 in hex of `<digest>\\n<line>`, the line being
  `Departed <key> <dep_delay>`, `Arrived <key> <arr_delay> <air_time> <distance>`, `Diverted <key>` or
  `Cancelled <key>`. So a lost, doubled, reordered or altered event changes it, whatever the sums say.
"""

from __future__ import annotations

import csv
import lzma
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from hashlib import blake2b
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Expected:
    """The state that one aircraft must have at the end.

    Sums are over flown flights, except `late_departure_minutes` (over all that departed, early ones as 0).
    `arrival_delay_minutes` is net: early arrivals count negative. `worst_delay` is the largest delay of a departure
    or an arrival, 0 if there was none. `carriers` counts all flights, cancelled ones too.
    """

    events: int
    flown: int
    diverted: int
    cancelled: int
    departures: dict[str, int]
    carriers: dict[str, int]
    late_departure_minutes: int
    arrival_delay_minutes: int
    worst_delay: int
    air_minutes: int
    miles: int
    last_flight: str
    digest: str


@dataclass(frozen=True, slots=True)
class Batch:
    """All that must hold at the end.

    `aircraft`: the state by tail number. `flights`: by flight key, the names of its events, each to be found in the
    log exactly once. `without_tailnum`: the rows that are in neither.
    """

    aircraft: dict[str, Expected]
    flights: dict[str, tuple[str, ...]]
    without_tailnum: int


def read_batch(path: Path) -> Batch:
    """The batch of an xz-compressed CSV."""
    with lzma.open(path, "rt", encoding="utf-8", newline="") as file:
        return batch_of(list(csv.DictReader(file)))


def batch_of(rows: Sequence[Mapping[str, str]]) -> Batch:
    """The batch of these rows. Raises ValueError if a flight is in them twice: 'exactly once' would mean nothing."""
    known = [row for row in rows if row["tailnum"] != "NA"]
    flights = {flight_key(row): tuple(line.split()[0] for line in _lines(row)) for row in known}
    if len(flights) != len(known):
        raise ValueError(f"{len(known)} flights have only {len(flights)} keys: some flight is in the file twice")
    return Batch(aircraft_of(known), flights, without_tailnum=len(rows) - len(known))


def aircraft_of(rows: Iterable[Mapping[str, str]]) -> dict[str, Expected]:
    """The state of each aircraft in these rows, which all have a tail number."""
    flights: defaultdict[str, list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        flights[row["tailnum"]].append(row)
    return {tailnum: _expected(its_rows) for tailnum, its_rows in flights.items()}


def _expected(rows: Sequence[Mapping[str, str]]) -> Expected:
    departed = [row for row in rows if row["dep_delay"] != "NA"]
    flown = [row for row in departed if row["air_time"] != "NA"]
    departure_delays = _numbers(departed, "dep_delay")
    arrival_delays = _numbers(flown, "arr_delay")
    return Expected(
        events=len(rows) + len(departed),
        flown=len(flown),
        diverted=len(departed) - len(flown),
        cancelled=len(rows) - len(departed),
        departures=dict(Counter(row["origin"] for row in departed)),
        carriers=dict(Counter(row["carrier"] for row in rows)),
        late_departure_minutes=sum(delay for delay in departure_delays if delay > 0),
        arrival_delay_minutes=sum(arrival_delays),
        worst_delay=max([0, *departure_delays, *arrival_delays]),
        air_minutes=sum(_numbers(flown, "air_time")),
        miles=sum(_numbers(flown, "distance")),
        last_flight=flight_key(rows[-1]),
        digest=reduce(_digest, (line for row in rows for line in _lines(row)), ""),
    )


def _numbers(rows: Iterable[Mapping[str, str]], column: str) -> list[int]:
    return [int(row[column]) for row in rows]


def flight_key(row: Mapping[str, str]) -> str:
    """What names a flight, unique in the file: day, carrier and number, origin."""
    return "{year}-{month:0>2}-{day:0>2} {carrier}{flight} {origin}".format_map(row)


def _lines(row: Mapping[str, str]) -> list[str]:
    """What the digest takes in of one flight: a line for each event."""
    key = flight_key(row)
    if row["dep_delay"] == "NA":
        return [f"Cancelled {key}"]
    departed = f"Departed {key} {row['dep_delay']}"
    if row["air_time"] == "NA":
        return [departed, f"Diverted {key}"]
    return [departed, f"Arrived {key} {row['arr_delay']} {row['air_time']} {row['distance']}"]


def _digest(before: str, line: str) -> str:
    return blake2b(f"{before}\n{line}".encode(), digest_size=16).hexdigest()
