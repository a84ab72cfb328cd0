"""One SQLite file that many processes read and write at once, without ever blocking the event loop.

Reads run in a few threads. Writes go to one thread per object, which takes everything that waits and commits it as one
transaction: the price of an fsync is shared by all who wait for it (group commit).

Invariants:
- A write is on disk before it is answered (`synchronous=FULL`), all of it or nothing.
- `NotWritten` means just that. `MaybeWritten` means that nobody knows.
- Writers of all processes take turns (`_Turns`), so none starves.
- Every wait for the file has a deadline, also while its holder is stopped (SIGSTOP) in the middle of a write.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from rekindle.events.errors import RekindleError

FORMAT: Final = 1
"""Kept as the file's `user_version`: the tables of this build."""

READ_THREADS: Final = 4
"""How many reads of one object run at once; further ones wait."""

WRITES_QUEUED_MAX: Final = 10_000
"""How many writes of one object may wait; further ones are refused. Far above one per shard."""

WRITE_TIMEOUT_S: Final = 5.0
"""How long a write may take, most of it waiting for the writers of other processes."""

CLOSE_TIMEOUT_S: Final = 2 * WRITE_TIMEOUT_S
"""How long `close` waits for writes that are under way."""

PAUSE_EVERY_S: Final = 0.001
PAUSE_S: Final = 0.000_05
"""While a thread does not get on, the loop pauses this long this often (see `_Pauses`)."""

Argument = TypeVar("Argument")
Result = TypeVar("Result")

Read = Callable[[sqlite3.Connection], Result]
Write = Callable[[sqlite3.Connection, list[Argument]], "list[Result | RekindleError]"]
"""Does something for everyone who asked for it meanwhile: a list of arguments in, as many results (or refusals) out."""


def one_by_one(work: Callable[[sqlite3.Connection, Argument], Result]) -> Write[Argument, Result]:
    """A `Write` that serves one after the other. The work must not have changed anything when it refuses."""

    def serve(connection: sqlite3.Connection, argument: Argument) -> Result | RekindleError:
        try:
            return work(connection, argument)
        except RekindleError as refusal:
            return refusal

    return lambda connection, arguments: [serve(connection, argument) for argument in arguments]


class NotWritten(Exception):
    """Nothing was written, and nothing will be."""


class MaybeWritten(Exception):
    """The write may be there, now or soon, or not."""


class SqliteFile:
    """The file, open in one event loop."""

    def __init__(self, path: Path, tables: Iterable[str]) -> None:
        self._path = path
        self._tables = tuple(tables)
        self._writer: _Writer | None = None
        self._readers: _Readers | None = None

    async def open(self) -> None:
        """Create what is missing. Raises `NotWritten` or `MaybeWritten`."""
        identity = _Identity(self._path)
        pauses = _Pauses(asyncio.get_running_loop())
        try:
            self._writer = _Writer(self._path, identity, pauses)
        except OSError as error:
            raise NotWritten(f"cannot write to {self._path}: {error}") from error
        self._readers = _Readers(self._path, identity, pauses)
        await self.write(_prepare, self._tables)

    async def close(self) -> None:
        """Finish the writes that are queued; safe to call twice, or without `open`."""
        writer, self._writer = self._writer, None
        readers, self._readers = self._readers, None
        if writer:
            await writer.close()
        if readers:
            await asyncio.to_thread(readers.close)

    async def write(self, work: Write[Argument, Result], argument: Argument) -> Result:
        """Do the work in a transaction, in turn. Raises its refusal, `NotWritten` or `MaybeWritten`."""
        if self._writer is None:
            raise NotWritten(f"{self._path} is not open")
        return await self._writer.write(work, argument)

    async def read(self, work: Read[Result]) -> Result:
        """Do the work, which must not write, in a thread. Raises sqlite3.Error."""
        if self._readers is None:
            raise sqlite3.ProgrammingError(f"{self._path} is not open")
        return await self._readers.read(work)


class _Identity:
    """Which file it is that lies at a path.

    SQLite goes on reading and writing a file that was deleted, and every acknowledgement since then would be lost; and
    where another took its place, numbers that were read from the one would be used in the other.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: int | None = None

    def check(self) -> None:
        """Raises FileNotFoundError if it is not the file that was there when it was first found."""
        if self._known is None:
            self._known = self._found()
        elif self._known != self._found():
            raise FileNotFoundError("it was removed or replaced")

    def _found(self) -> int | None:
        try:
            return self._path.stat().st_ino
        except FileNotFoundError:
            return None


class _Pauses:
    """Lets the threads take the interpreter's lock from a loop that is never idle.

    Such a loop lets go of the lock once per turn, for a microsecond: too short for a thread to wake up in, and then the
    thread's wait starts anew. Without pauses a commit of 0.3 ms took up to 700 ms in a busy loop, with them up to 20
    (measured). While threads do get on, there are none.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiting = 0
        self._got_on = 0.0
        self._next: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._waiting += 1
        if self._waiting == 1:
            self._got_on = self.loop.time()
        if self._next is None:
            self._next = self.loop.call_later(PAUSE_EVERY_S, self._pause)

    def __exit__(self, *_: object) -> None:
        self._waiting -= 1
        self._got_on = self.loop.time()

    def _pause(self) -> None:
        self._next = self.loop.call_later(PAUSE_EVERY_S, self._pause) if self._waiting else None
        if self._waiting and self.loop.time() - self._got_on >= PAUSE_EVERY_S:
            time.sleep(PAUSE_S)


class _Readers:
    """Threads that read, and their connections: whoever needs one takes one that is free."""

    def __init__(self, path: Path, identity: _Identity, pauses: _Pauses) -> None:
        self._path = path
        self._identity = identity
        self._pauses = pauses
        self._threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix=f"reader of {path.name}")
        self._free: SimpleQueue[sqlite3.Connection] = SimpleQueue()

    async def read(self, work: Read[Result]) -> Result:
        """See `SqliteFile.read`."""
        with self._pauses:
            return await self._pauses.loop.run_in_executor(self._threads, self._run, work)

    def _run(self, work: Read[Result]) -> Result:
        try:
            self._identity.check()
        except FileNotFoundError as error:
            raise sqlite3.OperationalError(f"cannot read {self._path}: {error}") from error
        try:
            connection = self._free.get_nowait()
        except Empty:
            connection = _connect(self._path)
        try:
            return work(connection)
        finally:
            self._free.put(connection)

    def close(self) -> None:
        """Wait for the reads that are under way. Blocks."""
        self._threads.shutdown()
        while not self._free.empty():
            self._free.get_nowait().close()


@one_by_one
def _prepare(connection: sqlite3.Connection, tables: tuple[str, ...]) -> None:
    ((found,),) = connection.execute("PRAGMA user_version").fetchall()
    if found > FORMAT:
        raise sqlite3.NotSupportedError(f"the file has format {found}, this build reads up to {FORMAT}")
    for table in tables:
        connection.execute(f"CREATE TABLE IF NOT EXISTS {table}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=WRITE_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


class _Turns:
    """The queue of all who want to write to one file, in this process or another.

    SQLite alone makes writers poll with growing pauses: of three busy processes one then writes and two wait for
    seconds (measured). One lock is no queue either: whoever lets go of it is the first to take it again. So there are
    two: a writer waits for the second while it holds the first, and nobody can pass those who wait for the first.
    """

    def __init__(self, path: Path) -> None:
        self._turn = _open_lock(path, "turn")
        self._write = _open_lock(path, "write")

    def __enter__(self) -> None:
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        fcntl.flock(self._write, fcntl.LOCK_EX)
        fcntl.flock(self._turn, fcntl.LOCK_UN)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._write, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._turn)
        os.close(self._write)


def _open_lock(path: Path, name: str) -> int:
    return os.open(f"{path}-{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


class _Target:
    """The file as its writing thread sees it."""

    def __init__(self, path: Path, identity: _Identity) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._identity = identity
        self._turns = _Turns(path)
        self._connection: sqlite3.Connection | None = None

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """A transaction, in turn. Raises `NotWritten` or, if only its commit failed, `MaybeWritten`."""
        with self._turns:
            try:
                self._identity.check()
                connection = self._connection = self._connection or self._connected()
                connection.execute("BEGIN IMMEDIATE")
                yield connection
            except Exception as error:
                self._drop()
                raise NotWritten(f"cannot write to {self._path}: {error}") from error
            try:
                _commit(connection)
            except sqlite3.Error as error:
                self._drop()
                raise MaybeWritten(f"a commit to {self._path} failed: {error}") from error

    def _connected(self) -> sqlite3.Connection:
        connection = _connect(self._path)
        connection.execute("PRAGMA journal_mode = WAL")
        sync_directory(self._path.parent)
        return connection

    def _drop(self) -> None:
        """Roll back by closing: after a failure no state of the connection is worth trusting."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        self._drop()
        self._turns.close()


def _commit(connection: sqlite3.Connection) -> None:
    connection.execute("COMMIT")


def sync_directory(path: Path) -> None:
    """Make sure that a file that was created or renamed in the directory is there after a power cut. Blocks."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class _Job:
    """One write, and the future of whoever waits for it."""

    __slots__ = ("answer", "argument", "outcome", "work")

    def __init__(self, work: Write[Any, Any], argument: Any, answer: asyncio.Future[Any]) -> None:
        self.work = work
        self.argument = argument
        self.answer = answer
        self.outcome: Any = None

    def deliver(self) -> None:
        """Hand over the outcome; in the loop's thread. Whoever asked may have given up meanwhile."""
        if self.answer.done():
            return
        if isinstance(self.outcome, Exception):
            self.answer.set_exception(self.outcome)
        else:
            self.answer.set_result(self.outcome)


def _do(connection: sqlite3.Connection, jobs: list[_Job]) -> None:
    """Do the jobs in their order, those of one kind that follow each other at once."""
    for work, alike in groupby(jobs, key=lambda job: job.work):
        group = list(alike)
        outcomes = work(connection, [job.argument for job in group])
        for job, outcome in zip(group, outcomes, strict=True):
            job.outcome = outcome


class _Writer:
    """The thread that writes, and the queue in front of it."""

    def __init__(self, path: Path, identity: _Identity, pauses: _Pauses) -> None:
        self._path = path
        self._pauses = pauses
        self._loop = pauses.loop
        self._queue: list[_Job] = []
        self._closing = False
        self._changed = threading.Condition()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        target = _Target(path, identity)
        # A daemon: the process can end even if the thread waits for a turn that never comes.
        threading.Thread(target=self._run, args=(target,), name=f"writer of {path.name}", daemon=True).start()

    async def write(self, work: Write[Argument, Result], argument: Argument) -> Result:
        """See `SqliteFile.write`."""
        job = _Job(work, argument, self._loop.create_future())
        self._submit(job)
        try:
            with self._pauses:
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    return await job.answer  # type: ignore[no-any-return]
        except TimeoutError:
            if self._withdraw(job):
                raise NotWritten(f"{self._path} was not to be had for {WRITE_TIMEOUT_S} s") from None
            raise MaybeWritten(f"a write to {self._path} took more than {WRITE_TIMEOUT_S} s") from None

    def _submit(self, job: _Job) -> None:
        with self._changed:
            if self._closing or len(self._queue) >= WRITES_QUEUED_MAX:
                why = "closing" if self._closing else f"behind by {WRITES_QUEUED_MAX} writes"
                raise NotWritten(f"the writer of {self._path} is {why}")
            self._queue.append(job)
            self._changed.notify()

    def _withdraw(self, job: _Job) -> bool:
        """Take the job back, unless the thread has it already."""
        with self._changed:
            waiting = job in self._queue
            if waiting:
                self._queue.remove(job)
            return waiting

    async def close(self) -> None:
        """End, after everything that is queued."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.shield(self._ended)

    # --- in the thread ---

    def _run(self, target: _Target) -> None:
        while self._wait():
            done = self._write_group(target)
            self._tell(partial(_deliver, done))
        target.close()
        self._tell(lambda: self._ended.set_result(None))

    def _write_group(self, target: _Target) -> list[_Job]:
        jobs: list[_Job] = []
        try:
            with target.transaction() as connection:
                # Only now, when it is our turn: whatever came while we waited shares the commit.
                jobs = self._take()
                _do(connection, jobs)
        except Exception as error:  # noqa: BLE001  (whatever it is, the jobs must hear of it and the thread must live)
            known = isinstance(error, NotWritten | MaybeWritten)
            jobs = jobs or self._take()
            for job in jobs:
                job.outcome = error if known else MaybeWritten(f"a write to {self._path} failed: {error!r}")
        return jobs

    def _wait(self) -> bool:
        """Until there is something to write; False: never again."""
        with self._changed:
            while not (self._queue or self._closing):
                self._changed.wait()
            return bool(self._queue)

    def _take(self) -> list[_Job]:
        with self._changed:
            taken, self._queue = self._queue, []
            return taken

    def _tell(self, news: Callable[[], object]) -> None:
        # A loop that is closed has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(news)


def _deliver(jobs: list[_Job]) -> None:
    for job in jobs:
        job.deliver()
