"""The controller's hand on the control log: followed while it stands by, claimed while it leads.

A decision exists once its commit is verified. Whoever has followed the log leads with what it has in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from rekindle.actors import NO_FLOOR, Assignment, Follower, Host, Owner, Phase, Replica, Surroundings
from rekindle.actors.outcomes import MOVED, result_of
from rekindle.actors.requests import Request
from rekindle.events import LogUnavailable, RekindleError, session_name, unpack
from rekindle.supervisors.control import KEY, Control, control_log

READS_MAX: Final = 240
"""How often a follower of the control log that does not get on is waited for (`HAND_OVER_MAX_S`, so a minute altogether)."""


class NotLeading(RekindleError):
    """Another controller holds the claim on the control log."""


class Decisions:
    """The control log, claimed by one controller. `term` is the control term that its orders carry."""

    def __init__(self, app: str, name: str, host: Host) -> None:
        self.hosted = control_log(app)
        self.name = name
        self.host = host
        self.executing: Request | None = None
        self._around = Surroundings(host.log, host.snapshots, self.now_ms, host.spawn, host.offload, self, host.say)
        self._follower: Follower | None = None
        self._unfollowed: RekindleError | None = None
        self._owner: Owner | None = None
        self._count = 0
        self._put: list[asyncio.Future[Any]] = []
        self._ahead_ms = 0
        self._session = b""
        self._futures: dict[int, asyncio.Future[Any]] = {}

    async def read(self) -> Replica:
        """Everything that is decided now; it is followed from the first time on. Raises `LogError`."""
        follower = self._follower
        if follower is None:
            follower = self._follower = Follower(
                self.hosted, 0, NO_FLOOR, self._around, asyncio.Semaphore(), lambda _: None
            )
            follower.begin(self._on_unfollowed)
        end = (await self.host.log.bounds(self.hosted.partition(0))).end
        for _ in range(READS_MAX):
            if await follower.wait_for(end):
                return follower.replica
            if self._unfollowed is not None:
                raise self._unfollowed
        raise LogUnavailable(f"the control log cannot be read from {follower.position} to offset {end}")

    def _on_unfollowed(self, _: Follower, error: RekindleError) -> None:
        self._unfollowed = error

    async def lead(self) -> None:
        """Claim with the number in force + 1. Raises `NotLeading` if somebody else claims meanwhile."""
        host = self.host
        replica = await self.read()
        self._ahead_ms = max(0, replica.fold.time - host.now_ms())
        assignment = Assignment(0, replica.fold.assignment + 1)
        follower, self._follower = self._follower, None
        owner = Owner(self.hosted.partition(0), self.hosted.kind, assignment, self.name, self._around, follower)
        serving = asyncio.get_running_loop().create_future()

        def on_serving(again: Owner) -> None:
            if serving.done():  # the log refused what was decided ahead of it: whoever leads on reads what is true
                again.stop("the log refused an append")
            else:
                serving.set_result(None)

        ended = asyncio.get_running_loop().create_task(owner.run(on_serving))
        await asyncio.wait((serving, ended), return_when=asyncio.FIRST_COMPLETED)
        if owner.error is not None:
            raise owner.error
        if not serving.done():
            raise NotLeading(f"{self.name} could not claim the control log: {owner.reason}")
        self._ahead_ms = max(self._ahead_ms, owner.shard.time - host.now_ms())  # another may have led since it was read
        self._owner, self._ended = owner, ended
        self._session = session_name(self.now_ms(), self.name.encode()[-8:])

    def now_ms(self) -> int:
        """The time, going on from the log's: what one controller has written down as a time means the same to the next,
        whose clock may be behind."""
        return self.host.now_ms() + self._ahead_ms

    @property
    def leads(self) -> bool:
        """Whether the claim in force is ours, as far as is known: not while the records of who has fenced us are read."""
        if self._owner is None or self._owner.shard.phase is not Phase.OWNING:
            return False
        shard = self._owner.shard
        return shard.fold.owned_by(shard.assignment, shard.incarnation)

    @property
    def error(self) -> RekindleError | None:
        """What ended its lead, if it was not another leader."""
        return None if self._owner is None else self._owner.error

    @property
    def term(self) -> int:
        """The offset of the claim."""
        assert self._owner is not None, "asked for the control term before leading"
        return self._owner.shard.term

    @property
    def control(self) -> Control:
        """What is decided, and what is being decided; act only on what `decide` has returned for."""
        assert self._owner is not None, "asked for the control state before leading"
        self._check_leads(self._owner)
        entities = self._owner.shard.entities
        active = entities.active.get(KEY) or entities.activate(KEY)
        assert isinstance(active.entity, Control), f"the control log holds a {type(active.entity).__name__}"
        return active.entity

    async def decide(self, command: str, *args: Any) -> Any:
        """Run a command of `Control`; back when it is in the log. Raises `NotLeading`, `CallError`."""
        return await self._result(command, self._submit(command, args))

    def put(self, command: str, *args: Any) -> None:
        """Run a command of `Control` now, ahead of the log; nothing may be done about it before `settle` has returned."""
        self._put.append(asyncio.ensure_future(self._result(command, self._submit(command, args))))

    async def settle(self) -> None:
        """Wait until everything that was put is in the log. Raises `NotLeading`, `CallError`."""
        put, self._put = self._put, []
        for outcome in await asyncio.gather(*put, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def operate(self, session: bytes, number: int, low: int, command: str, args: list[Any]) -> Any:
        """Run an operator's command under its own number: asked again, it is answered again. Raises as `decide`."""
        return await self._result(command, self._submit(command, args, session, number, low))

    def _submit(
        self, command: str, args: Sequence[Any], session: bytes = b"", number: int = 0, low: int = 0
    ) -> asyncio.Future[Any]:
        assert self._owner is not None, "a decision before leading"
        self._check_leads(self._owner)
        self._count = count = self._count + 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._futures[count] = future
        future.add_done_callback(lambda _: self._futures.pop(count, None))  # also of one that is waited for no more
        if not session:
            session, number, low = self._session, count, min(self._futures)
        handler = self.hosted.kind.handlers[command]
        self._owner.submit(Request(self, count, session, number, low, KEY, handler, list(args), {}, False, None))
        return future

    async def _result(self, command: str, future: asyncio.Future[Any]) -> Any:
        assert self._owner is not None, "a decision before leading"
        outcome = unpack(await future)
        if outcome[0] == MOVED:
            raise NotLeading(f"{self.name} does not lead any more: {self._owner.reason}")
        return result_of(outcome, self.hosted.kind, self.hosted.kind.handlers[command])

    def reply(self, call: int, payload: bytes) -> None:
        """The shard's answer (this object is its own commands' `Sink`)."""
        future = self._futures.pop(call, None)
        if future is not None and not future.done():
            future.set_result(payload)

    def began(self, session: bytes, number: int, text: str) -> None:
        """Nothing of a controller's own is suspect."""

    def ended(self, session: bytes, number: int) -> None:
        """Nothing of a controller's own is suspect."""

    def _check_leads(self, owner: Owner) -> None:
        if not self.leads:
            raise NotLeading(f"{self.name} does not lead any more: {owner.reason or 'another claim is in force'}")

    async def wait_fenced(self) -> str:
        """Return, with the reason, when this controller does not lead any more."""
        await self._ended
        assert self._owner is not None, "fenced before leading"
        return self._owner.reason or "stopped"

    def resign(self) -> None:
        """Stop leading, and following."""
        if self._follower is not None:
            self._follower.end()
        if self._owner is not None:
            self._owner.stop("the controller stops")
