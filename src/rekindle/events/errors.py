"""Every error of Rekindle that is about the log, and the base of all the others.

    RekindleError                      catch this one to catch everything of ours
    ├── InternalError                  our bug: please report it
    ├── LogError                       something about the log
    │   ├── LogUnavailable             it cannot be reached now; nothing was appended
    │   ├── AppendUnknown              an append may or may not have happened (doubt, rule 4)
    │   ├── AppendRefused              the log said no, for good; nothing was appended
    │   ├── LogTruncated               records that were there are gone
    │   ├── LogDamaged                 a record of ours that cannot be right
    │   ├── NewerRecord                a record of a newer build: this build must not read on
    │   ├── TopicMissing               the topic is not there: `rekindle up` creates it
    │   └── TopicContractBroken        the topic's settings would lose data
    ├── SchemaError                    something about events, commands or state as data
    │   ├── Unencodable                a value that msgpack cannot carry
    │   ├── RecordTooLarge             an encoded record above the topic's limit
    │   └── Undecodable                stored data that does not fit its class
    └── SnapshotError
        ├── SnapshotMissing            the store does not have the blob
        └── SnapshotDamaged            the blob is not what was written

The rooms above add their own branches (`rekindle.actors.errors`). Messages carry the numbers; whoever catches
one finds them in attributes too where a program could act on them.
"""

from __future__ import annotations


class RekindleError(Exception):
    """The base of every error that Rekindle raises."""


class InternalError(RekindleError):
    """Something that cannot happen did. It is our bug: please report it with the message."""


class LogError(RekindleError):
    """The base of everything that can go wrong with the log."""


class LogUnavailable(LogError):
    """The log cannot be reached now. Nothing was appended by this call; trying again later is safe."""


class AppendUnknown(LogError):
    """An append failed or timed out and its outcome is unknown. The owner must claim again (rule 4)."""


class AppendRefused(LogError):
    """The log refused an append for good (too large, not authorised). Nothing was appended.

    The owner stops the shard and replays: one refused append is never one command's error (design, section 5).
    """


class LogTruncated(LogError):
    """The log ends before a record that was known to be in it: truncated or recreated. Never guess; stop."""

    def __init__(self, where: str, expected: int, found: int) -> None:
        super().__init__(
            f"the log of {where} was truncated or recreated: expected at least offset {expected}, found {found}"
        )
        self.expected = expected
        self.found = found


class LogDamaged(LogError):
    """A record carries our mark but cannot be what any owner wrote. Reading on could lose data in silence."""


class NewerRecord(LogError):
    """A record was written by a newer build (record version, kind, event type or event version).

    It is never skipped and never quarantined: the shard belongs on a build that can read it.
    """


class TopicMissing(LogError):
    """The topic does not exist. Topics are created by `rekindle up`, never by accident."""


class TopicContractBroken(LogError):
    """A topic's settings break the contract that the rules need (design, section 4)."""

    def __init__(self, topic: str, faults: list[str]) -> None:
        super().__init__(f"topic {topic!r} breaks the topic contract: {'; '.join(faults)}")
        self.topic = topic
        self.faults = faults


class SchemaError(RekindleError):
    """The base of what can be wrong with data: events, arguments, replies, state."""


class Unencodable(SchemaError):
    """A value has a type (or a size of integer) that a record cannot carry."""


class RecordTooLarge(SchemaError):
    """The encoded record of a command is larger than the topic takes; the command was not accepted."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(f"{what} takes {size} bytes encoded, the log takes at most {limit} bytes")
        self.size = size
        self.limit = limit


class Undecodable(SchemaError):
    """Stored data does not fit the class that should carry it."""


class SnapshotError(RekindleError):
    """The base of what can be wrong with snapshots. None of them loses data: the log is still whole."""


class SnapshotMissing(SnapshotError):
    """The store does not have this blob."""


class SnapshotDamaged(SnapshotError):
    """The blob is not, byte for byte, the one that the pointer describes, or its format is unknown."""
