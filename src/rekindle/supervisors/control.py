"""What the controller knows, as an entity on the control log: decisions exist once they are events in it.

The control log is one shard under the rules of `rekindle.events.rules`, like any other. A candidate claims it with
the number in force + 1; whoever holds the claim leads, and the claim's offset is the control term.
"""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel

from rekindle.actors import Entity, Hosted, Rejected, command
from rekindle.events import Event

CONTROL: Final = "control"
KEY: Final = "control"
DEATHS_MAX: Final = 2
"""A command, or a shard's replay, that was running at the death of this many instances is refused as poison."""


class Position(BaseModel):
    """Of a shard: the offset of the claim in force, the next offset, the last sequence."""

    term: int
    offset: int
    sequence: int


class Running(BaseModel):
    """An instance that was started and has not been seen dead."""

    service: str
    node: str
    address: str
    beacon: str


class Owned(BaseModel):
    """A shard's latest assignment: its number, and to whom (None: to nobody now)."""

    number: int = 0
    incarnation: str | None = None
    deaths: int = 0
    refused: str | None = None
    position: Position | None = None


class Suspect(BaseModel):
    """A command that was running when instances died."""

    text: str
    deaths: int


class Declared(Event):
    """A service with its shards, which never change."""

    service: str
    shards: int


class Started(Event):
    """An instance listens."""

    incarnation: str
    running: Running


class Gone(Event):
    """An instance is dead, or not to be used any more. died_in: what it was running, as far as is known."""

    incarnation: str
    reason: str
    replaying: list[int] = []
    commands: list[tuple[bytes, int, str]] = []


class Assigned(Event):
    """Shards go to instances: [shard, number, incarnation]."""

    service: str
    moves: list[tuple[int, int, str | None]]


class Observed(Event):
    """How far shards were verified; a later owner that finds less stops: [shard, position]."""

    service: str
    positions: list[tuple[int, Position]]


class Refused(Event):
    """A shard must not be served until an operator says so (`reason`), or may be again (None)."""

    service: str
    shard: int
    reason: str | None


class ShardsAreFixed(Rejected):
    """A service is declared with another number of shards than its log was made with."""

    service: str
    declared: int
    found: int


class Control(Entity):
    """The one entity of the control log."""

    services: dict[str, list[Owned]] = {}
    instances: dict[str, Running] = {}
    suspects: dict[str, Suspect] = {}
    spawned: int = 0

    def apply(self, event: Declared | Started | Gone | Assigned | Observed | Refused) -> None:
        """Take what was decided."""
        match event:
            case Declared(service=service, shards=shards):
                self.services[service] = [Owned() for _ in range(shards)]
            case Started(incarnation=incarnation, running=running):
                self.instances[incarnation] = running
                self.spawned += 1
            case Gone():
                self._apply_gone(event)
            case Assigned(service=service, moves=moves):
                for shard, number, owner in moves:
                    owned = self.services[service][shard]
                    owned.number, owned.incarnation = number, owner
            case Observed(service=service, positions=positions):
                for shard, position in positions:
                    self.services[service][shard].position = position
                    self.services[service][shard].deaths = 0
            case Refused(service=service, shard=shard):
                self.services[service][shard].refused = event.reason
                self.services[service][shard].deaths = 0

    def _apply_gone(self, gone: Gone) -> None:
        running = self.instances.pop(gone.incarnation, None)
        for session, number, text in gone.commands:
            name = f"{session.hex()}/{number}"
            known = self.suspects.get(name)
            self.suspects[name] = Suspect(text=text, deaths=1 if known is None else known.deaths + 1)
        if running is not None:
            for shard in gone.replaying:
                self.services[running.service][shard].deaths += 1

    @command
    def declare(self, service: str, shards: int) -> None:
        """A service exists. The number of its shards is fixed with its first declaration."""
        known = self.services.get(service)
        if known is None:
            self.emit(Declared(service=service, shards=shards))
        elif len(known) != shards:
            raise ShardsAreFixed(service=service, declared=shards, found=len(known))

    @command
    def started(self, incarnation: str, running: Running) -> None:
        """An instance listens."""
        self.emit(Started(incarnation=incarnation, running=running))

    @command
    def gone(self, incarnation: str, reason: str, replaying: list[int], commands: list[tuple[bytes, int, str]]) -> None:
        """An instance is dead, or given up."""
        if incarnation in self.instances:
            self.emit(Gone(incarnation=incarnation, reason=reason, replaying=replaying, commands=commands))

    @command
    def assign(self, service: str, moves: list[tuple[int, str | None]], above: int = 0) -> list[tuple[int, int]]:
        """Give shards to instances; each gets a number higher than all it had, and higher than `above`."""
        numbered = [
            (shard, max(self.services[service][shard].number, above) + 1, incarnation) for shard, incarnation in moves
        ]
        self.emit(Assigned(service=service, moves=numbered))
        return [(shard, number) for shard, number, _ in numbered]

    @command
    def observe(self, service: str, positions: list[tuple[int, Position]]) -> None:
        """Shards got this far."""
        self.emit(Observed(service=service, positions=positions))

    @command
    def refuse(self, service: str, shard: int, reason: str | None) -> None:
        """Keep a shard down, or (None) let it come up again."""
        if self.services[service][shard].refused != reason:
            self.emit(Refused(service=service, shard=shard, reason=reason))

    def poison(self) -> list[tuple[bytes, int]]:
        """Commands that must not be run again."""
        names = (name.split("/") for name, suspect in self.suspects.items() if suspect.deaths >= DEATHS_MAX)
        return [(bytes.fromhex(session), int(number)) for session, number in names]


def control_log(app: str) -> Hosted:
    """The control log of an application, as a service of one shard."""
    return Hosted(app, CONTROL, Control.describe(), 1)
