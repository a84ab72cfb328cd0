"""Bringing an application up: its topics, its controller; and reading what its log says without it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from rekindle.actors import Hosted, Replica
from rekindle.app import TOKEN_VARIABLE
from rekindle.events import RekindleError, Topic, shard_of
from rekindle.supervisors import Launch, control_log, load, opened
from rekindle.supervisors.hosting import Application

log = logging.getLogger("rekindle")


def launch_of(target: str, app: Application, log_url: str | None = None, bind: str = "127.0.0.1:0") -> Launch:
    """How the processes of this application are to be run."""
    return Launch(
        target,
        bind=bind,
        log=log_url or app.log,
        snapshots=app.snapshots,
        token=os.environ.get(TOKEN_VARIABLE),
        path=(os.getcwd(),),
    )


def topics(app: Application, *, fsync: bool = False) -> list[Topic]:
    """The topics of an application: one for each service, and the control log."""
    hosted = [control_log(app.name), *(service.hosted(app.name) for service in app.services)]
    return [service.topic(fsync=fsync) for service in hosted]


async def create_topics(app: Application, log_url: str | None = None, *, fsync: bool = False) -> None:
    """Create what is missing, check what is there. Raises `TopicContractBroken`, `LogUnavailable`."""
    async with opened(log_url or app.log, app.snapshots, app.name, create=True) as (event_log, _):
        for topic in topics(app, fsync=fsync):
            await event_log.create(topic)


def service_of(app: Application, entity: str) -> Hosted:
    """The service of an entity, by the entity's or the service's name. Raises `RekindleError`."""
    for service in app.services:
        if entity in (service.entity.__name__, service.name):
            return service.hosted(app.name)
    raise RekindleError(
        f"application {app.name!r} has no entity {entity!r}; it has {[s.entity.__name__ for s in app.services]}"
    )


async def state_of(
    target: str, entity: str, key: str, offset: int | None, log_url: str | None = None
) -> dict[str, Any]:
    """An entity's state now, or after the record at `offset` of its shard's log; read from the log, not asked of anybody."""
    app = load(target)
    hosted = service_of(app, entity)
    shard = shard_of(key, hosted.shards)
    async with opened(log_url or app.log, app.snapshots, app.name) as (event_log, store):
        replica = Replica(hosted, shard, event_log, store, log.warning)
        await replica.load(offset)
        await replica.read(None if offset is None else offset + 1)
    found = replica.state(key)
    version, state = (0, None) if found is None else found
    return {
        "entity": hosted.kind.name,
        "key": key,
        "shard": shard,
        "offset": replica.fold.offset - 1,
        "version": version,
        "state": state,
    }


def as_json(value: Any, *, indent: int | None = 2) -> str:
    """Readable JSON of what a log holds; what JSON does not know is shown as text."""
    return json.dumps(value, indent=indent, default=_shown, ensure_ascii=False)


def _shown(value: object) -> object:
    return vars(value) if isinstance(value, BaseModel) else str(value)


def lines_of(said: Sequence[str]) -> str:
    """A controller's last words as a block of text."""
    return "\n".join(f"  {line}" for line in said)
