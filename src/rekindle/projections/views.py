"""Reading what projections have made: how far they are, and waiting until one is far enough.

    async with app.views() as views:
        await shop.get(Stock, "sku-42").receive(5)
        await views.wait_for(stock, await views.position_of(Stock, "sku-42"))
        ...                                                    # now the row shows it: query it, with whatever you like

A command's answer does not say where its commit lies. But whatever was answered is in the log, below its end: so the end of the
shard's log, asked for after the answer, is a position behind it (`position_of`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from pydantic import BaseModel
from sqlalchemy import func, select

from rekindle.actors import Entity, Hosted
from rekindle.events import EventLog, shard_of
from rekindle.projections import books
from rekindle.projections.database import Database
from rekindle.projections.declaring import Declared
from rekindle.projections.errors import DatabaseAway, ViewIsBehind
from rekindle.supervisors import DeclarationError
from rekindle.supervisors.hosting import now_ms as wall_clock

WAIT_MAX_S: Final = 5.0
"""How long `wait_for` waits if its caller does not say."""

LOOK_FIRST_S: Final = 0.005
LOOK_MAX_S: Final = 0.05
"""Between two looks at a position: at first, and at most."""

SILENT_MS: Final = 10_000
"""A projection that is `running` and says nothing for so long is not: its process died, or cannot reach the database."""


class Place(NamedTuple):
    """A position in the log of a shard: everything below `offset`."""

    service: str
    shard: int
    offset: int


class ShardReport(BaseModel):
    """How far a projection is in a shard. next_offset: the first record that it has not read."""

    service: str
    shard: int
    next_offset: int
    term: int
    sequence: int
    time_ms: int


class ProjectionReport(BaseModel):
    """How a projection is doing. The fields are those of `rk_projection`; silent: it has said nothing for `SILENT_MS`."""

    name: str
    version: int
    state: str
    silent: bool
    generation: int
    events: int
    rate: float
    lag_events: int
    lag_seconds: float
    parked: int
    error: str
    updated_ms: int
    shards: list[ShardReport]


class Views:
    """The reader's side of the read models of an application. Their rows are read with SQL, or SQLAlchemy, like any others."""

    def __init__(self, event_log: EventLog, database: Database, services: Sequence[Hosted]) -> None:
        self.event_log = event_log
        self.database = database
        self.services = {hosted.kind.cls: hosted for hosted in services}

    async def position_of(self, entity: type[Entity], key: str) -> Place:
        """A position behind everything that was answered by this entity so far. Raises `LogUnavailable`, `TopicMissing`."""
        hosted = self.services.get(entity)
        if hosted is None:
            raise DeclarationError(f"{entity.__name__} is no service; there are {[c.__name__ for c in self.services]}")
        shard = shard_of(key, hosted.shards)
        return Place(hosted.name, shard, (await self.event_log.bounds(hosted.partition(shard))).end)

    async def wait_for(self, projection: Declared, place: Place, within_s: float = WAIT_MAX_S) -> None:
        """Until a projection has read everything below a position. Raises `ViewIsBehind`, `DatabaseRefused`."""
        loop = asyncio.get_running_loop()
        until, pause = loop.time() + within_s, LOOK_FIRST_S
        while True:
            reached, state = await self._reached(projection.name, place)
            if reached is not None and reached >= place.offset:
                return
            if loop.time() + pause > until:
                raise ViewIsBehind(projection.name, place.service, place.shard, place.offset, reached, within_s, state)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LOOK_MAX_S)

    async def _reached(self, name: str, place: Place) -> tuple[int | None, str]:
        def look(database: Database) -> tuple[int | None, str]:
            c, p = books.POSITION.c, books.PROJECTION.c
            at = (c.projection == name, c.service == place.service, c.shard == place.shard)
            with database.transaction(write=False) as connection:
                reached = connection.execute(select(c.next_offset).where(*at)).scalar()
                state = connection.execute(select(p.state).where(p.name == name)).scalar()
            return reached, state or "unknown"

        try:
            return await self.database.call(look)
        except DatabaseAway as error:
            return None, f"unknown: {error}"

    async def report(self) -> list[ProjectionReport]:
        """All projections that are known in this database, also those that are being rebuilt."""
        return await self.database.call(_report, wall_clock())


def _report(database: Database, now_ms: int) -> list[ProjectionReport]:
    c = books.PROJECTION.c
    with database.transaction(write=False) as connection:
        found = connection.execute(select(books.PROJECTION).order_by(c.name)).mappings().all()
        name = books.PARKED.c.projection
        parked = {row[0]: row[1] for row in connection.execute(select(name, func.count()).group_by(name))}
        return [
            ProjectionReport(
                **{column: row[column] for column in row if column != "shape"},
                silent=row["state"] in (books.RUNNING, books.REBUILDING) and now_ms - row["updated_ms"] > SILENT_MS,
                parked=parked.get(row["name"], 0),
                shards=[
                    ShardReport(
                        service=service,
                        shard=shard,
                        next_offset=position.offset,
                        term=position.term,
                        sequence=position.sequence,
                        time_ms=position.time,
                    )
                    for (service, shard), position in sorted(books.positions(connection, row["name"]).items())
                ],
            )
            for row in found
        ]
