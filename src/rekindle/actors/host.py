"""What an instance hosts, and what its process gives it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from rekindle.actors.entity import EntityType
from rekindle.actors.owner import SNAPSHOT_EVERY
from rekindle.actors.sidecar import Sidecar
from rekindle.actors.wire import Wire
from rekindle.events import EventLog, Partition, SnapshotStore, Topic


@dataclass(frozen=True, slots=True)
class Hosted:
    """A service as its instances and its clients need it. Its log is the topic `app.service`.

    sidecar: makes what an instance of this name (its incarnation) has beside its shards.
    """

    app: str
    name: str
    kind: EntityType
    shards: int
    snapshot_every: int = SNAPSHOT_EVERY
    retention: bool = False
    sidecar: Callable[[str], Sidecar] | None = None

    def partition(self, shard: int) -> Partition:
        """Where the shard's log is."""
        return Partition(f"{self.app}.{self.name}", shard)

    def topic(self, *, fsync: bool = False) -> Topic:
        """The contract of its log. fsync: asked for when it is created; never insisted on later."""
        return Topic(f"{self.app}.{self.name}", self.shards, fsync=fsync)


@dataclass(slots=True)
class Host:
    """What an instance gets from its process. Simulated hosts are deterministic."""

    log: EventLog
    snapshots: SnapshotStore | None
    wire: Wire
    now_ms: Callable[[], int]
    offload: Callable[[Callable[[], bytes]], Awaitable[bytes]]
    say: Callable[[str], None]
    monotonic: Callable[[], float] = time.monotonic
    resident_bytes: Callable[[], int] = lambda: 0
    token: str | None = None
    randomness: Callable[[int], bytes] = os.urandom
    tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task to its end; its failure is a bug and is said."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def random_hex(self, size: int) -> str:
        """A name that nobody else has."""
        return self.randomness(size).hex()

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.say(f"bug: a task died: {task.exception()!r}")
