"""A process that leads, or stands by to lead: two of them on two nodes make a controller that nobody misses for long.

    stand by: watch the leader's beacon  ->  it is gone or silent  ->  claim the control log  ->  lead  ->  fenced: stand by

Leadership is the claim on the control log and nothing else: a candidate that is wrong about the leader's death costs it
its lead, and nobody anything else; of two that claim at once the first one's claim counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from rekindle.actors import Closed, ConnectFailed, Connection, Host, Replica
from rekindle.supervisors.cluster import Cluster
from rekindle.supervisors.control import KEY, Control
from rekindle.supervisors.controller import Controller
from rekindle.supervisors.decisions import Decisions, NotLeading
from rekindle.supervisors.tree import Supervisor

PULSE_S: Final = 0.1
SILENCE_S: Final = 0.8
"""A leader that sent no pulse for this long is taken for dead."""

ANNOUNCE_S: Final = 0.05
ANNOUNCE_LOOKS: Final = 20
"""Who has claimed the control log says where it is reached; looked for so often, this far apart, before it counts as dead."""


class Candidate:
    """One of the processes of a controller. on_leading: is told of each `Controller` that it leads with."""

    def __init__(
        self,
        app: str,
        root: Supervisor,
        cluster: Cluster,
        host: Host,
        name: str,
        *,
        console: str = "",
        on_leading: Callable[[Controller], None] = lambda _: None,
    ) -> None:
        self.app = app
        self.root = root
        self.cluster = cluster
        self.host = host
        self.name = name
        self.console = console
        self.on_leading = on_leading
        self._began = False

    async def run(self, bind: str) -> str:
        """Stand by and lead until the application is stopped; why it ended. Raises `RekindleError` if it cannot go on."""
        beacon = self.host.wire.beacon(bind, self.host.token, self.name.encode, PULSE_S)
        try:
            while True:
                decisions = Decisions(self.app, self.name, self.host)
                try:
                    if not await self._wait_vacant(decisions):
                        return "the application was stopped"
                    reason = await self._lead(decisions, beacon.address)
                    if reason is not None:
                        return reason
                finally:
                    decisions.resign()
        finally:
            beacon.close()

    async def _lead(self, decisions: Decisions, beacon: str) -> str | None:
        """Lead with what was followed until now; why the application was stopped, None if it was not."""
        controller = Controller(
            self.app, self.root, self.cluster, self.host, self.name, self.console, beacon, decisions
        )
        self.on_leading(controller)
        with suppress(NotLeading):
            reason = await controller.run()
            if controller.is_stopped:
                return reason
            self.host.say(f"controller {self.name} stands by: {reason}")
        return None

    async def _wait_vacant(self, decisions: Decisions) -> bool:
        """Return when nobody leads; False: nobody is to lead any more, the application was stopped."""
        looks = 0
        while True:
            replica = await decisions.read()
            control = replica.entity(KEY)
            assert control is None or isinstance(control, Control), f"the control log holds {control!r}"
            if control is None or control.ended or replica.fold.incarnation in ("", self.name):
                began, self._began = self._began, True
                return not (began and control is not None and control.ended)
            self._began = True
            if control.leader != replica.fold.incarnation:
                if looks == ANNOUNCE_LOOKS:  # it died over its first words; the beacon that is known is another's
                    return True
                looks += 1
                await asyncio.sleep(ANNOUNCE_S)
                continue
            claim = replica.fold.term
            await self._watch(control.beacon)
            replica = await decisions.read()
            if replica.fold.term == claim and not self._is_ended(replica):
                return True
            looks = 0

    @staticmethod
    def _is_ended(replica: Replica) -> bool:
        control = replica.entity(KEY)
        return isinstance(control, Control) and control.ended

    async def _watch(self, address: str) -> None:
        """Until the leader's beacon is gone, or silent."""
        try:
            beacon = await self.host.wire.connect(address)
        except ConnectFailed:
            return
        try:
            await beacon.send((self.host.token or "").encode())
            await _listen(beacon)
        except Closed:
            pass
        finally:
            await beacon.close()


async def _listen(beacon: Connection) -> None:
    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                await beacon.receive()
        except TimeoutError:
            return
