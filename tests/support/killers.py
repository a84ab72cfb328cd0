"""An application whose handlers kill the process that runs them, each in another way.

`tests.support.killers:my-app` is the application `my-app` (any name with a dash).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rekindle import App, Entity, Event, Service, Supervisor, command, query

SHARDS: Final = 6
INSTANCES: Final = 3
HANG_S: Final = 3.0
MEMORY_BYTES_MAX: Final = 400 << 20
TRAP: Final = "REKINDLE_TEST_TRAP"
"""Names a file: while it is there, whoever applies `Trapped` is killed."""


class Ticked(Event):
    pass


class Trapped(Event):
    pass


class Bomb(Entity):
    """Counts, unless it is told to do something else."""

    ticks: int = 0

    def apply(self, event: Ticked | Trapped) -> None:
        if isinstance(event, Ticked):
            self.ticks += 1
        elif Path(os.environ[TRAP]).exists():
            os._exit(1)

    @command
    def tick(self) -> int:
        self.emit(Ticked())
        return self.ticks

    @command
    def trap(self) -> None:
        self.emit(Trapped())

    @command
    def hold(self, seconds: float) -> None:
        """Hold the loop, as long computations do."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
        self.emit(Ticked())

    @command
    def loop(self) -> None:
        self.emit(Ticked())
        while True:
            pass

    @command
    def leave(self) -> None:
        self.emit(Ticked())
        os._exit(1)

    @command
    def hog(self) -> None:
        """Take too much at once, and hold it. Quicker than the pulse would name it."""
        self.emit(Ticked())
        taken = b"x" * MEMORY_BYTES_MAX
        while taken:
            pass

    @command
    async def loop_async(self) -> None:
        self.emit(Ticked())
        while True:
            pass

    @command
    async def leave_async(self) -> None:
        self.emit(Ticked())
        os._exit(1)

    @query
    def ticked(self) -> int:
        return self.ticks

    @query
    def loop_in_query(self) -> None:
        while True:
            pass

    @query
    def leave_in_query(self) -> None:
        os._exit(1)


def app_of(name: str) -> App:
    """The application of that name."""
    service = Service("bombs", Bomb, SHARDS, INSTANCES, snapshot_every=50, hang_s=HANG_S)
    return App(name, tree=Supervisor(name, children=[service]))


if not TYPE_CHECKING:  # a type checker would take any name for an application

    def __getattr__(name: str) -> App:
        if "-" not in name:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return app_of(name)
