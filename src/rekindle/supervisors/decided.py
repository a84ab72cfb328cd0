"""What can be decided: the events of the control log, and the data that they carry.

They are read by every later build: a field is only added, with a default; what is renamed gets an upcaster.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from pydantic import BaseModel

from rekindle.events import Event
from rekindle.supervisors.incidents import Incident, Signal
from rekindle.supervisors.plans import Plan, Standing, State


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
    started_ms: int = 0


class Owned(BaseModel):
    """A shard's latest assignment: its number, and to whom (None: to nobody now); and who is to follow it."""

    number: int = 0
    incarnation: str | None = None
    deaths: int = 0
    refused: str | None = None
    position: Position | None = None
    standbys: list[str] = []


class Suspect(BaseModel):
    """A command that was running when instances died."""

    text: str
    deaths: int


class Saying(BaseModel):
    """An operator's word: who, what, why."""

    at_ms: int
    who: str
    verb: str
    target: str
    reason: str


class Declared(Event):
    """A service with its shards, which never change, and its instances, as they are declared now."""

    service: str
    shards: int
    instances: int = 1


class Leads(Event):
    """Who leads, and where it is reached: by operators, and by those who watch its pulse."""

    name: str
    console: str
    beacon: str
    at_ms: int


class Ended(Event):
    """The application was stopped; nobody is to lead it until it is brought up again."""

    at_ms: int


class Started(Event):
    """An instance listens. plan, step: what it was started for; 0: nothing that is still known."""

    incarnation: str
    running: Running
    plan: int = 0
    step: int = 0


class Gone(Event):
    """An instance is dead, or not to be used any more. died_in: what it was running, as far as is known."""

    incarnation: str
    reason: str
    replaying: list[int] = []
    commands: list[tuple[bytes, int, str]] = []
    at_ms: int = 0
    planned: bool = False
    signal: Signal | None = None


class Assigned(Event):
    """Shards go to instances: [shard, number, incarnation]."""

    service: str
    moves: list[tuple[int, int, str | None]]


class Disturbed(Event):
    """Something has happened to a service that a plan made before does not know of."""

    service: str


class Followed(Event):
    """Instances are to follow shards: [shard, incarnations]."""

    service: str
    moves: list[tuple[int, list[str]]]


class Observed(Event):
    """How far shards were verified; a later owner that finds less stops: [shard, position]."""

    service: str
    positions: list[tuple[int, Position]]


class Refused(Event):
    """A shard must not be served until an operator says so (`reason`), or may be again (None)."""

    service: str
    shard: int
    reason: str | None


class Scaled(Event):
    """A service is to have this many instances."""

    service: str
    instances: int


class Cordoned(Event):
    """Nothing new goes on a node (`reason`), or may again (None)."""

    node: str
    reason: str | None


class Noticed(Event):
    """An incident, as it is with all that is known of it now."""

    incident: Incident


class Proposed(Event):
    """A plan; from here on it is what is being done."""

    plan: Plan


class Stepped(Event):
    """Steps of a plan have changed their state: [step, state, attempt, why]."""

    plan: int
    changes: list[tuple[int, State, int, str]]
    at_ms: int


class Stood(Event):
    """A plan stands differently."""

    plan: int
    standing: Standing
    why: str
    at_ms: int


class Performed(Event):
    """What a step's operation gave."""

    plan: int
    step: int
    result: Any


class Forced(Event):
    """An operator lets a step begin without its guards."""

    plan: int
    step: int


class Counted(Event):
    """Restarts of a supervisor's children within its window; times before which no instance of a service is started."""

    restarts: dict[str, list[int]]
    held: dict[str, int] = {}


class Said(Event):
    """An operator said something."""

    saying: Saying


Decided: TypeAlias = (
    Declared
    | Leads
    | Ended
    | Started
    | Gone
    | Assigned
    | Disturbed
    | Followed
    | Observed
    | Refused
    | Scaled
    | Cordoned
    | Noticed
    | Proposed
    | Stepped
    | Stood
    | Performed
    | Forced
    | Counted
    | Said
)
