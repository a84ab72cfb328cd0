"""Sidecars: what a service runs beside its shards, on the same node and with the same life: another server, a device.

    class Redis:                                  # a Sidecar, in the service's own code
        async def perform(self, operation: str, args: dict[str, Any]) -> Any:
            match operation: ...                  # "promote", "follow", "offset"

A policy reaches it with TELL: the instance has it perform the operation and answers TOLD.

Invariants:
- An instance listens only after its sidecar has started, and ends when that has died.
- Operations are performed one at a time, in the order in which they came. One of a lower control term is refused when
  its turn comes: a controller that was frozen and wakes changes nothing.
- An operation that was told again while it waits or runs is performed once. Afterwards it is performed again: what a
  policy tells twice has to be such that this does no harm.
- Whatever an operation raises is its answer, and every operation has one within its deadline.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple, Protocol

from rekindle.actors.errors import BadRequest, OrderRefused, Overloaded
from rekindle.actors.frames import TOLD, frame
from rekindle.actors.link import ANSWER_BYTES_MAX
from rekindle.actors.outcomes import text_of
from rekindle.events import RecordTooLarge

PERFORM_MAX_S: Final = 10.0
"""How long one operation may take; then it is cancelled."""

STOP_MAX_S: Final = 2.0
"""How long a sidecar may take to stop; the instance ends without it then."""

WAITING_MAX: Final = 100
"""How many operations may wait for their turn."""


class Sidecar(Protocol):
    """What runs beside the shards. It must not outlive its process when that is killed: see to it in `start`."""

    async def start(self) -> None:
        """Bring it up, before the instance listens. If it raises, the instance does not come up."""
        ...

    async def stop(self) -> None:
        """Bring it down; also if `start` has failed. At most `STOP_MAX_S`."""
        ...

    async def wait(self) -> str:
        """Return when it has ended by itself, with the reason: then the instance ends. An empty one says that its work is
        done: a normal exit, after which a transient service is not restarted."""
        ...

    async def perform(self, operation: str, args: dict[str, Any]) -> Any:
        """Do what a policy asks for; the value, in types that a frame can carry, or an exception, is the answer."""
        ...


class Asker(Protocol):
    """Who is told what came of an operation: a connection."""

    def send(self, data: bytes, /) -> None: ...


class _Operation(NamedTuple):
    term: int
    id: int | str
    name: str
    args: dict[str, Any]


class Keeper:
    """An instance's side of its sidecar. term: gives the control term in force."""

    def __init__(
        self,
        sidecar: Sidecar | None,
        term: Callable[[], int],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        say: Callable[[str], None],
    ) -> None:
        self.sidecar = sidecar
        self._term = term
        self._spawn = spawn
        self._say = say
        self._asked: dict[int | str, list[Asker]] = {}
        self._waiting: deque[_Operation] = deque()

    async def start(self) -> None:
        """Bring the sidecar up. Raises whatever it raises."""
        if self.sidecar is not None:
            try:
                await self.sidecar.start()
            except BaseException:
                await self.stop()
                raise

    async def stop(self) -> None:
        """Bring it down, as far as that can be done in time."""
        if self.sidecar is not None:
            try:
                async with asyncio.timeout(STOP_MAX_S):
                    await self.sidecar.stop()
            except Exception as error:  # noqa: BLE001 - the service's own code; the instance ends all the same
                self._say(f"the sidecar did not stop: {error!r}")

    async def wait(self) -> str:
        """Why it has died, once it has."""
        if self.sidecar is None:
            never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            return await never
        try:
            return await self.sidecar.wait()
        except Exception as error:  # noqa: BLE001 - as in `stop`
            return f"its own watch failed: {error!r}"

    def tell(self, asker: Asker, term: int, id: int | str, name: str, args: dict[str, Any]) -> None:
        """Have an operation performed and answered."""
        if id in self._asked:
            if asker not in self._asked[id]:
                self._asked[id].append(asker)
        elif len(self._asked) >= WAITING_MAX:
            asker.send(_failed(id, Overloaded(f"{WAITING_MAX} operations wait for the sidecar")))
        else:
            self._asked[id] = [asker]
            self._waiting.append(_Operation(term, id, name, args))
            if len(self._asked) == 1:
                self._spawn(self._perform_all())

    async def _perform_all(self) -> None:
        while self._waiting:
            operation = self._waiting.popleft()
            answer = await self._answer(operation)
            for asker in self._asked.pop(operation.id):
                asker.send(answer)

    async def _answer(self, operation: _Operation) -> bytes:
        try:
            answer = frame(TOLD, operation.id, [True, await self._perform(operation)])
            if len(answer) > ANSWER_BYTES_MAX:
                raise RecordTooLarge("the answer", len(answer), ANSWER_BYTES_MAX)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():  # it is the instance that ends, not the operation
                raise
            return _failed(operation.id, error)
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - the service's own code may raise anything
            return _failed(operation.id, error)
        return answer

    async def _perform(self, operation: _Operation) -> Any:
        if operation.term < self._term():
            raise OrderRefused(f"a controller of term {operation.term} is refused, {self._term()} leads")
        if self.sidecar is None:
            raise BadRequest("this service has no sidecar")
        limit = asyncio.timeout(PERFORM_MAX_S)
        try:
            async with limit:
                return await self.sidecar.perform(operation.name, operation.args)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(f"{operation.name!r} took more than {PERFORM_MAX_S:g} s") from error


def _failed(id: int | str, error: BaseException) -> bytes:
    return frame(TOLD, id, [type(error).__name__, text_of(error)])
