"""Rekindle: services that keep state, supervised on Ray, rebuilt from a log, healed when a node dies.

    from rekindle import App, Entity, Event, Service, Supervisor, command, query

The rooms: `rekindle.events` (the log), `rekindle.actors` (entities and who runs them), `rekindle.supervisors` (who keeps
them running), `rekindle.projections`, `rekindle.chaos`.
"""

from rekindle.actors import (
    BadRequest,
    CallError,
    Client,
    CommandFailed,
    DeadlineExceeded,
    Entity,
    EntityQuarantined,
    OutcomeUnknown,
    Overloaded,
    Rejected,
    command,
    query,
)
from rekindle.app import App
from rekindle.events import Event, RekindleError, upcast
from rekindle.supervisors import (
    ONE_FOR_ALL,
    ONE_FOR_ONE,
    PERMANENT,
    REST_FOR_ONE,
    TEMPORARY,
    TRANSIENT,
    Backoff,
    Restart,
    Service,
    Strategy,
    Supervisor,
)

__all__ = [
    "ONE_FOR_ALL",
    "ONE_FOR_ONE",
    "PERMANENT",
    "REST_FOR_ONE",
    "TEMPORARY",
    "TRANSIENT",
    "App",
    "Backoff",
    "BadRequest",
    "CallError",
    "Client",
    "CommandFailed",
    "DeadlineExceeded",
    "Entity",
    "EntityQuarantined",
    "Event",
    "OutcomeUnknown",
    "Overloaded",
    "Rejected",
    "RekindleError",
    "Restart",
    "Service",
    "Strategy",
    "Supervisor",
    "command",
    "query",
    "upcast",
]
