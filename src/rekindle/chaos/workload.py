"""What a client of the simulation does: several callers that ask ledgers, one thing after the other, until told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Final

from rekindle.actors import CallError, Client, Host, Hosted
from rekindle.chaos.judge import End, History, Op, Seen
from rekindle.chaos.ledger import Even, Ledger
from rekindle.chaos.loop import Process
from rekindle.supervisors import seeds

KEYS: Final = tuple(f"ledger-{number}" for number in range(8))
KINDS: Final = {"append": 50, "take": 30, "look": 30, "fail": 10, "slowly": 10, "die": 1}
CALLERS: Final = 3
PAUSE_S: Final = 0.15
"""A caller waits about this long before it asks again."""

TIMEOUTS_S: Final = (0.3, 2.0, 10.0)


class Workload:
    """One client process."""

    def __init__(
        self,
        process: Process,
        host: Host,
        app: str,
        hosted: Hosted,
        history: History,
        random: Random,
        note: Callable[[str, str], None],
    ) -> None:
        self.process = process
        self.name = process.name
        self.host = host
        self.history = history
        self.random = random
        self.note = note
        self.asking = True
        self.client = Client(
            app, [hosted], host.wire, seeds(app, host.log, host.snapshots), host.now_ms, host.token, host.randomness
        )
        self._tags = 0

    async def run(self) -> None:
        """Ask until told to stop."""
        async with self.client, asyncio.TaskGroup() as callers:
            for _ in range(CALLERS):
                callers.create_task(self._ask_on())

    async def _ask_on(self) -> None:
        while self.asking:
            await asyncio.sleep(self.random.expovariate(1 / PAUSE_S))
            kind = self.random.choices(list(KINDS), list(KINDS.values()))[0]
            await self.ask(self.random.choice(KEYS), kind, self.random.choice(TIMEOUTS_S))

    async def look_at_all(self, timeout_s: float) -> dict[str, Seen | None]:
        """What every ledger has; None where nobody says it in time."""
        async with self.client:
            ops = await asyncio.gather(*(self.ask(key, "look", timeout_s) for key in KEYS))
        return {op.key: op.seen for op in ops}

    async def ask(self, key: str, kind: str, timeout_s: float) -> Op:
        """One operation, to its end."""
        tag = None
        if kind != "look":
            self._tags += 1
            tag = f"{self.name}.{self._tags}"
        op = self.history.begin(key, kind, tag, self.host.monotonic())
        self.note(">", f"{self.name} {kind} {tag or ''} of {key}")
        await self._call(op, timeout_s)
        op.ended = self.host.monotonic()
        self.note("<", f"{self.name} {op}")
        return op

    async def _call(self, op: Op, timeout_s: float) -> None:
        handler = getattr(self.client.get(Ledger, op.key, timeout=timeout_s), op.kind)
        try:
            count, digest = await (handler() if op.tag is None else handler(op.tag))
            op.end, op.seen = End.OK, (count, digest)
        except Even as refusal:
            op.end, op.seen = End.REFUSED, (refusal.count, refusal.digest)
        except CallError as error:
            op.end = End.FAILED if error.definite else End.UNKNOWN
            self.note("-", f"{self.name} {op.tag}: {error!r}")
