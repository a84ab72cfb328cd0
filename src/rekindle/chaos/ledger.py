"""The workload's entity: a ledger that counts its entries and chains their tags, so that every answer can be checked.

An answer tells how many entries its caller saw and a digest of all their tags in order. Two callers who saw the same
number saw the same past; and what is in the log says what that past was.
"""

from __future__ import annotations

import asyncio
from zlib import crc32

from rekindle.actors import Entity, Rejected, command, query
from rekindle.chaos.loop import current_process
from rekindle.events import Event

Seen = tuple[int, int]
"""How many entries, and the digest of their tags."""


def digest_of(tag: str, before: int) -> int:
    """The digest with one more tag."""
    return crc32(tag.encode(), before)


class Appended(Event):
    """One more entry."""

    tag: str


class Even(Rejected):
    """A `take` from an even number of entries is refused."""

    count: int
    digest: int


class Ledger(Entity):
    """Entries, counted and chained."""

    count: int = 0
    digest: int = 0

    def apply(self, event: Appended) -> None:
        """One more."""
        self.count += 1
        self.digest = digest_of(event.tag, self.digest)

    @command
    def append(self, tag: str) -> Seen:
        """Always counts."""
        self.emit(Appended(tag=tag))
        return self.count, self.digest

    @command
    def take(self, tag: str) -> Seen:
        """Counts, or is refused after it has emitted."""
        before = self.count, self.digest
        self.emit(Appended(tag=tag))
        if before[0] % 2 == 0:
            raise Even(count=before[0], digest=before[1])
        return self.count, self.digest

    @command
    def fail(self, tag: str) -> Seen:
        """Never counts."""
        self.emit(Appended(tag=tag))
        raise ArithmeticError(tag)

    @command
    async def slowly(self, tag: str) -> Seen:
        """Counts, after a while in which everything else of its entity waits."""
        await asyncio.sleep(0.02)
        self.emit(Appended(tag=tag))
        return self.count, self.digest

    @command
    def die(self, tag: str) -> Seen:
        """A killer: whoever runs it dies of it. It never counts."""
        process = current_process()
        assert process is not None, "a killer command outside of every simulated process"
        process.kill()
        self.emit(Appended(tag=tag))
        return self.count, self.digest

    @query
    def look(self) -> Seen:
        """What is there."""
        return self.count, self.digest
