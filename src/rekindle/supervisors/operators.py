"""The operator's end: finds the leader through the control log, asks it, and gets one answer, whatever happens meanwhile.

    async with Operator("shop", leader("shop", event_log, store), WebsocketWire(), token) as operator:
        report = await operator.look()
        await operator.say("scale", "ann", "the sale begins", "stock", 5)

Invariants:
- One question is on its way at a time; a verb keeps its session and number until it is answered, so it takes effect once,
  also if its leader dies over it and the next one is asked.
- Every wait ends with the caller's deadline; then a verb that was sent is `OutcomeUnknown`, anything else `DeadlineExceeded`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Self

from rekindle.actors import (
    Closed,
    ConnectFailed,
    Connection,
    DeadlineExceeded,
    OutcomeUnknown,
    TokenRefused,
    Wire,
    outcomes,
)
from rekindle.actors.frames import ANSWER, GOODBYE, HELLO, OPERATE, OPERATOR, PROTOCOL, WELCOME, BadFrame, frame, parse
from rekindle.actors.outcomes import result_of
from rekindle.actors.peer import GREET_MAX_S
from rekindle.events import SESSION_TTL_MS, LogUnavailable, session_name, unpack
from rekindle.supervisors.control import CONTROL, Control
from rekindle.supervisors.report import Explanation, Forecast, PlanReport, Report, Story

DEADLINE_S: Final = 5.0
"""Default of how long a question may take: several times what a change of leaders takes."""

SILENT_S: Final = 1.0
"""A leader that is silent for this long may be frozen: the control log knows whether another one leads."""

RETRY_FIRST_S: Final = 0.02
RETRY_MAX_S: Final = 0.25
_RANDOM_BYTES: Final = 8


class Operator:
    """Asks the leader of one application. Open it with `async with`.

    leader_at: gives the address of the leader's console, as `discovery.leader` does. deadline_s: of each question.
    """

    def __init__(
        self,
        app: str,
        leader_at: Callable[[], Awaitable[str]],
        wire: Wire,
        token: str | None = None,
        deadline_s: float = DEADLINE_S,
        randomness: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.app = app
        self.wire = wire
        self.token = token
        self.deadline_s = deadline_s
        self.last_error = "nobody was asked yet"
        self._leader_at = leader_at
        self._randomness = randomness
        self._turn = asyncio.Lock()
        self._connection: Connection | None = None
        self._address = ""
        self._redirect: str | None = None
        self._leader_known = ""
        self._calls = 0
        self._session = b""
        self._number = 0
        self._used_at = 0.0
        self._leader_ms = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._hang_up()

    # --- questions and verbs ----------------------------------------------------------------------------------------

    async def look(self, parts: Sequence[str] = ()) -> Report:
        """The report, or these parts of it."""
        return Report.model_validate(await self.ask("look", *parts))

    async def incident(self, number: int) -> Story:
        """The story of an incident. Raises `Unknown`."""
        return Story.model_validate(await self.ask("incident", number))

    async def plan(self, number: int) -> PlanReport:
        """A plan, also one that is over. Raises `Unknown`."""
        return PlanReport.model_validate(await self.ask("plan", number))

    async def suppose(self, asked: str) -> Forecast:
        """What would be done if this happened (`node-dead:a`). Raises `NotSupposable`, `Unknown`."""
        return Forecast.model_validate(await self.ask("suppose", asked))

    async def explain(self, target: str) -> Explanation:
        """Why something is in its state. Raises `Unknown`."""
        return Explanation.model_validate(await self.ask("explain", target))

    async def say(self, verb: str, who: str, reason: str, *args: Any) -> Any:
        """Have a verb done, once. Raises what `Control` refuses it with (`Rejected`), and as `ask` does."""
        return await self.ask(verb, who, reason, *args, once=True)

    async def ask(self, verb: str, *args: Any, once: bool = False) -> Any:
        """The leader's answer. once: it changes something. Raises `CallError`, `TokenRefused`."""
        number = 0
        try:
            async with asyncio.timeout(self.deadline_s), self._turn:
                pause = RETRY_FIRST_S
                while True:
                    try:
                        connection = await self._connected()
                        number = number or (self._next_number() if once else 0)
                        outcome = await self._exchange(connection, number, verb, args)
                    except (Closed, ConnectFailed, BadFrame, LogUnavailable) as error:
                        await self._leave(str(error))
                    else:
                        match outcome:
                            case [outcomes.MOVED, address, _]:
                                await self._leave(f"{self._address} does not lead", address)
                            case [outcomes.BUSY, waiting, limit]:
                                self.last_error = f"{waiting} questions wait, {limit} may"
                            case _:
                                return _value_of(verb, outcome)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, RETRY_MAX_S)
        except TimeoutError:
            raise self._late(verb, number) from None

    def _late(self, verb: str, number: int) -> DeadlineExceeded | OutcomeUnknown:
        text = f"{verb}: no leader of {self.app!r} answered within {self.deadline_s:g} s; the last problem: {self.last_error}"
        return OutcomeUnknown(f"{text}; it may have been done") if number else DeadlineExceeded(text)

    def _next_number(self) -> int:
        """A session that was not used for long may be forgotten: then a new one, born by the leader's clock."""
        now = asyncio.get_running_loop().time()
        if not self._session or (now - self._used_at) * 1000 > SESSION_TTL_MS / 2:
            self._session, self._number = session_name(self._leader_ms, self._randomness(_RANDOM_BYTES)), 0
        self._used_at = now
        self._number += 1
        return self._number

    # --- the connection ---------------------------------------------------------------------------------------------

    async def _exchange(self, connection: Connection, number: int, verb: str, args: Sequence[Any]) -> list[Any]:
        """One question and its outcome."""
        self._calls += 1
        session = self._session if number else b""
        await connection.send(frame(OPERATE, self._calls, session, number, number, verb, args))
        while True:
            fields = parse(await self._receive(connection))
            if fields[0] == GOODBYE:
                raise ConnectFailed(f"the console closed the connection: {fields[1]}")
            if fields[0] != ANSWER:
                raise BadFrame(f"frame kind {fields[0]} is not for an operator")
            for call, payload in fields[1]:
                if call == self._calls:
                    return list(unpack(payload))

    async def _receive(self, connection: Connection) -> bytes:
        """The next frame. Who is silent may be busy with the answer, or frozen: then another one leads before long."""
        while True:
            try:
                async with asyncio.timeout(SILENT_S):
                    return await connection.receive()
            except TimeoutError:
                if await self._leader_at() != self._leader_known:
                    raise Closed(f"{self._address} is silent, and another one leads") from None

    async def _connected(self) -> Connection:
        """A connection to whoever leads, as far as is known."""
        if self._connection is None:
            self._leader_known = await self._leader_at()
            self._address, self._redirect = self._redirect or self._leader_known, None
            if not self._address:
                raise ConnectFailed(f"nobody has led {self.app!r} yet")
            connection = await self.wire.connect(self._address)
            try:
                async with asyncio.timeout(GREET_MAX_S):
                    await self._greet(connection, self._address)
            except TimeoutError as error:
                await connection.close()
                raise ConnectFailed(f"{self._address} does not greet within {GREET_MAX_S:g} s") from error
            except BaseException:
                await connection.close()
                raise
            self._connection = connection
        return self._connection

    async def _greet(self, connection: Connection, address: str) -> None:
        await connection.send(frame(HELLO, PROTOCOL, self.token, OPERATOR))
        fields = parse(await connection.receive())
        if fields[0] == GOODBYE:
            error = TokenRefused if "token" in fields[1] else ConnectFailed
            raise error(f"{address} says: {fields[1]}")
        if fields[0] != WELCOME or fields[2:4] != [self.app, CONTROL]:
            raise ConnectFailed(f"expected the console of {self.app!r} at {address}, got {fields[:5]!r:.200}")
        self._leader_ms = fields[5]

    async def _leave(self, problem: str, redirect: str | None = None) -> None:
        """Hang up on whoever does not answer as a leader; it may have said who leads."""
        self.last_error, self._redirect = problem, redirect
        await self._hang_up()

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Closed):
                await connection.close()


def _value_of(verb: str, outcome: list[Any]) -> Any:
    """The value of an outcome, or its error raised, typed as `Control` raises it."""
    if outcome[0] == outcomes.OK:
        return outcome[1]
    kind = Control.describe()
    return result_of(outcome, kind, kind.handlers.get(verb, kind.handlers["notice"]))
