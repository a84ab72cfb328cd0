"""What the controller concludes about an instance from what it hears of it, or does not hear.

Goal: who is blamed for a death is who was running, and nobody is blamed on a guess where it is known. Method: a ward is
told things as if they had come over its connections.
"""

from __future__ import annotations

import pytest

from rekindle.actors import WebsocketWire
from rekindle.actors.frames import BEGAN, ENDED, PULSE
from rekindle.supervisors.decided import Running
from rekindle.supervisors.ward import SUSPECT_S, Ward
from tests.support.inprocess import in_loop

HANG_S = 2.0
SESSION = b"session"
CALL = [SESSION, 7, "Stock.reserve of 'a'"]


def ward_of() -> Ward:
    """An instance that is alive and has shards 0 to 2; the last of them is not served yet."""
    running = Running(service="s", node="n", address="127.0.0.1:1", beacon="127.0.0.1:2")
    ward = Ward("x", running, WebsocketWire(), None, lambda: None)
    ward.ready = True
    ward.sent = {0: 1, 1: 1, 2: 1}
    ward.serving = {0: 1, 1: 1}
    return ward


def pulse(executing: list[object] | None = None, lag_ms: int = 0) -> list[object]:
    return [PULSE, "x", lag_ms, executing, 0]


@in_loop
async def test_where_nothing_is_known_the_shards_that_were_being_replayed_are_blamed() -> None:
    ward = ward_of()
    assert (ward.blamed(), ward.replaying()) == ([], [2])


@in_loop
async def test_an_announced_replay_is_blamed_alone() -> None:
    ward = ward_of()
    ward.serving.clear()
    ward.on_pulse([BEGAN, b"", 1, "replay"])
    assert (ward.blamed(), ward.replaying()) == ([], [1])
    ward.on_pulse([ENDED, b"", 1])
    assert ward.replaying() == [0, 1, 2]


@in_loop
async def test_what_a_pulse_names_is_blamed_once() -> None:
    ward = ward_of()
    ward.on_pulse(pulse([*CALL, 500]))
    assert (ward.blamed(), ward.replaying()) == ([tuple(CALL)], [])
    ward.on_pulse(pulse())
    assert (ward.blamed(), ward.replaying()) == ([], [2])


@in_loop
async def test_what_was_announced_and_not_ended_is_blamed_for_the_death_before_too() -> None:
    """It is announced because it was in flight when another instance died; whether a pulse names it also is no matter."""
    ward = ward_of()
    ward.on_pulse([BEGAN, *CALL])
    for said in (pulse(), pulse([*CALL, 500])):
        ward.on_pulse(said)
        assert (ward.blamed(), ward.replaying()) == ([tuple(CALL)] * 2, [])
    ward.on_pulse(pulse())
    ward.on_pulse([ENDED, SESSION, 7])
    assert ward.blamed() == []


@in_loop
async def test_what_has_no_session_has_no_name_to_be_blamed_by() -> None:
    ward = ward_of()
    ward.on_pulse(pulse([b"", 0, "Stock.look of 'a'", 500]))
    assert ward.blamed() == []


@pytest.mark.parametrize(
    ("said", "silent_s", "reason", "proven"),
    [
        (pulse(), SUSPECT_S * 0.9, None, False),
        (pulse(), SUSPECT_S * 1.1, "no pulse for 1100 ms", False),
        (pulse([*CALL, 1_900]), 0, None, False),
        (pulse([*CALL, 2_100]), 0, "hung: Stock.reserve of 'a' has been running for 2100 ms", True),
        (pulse(lag_ms=1_900), 0, None, False),
        (pulse(lag_ms=2_100), 0, "hung: its loop has not turned for 2100 ms", True),
    ],
)
@in_loop
async def test_it_is_dead_when_it_is_silent_or_held_for_too_long(
    said: list[object], silent_s: float, reason: str | None, proven: bool
) -> None:
    ward = ward_of()
    ward.on_pulse(said)
    ward.look(ward.pulse_at + silent_s, HANG_S)
    assert (ward.dead, ward.proven, ward.alive) == (reason, proven, reason is None)
