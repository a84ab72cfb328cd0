"""The flights example without the system: the commands, the batch fold and the judge's verdict.

Goal: the judge is right on six flights whose answer was worked out by hand, and it sees every kind of damage.
Method: the damaged system is played by the batch fold itself, over rows that were damaged first. The digest was
chained with `b2sum -l 128` in a shell. The last tests hold what `data/README.md` states about the shipped month.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import lzma
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from examples.flights import batch as batch_module
from examples.flights.batch import Batch, Expected, aircraft_of, batch_of, read_batch
from examples.flights.commands import Arrive, Cancel, Depart, Divert, by_aircraft, read_stream, stream_of
from examples.flights.compare import DIFFERENCES_SHOWN, Report, compare_aircraft, compare_flights
from examples.flights.extract import JANUARY, Row, month_of, read_rows, to_csv

ROWS: list[Row] = list(
    csv.DictReader(
        """\
year,month,day,dep_time,dep_delay,arr_time,arr_delay,carrier,flight,tailnum,origin,air_time,distance,minute,time_hour
2013,1,1,517,2,830,11,UA,1,N1,EWR,227,1400,15,2013-01-01T10:00:00Z
2013,1,1,525,-5,700,-20,B6,9,N2,JFK,30,200,30,2013-01-01T10:00:00Z
2013,1,2,640,40,830,-3,UA,2,N1,LGA,100,700,0,2013-01-02T11:00:00Z
2013,1,2,1215,15,1500,NA,B6,10,N2,JFK,NA,900,0,2013-01-02T17:00:00Z
2013,1,3,NA,NA,NA,NA,UA,3,N1,JFK,NA,500,0,2013-01-03T11:00:00Z
2013,1,3,NA,NA,NA,NA,AA,7,NA,JFK,NA,500,0,2013-01-03T12:00:00Z
""".splitlines()
    )
)
FIRST, _, SECOND, DIVERTED, CANCELLED, _ = range(len(ROWS))

N1 = Expected(
    events=5,
    flown=2,
    diverted=0,
    cancelled=1,
    departures={"EWR": 1, "LGA": 1},
    carriers={"UA": 3},
    late_departure_minutes=42,
    arrival_delay_minutes=8,
    worst_delay=40,
    air_minutes=327,
    miles=2100,
    last_flight="2013-01-03 UA3 JFK",
    digest="ecc7ff430b88f6e89d724915581eb92f",
)


def verdict_on(rows: Sequence[Row]) -> Report:
    """The verdict on a system that has taken in these rows in place of `ROWS`."""
    known = [row for row in rows if row["tailnum"] != "NA"]
    system = {tailnum: asdict(state) for tailnum, state in aircraft_of(known).items()}
    return compare_aircraft(system, batch_of(ROWS))


def swapped(one: int, other: int) -> list[Row]:
    """`ROWS` with two of them in each other's place."""
    rows = list(ROWS)
    rows[one], rows[other] = rows[other], rows[one]
    return rows


def without(index: int) -> list[Row]:
    """`ROWS` with one of them gone."""
    return ROWS[:index] + ROWS[index + 1 :]


def events_of(batch: Batch) -> list[tuple[str, str]]:
    """The events of a log in which nothing went wrong."""
    return [(flight, name) for flight, names in batch.flights.items() for name in names]


class TestBatch:
    def test_the_state_is_the_one_worked_out_by_hand(self) -> None:
        assert batch_of(ROWS).aircraft["N1"] == N1

    def test_early_departures_are_not_late_and_a_diversion_adds_no_miles(self) -> None:
        n2 = batch_of(ROWS).aircraft["N2"]
        assert (n2.late_departure_minutes, n2.arrival_delay_minutes, n2.worst_delay) == (15, -20, 15)
        assert (n2.flown, n2.diverted, n2.air_minutes, n2.miles) == (1, 1, 30, 200)

    def test_an_aircraft_that_never_left_has_no_delay(self) -> None:
        state = aircraft_of([ROWS[CANCELLED]])["N1"]
        assert (state.worst_delay, state.departures, state.cancelled) == (0, {}, 1)

    def test_every_flight_is_in_the_table_once_with_its_events(self) -> None:
        assert batch_of(ROWS).flights == {
            "2013-01-01 UA1 EWR": ("Departed", "Arrived"),
            "2013-01-01 B69 JFK": ("Departed", "Arrived"),
            "2013-01-02 UA2 LGA": ("Departed", "Arrived"),
            "2013-01-02 B610 JFK": ("Departed", "Diverted"),
            "2013-01-03 UA3 JFK": ("Cancelled",),
        }

    def test_rows_without_a_tail_number_are_counted(self) -> None:
        batch = batch_of(ROWS)
        assert batch.without_tailnum == 1
        assert batch.aircraft.keys() == {"N1", "N2"}

    def test_a_file_with_a_flight_twice_is_refused(self) -> None:
        with pytest.raises(ValueError, match="6 flights have only 5 keys"):
            batch_of([*ROWS, ROWS[FIRST]])

    def test_the_judge_imports_nothing_of_ours(self) -> None:
        nodes = list(ast.walk(ast.parse(Path(batch_module.__file__).read_text("utf-8"))))
        plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        within = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        assert {name.split(".")[0] for name in [*plain, *within]} <= sys.stdlib_module_names


class TestCommands:
    def test_each_kind_of_row_gives_its_commands_in_file_order(self) -> None:
        assert by_aircraft(stream_of(ROWS).commands) == {
            "N1": [
                Depart("N1", "2013-01-01 UA1 EWR", "UA", "EWR", 2),
                Arrive("N1", "2013-01-01 UA1 EWR", 11, 227, 1400),
                Depart("N1", "2013-01-02 UA2 LGA", "UA", "LGA", 40),
                Arrive("N1", "2013-01-02 UA2 LGA", -3, 100, 700),
                Cancel("N1", "2013-01-03 UA3 JFK", "UA"),
            ],
            "N2": [
                Depart("N2", "2013-01-01 B69 JFK", "B6", "JFK", -5),
                Arrive("N2", "2013-01-01 B69 JFK", -20, 30, 200),
                Depart("N2", "2013-01-02 B610 JFK", "B6", "JFK", 15),
                Divert("N2", "2013-01-02 B610 JFK"),
            ],
        }

    def test_no_row_vanishes_in_silence(self) -> None:
        stream = stream_of(ROWS)
        assert (stream.rows, stream.without_tailnum) == (6, 1)

    def test_a_row_that_contradicts_itself_is_refused(self) -> None:
        with pytest.raises(ValueError, match="NA"):
            stream_of([{**ROWS[FIRST], "air_time": "NA"}])


class TestCompareAircraft:
    def test_an_undamaged_system_passes(self) -> None:
        report = verdict_on(ROWS)
        assert report == Report("aircraft", compared=2, events=9, lost=0, doubled=0, differing=0, differences=())
        assert report.passed
        assert str(report) == "PASSED: 2 aircraft compared, 9 events expected: 0 lost, 0 doubled, 0 aircraft differ"

    def test_the_order_between_aircraft_does_not_matter(self) -> None:
        assert verdict_on(swapped(SECOND, DIVERTED)).passed

    @pytest.mark.parametrize(("index", "events"), [(FIRST, 2), (SECOND, 2), (DIVERTED, 2), (CANCELLED, 1)])
    def test_a_dropped_flight_is_lost(self, index: int, events: int) -> None:
        report = verdict_on(without(index))
        assert (report.lost, report.doubled, report.differing, report.passed) == (events, 0, 1, False)

    @pytest.mark.parametrize(("index", "events"), [(FIRST, 2), (SECOND, 2), (DIVERTED, 2), (CANCELLED, 1)])
    def test_a_doubled_flight_is_doubled(self, index: int, events: int) -> None:
        report = verdict_on([*ROWS[:index], ROWS[index], *ROWS[index:]])
        assert (report.lost, report.doubled, report.differing, report.passed) == (0, events, 1, False)

    def test_swapped_flights_differ_in_the_digest_alone(self) -> None:
        report = verdict_on(swapped(FIRST, SECOND))
        assert (report.lost, report.doubled, report.differing, report.passed) == (0, 0, 1, False)
        (told,) = report.differences
        assert told.startswith("N1: digest is ")
        assert told.endswith(f", should be {N1.digest}")

    @pytest.mark.parametrize(
        ("column", "value", "told"),
        [
            ("air_time", "228", "N1: air_minutes is 328, should be 327"),
            ("distance", "1401", "N1: miles is 2101, should be 2100"),
            ("dep_delay", "3", "N1: late_departure_minutes is 43, should be 42"),
            ("arr_delay", "12", "N1: arrival_delay_minutes is 9, should be 8"),
            ("origin", "JFK", "N1: departures is {'JFK': 1, 'LGA': 1}, should be {'EWR': 1, 'LGA': 1}"),
            ("carrier", "AA", "N1: carriers is {'AA': 1, 'UA': 2}, should be {'UA': 3}"),
        ],
    )
    def test_one_field_off_is_told_in_words(self, column: str, value: str, told: str) -> None:
        report = verdict_on([{**ROWS[FIRST], column: value}, *ROWS[1:]])
        assert (report.lost, report.doubled, report.differing, report.passed) == (0, 0, 1, False)
        assert report.differences[0] == told

    def test_an_early_departure_that_is_off_shows_although_no_sum_has_it(self) -> None:
        early = 1
        report = verdict_on([*ROWS[:early], {**ROWS[early], "dep_delay": "-6"}, *ROWS[early + 1 :]])
        assert [told.split(" is ")[0] for told in report.differences] == ["N2: digest"]

    def test_one_lost_and_one_doubled_do_not_cancel_out(self) -> None:
        rows = [ROWS[FIRST], ROWS[FIRST], *(row for row in ROWS[1:] if row is not ROWS[SECOND])]
        report = verdict_on(rows)
        assert (report.lost, report.doubled, report.differing, report.passed) == (0, 0, 1, False)

    def test_an_aircraft_that_the_system_lacks_has_lost_everything(self) -> None:
        report = verdict_on([row for row in ROWS if row["tailnum"] != "N1"])
        assert (report.compared, report.lost, report.differing, report.passed) == (1, 5, 1, False)
        assert report.differences == ("N1: unknown to the system",)

    def test_an_aircraft_that_nobody_sent_anything_to_is_a_difference(self) -> None:
        report = verdict_on([*ROWS, {**ROWS[FIRST], "tailnum": "N3"}])
        assert (report.doubled, report.differing, report.passed) == (2, 1, False)
        assert report.differences == ("N3: unknown to the batch",)

    def test_a_field_that_only_one_side_has_is_a_difference(self) -> None:
        batch = replace(batch_of(ROWS), aircraft={"N1": N1})
        more = compare_aircraft({"N1": {**asdict(N1), "wings": 2}}, batch)
        less = compare_aircraft({"N1": {k: v for k, v in asdict(N1).items() if k != "miles"}}, batch)
        assert more.differences == ("N1: wings is 2, should be nothing",)
        assert less.differences == ("N1: miles is nothing, should be 2100",)
        assert not more.passed
        assert not less.passed

    def test_zero_aircraft_never_pass(self) -> None:
        nothing = Batch(aircraft={}, flights={}, without_tailnum=0)
        assert not compare_aircraft({}, nothing).passed
        assert not compare_aircraft({}, batch_of(ROWS)).passed
        assert not compare_aircraft({"N1": asdict(N1)}, nothing).passed
        assert not compare_flights([], nothing).passed

    def test_only_the_first_differences_are_told(self) -> None:
        report = verdict_on([{**row, "carrier": "XX"} for row in ROWS])
        assert report.differing == 2
        assert len(report.differences) == DIFFERENCES_SHOWN
        assert str(report).count("\n") == DIFFERENCES_SHOWN


class TestCompareFlights:
    def test_a_whole_log_passes_in_any_order(self) -> None:
        batch = batch_of(ROWS)
        report = compare_flights(reversed(events_of(batch)), batch)
        assert report == Report("flights", compared=5, events=9, lost=0, doubled=0, differing=0, differences=())
        assert report.passed

    def test_a_lost_and_a_doubled_event_are_both_told(self) -> None:
        batch = batch_of(ROWS)
        departed, arrived, *others = events_of(batch)
        report = compare_flights([departed, departed, *others], batch)
        assert arrived == ("2013-01-01 UA1 EWR", "Arrived")
        assert (report.lost, report.doubled, report.differing, report.passed) == (1, 1, 1, False)
        assert report.differences == (
            "2013-01-01 UA1 EWR: Departed was applied 2 times, should be 1",
            "2013-01-01 UA1 EWR: Arrived was applied 0 times, should be 1",
        )

    def test_a_flight_that_is_not_in_the_file_is_too_many(self) -> None:
        batch = batch_of(ROWS)
        report = compare_flights([*events_of(batch), ("2013-01-09 UA5 EWR", "Cancelled")], batch)
        assert (report.compared, report.doubled, report.differing, report.passed) == (5, 1, 1, False)


class TestExtract:
    def test_a_month_is_cut_out_and_sorted_by_schedule(self) -> None:
        year = [*reversed(ROWS), {**ROWS[FIRST], "month": "10"}]
        assert month_of(year, 2013, 1) == ROWS

    def test_minutes_and_flight_numbers_sort_as_numbers(self) -> None:
        late, high = {**ROWS[FIRST], "minute": "100"}, {**ROWS[FIRST], "flight": "10"}
        low = {**ROWS[FIRST], "flight": "9"}
        assert month_of([late, high, low], 2013, 1) == [low, high, late]

    def test_the_csv_reads_back_as_it_was(self) -> None:
        assert list(csv.DictReader(to_csv(ROWS).decode().splitlines())) == ROWS


class TestJanuary:
    """What `data/README.md` states about the shipped file."""

    def test_the_file_is_the_one_described(self) -> None:
        content = lzma.decompress(JANUARY.read_bytes())
        expected = "516d3478c13f015031c0e9bb6575673341989484e0ea37ef7425860c66713bbd"
        assert hashlib.sha256(content).hexdigest() == expected
        rows = list(read_rows(JANUARY))
        assert month_of(rows, 2013, 1) == rows

    def test_commands_and_batch_count_alike(self) -> None:
        stream, batch = read_stream(JANUARY), read_batch(JANUARY)
        kinds = Counter(type(command).__name__ for command in stream.commands)
        assert kinds == {"Depart": 26_483, "Arrive": 26_398, "Divert": 85, "Cancel": 366}
        assert (stream.rows, stream.without_tailnum, batch.without_tailnum) == (27_004, 155, 155)
        sent = {tailnum: len(commands) for tailnum, commands in by_aircraft(stream.commands).items()}
        assert sent == {tailnum: state.events for tailnum, state in batch.aircraft.items()}
        assert (len(sent), sum(sent.values()), len(batch.flights)) == (3_148, 53_332, 26_849)
