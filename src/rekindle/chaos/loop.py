"""A deterministic event loop with virtual time, and the simulated processes that share it.

When nothing is ready the clock jumps to the next timer. Nothing else moves it, so a run takes as long as its work, and
the same calls give the same run: callbacks run in the order in which they became ready, timers of one instant in the
order in which they were set.

Invariants:
- No real I/O and no threads: what `AbstractEventLoop` offers of them stays refused.
- A callback belongs to the process in whose context it was made; what has no process is the world's.
- A stopped process runs nothing: its callbacks wait, in order, until it goes on. Of a killed one they are dropped.
- If nothing is ready and no timer is set, nothing will ever happen again: `Deadlock` says who waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from contextvars import Context, ContextVar, copy_context
from heapq import heappop, heappush
from math import inf
from typing import Any, Final, NoReturn, TypeVar, TypeVarTuple

from rekindle.events import InternalError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

STEPS_AT_ONCE_MAX: Final = 200_000
"""Callbacks at one instant; more than that and time will never move again."""

WAITING_SHOWN: Final = 20


class Deadlock(InternalError):
    """Nothing is ready and no timer is set, or time does not move any more."""


_process: ContextVar[Process | None] = ContextVar("simulated process", default=None)


class Process:
    """One simulated operating-system process: it can be stopped, slowed, and killed.

    pace_s: what each of its callbacks takes; 0 for one that runs freely, infinite for one that is stopped.
    free: alive, and it runs freely.
    """

    def __init__(self, loop: SimLoop, name: str, host: str) -> None:
        self.loop = loop
        self.name = name
        self.host = host
        self.alive = True
        self.free = True
        self.pace_s = 0.0
        self.at_death: list[Callable[[], None]] = []
        self._held: deque[_Handle] = deque()
        self._draining = False
        loop.processes.append(self)

    @property
    def runs(self) -> bool:
        """Whether it is neither dead nor stopped."""
        return self.alive and self.pace_s < inf

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run work as a part of this process."""
        context = copy_context()
        context.run(_process.set, self)
        return self.loop.create_task(work, context=context)

    def set_pace(self, pace_s: float) -> None:
        """Let it run freely (0), slowly, or not at all (infinite)."""
        self.pace_s = pace_s
        self.free = self.alive and pace_s == 0
        if self.free:
            self.loop.ready(self.release())
        else:
            self._drain_later()

    def release(self) -> list[_Handle]:
        """Give up what is held back."""
        held = list(self._held)
        self._held.clear()
        return held

    def kill(self) -> None:
        """It is gone, at once and for good; whoever waits for it is told by `at_death`."""
        if self.alive:
            self.alive = self.free = False
            self.loop.bury(self.release())
            for tell in self.at_death:
                Context().run(tell)  # the world's, even if it has killed itself

    def hold(self, handle: _Handle) -> None:
        """Keep a callback that may not run now, or bury it."""
        if self.alive:
            self._held.append(handle)
            self._drain_later()
        else:
            self.loop.bury((handle,))

    def _drain_later(self) -> None:
        if not self._draining and self._held and 0 < self.pace_s < inf:
            self._draining = True
            self.loop.call_later(self.pace_s, self._drain, context=Context())

    def _drain(self) -> None:
        self._draining = False
        if self._held and 0 < self.pace_s < inf:
            self.loop.run(self._held.popleft())
        self._drain_later()


def current_process() -> Process | None:
    """The process that is running; None: the world."""
    return _process.get()


class _Handle(asyncio.TimerHandle):
    """A callback, and whose it is. asyncio's own constructor is left out: it keeps what only debugging needs."""

    __slots__ = ("args", "callback", "context", "dropped", "process")

    def __init__(self, when: float, callback: Callable[..., object], args: tuple[Any, ...], context: Context) -> None:
        self._when = when
        self.dropped = False
        self.callback = callback
        self.args = args
        self.context = context
        self.process = context.get(_process)

    def cancel(self) -> None:
        """See `asyncio`. It is passed over when its time comes."""
        self.dropped = True

    def cancelled(self) -> bool:
        """See `asyncio`."""
        return self.dropped

    def __repr__(self) -> str:
        return f"{self.callback} of {self.process.name if self.process else 'the world'}"


class _Task(asyncio.Task[T]):
    """A task whose hash is its number, not its address: sets of tasks have the same order in every run."""

    def __init__(self, number: int, work: Generator[Any, None, T] | Coroutine[Any, Any, T], **how: Any) -> None:
        self._number = number
        super().__init__(work, **how)

    def __hash__(self) -> int:
        return self._number


class SimLoop(asyncio.AbstractEventLoop):
    """The loop. failures: what callbacks raised and tasks raised for nobody; a judge wants none."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.processes: list[Process] = []
        self._now = 0.0
        self._ready: deque[_Handle] = deque()
        self._buried: list[_Handle] = []
        self._timers: list[tuple[float, int, _Handle]] = []
        self._count = 0
        self._at_once = 0
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._closed = False

    # --- running -----------------------------------------------------------------------------------------------

    def run_until_complete(self, future: Generator[Any, None, T] | Awaitable[T]) -> T:
        """Run until it is done; its result."""
        asyncio._set_running_loop(self)
        try:
            task = self.create_task(_awaited(future))
            self._run_until(task)
            return task.result()
        finally:
            asyncio._set_running_loop(None)

    def _run_until(self, task: asyncio.Task[Any]) -> None:
        ready = self._ready
        while not task.done():
            while not ready:
                self._advance()
            self._at_once += 1
            if self._at_once > STEPS_AT_ONCE_MAX:
                raise Deadlock(f"{STEPS_AT_ONCE_MAX} callbacks at {self._now} s, time does not move: {self._waiting()}")
            handle = ready.popleft()
            process = handle.process
            if process is None or process.free:
                self.run(handle)
            else:
                process.hold(handle)

    def run(self, handle: _Handle) -> None:
        """Call back; what it raises is noted."""
        if handle.dropped:
            return
        try:
            handle.context.run(handle.callback, *handle.args)
        except Exception as error:  # noqa: BLE001 - as asyncio's own loop does
            self.call_exception_handler({"message": f"a callback raised: {handle!r}", "exception": error})

    def _advance(self) -> None:
        """Jump to the next timer that was not cancelled."""
        if not self._timers:
            raise Deadlock(f"at {self._now} s nothing is ready and no timer is set: {self._waiting()}")
        when, _, handle = heappop(self._timers)
        if not handle.dropped:
            if when > self._now:
                self._now, self._at_once = when, 0
            self._ready.append(handle)

    def _waiting(self) -> str:
        names = [f"{task.get_name()}: {task.get_coro()}" for task in self._tasks]
        return f"{len(names)} tasks wait: {'; '.join(names[:WAITING_SHOWN])}"

    def ready(self, handles: Iterable[_Handle]) -> None:
        """Callbacks that were held back may run."""
        self._ready.extend(handles)

    def bury(self, handles: Iterable[_Handle]) -> None:
        """Callbacks that must never run. They are kept, because without them their tasks could not be ended."""
        self._buried.extend(handles)

    def close(self) -> None:
        """End every task, whoever's it is, so that nothing is left to the garbage collector. The run is over before."""
        if self._closed:
            return
        self._closed = True
        self._ready.extend(self._buried)
        for process in self.processes:
            self._ready.extend(process.release())
        asyncio._set_running_loop(self)
        try:
            for _ in range(STEPS_AT_ONCE_MAX):
                for task in self._tasks if not self._ready else ():
                    task.cancel()
                if not self._ready:
                    break
                self.run(self._ready.popleft())
        finally:
            asyncio._set_running_loop(None)
            self._timers.clear()

    # --- what tasks and futures ask for ------------------------------------------------------------------------

    def time(self) -> float:
        """Virtual seconds since the beginning."""
        return self._now

    def call_soon(self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None) -> _Handle:
        """See `asyncio`."""
        handle = _Handle(self._now, callback, args, copy_context() if context is None else context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> _Handle:
        """See `asyncio`."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> _Handle:
        """See `asyncio`."""
        handle = _Handle(when, callback, args, copy_context() if context is None else context)
        self._count += 1
        heappush(self._timers, (when, self._count, handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        """See `asyncio`."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """See `asyncio`. Tasks are kept until they are done: the garbage collector's order is nobody's."""
        self._count += 1
        task = _Task(self._count, coro, loop=self, name=name or f"task {self._count}", context=context)
        self._tasks[task] = None
        task.add_done_callback(self._forget, context=Context())
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Note what went wrong; the judge asks for it."""
        self.failures.append(f"{context.get('message')}: {context.get('exception')!r}")

    def get_debug(self) -> bool:
        """Never: debugging takes time and changes nothing here."""
        return False

    def is_running(self) -> bool:
        """Whether it runs now."""
        return asyncio._get_running_loop() is self

    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    # --- what a simulation must not do ---------------------------------------------------------------------------

    def run_in_executor(self, executor: Any, func: Callable[[*Ts], object], *args: *Ts) -> NoReturn:
        """Refused: a thread would run whenever it likes."""
        raise Deadlock(f"{func} was to run in a thread; a simulation has none")

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> NoReturn:
        """Refused: there are no other threads."""
        raise Deadlock(f"{callback} was to be called from another thread; a simulation has none")


async def _awaited(future: Generator[Any, None, T] | Awaitable[T]) -> T:
    assert isinstance(future, Awaitable), f"not awaitable: {future}"
    return await future


def new_loop() -> SimLoop:
    """A loop. All that is left abstract in it is real I/O, which `AbstractEventLoop` refuses."""
    return SimLoop()  # type: ignore[abstract]


async def outside(work: Coroutine[Any, Any, T]) -> T:
    """Let the world do something for a process: once begun, it goes on whatever becomes of who asked for it."""
    if _is_dead():
        work.close()
    await die_if_dead()
    task = asyncio.get_running_loop().create_task(work, context=Context())
    task.add_done_callback(_retrieve, context=Context())
    return await asyncio.shield(task)


async def die_if_dead() -> None:
    """For whatever leaves a process: one that has killed itself does not get to its next line."""
    if _is_dead():
        await asyncio.get_running_loop().create_future()


def _is_dead() -> bool:
    process = _process.get()
    return process is not None and not process.alive


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Nobody may be left to be told."""
    if not task.cancelled():
        task.exception()
