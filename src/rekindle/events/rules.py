"""The rules: what a prefix of a shard's log means (design, section 4). Pure functions of the records, no I/O.

Every reader and every writer computes this and nothing else; there is no second place that decides whether a record
counts. `tests/model/claims.py` is the same rules as a random model check: change a rule there first.

Rule 1  A claim counts if its assignment is higher than that of the claim in force, or equal and of the same
        incarnation. The offset of the claim in force is the shard's term.
Rule 2  A commit counts if its term is the term in force at its place and its sequence is the next one. Whatever does
        not count is void: a duplicate, a straggler of a fenced owner, bytes of a stranger.

Sessions (RIFL; Raft dissertation 6.3) are part of the fold, so they survive whatever the log survives. A session keeps
the outcomes of its commands from its low mark on. It is forgotten `SESSION_TTL_MS` of log time after its last commit.
A session's name begins with the time of its birth (as UUIDv7 does), so a shard that does not know a session can tell
one that it has forgotten from one that it has never seen: the log is not yet older than birth + TTL, or it is.
"""

from __future__ import annotations

from enum import Enum
from itertools import islice
from typing import Any, Final

from rekindle.events.errors import LogDamaged
from rekindle.events.records import Claim, Commit, Record, Stranger

SESSION_TTL_MS: Final = 600_000
"""Ten minutes of log time, far above every deadline (`DEADLINE_MAX_S`) and every connection's time-outs."""

_BIRTH_BYTES: Final = 6


class Verdict(Enum):
    """What is to be done with a command that has no stored outcome."""

    RUN = "run"
    STALE = "stale"
    """Below the low mark: its caller has its answer, or waits no more. A straggling frame; ignored."""
    FORGOTTEN = "forgotten"
    """The session is gone: it may have been run. Never run it again; say that the outcome is unknown."""


def session_name(birth_ms: int, randomness: bytes) -> bytes:
    """A session's name: 6 bytes of birth (milliseconds since the epoch) and randomness that makes it unique."""
    return birth_ms.to_bytes(_BIRTH_BYTES, "big") + randomness


def birth_of(session: bytes) -> int:
    """The time of birth (milliseconds) in a session's name."""
    return int.from_bytes(session[:_BIRTH_BYTES], "big")


class Session:
    """What the shard knows of one client's numbered commands.

    Invariant: `replies` has no number below `low`.
    """

    __slots__ = ("low", "replies", "seen")

    def __init__(self, low: int, seen: int) -> None:
        self.low = low
        self.seen = seen
        self.replies: dict[int, bytes] = {}

    def take(self, number: int, low: int, time: int, reply: bytes) -> None:
        """One of its commands counts."""
        lowest = self.low
        if low == lowest + 1:  # the common case, at once: this runs for every command, and for every record of a replay
            self.replies.pop(lowest, None)
            self.low = low
        elif low > lowest:
            self._lift(low)
        if time > self.seen:  # noqa: PLR1730 - `max` costs twice as much
            self.seen = time
        if number >= self.low:
            self.replies[number] = reply

    def _lift(self, low: int) -> None:
        """Drop what nobody waits for any more."""
        if low - self.low > len(self.replies):
            self.replies = {number: reply for number, reply in self.replies.items() if number >= low}
        else:
            for number in range(self.low, low):
                self.replies.pop(number, None)
        self.low = low


class Fold:
    """Rules 1 and 2 and the sessions, over a prefix of a log.

    offset: the next record to feed. term: offset of the claim in force, -1 before the first.
    sequence: of the last commit that counted. time: log time, the highest seen in what counted.
    void, strangers: how many records did not count, for reports.
    """

    __slots__ = (
        "assignment",
        "incarnation",
        "offset",
        "sequence",
        "sessions",
        "strangers",
        "term",
        "time",
        "ttl_ms",
        "void",
    )

    def __init__(self, ttl_ms: int = SESSION_TTL_MS) -> None:
        self.offset = 0
        self.term = -1
        self.assignment = -1
        self.incarnation = ""
        self.sequence = 0
        self.time = 0
        self.sessions: dict[bytes, Session] = {}
        self.ttl_ms = ttl_ms
        self.void = 0
        self.strangers = 0

    def feed(self, offset: int, record: Record) -> bool:
        """Take the next record; True if it is a commit that counts. Raises `LogDamaged`."""
        assert offset >= self.offset, f"records out of order: {offset} fed at {self.offset}"
        self.offset = offset + 1
        if type(record) is Commit:
            _, term, sequence, time, name, number, low, _, _, reply, _, _ = record
            if term == self.term and sequence == self.sequence + 1:
                self.sequence = sequence
                self.time = time
                if number:
                    session = self.sessions.get(name) or self._new_session(name, low, time)
                    if session is not None:
                        session.take(number, low, time, reply)
                return True
            return self._void_commit(offset, record)
        if isinstance(record, Claim):
            self._claim(offset, record)
        elif isinstance(record, Stranger):
            self.strangers += 1
        return False

    def _void_commit(self, offset: int, commit: Commit) -> bool:
        # An owner sends a batch only when everything before it counts, so a hole under its own term means loss.
        if commit.term == self.term and commit.sequence > self.sequence + 1:
            raise LogDamaged(
                f"offset {offset} has sequence {commit.sequence} of term {commit.term}, but {self.sequence + 1} was never seen: "
                "was the log corrupted, truncated, or lost?"
            )
        self.void += 1
        return False

    def _claim(self, offset: int, claim: Claim) -> None:
        higher = claim.assignment > self.assignment
        if higher or (claim.assignment == self.assignment and claim.incarnation == self.incarnation):
            self.term, self.assignment, self.incarnation = offset, claim.assignment, claim.incarnation
        else:
            self.void += 1

    def _new_session(self, name: bytes, low: int, time: int) -> Session | None:
        self._forget(time)
        birth = birth_of(name)
        if birth + self.ttl_ms < time:
            # Its owner still knew it, but something in between made it forgotten: what it had done is not known
            # any more, so it must not come back (tests/model/claims.py, "forgotten session comes back").
            return None
        session = self.sessions[name] = Session(low, max(time, birth))
        return session

    def _forget(self, now: int) -> None:
        """Drop sessions without a commit for the TTL. Each new session has the two that were looked at longest ago looked
        at, so the expired ones never outnumber the others for long, and a commit of a known session costs nothing."""
        for name in list(islice(self.sessions, 2)):
            session = self.sessions.pop(name)
            if session.seen + self.ttl_ms >= now:
                self.sessions[name] = session

    def judge(self, session: bytes, number: int) -> Verdict | bytes:
        """What to do with a command: its stored outcome if there is one, else a verdict."""
        known = self.sessions.get(session)
        if known is None:
            return Verdict.RUN if self.time <= birth_of(session) + self.ttl_ms else Verdict.FORGOTTEN
        if number < known.low:
            return Verdict.STALE
        return known.replies.get(number, Verdict.RUN)

    def owned_by(self, assignment: int, incarnation: str) -> bool:
        """Whether the claim in force is this one."""
        return self.assignment == assignment and self.incarnation == incarnation

    def dump(self) -> list[Any]:
        """Everything but counters, in native types, for a snapshot."""
        sessions = [[name, s.low, s.seen, list(s.replies.items())] for name, s in self.sessions.items()]
        return [
            self.offset,
            self.term,
            self.assignment,
            self.incarnation,
            self.sequence,
            self.time,
            self.ttl_ms,
            sessions,
        ]

    @classmethod
    def load(cls, dumped: list[Any]) -> Fold:
        """What `dump` gave, again a fold."""
        *head, ttl_ms, sessions = dumped
        fold = cls(ttl_ms)
        fold.offset, fold.term, fold.assignment, fold.incarnation, fold.sequence, fold.time = head
        for name, low, seen, replies in sessions:
            fold.sessions[name] = session = Session(low, seen)
            session.replies.update((number, reply) for number, reply in replies)
        return fold
