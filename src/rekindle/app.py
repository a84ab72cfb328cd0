"""An application: a name, a log, a supervision tree; and the way to its entities."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from rekindle.actors import Client, WebsocketWire
from rekindle.supervisors import DeclarationError, Service, Supervisor, check_tree, opened, seeds
from rekindle.supervisors.hosting import now_ms

TOKEN_VARIABLE: Final = "REKINDLE_TOKEN"
DEFAULT_LOG: Final = ".rekindle/log.sqlite"


class App:
    """What runs, and on which log.

    log: `kafka://host:port[,host:port]`, or a path for the embedded log (default: `.rekindle/log.sqlite` below the
    working folder). snapshots: where snapshots go, as a URL; default: beside the log, in Kafka or in the same file.
    The token for the wire comes from `REKINDLE_TOKEN`.
    """

    def __init__(self, name: str, *, tree: Supervisor, log: str | None = None, snapshots: str | None = None) -> None:
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
