"""One consumer for all readers of a process that stay at the ends of their partitions: a hundred cost what one does.

A consumer of one's own costs connections, seven tasks, and a fetch for every append of its partition. Here one fetch
brings what is new in all partitions, and a pause after each lets more come together (`PAUSE_S`).

Invariants:
- A partition has one seat at most: a consumer has one position in it.
- Whoever leaves disturbs nobody: its partition is paused. Whoever comes with a partition that the consumer does not have
  makes it begin its fetches anew, for which the others wait once, as long as a broker holds a fetch.
- When the consumer fails, everybody who sits here is told, and finds out with a reader of their own whose failure it was.

This module does not know aiokafka: it is handed what makes a consumer, and what ends one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from rekindle.events.errors import LogUnavailable
from rekindle.events.log import Entry

PAUSE_S: Final = 0.005
"""After each fetch: so long a record may lie unread, and so seldom does a busy log cost a fetch."""

TAKEN_MAX: Final = 2_000
"""Entries that one round hands out, to all seats together."""

ROUND_MAX_S: Final = 1.0
"""How long one round waits for something new."""


class Tail:
    """The shared consumer: started for the first who comes, kept until the log is closed, or until it fails."""

    def __init__(self, make: Callable[[], Awaitable[Any]], stop: Callable[[Any], Awaitable[None]]) -> None:
        self._make = make
        self._stop = stop
        self._consumer: Any = None
        self._starting = asyncio.Lock()
        self._seats: dict[Any, _Seat] = {}
        self._pumping: asyncio.Task[None] | None = None

    def has(self, place: Any) -> bool:
        """Whether somebody sits at this partition."""
        return place in self._seats

    @asynccontextmanager
    async def placed(self, place: Any, offset: int) -> AsyncGenerator[_Seat]:
        """A seat at a partition, from this offset on. Raises what `make` raises."""
        assert place not in self._seats, f"two readers of {place} share a consumer, which has one position in it"
        seat = self._seats[place] = _Seat(self, place, offset)
        try:
            async with self._starting:
                if self._consumer is None:
                    self._consumer = await self._make()
                    self._pumping = asyncio.create_task(self._pump(self._consumer))
            self._sit(place, offset)
            yield seat
        finally:
            self._leave(place, seat)

    def _sit(self, place: Any, offset: int) -> None:
        if place in self._consumer.assignment():
            self._consumer.seek(place, offset)
            self._consumer.resume(place)
            return
        self._consumer.assign(list(self._seats))
        for taken, seat in self._seats.items():  # of all of them: the library forgets positions, and who is paused
            self._consumer.seek(taken, seat.offset)

    def _leave(self, place: Any, seat: _Seat) -> None:
        if self._seats.get(place) is not seat:
            return
        del self._seats[place]
        if self._consumer is not None and place in self._consumer.assignment():
            self._consumer.pause(place)
            self._consumer.seek(place, 0)  # drops what was fetched

    async def _pump(self, consumer: Any) -> None:
        """Hand out what comes, until the consumer fails."""
        try:
            while True:
                for place, seat in self._seats.items():
                    if seat.entries:  # its reader does not keep up: no more for it before it has taken these
                        consumer.pause(place)
                found = await consumer.getmany(timeout_ms=ROUND_MAX_S * 1000, max_records=TAKEN_MAX)
                for place, entries in found.items():
                    if place in self._seats:
                        self._seats[place].put(entries)
                await asyncio.sleep(PAUSE_S)
        except Exception as error:  # noqa: BLE001 - whatever it is, each looks for itself, and meets it where it can be raised
            await self._end(LogUnavailable(f"the consumer that many readers share has failed: {error!r}"))

    def resume(self, place: Any) -> None:
        """A reader that did not keep up goes on."""
        if self._consumer is not None:
            self._consumer.resume(place)

    def polled_ms(self, place: Any) -> int | None:
        """When the broker last answered for this partition."""
        return None if self._consumer is None else self._consumer.last_poll_timestamp(place)

    async def _end(self, error: LogUnavailable) -> None:
        seats, self._seats = self._seats, {}
        consumer, self._consumer = self._consumer, None
        for seat in seats.values():
            seat.fail(error)
        await self._stop(consumer)

    async def close(self) -> None:
        """Stop; safe to call twice, or if nobody ever came."""
        if self._pumping is not None and self._consumer is not None:
            self._pumping.cancel()
            await asyncio.gather(self._pumping, return_exceptions=True)
            await self._end(LogUnavailable("the log is not open"))


class _Seat:
    """One reader's share; to it, what a consumer of its own would be. offset: behind everything that it was given."""

    def __init__(self, tail: Tail, place: Any, offset: int) -> None:
        self.offset = offset
        self.entries: list[Entry] = []
        self._tail = tail
        self._place = place
        self._error: LogUnavailable | None = None
        self._filled = asyncio.Event()

    def put(self, entries: list[Entry]) -> None:
        """Have these read."""
        self.entries += entries
        self.offset = entries[-1].offset + 1
        self._filled.set()

    def fail(self, error: LogUnavailable) -> None:
        """Have this raised, behind what is still to be read."""
        self._error = error
        self._filled.set()

    async def getmany(self, *_: Any, timeout_ms: float, max_records: int) -> dict[Any, list[Entry]]:
        """As a consumer does it."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._filled.wait()
        except TimeoutError:
            return {}
        if not self.entries and self._error is not None:
            raise self._error
        entries, self.entries = self.entries[:max_records], self.entries[max_records:]
        if not self.entries and self._error is None:
            self._filled.clear()
            self._tail.resume(self._place)
        return {self._place: entries}

    def last_poll_timestamp(self, *_: Any) -> int | None:
        """As a consumer says it."""
        return self._tail.polled_ms(self._place)
