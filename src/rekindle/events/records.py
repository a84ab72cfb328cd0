"""The records of a shard's log and their bytes.

A record's value is one msgpack array of two: the head, and the events (none, but for a command's commit):

    claim    [["rk", 1, CLAIM, assignment, incarnation, time], []]
    commit   [["rk", 1, kind, term, sequence, time, session, number, low, entity, version, reply, trace], [event, ...]]
    event    [type, schema version, {field: value}]

Three kinds of strangers (design, section 4):
- bytes that are not ours (no "rk" in front) are void: a `Stranger`, counted and reported by whoever reads;
- ours but newer than this build raises `NewerRecord`: the reader stops, nothing is skipped;
- ours but misshapen raises `LogDamaged`: no owner ever wrote it, so reading on could lose data in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

from rekindle.events.codec import pack, unpack
from rekindle.events.errors import LogDamaged, NewerRecord

MARK: Final = "rk"
VERSION: Final = 1

CLAIM: Final = 1
COMMAND: Final = 2
BARRIER: Final = 3
SNAPSHOTTED: Final = 4

NO_SESSION: Final = b""
RawEvent = list[Any]
"""An event as it lies in a record: [type, schema version, {field: value}]."""


class Claim(NamedTuple):
    """An owner takes the shard (rule 1)."""

    assignment: int
    incarnation: str
    time: int


class Commit(NamedTuple):
    """One command's outcome, a barrier, or the mark of a snapshot (rule 2). The kind says which.

    term: offset of the claim that it was written under. sequence: dense per shard, from 1.
    time: milliseconds since the epoch, never falling within a shard.
    session, number, low: whose command, which one, and the lowest number still waited for; a barrier has none.
    entity: its key; for `SNAPSHOTTED` the snapshot's name. version: the entity's events so far, these included.
    reply: the packed outcome as the client gets it.
    """

    kind: int
    term: int
    sequence: int
    time: int
    session: bytes
    number: int
    low: int
    entity: str
    version: int
    reply: bytes
    trace: str | None
    events: list[RawEvent]


class Stranger(NamedTuple):
    """Bytes that are not ours: void."""

    size: int


Record = Claim | Commit | Stranger

_CLAIM_FIELDS: Final = 6
_COMMIT_FIELDS: Final = 13
build: Final[Callable[..., Any]] = cast(Any, tuple).__new__
"""`build(T, fields)` is `T(*fields)` for a named tuple T, without the detour through its Python constructor: a few of them
are made for every command, and one for every record of a replay."""

_OURS: Final = (MARK, VERSION)
_NO_EVENTS: Final = b"\x90"
_ONE_EVENT: Final = b"\x91"
_PAIR: Final = b"\x92"


def encode_claim(claim: Claim) -> bytes:
    """The value of a claim."""
    return pack([[MARK, VERSION, CLAIM, *claim], []])


def encode_head(commit: Commit) -> bytes:
    """The first half of a commit's value; `with_events` adds the other."""
    return pack(_OURS + commit[:-1])


def with_events(head: bytes, events: list[bytes]) -> bytes:
    """The value of a commit from its packed head and its packed events.

    Events are packed one by one when they are emitted, before `apply` sees them: what is in the log cannot be
    changed by a handler that goes on using a list that it put into an event.
    """
    if not events:
        return _PAIR + head + _NO_EVENTS
    if len(events) == 1:
        return b"".join((_PAIR, head, _ONE_EVENT, events[0]))
    return b"".join((_PAIR, head, _array_header(len(events)), *events))


def _array_header(count: int) -> bytes:
    if count < 16:
        return bytes((0x90 | count,))
    return b"\xdc" + count.to_bytes(2, "big") if count < 1 << 16 else b"\xdd" + count.to_bytes(4, "big")


def encode(record: Claim | Commit) -> bytes:
    """The value of any record of ours."""
    if isinstance(record, Claim):
        return encode_claim(record)
    return with_events(encode_head(record), [pack(event) for event in record.events])


def decode(value: bytes | None) -> Record:
    """What a value in the log is. Raises `NewerRecord` and `LogDamaged`."""
    head: list[Any]
    try:
        head, events = unpack(value)  # type: ignore[arg-type]
        ours = type(head) is list and head[0] == MARK
    except (ValueError, TypeError, IndexError):
        return Stranger(len(value or b""))
    if not ours:
        return Stranger(len(value or b""))
    try:
        if len(head) == _COMMIT_FIELDS:
            _, form, kind, term, sequence, time, session, number, low, entity, version, reply, trace = head
            if form == VERSION and COMMAND <= kind <= SNAPSHOTTED:
                fields = (kind, term, sequence, time, session, number, low, entity, version, reply, trace, events)
                return build(Commit, fields)  # type: ignore[no-any-return]
        return _decode_rest(head[1], head[2], head)
    except (ValueError, TypeError, IndexError) as error:
        raise LogDamaged(f"a record of ours has the head {head!r}: {error}") from error


def _decode_rest(version: int, kind: int, head: list[Any]) -> Claim:
    if version > VERSION or kind > SNAPSHOTTED:
        raise NewerRecord(
            f"a record of version {version}, kind {kind}; this build reads up to version {VERSION}, kind {SNAPSHOTTED}"
        )
    if kind == CLAIM and len(head) == _CLAIM_FIELDS:
        return Claim(*head[3:])
    raise LogDamaged(f"a record of ours, version {version}, kind {kind}, has {len(head)} fields in its head: {head!r}")
