"""One connection and what waits to be sent over it: one frame for everything that a turn of the loop made.

Invariants:
- What is handed over is sent in order, until the connection is gone; then it is dropped, and `on_gone` is called once.
- What waits is bounded: a reader that does not keep up loses its connection (`WAITING_BYTES_MAX`), not our memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from rekindle.actors.frames import ANSWER, GOODBYE, BadFrame, frame, parse
from rekindle.actors.outcomes import failed
from rekindle.actors.wire import CLOSE_MAX_S, FRAME_BYTES_MAX, Closed, Connection
from rekindle.events import RecordTooLarge

WAITING_BYTES_MAX: Final = 4 * FRAME_BYTES_MAX
LARGE_FRAME_BYTES: Final = 4_096
"""After a frame of this size others get their turn: the log works on its commands while the next frame is read."""

ANSWERS_MAX: Final = 256
"""Answers in one frame: few enough that the client works on the first while this process packs the next."""
ANSWER_BYTES_MAX: Final = FRAME_BYTES_MAX // 4
"""Limit of one answer; a query that gives more has failed."""


class Link:
    """The instance's end of a connection; a `Sink` for replies."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.answers: list[tuple[int, bytes]] = []
        self.frames: list[bytes] = []
        self.waiting_bytes = 0
        self.gone = False
        self._wake = asyncio.Event()

    def reply(self, call: int, payload: bytes) -> None:
        """Send an answer with this turn's frame."""
        if len(payload) > ANSWER_BYTES_MAX:
            payload = failed(RecordTooLarge("the answer", len(payload), ANSWER_BYTES_MAX))
        answers = self.answers
        answers.append((call, payload))
        self.waiting_bytes += len(payload)
        if len(answers) == 1 or self.waiting_bytes > WAITING_BYTES_MAX:
            self._more(0)

    def send(self, data: bytes) -> None:
        """Send a frame."""
        self.frames.append(data)
        self._more(len(data))

    def _more(self, size: int) -> None:
        self.waiting_bytes += size
        if self.waiting_bytes > WAITING_BYTES_MAX:
            self.gone = True
        self._wake.set()

    async def run(self, on_frame: Callable[[list[Any]], None]) -> None:
        """Receive and send until the connection is gone, or `on_frame` raises; `BadFrame` is told to the other side."""
        sender = asyncio.get_running_loop().create_task(self._send_all())
        try:
            while True:
                data = await self.connection.receive()
                on_frame(parse(data))
                if len(data) > LARGE_FRAME_BYTES:
                    await asyncio.sleep(0)
        except Closed:
            pass
        except BadFrame as error:
            await self.refuse(str(error))
            raise
        finally:
            self.gone = True
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sender
            await self.connection.close()

    async def refuse(self, reason: str) -> None:
        """Say why, and close."""
        with contextlib.suppress(Closed, TimeoutError):
            async with asyncio.timeout(CLOSE_MAX_S):
                await self.connection.send(frame(GOODBYE, reason))
        await self.connection.close()

    async def _send_all(self) -> None:
        with contextlib.suppress(Closed):
            while not self.gone:
                await self._wake.wait()
                self._wake.clear()
                for data in self._take():
                    await self.connection.send(data)
        await self.connection.close()

    def _take(self) -> Iterator[bytes]:
        frames, self.frames = self.frames, []
        answers, self.answers = self.answers, []
        self.waiting_bytes = 0
        yield from frames
        for start in range(0, len(answers), ANSWERS_MAX):
            yield from _frames(answers[start : start + ANSWERS_MAX])


def _frames(answers: list[tuple[int, bytes]]) -> Iterator[bytes]:
    """The answers as one frame; as several if they are large."""
    if len(answers) > 1 and sum(len(payload) for _, payload in answers) > FRAME_BYTES_MAX // 2:
        middle = len(answers) // 2
        yield from _frames(answers[:middle])
        yield from _frames(answers[middle:])
    else:
        yield frame(ANSWER, answers)
