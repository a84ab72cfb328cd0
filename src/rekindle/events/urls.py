"""Logs and snapshot stores by address.

(Written by the lead as a placeholder with the signatures that callers use: keep them.)
"""

from __future__ import annotations

from pathlib import Path

from rekindle.events.embedded import EmbeddedLog
from rekindle.events.log import EventLog
from rekindle.events.snapshots import SnapshotStore


def open_log(url: str) -> EventLog:
    """The log at `kafka://host:port[,host:port]`, or the embedded one at `sqlite:///path` or a path. Not opened yet."""
    if url.startswith("kafka://"):
        from rekindle.events.kafka import KafkaLog

        return KafkaLog(url.removeprefix("kafka://"))
    return EmbeddedLog(Path(url.removeprefix("sqlite://")))


def open_store(url: str, log: EventLog, app: str, *, create: bool = False) -> SnapshotStore:
    """The snapshot store at `url` ("": beside the log). create: make its topics where it has some. Not opened yet."""
    from rekindle.events import stores  # the lead's temporary fallback while stores.py is being written

    return stores.open_store(url, log, app, create=create)  # type: ignore[attr-defined]
