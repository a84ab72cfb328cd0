"""The client: a database that follows its primary around.

    async with connect(app) as database:
        await database.set("color", "blue")             # back once the primary and a replica have it

Who is the primary is a decided fact: the last promotion in the control log. Whoever else believes to be one has no
replica left, so `WAIT 1` cannot succeed there, and without it no write counts as acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from examples.redis.failover import SERVICE, primary_of
from examples.redis.resp import Connection, RedisError
from rekindle import App
from rekindle.supervisors import Control, decided, opened

REPLICA_MAX_MS: Final = 500
"""How long a write may take to be on a replica."""

AGAIN_S: Final = 0.02
PATIENCE_S: Final = 30.0
"""How long a call is tried again and again."""


class Database:
    """Calls to whoever is the primary, one after the other.

    address: where the last call went. control: reads what is decided now.
    """

    def __init__(self, control: Callable[[], Awaitable[Control]]) -> None:
        self.address = ""
        self._control = control
        self._connection: Connection | None = None

    async def set(self, key: str, value: str) -> None:
        """Write, and come back when the primary and a replica have it: then it survives the death of either.

        Raises `TimeoutError` after `PATIENCE_S`: it may have been written, and may be lost.
        """
        async with asyncio.timeout(PATIENCE_S):
            while not await self._try_to_set(key, value):
                self.close()
                await asyncio.sleep(AGAIN_S)

    async def _try_to_set(self, key: str, value: str) -> bool:
        try:
            primary = await self._primary()
            await primary.call("SET", key, value)
            return await primary.call("WAIT", "1", str(REPLICA_MAX_MS)) != 0
        except (OSError, EOFError, RedisError):
            return False

    async def get(self, key: str) -> str | None:
        """Read from the primary. Raises as `Connection.call`."""
        value = await (await self._primary()).call("GET", key)
        return None if value is None else str(value)

    async def _primary(self) -> Connection:
        if self._connection is None:
            found = primary_of((await self._control()).told.get(SERVICE, ()))
            if found is None:
                raise RedisError("no instance was ever promoted")
            self.address = found.result["address"]
            self._connection = await Connection.open(self.address)
        return self._connection

    def close(self) -> None:
        """Hang up; the next call asks who the primary is."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@asynccontextmanager
async def connect(app: App, *, log: str | None = None) -> AsyncGenerator[Database]:
    """A database of the application. Raises `LogUnavailable`, `TopicMissing`."""
    async with opened(log or app.log, app.snapshots, app.name) as (event_log, store):
        database = Database(decided(app.name, event_log, store))
        try:
            yield database
        finally:
            database.close()
