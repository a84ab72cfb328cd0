"""Where instances and the leader are: the control log has their addresses, so the log is all that a client needs to know."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from rekindle.actors import Replica
from rekindle.events import EventLog, SnapshotStore
from rekindle.supervisors.control import KEY, Control, control_log

log = logging.getLogger("rekindle")


def decided(app: str, event_log: EventLog, store: SnapshotStore | None) -> Callable[[], Awaitable[Control]]:
    """A function that reads the control log on from where it was, and gives what is decided in it."""
    replica = Replica(control_log(app), 0, event_log, store, log.warning)
    loaded = False

    async def control() -> Control:
        nonlocal loaded
        if not loaded:
            await replica.load()
            loaded = True
        await replica.read()
        found = replica.entity(KEY) or Control.describe().new(KEY)
        assert isinstance(found, Control), f"the control log holds a {type(found).__name__}"
        return found

    return control


def seeds(app: str, event_log: EventLog, store: SnapshotStore | None) -> Callable[[], Awaitable[Sequence[str]]]:
    """A function that reads the control log on from where it was, and gives the addresses of the instances in it."""
    control = decided(app, event_log, store)

    async def addresses() -> Sequence[str]:
        return [running.address for running in (await control()).instances.values()]

    return addresses


def leader(app: str, event_log: EventLog, store: SnapshotStore | None) -> Callable[[], Awaitable[str]]:
    """A function that gives the address of the leader's console, as the control log has it now; empty if nobody has led
    yet. The leader may be dead: then the next one is in the log soon."""
    control = decided(app, event_log, store)

    async def address() -> str:
        return (await control()).leader_at

    return address
