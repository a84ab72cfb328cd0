"""An application: a name, a log, a supervision tree; and the way to its entities."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rekindle.actors import Client, Entity, Hosted, WebsocketWire
from rekindle.supervisors import (
    Control,
    DeclarationError,
    Service,
    Supervisor,
    check_tree,
    control_log,
    opened,
    seeds,
)
from rekindle.supervisors.hosting import now_ms

if TYPE_CHECKING:  # SQLAlchemy takes half a second to import: only who has read models waits for it
    from rekindle.projections import Bound, Database, Declared, Views

TOKEN_VARIABLE: Final = "REKINDLE_TOKEN"
DEFAULT_LOG: Final = ".rekindle/log.sqlite"
DEFAULT_DATABASE: Final = ".rekindle/views.sqlite"


class App:
    """What runs, and on which log.

    log: `kafka://host:port[,host:port]`, or a path for the embedded log (default: `.rekindle/log.sqlite` below the
    working folder). snapshots: where snapshots go, as a URL; default: beside the log, in Kafka or in the same file.
    projections: the read models. database: where they are, `postgresql://...` or a path (default: `.rekindle/views.sqlite`).
    The token for the wire comes from `REKINDLE_TOKEN`.
    """

    def __init__(
        self,
        name: str,
        *,
        tree: Supervisor,
        log: str | None = None,
        snapshots: str | None = None,
        projections: Sequence[Declared] = (),
        database: str | None = None,
    ) -> None:
        self.name = name
        self.tree = tree
        self.log = str(Path(DEFAULT_LOG).absolute()) if log is None else log
        self.snapshots = snapshots or ""
        self.services: Sequence[Service] = tuple(tree.services())
        for what, names in (
            ("services", [s.name for s in self.services]),
            ("entities", [s.entity.__name__ for s in self.services]),
        ):
            if not names or len(set(names)) != len(names):
                raise DeclarationError(f"app {name!r}: expected one or more {what} with different names, got {names}")
        check_tree(tree)
        self.database = str(Path(DEFAULT_DATABASE).absolute()) if database is None else database
        self.projections = {projection.name: self._bound(projection) for projection in projections}
        if len(self.projections) != len(projections):
            found = [projection.name for projection in projections]
            raise DeclarationError(f"app {name!r}: expected projections with different names, got {found}")

    def _bound(self, projection: Declared) -> Bound:
        """A projection with the services that it reads."""
        from rekindle.projections import Bound

        services: dict[type[Entity], Hosted] = {s.entity: s.hosted(self.name) for s in self.services}
        services[Control] = control_log(self.name)
        if missing := [entity.__name__ for entity in projection.takes if entity not in services]:
            raise DeclarationError(
                f"projection {projection.name!r} reads {missing}, which are no services of {self.name!r}"
            )
        return Bound(projection, [services[entity] for entity in projection.takes])

    def projection(self, name: str) -> Bound:
        """The projection of that name. Raises `DeclarationError`."""
        if name not in self.projections:
            raise DeclarationError(f"app {self.name!r} has no projection {name!r}; it has {sorted(self.projections)}")
        return self.projections[name]

    @asynccontextmanager
    async def views(self, *, log: str | None = None, database: str | None = None) -> AsyncGenerator[Views]:
        """Their read models, for readers: how far they are, and waiting for them. Raises `LogUnavailable`, `DatabaseAway`."""
        from rekindle.projections import Views

        hosted = [service.hosted(self.name) for service in self.services]
        async with (
            opened(log or self.log, self.snapshots, self.name) as (event_log, _),
            reading(database or self.database) as models,
        ):
            yield Views(event_log, models, hosted)

    @asynccontextmanager
    async def connect(self, *, log: str | None = None) -> AsyncGenerator[Client]:
        """A client; instances are found through the control log. Raises `LogUnavailable`, `TopicMissing`."""
        hosted = [service.hosted(self.name) for service in self.services]
        async with opened(log or self.log, self.snapshots, self.name) as (event_log, store):
            found = seeds(self.name, event_log, store)
            async with Client(
                self.name, hosted, WebsocketWire(), found, now_ms, os.environ.get(TOKEN_VARIABLE)
            ) as client:
                yield client


@asynccontextmanager
async def reading(address: str) -> AsyncGenerator[Database]:
    """A database for read models, ready and open."""
    from rekindle.projections import Database

    database = Database(address)
    try:
        await database.call(Database.prepare)
        yield database
    finally:
        await asyncio.to_thread(database.close)
