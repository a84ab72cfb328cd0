"""The service: one entity per aircraft, which keeps the aircraft's logbook.

The state is a few numbers however long the aircraft flies. It holds no list of past flights, and no command looks
whether its flight was reported before: that a command counts once is Rekindle's promise, and a check here would hide
it if Rekindle broke it. The counters and the digest, which chains every event, show each one that is lost, doubled
or out of order; `compare` looks at them.
"""

from __future__ import annotations

from hashlib import blake2b

from pydantic import BaseModel

from rekindle import ONE_FOR_ONE, App, Entity, Event, Rejected, Service, Supervisor, command, query


class Departed(Event):
    """It left the gate, `delay` minutes late (negative: early)."""

    flight: str
    carrier: str
    origin: str
    delay: int


class Arrived(Event):
    """It landed where it was to, `delay` minutes late, after `air_time` minutes and `distance` miles."""

    flight: str
    delay: int
    air_time: int
    distance: int


class Diverted(Event):
    """It did not land where it was to."""

    flight: str


class Cancelled(Event):
    """The flight never left."""

    flight: str
    carrier: str


class NotInTheAir(Rejected):
    """An end was reported of a flight on which the aircraft has not departed; `last` is the one on which it has."""

    flight: str
    last: str


class Logbook(BaseModel):
    """What an aircraft remembers. Minutes and miles of its landings, early arrivals as negative delays."""

    events: int = 0
    flown: int = 0
    diverted: int = 0
    cancelled: int = 0
    departures: dict[str, int] = {}
    carriers: dict[str, int] = {}
    late_departure_minutes: int = 0
    arrival_delay_minutes: int = 0
    worst_delay: int = 0
    air_minutes: int = 0
    miles: int = 0
    last_flight: str = ""
    digest: str = ""


class Aircraft(Entity):
    """One aircraft, keyed by its tail number. A command answers how many events the logbook has, its own included."""

    departed_on: str = ""
    logbook: Logbook = Logbook()

    def apply(self, event: Departed | Arrived | Diverted | Cancelled) -> None:
        """Write one event into the logbook."""
        self._stamp(event)
        match event:
            case Departed():
                self._on_departed(event)
            case Arrived():
                self._on_arrived(event)
            case Diverted():
                self.logbook.diverted += 1
            case Cancelled(flight=flight, carrier=carrier):
                self.logbook.cancelled += 1
                self._assign(flight, carrier)

    @command
    def depart(self, flight: str, carrier: str, origin: str, delay: int) -> int:
        """The aircraft leaves the gate."""
        self.emit(Departed(flight=flight, carrier=carrier, origin=origin, delay=delay))
        return self.logbook.events

    @command
    def arrive(self, flight: str, delay: int, air_time: int, distance: int) -> int:
        """The aircraft lands where it was to. Raises `NotInTheAir`."""
        self._require_departed(flight)
        self.emit(Arrived(flight=flight, delay=delay, air_time=air_time, distance=distance))
        return self.logbook.events

    @command
    def divert(self, flight: str) -> int:
        """The aircraft does not reach where it was to go. Raises `NotInTheAir`."""
        self._require_departed(flight)
        self.emit(Diverted(flight=flight))
        return self.logbook.events

    @command
    def cancel(self, flight: str, carrier: str) -> int:
        """The flight does not take place."""
        self.emit(Cancelled(flight=flight, carrier=carrier))
        return self.logbook.events

    @query
    def summary(self) -> Logbook:
        """The logbook as it stands."""
        return self.logbook

    def _require_departed(self, flight: str) -> None:
        # Landing does not clear `departed_on`: a landing applied twice must count twice, not be refused in silence.
        if flight != self.departed_on:
            raise NotInTheAir(flight=flight, last=self.departed_on)

    def _on_departed(self, event: Departed) -> None:
        book = self.logbook
        book.departures[event.origin] = book.departures.get(event.origin, 0) + 1
        book.late_departure_minutes += max(0, event.delay)
        book.worst_delay = max(book.worst_delay, event.delay)
        self.departed_on = event.flight
        self._assign(event.flight, event.carrier)

    def _on_arrived(self, event: Arrived) -> None:
        book = self.logbook
        book.flown += 1
        book.arrival_delay_minutes += event.delay
        book.worst_delay = max(book.worst_delay, event.delay)
        book.air_minutes += event.air_time
        book.miles += event.distance

    def _assign(self, flight: str, carrier: str) -> None:
        """A flight of that carrier is this aircraft's newest."""
        self.logbook.carriers[carrier] = self.logbook.carriers.get(carrier, 0) + 1
        self.logbook.last_flight = flight

    def _stamp(self, event: Departed | Arrived | Diverted | Cancelled) -> None:
        """Count the event and chain its name, flight and numbers, in the order of its fields, into the digest."""
        values: dict[str, object] = event.model_dump(exclude={"carrier", "origin"})  # both are part of the flight's key
        line = " ".join([type(event).__name__, *map(str, values.values())])
        chained = f"{self.logbook.digest}\n{line}".encode()
        self.logbook.digest = blake2b(chained, digest_size=16).hexdigest()
        self.logbook.events += 1


app = App(
    "flights",
    tree=Supervisor(
        "flights",
        strategy=ONE_FOR_ONE,
        children=[Service("aircraft", Aircraft, shards=12, instances=3)],
    ),
)
