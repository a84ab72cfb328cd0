"""Benchmarks: what Rekindle costs, held against loops written by hand.

`python -m bench [NAME ...] [--quick]` runs them and prints one table. To add one, put a module into this folder
(every `bench/*.py` is imported by `__main__`) with a generator of rows, sync or async:

    from bench import Run, benchmark
    from bench.table import Row

    @benchmark("placement")
    async def placement(run: Run) -> AsyncIterator[Row]:
        address = await run.kafka()         # only if it needs a broker
        yield Row("placement of 10,000 shards", value, "ms", durable="nothing is stored")

A benchmark measures in child processes of its own (`spawned`), so that it does not share a loop with this one.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar, cast

if TYPE_CHECKING:
    from bench.table import Row

__all__ = ["BENCHMARKS", "REPOSITORY", "Run", "benchmark", "die_with_parent", "first_line", "spawned"]

REPOSITORY = Path(__file__).resolve().parent.parent
READY_S = 60.0
"""How long a child may take until its first line of output."""

_S = TypeVar("_S")
_PARENT = "REKINDLE_BENCH_PARENT"
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Run:
    """One run of benchmarks: how long to measure, and the broker they share."""

    quick: bool = False
    bootstrap: str | None = None
    """A broker that is already there; without one, the first `kafka()` starts a test broker for the run."""

    _children: AsyncExitStack = field(default_factory=AsyncExitStack)
    _stage: tuple[object, Any] | None = None
    _curtain: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def warmup_s(self) -> float:
        return 0.5 if self.quick else 1.5

    @property
    def window_s(self) -> float:
        return 1.0 if self.quick else 4.0

    async def kafka(self) -> str:
        """The bootstrap address of the run's broker."""
        if self.bootstrap is None:
            broker = spawned("tests.support.kafka", "--brokers", "1", stop_s=15.0)
            self.bootstrap = await first_line(await self._children.enter_async_context(broker))
        return self.bootstrap

    async def staged(self, key: object, build: Callable[[], AbstractAsyncContextManager[_S]]) -> _S:
        """What several benchmarks in a row are played on, and what takes long to build: kept until one asks for another."""
        if self._stage is None or self._stage[0] != key:
            await self.strike()
            self._stage = (key, await self._curtain.enter_async_context(build()))
        return cast(_S, self._stage[1])

    async def strike(self) -> None:
        """Take down what `staged` has built, if there is something."""
        self._stage = None
        await self._curtain.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.strike()
        finally:
            await self._children.aclose()


Rows: TypeAlias = "Iterator[Row] | AsyncIterator[Row]"
_F = TypeVar("_F", bound="Callable[[Run], Rows]")

BENCHMARKS: dict[str, Callable[[Run], Rows]] = {}


def benchmark(name: str) -> Callable[[_F], _F]:
    """Register a generator of rows, sync or async, under `name`."""

    def register(function: _F) -> _F:
        assert name not in BENCHMARKS, f"two benchmarks are called {name!r}"
        BENCHMARKS[name] = function
        return function

    return register


@asynccontextmanager
async def spawned(module: str, *arguments: str, stop_s: float = 0.0) -> AsyncGenerator[Process]:
    """A child `python -m module arguments...`, ended with the block.

    It is asked to end by closing its stdin and has `stop_s` seconds to do so; then it is killed.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        cwd=REPOSITORY,
        env={**os.environ, _PARENT: str(os.getpid())},
        stdin=PIPE,
        stdout=PIPE,
    )
    try:
        yield process
    finally:
        await _end(process, stop_s)


async def first_line(process: Process, within_s: float = READY_S) -> str:
    """The first line that a child prints: it is ready, or this is its result."""
    assert process.stdout is not None, "the child was started without a pipe for its output"
    async with asyncio.timeout(within_s):
        line = await process.stdout.readline()
    if not line.endswith(b"\n"):
        raise RuntimeError(f"child {process.pid} ended before it printed a line; what it says is on stderr")
    return line.decode().strip()


async def _end(process: Process, stop_s: float) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(stop_s):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies, however the parent dies."""
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.environ.pop(_PARENT, str(os.getppid())) != str(os.getppid()):
        sys.exit("the parent died before this process could ask to die with it")
