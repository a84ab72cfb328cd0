"""Entities, the shards that run them, the instances that host shards, and the client.

Reading order: `entity` (what users write), `shard` (the owner as a state machine), `owner` (its edge), `replay` (how
the log gets into it), `follower` (standbys), `instance`, `sidecar`, `client`; `frames`, `outcomes` and `routes` are what
they say to each other, `wire` is how.
"""

from rekindle.actors.client import Client, Proxy
from rekindle.actors.entity import Entity, EntityType, Rejected, command, query
from rekindle.actors.errors import (
    BadRequest,
    CallError,
    CommandFailed,
    ConnectFailed,
    DeadlineExceeded,
    EntityDefinitionError,
    EntityQuarantined,
    KeyReused,
    OrderRefused,
    OutcomeUnknown,
    Overloaded,
    ShardRefused,
    Stale,
    TokenRefused,
    WireError,
)
from rekindle.actors.follower import Follower
from rekindle.actors.host import Host, Hosted
from rekindle.actors.instance import Instance, require_token
from rekindle.actors.keyed import LIFETIME_MS, TIMEOUT_MAX_S, once
from rekindle.actors.owner import Assignment, Owner, Surroundings, Took
from rekindle.actors.replay import NO_FLOOR, Floor, load_snapshot
from rekindle.actors.replica import Replica
from rekindle.actors.routes import Route, Table
from rekindle.actors.shard import Phase, Shard
from rekindle.actors.sidecar import Sidecar
from rekindle.actors.wire import Beacon, Closed, Connection, Listening, WebsocketWire, Wire

__all__ = [
    "LIFETIME_MS",
    "NO_FLOOR",
    "TIMEOUT_MAX_S",
    "Assignment",
    "BadRequest",
    "Beacon",
    "CallError",
    "Client",
    "Closed",
    "CommandFailed",
    "ConnectFailed",
    "Connection",
    "DeadlineExceeded",
    "Entity",
    "EntityDefinitionError",
    "EntityQuarantined",
    "EntityType",
    "Floor",
    "Follower",
    "Host",
    "Hosted",
    "Instance",
    "KeyReused",
    "Listening",
    "OrderRefused",
    "OutcomeUnknown",
    "Overloaded",
    "Owner",
    "Phase",
    "Proxy",
    "Rejected",
    "Replica",
    "Route",
    "Shard",
    "ShardRefused",
    "Sidecar",
    "Stale",
    "Surroundings",
    "Table",
    "TokenRefused",
    "Took",
    "WebsocketWire",
    "Wire",
    "WireError",
    "command",
    "load_snapshot",
    "once",
    "query",
    "require_token",
]
