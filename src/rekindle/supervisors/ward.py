"""One instance as the controller sees it: two connections, the pulses, what it serves, what it was doing.

Evidence, not truth: a closed connection is seen at once, a missed pulse after `SUSPECT_S`, a handler that holds the
loop after the service's `hang_s`. None of it depends on the cluster's own settings.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from rekindle.actors import Closed, ConnectFailed, Connection, Floor, Wire
from rekindle.actors.frames import (
    BEGAN,
    CONTROLLER,
    ENDED,
    GOODBYE,
    HELLO,
    LOST,
    POSITIONS,
    PROTOCOL,
    PULSE,
    SERVING,
    WELCOME,
    BadFrame,
    frame,
    parse,
)
from rekindle.supervisors.control import Running

SUSPECT_S: Final = 1.0
"""An instance that sent no pulse for this long (five are missed) is suspect."""

ORDERS_MAX: Final = 1_000


class Ward:
    """An instance under the controller's eyes.

    serving: the number under which each shard is served. began: suspect work that it has begun and not ended.
    """

    def __init__(
        self, incarnation: str, running: Running, wire: Wire, token: str | None, changed: Callable[[], None]
    ) -> None:
        self.incarnation = incarnation
        self.running = running
        self.ready = False
        self.settled = asyncio.Event()
        self.dead: str | None = None
        self.proven = False
        self.suspected = False
        self.pulse_at = 0.0
        self.lag_ms = 0
        self.executing: list[Any] | None = None
        self.serving: dict[int, int] = {}
        self.sent: dict[int, int] = {}
        self.lost: list[tuple[int, int, str, str | None, int]] = []
        self.positions: dict[int, Floor] = {}
        self.began: dict[tuple[bytes, int], str] = {}
        self._wire = wire
        self._token = token
        self._changed = changed
        self._frames: asyncio.Queue[bytes] = asyncio.Queue(ORDERS_MAX)
        self._loop = asyncio.get_running_loop()

    @property
    def alive(self) -> bool:
        """Connected, and nothing speaks against it."""
        return self.ready and self.dead is None

    def send(self, data: bytes) -> None:
        """Queue a frame; it is lost if the connection is, and then the ward is dead."""
        if self._frames.full():
            self.die(f"{ORDERS_MAX} frames wait for it to read", proven=False)
        else:
            self._frames.put_nowait(data)

    def die(self, reason: str, *, proven: bool) -> None:
        """Take evidence of its death."""
        self.proven = self.proven or proven
        if self.dead is None:
            self.dead = reason
            self.settled.set()
        self._changed()

    async def run(self) -> None:
        """Stay connected until it is gone."""
        try:
            connection = await self._wire.connect(self.running.address)
            beacon = await self._wire.connect(self.running.beacon)
            try:
                await self._greet(connection, beacon)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._send_all(connection))
                    group.create_task(self._receive_all(connection))
                    group.create_task(self._receive_pulses(beacon))
            finally:
                await connection.close()
                await beacon.close()
        except* (Closed, ConnectFailed, BadFrame) as errors:
            self.die(f"connection closed: {errors.exceptions[0]}", proven=True)

    async def _greet(self, connection: Connection, beacon: Connection) -> None:
        await connection.send(frame(HELLO, PROTOCOL, self._token, CONTROLLER))
        await beacon.send((self._token or "").encode())
        fields = parse(await connection.receive())
        if fields[0] == GOODBYE:
            raise ConnectFailed(f"{self.running.address} says: {fields[1]}")
        if fields[0] != WELCOME or fields[4] != self.incarnation:
            raise ConnectFailed(f"expected {self.incarnation} at {self.running.address}, got {fields[:5]}")
        self.pulse_at = self._loop.time()
        self.ready = True
        self.settled.set()
        self._changed()

    async def _send_all(self, connection: Connection) -> None:
        while True:
            await connection.send(await self._frames.get())

    async def _receive_all(self, connection: Connection) -> None:
        while True:
            match parse(await connection.receive()):
                case [kind, shard, number, position] if kind == SERVING:
                    self.serving[shard] = number
                    self.positions[shard] = Floor(*position)
                case [kind, shard, number, reason, error, position, seen] if kind == LOST:
                    self.serving.pop(shard, None)
                    self.lost.append((shard, number, reason, error, seen))
                case [kind, positions, _] if kind == POSITIONS:
                    self.positions.update((shard, Floor(*position)) for shard, _, position in positions)
                    continue
                case _:
                    continue
            self._changed()

    async def _receive_pulses(self, beacon: Connection) -> None:
        while True:
            self.on_pulse(parse(await beacon.receive()))

    def on_pulse(self, fields: list[Any]) -> None:
        """A pulse, or work that is announced."""
        self.pulse_at = self._loop.time()
        match fields:
            case [kind, _, lag_ms, executing, _] if kind == PULSE:
                self.lag_ms, self.executing = lag_ms, executing
            case [kind, session, number, text] if kind == BEGAN:
                self.began[session, number] = text
            case [kind, session, number] if kind == ENDED:
                self.began.pop((session, number), None)
            case _:
                pass

    def look(self, now: float, hang_s: float) -> None:
        """Draw conclusions from what was heard, or not."""
        if not self.alive:
            return
        if now - self.pulse_at > SUSPECT_S:
            self.suspected = True
            self.die(f"no pulse for {round((now - self.pulse_at) * 1000)} ms", proven=False)
        elif self.executing is not None and self.executing[3] > hang_s * 1000:
            self.die(f"hung: {self.executing[2]} has been running for {self.executing[3]} ms", proven=True)
        elif self.lag_ms > hang_s * 1000:
            self.die(f"hung: its loop has not turned for {self.lag_ms} ms", proven=True)

    def blamed(self) -> list[tuple[bytes, int, str]]:
        """The calls that may have killed it, each as often as instances are known to have died with it in flight.

        What it announced and did not end, counts twice: it was announced because it was in flight at an earlier death.
        """
        announced = [(session, number, text) for (session, number), text in self.began.items() if session]
        if self.executing is None or announced or not self.executing[0]:
            return [*announced, *announced]
        session, number, text, _ = self.executing
        return [(session, number, text)]

    def announced(self, shard: int) -> bool:
        """Whether it has begun a replay of this shard that it announced, and not ended it."""
        return (b"", shard) in self.began

    def replaying(self) -> list[int]:
        """The shards whose replay may have killed it: exactly the announced one, else all that were not served yet."""
        announced = [number for session, number in self.began if not session]
        if announced or self.executing is not None or any(session for session, _ in self.began):
            return announced
        return [shard for shard, number in self.sent.items() if self.serving.get(shard) != number]

    async def wait_ready(self, seconds: float) -> bool:
        """Whether it got ready in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.settled.wait()
        return self.alive
