"""Where instances and the leader are: the control log has their addresses, so the log is all that a client needs to know."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from rekindle.actors import Replica
from rekindle.events import EventLog, SnapshotStore
from rekindle.supervisors.control import KEY, Control, control_log

log = logging.getLogger("rekindle")


def seeds(app: str, event_log: EventLog, store: SnapshotStore | None) -> Callable[[], Awaitable[Sequence[str]]]:
    """A function that reads the control log on from where it was, and gives the addresses of the instances in it."""
    read = _reading(app, event_log, store)

    async def addresses() -> Sequence[str]:
        control = await read()
        return [] if control is None else [running.address for running in control.instances.values()]

    return addresses


def leader(app: str, event_log: EventLog, store: SnapshotStore | None) -> Callable[[], Awaitable[str]]:
    """A function that reads the control log on from where it was, and gives the address of the leader's console; empty if
    nobody has led yet. Its leader may be dead: then the next one is in the log soon."""
    read = _reading(app, event_log, store)

    async def address() -> str:
        control = await read()
        return "" if control is None else control.leader_at

    return address


def _reading(app: str, event_log: EventLog, store: SnapshotStore | None) -> Callable[[], Awaitable[Control | None]]:
    """A function that reads on and gives what is decided; None: nothing yet. Raises `LogUnavailable`, `TopicMissing`."""
    replica = Replica(control_log(app), 0, event_log, store, log.warning)
    loaded = False

    async def read() -> Control | None:
        nonlocal loaded
        if not loaded:
            await replica.load()
            loaded = True
        await replica.read()
        control = replica.entity(KEY)
        assert control is None or isinstance(control, Control), f"the control log holds a {type(control).__name__}"
        return control

    return read
