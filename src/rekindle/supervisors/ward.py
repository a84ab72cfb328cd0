"""One instance as the controller sees it: two connections, the pulses, what it serves, what it was doing.

Evidence, not truth: a closed connection is seen at once, a missed pulse after `SUSPECT_S`, a handler that holds the
loop after the service's `hang_s`. None of it depends on the cluster's own settings.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Final

from rekindle.actors import Closed, ConnectFailed, Connection, Floor, Took, Wire
from rekindle.actors.frames import (
    BEGAN,
    CONTROLLER,
    ENDED,
    FOLLOWED,
    GOODBYE,
    HELLO,
    LOST,
    POSITIONS,
    PROTOCOL,
    PULSE,
    SERVING,
    TELL,
    TOLD,
    UNFOLLOWED,
    WELCOME,
    BadFrame,
    frame,
    parse,
)
from rekindle.events import RekindleError
from rekindle.supervisors.decided import Running
from rekindle.supervisors.incidents import Signal

SUSPECT_S: Final = 1.0
"""An instance that sent no pulse for this long (five are missed) is suspect."""

ORDERS_MAX: Final = 1_000
LAST_WORDS_S: Final = 0.1
"""How long a beacon is still listened to after the other connection was closed, or the cluster has said that the instance is
dead; usually all of that is at once, and the beacon's last word, which may be who killed it, is on its way."""

FOLLOW_AGAIN_S: Final = 1.0
TOLD_MAX_S: Final = 20.0
GRAY_MIN_MS: Final = 100
GRAY_TIMES: Final = 3
GRAY_LOOKS: Final = 100
"""A loop that lags by more than this, and by so many times its peers' median, at so many looks in a row, is gray."""


class OperationFailed(RekindleError):
    """A sidecar did not carry out an operation; the message says why."""


class Ward:
    """An instance under the controller's eyes.

    serving: the number under which each shard is served. took: when it last said so, in seconds of the loop, and what
    the takeover took. began: suspect work that it has begun and not ended. sent, following: what it was told to own, and to
    follow. followed: how far it has followed, and whether it has caught up. asked: calls that came for shards that it does
    not serve. turned_away: calls that it could not take, because too many waited, and that nobody has noticed yet.

    changed: is told that there is something to look at; reported: that one more shard is served, which can wait for others.
    """

    def __init__(
        self,
        incarnation: str,
        running: Running,
        wire: Wire,
        token: str | None,
        changed: Callable[[], None],
        reported: Callable[[], None] | None = None,
    ) -> None:
        self.incarnation = incarnation
        self.running = running
        self.ready = False
        self.settled = asyncio.Event()
        self.dead: str | None = None
        self.proven = False
        self.signal = Signal.CLOSED
        self.pulse_at = 0.0
        self.lag_ms = 0
        self.is_gray = False
        self.executing: list[Any] | None = None
        self.serving: dict[int, int] = {}
        self.took: dict[int, tuple[float, Took]] = {}
        self.sent: dict[int, int] = {}
        self.following: list[int] = []
        self.followed: dict[int, tuple[Floor, bool]] = {}
        self.asked: dict[int, int] = {}
        self.turned_away = 0
        self.lost: list[tuple[int, int, str, str | None, int]] = []
        self.positions: dict[int, Floor] = {}
        self.began: dict[tuple[bytes, int], str] = {}
        self._wire = wire
        self._token = token
        self._changed = changed
        self._reported = reported or changed
        self._frames: asyncio.Queue[bytes] = asyncio.Queue(ORDERS_MAX)
        self._loop = asyncio.get_running_loop()
        self._slow_looks = 0
        self._goodbye = False
        self._over = asyncio.Event()
        self._follow_again_at = 0.0
        self._told: dict[str, asyncio.Future[Any]] = {}

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

    def die(self, reason: str, *, proven: bool, signal: Signal = Signal.CLOSED) -> None:
        """Take evidence of its death."""
        self.proven = self.proven or proven
        if self.dead is None:
            self.dead, self.signal = reason, Signal.ENDED if self._goodbye else signal
            self.settled.set()
        self._changed()

    async def run(self) -> None:
        """Stay connected until it is gone."""
        try:
            connection = await self._wire.connect(self.running.address)
            beacon = await self._wire.connect(self.running.beacon)
            try:
                await self._greet(connection, beacon)
                await self._talk(connection, beacon)
            finally:
                await connection.close()
                await beacon.close()
        except (Closed, ConnectFailed, BadFrame) as error:
            self.die(f"connection closed: {error}", proven=True)
        finally:
            self._over.set()

    async def hear_out(self) -> None:
        """Until all that it had to say is heard, or `LAST_WORDS_S` later."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self._over.wait()

    async def _talk(self, connection: Connection, beacon: Connection) -> None:
        """Until one of the connections is gone. Then the beacon is heard to its end: its last word may be who killed it."""
        pulses = self._loop.create_task(self._receive_pulses(beacon))
        tasks = [pulses, *map(self._loop.create_task, (self._send_all(connection), self._receive_all(connection)))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if pulses not in done:
                await asyncio.wait([pulses], timeout=LAST_WORDS_S)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

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
                case [kind, shard, number, position, took] if kind == SERVING:
                    self.serving[shard] = number
                    self.took[shard] = self._loop.time(), Took(*took)
                    self.positions[shard] = Floor(*position)
                    self._reported()
                    continue
                case [kind, shard, number, reason, error, position, seen] if kind == LOST:
                    self.serving.pop(shard, None)
                    self.lost.append((shard, number, reason, error, seen))
                case [kind, positions, asked, turned_away] if kind == POSITIONS:
                    self.positions.update((shard, Floor(*position)) for shard, _, position in positions)
                    self.asked = asked
                    if not turned_away:
                        continue
                    self.turned_away += turned_away
                case [kind, follows] if kind == FOLLOWED:
                    self.followed.update((shard, (Floor(*position), up)) for shard, position, up in follows)
                case [kind, shard, *_] if kind == UNFOLLOWED:
                    self.followed.pop(shard, None)
                    self.following = [known for known in self.following if known != shard]
                    self._follow_again_at = self._loop.time() + FOLLOW_AGAIN_S
                case [kind, _] if kind == GOODBYE:
                    self._goodbye = True
                    continue
                case [kind, name, outcome] if kind == TOLD:
                    self._on_told(name, outcome)
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

    @property
    def may_follow(self) -> bool:
        """Whether it may be told again what to follow: not at once after a follower has ended by itself."""
        return self._loop.time() >= self._follow_again_at

    async def perform(self, term: int, name: str, operation: str, args: dict[str, Any]) -> Any:
        """Have its sidecar carry out an operation; what came of it. Raises `OperationFailed`."""
        told = self._told[name] = self._loop.create_future()
        try:
            self.send(frame(TELL, term, name, operation, args))
            async with asyncio.timeout(TOLD_MAX_S):
                match await told:
                    case [True, value]:
                        return value
                    case [error, text]:
                        raise OperationFailed(f"{error}: {text}")
                    case other:
                        raise OperationFailed(f"an answer that is none: {other!r:.80}")
        except TimeoutError as error:
            raise OperationFailed(f"no answer within {TOLD_MAX_S:g} s") from error
        finally:
            self._told.pop(name, None)

    def _on_told(self, name: str, outcome: list[Any]) -> None:
        told = self._told.get(name)
        if told is not None and not told.done():
            told.set_result(outcome)

    def look(self, now: float, hang_s: float) -> None:
        """Draw conclusions from what was heard, or not."""
        if not self.alive:
            return
        if now - self.pulse_at > SUSPECT_S:
            silent_ms = round((now - self.pulse_at) * 1000)
            self.die(f"no pulse for {silent_ms} ms", proven=False, signal=Signal.SILENT)
        elif self.executing is not None and self.executing[3] > hang_s * 1000:
            text = f"hung: {self.executing[2]} has been running for {self.executing[3]} ms"
            self.die(text, proven=True, signal=Signal.HUNG)
        elif self.lag_ms > hang_s * 1000:
            self.die(f"hung: its loop has not turned for {self.lag_ms} ms", proven=True, signal=Signal.HUNG)

    def compare(self, peers_ms: Sequence[int]) -> None:
        """See whether its loop has lagged far behind its peers' for long enough: then it is gray."""
        slow = self.lag_ms > GRAY_MIN_MS and bool(peers_ms) and self.lag_ms > GRAY_TIMES * median(peers_ms)
        self._slow_looks = self._slow_looks + 1 if slow else 0
        if self._slow_looks and self._slow_looks % GRAY_LOOKS == 0:  # for as long as it lasts, it is said again
            self.is_gray = True
            self._changed()

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
