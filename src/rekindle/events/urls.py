"""Logs and snapshot stores by address.

kafka://host:port[,host:port][?single_broker=true]    a log in Kafka
sqlite:///path/to/file, or just a path                the embedded log, one file

(nothing)                                             snapshots beside the log: in Kafka, or in the same file
log:                                                  snapshots in the log, whichever it is
sqlite:///path/to/file                                snapshots in a SQLite file
file:///path, s3://bucket/path, memory://name, ...    snapshots in whatever fsspec can reach
"""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl

from rekindle.events.embedded import EmbeddedLog
from rekindle.events.log import EventLog
from rekindle.events.snapshots import SnapshotStore

_KAFKA: Final = "kafka://"
_SQLITE: Final = "sqlite://"
_BESIDE: Final = ""
_IN_LOG: Final = "log:"


def open_log(url: str) -> EventLog:
    """The log at this address. Not opened yet. Raises ValueError."""
    if url.startswith(_KAFKA):
        return _kafka_log(url.removeprefix(_KAFKA))
    return EmbeddedLog(url.removeprefix(_SQLITE))


def _kafka_log(rest: str) -> EventLog:
    from rekindle.events.kafka import KafkaLog  # only who needs Kafka loads its client

    bootstrap, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    single = options.pop("single_broker", "false")
    if options or single not in ("true", "false"):
        raise ValueError(f"expected kafka://host:port[,host:port][?single_broker=true], got {_KAFKA}{rest}")
    return KafkaLog(bootstrap, single_broker=single == "true")


def open_store(url: str, log: EventLog, app: str, *, create: bool = False) -> SnapshotStore:
    """The snapshot store at this address. create: make its topics where it has some. Not opened yet."""
    from rekindle.events.stores import DirectoryStore, LogStore, SqliteStore  # loads fsspec, which a client never needs

    if url == _BESIDE and isinstance(log, EmbeddedLog):
        return SqliteStore(log.path)
    if url in (_BESIDE, _IN_LOG):
        return LogStore(log, app, create=create)
    if url.startswith(_SQLITE):
        return SqliteStore(url.removeprefix(_SQLITE))
    return DirectoryStore(url)
