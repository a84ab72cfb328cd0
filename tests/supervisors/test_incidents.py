"""What evidence adds up to: which incident it belongs to, and what that looks like.

Goal: one story for what failed together, none for what did not. Method: examples, each with the evidence that it takes.
"""

from __future__ import annotations

import pytest

from rekindle.supervisors.incidents import (
    AT_ONCE_MS,
    CORRELATE_MS,
    EVIDENCE_MAX,
    FLAP_WINDOW_MS,
    OPEN_MAX,
    Evidence,
    Ground,
    Incident,
    Kind,
    Signal,
    begin,
    grown,
    home_of,
)
from tests.supervisors.worlds import evidence, ground


def kind(*pieces: Evidence, on: Ground | None = None) -> Kind:
    """What these pieces of one incident look like in the end."""
    return grew(*pieces, on=on).kind


def grew(*pieces: Evidence, on: Ground | None = None) -> Incident:
    found = begin(1, pieces[0], on or ground())
    for piece in pieces[1:]:
        found = grown(found, piece, on or ground())
    return found


def belongs(piece: Evidence, *known: Incident, on: Ground | None = None) -> int | None:
    """The number of the incident that the piece belongs to."""
    home = home_of(piece, known, on or ground())
    return None if home is None else home.id


CRASH = evidence(Signal.CLOSED, "a1", "n1")


# Each kind, from the evidence of it


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        (Signal.CLOSED, Kind.INSTANCE_CRASH),
        (Signal.SAID_DEAD, Kind.INSTANCE_CRASH),
        (Signal.ENDED, Kind.INSTANCE_CRASH),
        (Signal.FENCED, Kind.INSTANCE_CRASH),
        (Signal.HUNG, Kind.INSTANCE_HANG),
        (Signal.SILENT, Kind.NODE_SUSPECT),
        (Signal.NODE_GONE, Kind.NODE_DEAD),
        (Signal.SLOW, Kind.GRAY),
        (Signal.POISON, Kind.POISON),
        (Signal.LOG_AWAY, Kind.LOG_UNAVAILABLE),
        (Signal.BUSY, Kind.OVERLOAD),
        (Signal.ASKED, Kind.PLANNED_DRAIN),
        (Signal.POLICY_FAILED, Kind.POLICY_FAILED),
    ],
)
def test_one_piece_of_evidence_looks_like(signal: Signal, expected: Kind) -> None:
    running = ground(running={"n1": 1})
    assert kind(evidence(signal, "a1", "n1"), on=running) is expected


def test_instances_that_die_at_once_and_leave_nothing_on_their_node_have_died_with_it() -> None:
    other = evidence(Signal.CLOSED, "b1", "n1", at_ms=10_000 + AT_ONCE_MS)
    assert kind(CRASH, other) is Kind.NODE_DEAD
    assert kind(CRASH, other, on=ground(running={"n1": 1})) is Kind.INSTANCE_CRASH
    late = other.model_copy(update={"at_ms": 10_001 + AT_ONCE_MS})
    assert kind(CRASH, late) is Kind.INSTANCE_CRASH


def test_a_node_that_the_cluster_does_not_have_any_more_is_dead() -> None:
    assert kind(CRASH, on=ground(alive=["n2", "n3"])) is Kind.NODE_DEAD


def test_a_zone_is_down_when_all_its_nodes_are_lost() -> None:
    zones = {"n1": "east", "n2": "east", "n3": "west", "n4": "west", "n5": "west", "n6": "west"}
    first = evidence(Signal.NODE_GONE, "a1", "n1", zone="east")
    second = evidence(Signal.NODE_GONE, "a2", "n2", zone="east")
    assert kind(first, on=ground(zones, zones)) is Kind.NODE_DEAD
    assert kind(first, second, on=ground(zones, zones)) is Kind.ZONE_DOWN


def test_a_zone_of_one_node_is_just_that_node() -> None:
    assert kind(evidence(Signal.NODE_GONE, "a1", "n1")) is Kind.NODE_DEAD


def test_many_nodes_at_once_are_a_mass_failure() -> None:
    """At least three of them, and a third of all."""
    names = [f"n{number}" for number in range(1, 10)]
    gone = [evidence(Signal.NODE_GONE, "", name) for name in names]
    assert kind(*gone[:2], on=ground(names[:5], {})) is Kind.NODE_DEAD
    assert kind(*gone[:3], on=ground(names[:8], {})) is Kind.MASS_FAILURE
    assert kind(*gone[:3], on=ground(names, {})) is Kind.NODE_DEAD


def test_a_mass_failure_is_seen_however_many_instances_died_in_it() -> None:
    """More than an incident keeps evidence of."""
    names = [f"n{number}" for number in range(EVIDENCE_MAX)]
    deaths = [evidence(Signal.CLOSED, f"a-{name}-{which}", name) for name in names for which in (1, 2)]
    known = [*names, *(f"m{number}" for number in range(EVIDENCE_MAX))]
    assert kind(*deaths[: len(deaths) // 2], on=ground(known, {})) is Kind.NODE_DEAD
    assert kind(*deaths, on=ground(known, {})) is Kind.MASS_FAILURE


def test_a_node_that_is_taken_for_dead_for_the_third_time_flaps() -> None:
    silent = evidence(Signal.SILENT, "a1", "n1", at_ms=FLAP_WINDOW_MS + 1)
    assert kind(silent, on=ground(flaps={"n1": [5_000]})) is Kind.NODE_SUSPECT
    assert kind(silent, on=ground(flaps={"n1": [5_000, 9_000]})) is Kind.FLAPPING
    assert kind(silent, on=ground(flaps={"n1": [1, 9_000]})) is Kind.NODE_SUSPECT, "the first one is long ago"
    crash = silent.model_copy(update={"signal": Signal.CLOSED})
    assert kind(crash, on=ground(flaps={"n1": [5_000, 9_000]})) is Kind.INSTANCE_CRASH, "that is not the node's fault"


def test_what_is_noted_of_this_time_already_does_not_make_it_two_times() -> None:
    silent = evidence(Signal.SILENT, "a1", "n1", at_ms=10_000)
    assert kind(silent, on=ground(flaps={"n1": [5_000, 10_000]})) is Kind.NODE_SUSPECT


def test_a_death_weighs_more_than_a_log_that_is_away() -> None:
    away = evidence(Signal.LOG_AWAY, "a1", "n1")
    assert kind(away, CRASH, on=ground(running={"n1": 1})) is Kind.INSTANCE_CRASH
    assert kind(CRASH, away, on=ground(running={"n1": 1})) is Kind.INSTANCE_CRASH


def test_the_worst_that_happened_to_an_instance_is_what_it_looks_like() -> None:
    hung, silent = evidence(Signal.HUNG, "a2", "n1"), evidence(Signal.SILENT, "a3", "n1")
    assert kind(CRASH, silent, on=ground(running={"n1": 1})) is Kind.NODE_SUSPECT
    assert kind(CRASH, silent, hung, on=ground(running={"n1": 1})) is Kind.INSTANCE_HANG


# What belongs together


@pytest.mark.parametrize(
    ("of_what", "piece"),
    [
        ("its node", evidence(Signal.CLOSED, "x1", "n1", zone="")),
        ("its zone", evidence(Signal.CLOSED, "x1", "n9", zone="z1")),
        ("its service", evidence(Signal.CLOSED, "a2", "n2")),
        ("a service that it needs", evidence(Signal.CLOSED, "b1", "n2")),
    ],
)
def test_what_fails_soon_after_belongs_to_the_incident_of(of_what: str, piece: Evidence) -> None:
    on = ground(related={"b": ["a"]})
    soon, later = (piece.model_copy(update={"at_ms": 10_000 + CORRELATE_MS + extra}) for extra in (0, 1))
    assert belongs(soon, grew(CRASH), on=on) == 1, of_what
    assert belongs(later, grew(CRASH), on=on) is None, of_what


def test_what_has_nothing_in_common_is_another_story() -> None:
    assert belongs(evidence(Signal.CLOSED, "b1", "n2"), grew(CRASH)) is None
    nowhere = evidence(Signal.CLOSED, "b1", "n2", zone="")
    assert belongs(nowhere, grew(evidence(Signal.CLOSED, "a1", "n1", zone=""))) is None


def test_an_incident_goes_on_as_long_as_evidence_comes_in() -> None:
    second = evidence(Signal.CLOSED, "a2", "n2", at_ms=10_000 + CORRELATE_MS)
    third = evidence(Signal.CLOSED, "a3", "n3", at_ms=10_000 + 2 * CORRELATE_MS)
    assert belongs(third, grew(CRASH, second)) == 1


def test_more_of_an_instance_that_is_part_of_it_belongs_to_it_whenever_it_comes() -> None:
    assert belongs(evidence(Signal.SAID_DEAD, "a1", "n1", at_ms=99_000), grew(CRASH)) == 1


def test_a_cluster_may_notice_late_that_a_node_is_gone() -> None:
    late = evidence(Signal.NODE_GONE, "", "n1", at_ms=99_000)
    assert belongs(late, grew(CRASH)) == 1
    assert grew(CRASH, late, on=ground(running={"n1": 1})).kind is Kind.NODE_DEAD


def test_of_several_the_newest_one_grows_and_a_closed_one_never_does() -> None:
    first, second = grew(CRASH), grew(CRASH).model_copy(update={"id": 2})
    piece = evidence(Signal.CLOSED, "a2", "n1")
    assert belongs(piece, first, second) == 2
    closed = second.model_copy(update={"closed_ms": 10_001})
    assert belongs(piece, first, closed) == 1


@pytest.mark.parametrize("signal", [Signal.ASKED, Signal.POISON, Signal.SLOW, Signal.BUSY, Signal.POLICY_FAILED])
def test_what_nobodys_death_explains_stands_apart(signal: Signal) -> None:
    apart = evidence(signal, "a1", "n1", shard=3)
    assert belongs(apart, grew(CRASH)) is None
    assert belongs(CRASH, grew(apart)) is None
    assert belongs(apart.model_copy(update={"at_ms": 99_000}), grew(apart)) == 1, "the same once more"
    assert belongs(apart.model_copy(update={"shard": 4}), grew(apart)) is None, "of another shard"


# Growing


def test_an_incident_remembers_where_and_whom_it_has_met() -> None:
    found = grew(CRASH, evidence(Signal.CLOSED, "b1", "n2", at_ms=11_000), CRASH)
    assert (found.services, found.instances) == (["a", "b"], ["a1", "b1"])
    assert (found.nodes, found.zones) == (["n1", "n2"], ["z1", "z2"])
    assert (found.opened_ms, found.changed_ms, found.count) == (10_000, 11_000, 3)
    assert (found.deaths, found.died_ms) == ({"n1": [10_000], "n2": [11_000]}, 11_000)


def test_the_first_evidence_is_kept_and_the_rest_is_counted() -> None:
    pieces = [evidence(Signal.CLOSED, f"a{number}", "n1") for number in range(EVIDENCE_MAX + 10)]
    found = grew(*pieces)
    assert found.evidence == pieces[:EVIDENCE_MAX]
    assert (found.count, len(found.instances)) == (EVIDENCE_MAX + 10, EVIDENCE_MAX + 10)


def test_only_deaths_are_deaths() -> None:
    assert grew(evidence(Signal.LOG_AWAY, "a1", "n1"), evidence(Signal.LOG_AWAY, "a2", "n1")).deaths == {}
    assert grew(evidence(Signal.SLOW, "a1", "n1")).deaths == {}


def test_where_too_many_are_open_already_the_newest_of_its_sort_takes_what_comes() -> None:
    crashes = [begin(n, evidence(Signal.CLOSED, f"c{n}", f"m{n}", at_ms=n), ground()) for n in range(1, OPEN_MAX)]
    slow = begin(OPEN_MAX, evidence(Signal.SLOW, "d1", "n1"), ground())
    fresh = evidence(Signal.CLOSED, "x1", "n9", at_ms=99_000)
    assert belongs(fresh, *crashes[1:], slow) is None
    assert belongs(fresh, *crashes, slow) == OPEN_MAX - 1
    assert belongs(evidence(Signal.SLOW, "x1", "n9"), *crashes, slow) == OPEN_MAX
    assert belongs(evidence(Signal.BUSY, "x1", "n9"), *crashes, slow) is None
