"""The log: schema, codec, the rules that decide what counts, the three logs, snapshots.

The ground floor: it imports none of the other rooms. Reading order: `log` (the seam), `records`, `rules`, `schema`,
then the implementations `kafka`, `embedded`, `simulated`, and `snapshots` with its `stores`.
"""

from rekindle.events.codec import pack, unpack
from rekindle.events.errors import (
    AppendRefused,
    AppendUnknown,
    InternalError,
    LogDamaged,
    LogError,
    LogTruncated,
    LogUnavailable,
    NewerRecord,
    RecordTooLarge,
    RekindleError,
    SchemaError,
    SnapshotDamaged,
    SnapshotError,
    SnapshotMissing,
    TopicContractBroken,
    TopicMissing,
    Undecodable,
    Unencodable,
)
from rekindle.events.log import BATCH_BYTES_MAX, RECORD_BYTES_MAX, Bounds, Entry, EventLog, Keyed, Partition, Reader, Stored, Topic
from rekindle.events.partitioner import shard_of
from rekindle.events.records import Claim, Commit, Record, Stranger, decode, encode
from rekindle.events.rules import SESSION_TTL_MS, Fold, Verdict, birth_of, session_name
from rekindle.events.schema import Deleted, Event, EventTypes, pack_event, upcast
from rekindle.events.snapshots import Pointer, SnapshotStore

__all__ = [
    "BATCH_BYTES_MAX",
    "RECORD_BYTES_MAX",
    "SESSION_TTL_MS",
    "AppendRefused",
    "AppendUnknown",
    "Bounds",
    "Claim",
    "Commit",
    "Deleted",
    "Entry",
    "Event",
    "EventLog",
    "EventTypes",
    "Fold",
    "InternalError",
    "Keyed",
    "LogDamaged",
    "LogError",
    "LogTruncated",
    "LogUnavailable",
    "NewerRecord",
    "Partition",
    "Pointer",
    "Reader",
    "Record",
    "RecordTooLarge",
    "RekindleError",
    "SchemaError",
    "SnapshotDamaged",
    "SnapshotError",
    "SnapshotMissing",
    "SnapshotStore",
    "Stored",
    "Stranger",
    "Topic",
    "TopicContractBroken",
    "TopicMissing",
    "Undecodable",
    "Unencodable",
    "Verdict",
    "birth_of",
    "decode",
    "encode",
    "pack",
    "pack_event",
    "session_name",
    "shard_of",
    "unpack",
    "upcast",
]
