"""The service: three instances, each with a Redis server beside it; one of these is the primary, the others follow it.

    rekindle up examples.redis.app:app --local 3        # in one terminal
    python -m examples.redis.app                        # in another: writes once a second, and says where

Reading order: `failover` (the policy), `server` (the sidecar), `client`.
"""

from __future__ import annotations

import asyncio
import time
from itertools import count

from examples.redis.client import connect
from examples.redis.failover import SERVICE, Failover, one_primary
from examples.redis.server import RedisServer
from rekindle import App, Entity, Event, Service, Supervisor, command, query


class Migrated(Event):
    version: int


class Layout(Entity):
    """What a service keeps in its log; the data is in Redis, so here it is only which layout the keys have there."""

    version: int = 0

    def apply(self, event: Migrated) -> None:
        self.version = event.version

    @command
    def migrated_to(self, version: int) -> None:
        """All keys have this layout now."""
        self.emit(Migrated(version=version))

    @query
    def current(self) -> int:
        """The layout's version."""
        return self.version


app = App(
    "redis-example",
    tree=Supervisor(
        "redis-example",
        children=[
            Service(
                SERVICE,
                Layout,
                shards=1,
                instances=3,
                sidecar=RedisServer,
                on_failure=[Failover()],
                upkeep=one_primary,
            )
        ],
    ),
)


async def main(log: str | None = None, pause_s: float = 1.0) -> None:
    """Write again and again, each time to whoever is the primary then."""
    async with connect(app, log=log) as database:
        for number in count(1):
            began = time.monotonic()
            await database.set("number", str(number))
            print(f"{number} is on {database.address} and a replica, after {1000 * (time.monotonic() - began):.0f} ms")
            await asyncio.sleep(pause_s)


if __name__ == "__main__":
    asyncio.run(main())
