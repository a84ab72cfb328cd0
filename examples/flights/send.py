"""The one place where a command of the stream becomes a call of the service."""

from __future__ import annotations

from typing import assert_never

from examples.flights.aircraft import Aircraft
from examples.flights.commands import Arrive, Cancel, Command, Depart, Divert


async def send(aircraft: Aircraft, command: Command) -> int:
    """Send it to its aircraft; the answer is the number of events in the logbook, so the n-th command answers n."""
    match command:
        case Depart(_, flight, carrier, origin, delay):
            return await aircraft.depart(flight, carrier, origin, delay)
        case Arrive(_, flight, delay, air_time, distance):
            return await aircraft.arrive(flight, delay, air_time, distance)
        case Divert(_, flight):
            return await aircraft.divert(flight)
        case Cancel(_, flight, carrier):
            return await aircraft.cancel(flight, carrier)
        case _:
            assert_never(command)
