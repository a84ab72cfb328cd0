"""What runs in a process: an instance, or the controller, of an application that is named as `module:app`.

Nothing of the user's is pickled: a process imports the application from its own environment. How a process is made
(a Ray actor, a plain child process) is the cluster's business; both call `launch` and learn the addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, Protocol

from rekindle.actors import CallError, Host, Hosted, Instance, WebsocketWire
from rekindle.events import EventLog, RekindleError, SnapshotStore
from rekindle.events.urls import open_log, open_store
from rekindle.supervisors.candidate import Candidate
from rekindle.supervisors.cluster import Cluster
from rekindle.supervisors.console import Console
from rekindle.supervisors.controller import FINAL_ERRORS, Controller
from rekindle.supervisors.tree import DeclarationError, Service, Supervisor

log = logging.getLogger("rekindle")

START_MAX_S: Final = 20.0
STOP_MAX_S: Final = 3.0
CHECK_S: Final = 60.0
"""Between two looks at the settings of the service's topic."""

MEMORY_SHARE: Final = 0.8
"""An instance whose resident memory passes this share of the machine's ends itself, so that others live."""


class Application(Protocol):
    """What a process needs of the user's application (`rekindle.App`)."""

    @property
    def name(self) -> str: ...
    @property
    def log(self) -> str: ...
    @property
    def snapshots(self) -> str: ...
    @property
    def services(self) -> Sequence[Service]: ...
    @property
    def tree(self) -> Supervisor: ...


@dataclass(frozen=True, slots=True)
class Launch:
    """How to run a process of an application; travels as plain data.

    target: `module:app`, found on the environment's own import path or below `path`. log, snapshots: instead of the application's own, where set. advertise: the host that others
    reach this one by, where it is not the one it binds to.
    """

    target: str
    bind: str = "127.0.0.1:0"
    advertise: str | None = None
    log: str | None = None
    snapshots: str | None = None
    token: str | None = None
    memory_bytes_max: int | None = None
    path: tuple[str, ...] = ()

    def dump(self) -> dict[str, Any]:
        """In native types."""
        return asdict(self)


def load(target: str, path: Sequence[str] = (".",)) -> Application:
    """Import `module:app`. Raises `DeclarationError`."""
    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise DeclarationError(f"expected an application as module:name, got {target!r}")
    sys.path[:0] = [folder for folder in map(os.path.abspath, path) if folder not in sys.path]
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DeclarationError(f"cannot import {target!r}: {error}") from error
    return found  # type: ignore[no-any-return]


@contextlib.asynccontextmanager
async def opened(
    log_url: str, snapshots_url: str, app: str, *, create: bool = False
) -> AsyncGenerator[tuple[EventLog, SnapshotStore]]:
    """The application's log and snapshot store, open."""
    event_log: EventLog = open_log(log_url)
    store: SnapshotStore = open_store(snapshots_url, event_log, app, create=create)
    await event_log.open()
    try:
        await store.open()
        yield event_log, store
    finally:
        await store.close()
        await event_log.close()


def resident_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def memory_limit() -> int:
    """The share of the machine's memory that an instance may take."""
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * MEMORY_SHARE)


def now_ms() -> int:
    """Wall clock, milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def real_host(
    event_log: EventLog, store: SnapshotStore | None, launch: Launch, say: Callable[[str], None] = log.warning
) -> Host:
    """What real processes give to an instance or a controller."""
    return Host(
        event_log,
        store,
        WebsocketWire(),
        now_ms,
        asyncio.to_thread,
        say,
        resident_bytes=resident_bytes,
        token=launch.token,
    )


def hosted_service(app: Application, name: str) -> Hosted:
    """The service of that name. Raises `DeclarationError`."""
    for service in app.services:
        if service.name == name:
            return service.hosted(app.name)
    raise DeclarationError(f"application {app.name!r} has no service {name!r}; it has {[s.name for s in app.services]}")


class InstanceThread:
    """An instance on a loop and a thread of its own, so that its process is free for whoever made it.

    `start` returns the addresses; `wait` returns when it has ended.
    """

    def __init__(self, launch: Launch, service: str, incarnation: str) -> None:
        self.launch = launch
        self.service = service
        self.incarnation = incarnation
        self.addresses: tuple[str, str] | None = None
        self.error: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"rekindle-{incarnation}", daemon=True)
        self._stop: Callable[[], None] = lambda: None

    def start(self) -> tuple[str, str]:
        """Bring it up; the addresses of its frames and pulses. Raises what kept it from coming up."""
        self._thread.start()
        if not self._ready.wait(START_MAX_S):
            raise RekindleError(f"{self.incarnation} did not listen within {START_MAX_S} s")
        if self.addresses is None:
            raise RekindleError(f"{self.incarnation} did not come up: {self.error!r}") from self.error
        return self.addresses

    def wait(self, timeout: float | None = None) -> None:
        """Until it has ended."""
        self._thread.join(timeout)

    def stop(self) -> None:
        """Ask it to end."""
        self._stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - nobody above this thread would hear of it
            self.error = error
            log.error("%s ended: %r", self.incarnation, error)
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        app = load(self.launch.target, self.launch.path)
        hosted = hosted_service(app, self.service)
        async with opened(self.launch.log or app.log, self.launch.snapshots or app.snapshots, app.name) as (
            event_log,
            store,
        ):
            await event_log.check(hosted.topic())
            instance = Instance(hosted, self.incarnation, real_host(event_log, store, self.launch))
            loop = asyncio.get_running_loop()
            self._stop = partial(_call_in, loop, instance.stopped.set)
            self.addresses = await instance.start(self.launch.bind, self.launch.advertise)
            watch = threading.Thread(target=_watch_memory, args=(self, instance), name="rekindle-memory", daemon=True)
            watch.start()
            spare_the_collector()
            self._ready.set()
            await _checking(event_log, hosted, instance.stopped)
            async with asyncio.timeout(STOP_MAX_S):
                await instance.stop()

    def limit(self) -> int:
        """Resident bytes at which it ends itself."""
        return self.launch.memory_bytes_max or memory_limit()


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    """Call it in the thread of a loop; nothing happens if that has ended."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function)


GC_ALLOCATIONS: Final = 50_000
"""Between two runs of the garbage collector; commands in flight are many small objects that reference counts free."""


def spare_the_collector() -> None:
    """What was imported stays: do not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS)


async def _checking(event_log: EventLog, hosted: Hosted, stopped: asyncio.Event) -> None:
    """Until the instance stops, see now and then that the topic still keeps its contract; say it if not."""
    while not stopped.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CHECK_S):
                await stopped.wait()
        try:
            await event_log.check(hosted.topic())
        except RekindleError as error:
            log.error("%s: %s", hosted.name, error)


MEMORY_LOOK_S: Final = 0.1
MEMORY_EXIT: Final = 86


def _watch_memory(thread: InstanceThread, instance: Instance) -> None:
    """End this process before it takes the node with it; the last pulse names what was running."""
    limit = thread.limit()
    while not instance.stopped.is_set():
        size = resident_bytes()
        if size > limit:
            running = instance.executing
            instance.name_running()
            log.critical(
                "%s: %d resident bytes, %d are allowed, while %s ran: exit",
                thread.incarnation,
                size,
                limit,
                running and running.title,
            )
            os._exit(MEMORY_EXIT)
        time.sleep(MEMORY_LOOK_S)


SAID_MAX: Final = 1_000


LEAD_AGAIN_S: Final = 1.0
"""Between two attempts of a controller to lead, when the log or the cluster was away for longer than it has patience."""


class ControllerThread:
    """The controller on a loop and a thread of its own. It ends when it is stopped, or when another one leads."""

    def __init__(self, launch: Launch, cluster: Callable[[], Cluster], name: str | None = None) -> None:
        self.launch = launch
        self.name = name or f"controller-{os.urandom(4).hex()}"
        self.reason: str | None = None
        self._cluster = cluster
        self._said: deque[str] = deque(maxlen=SAID_MAX)
        self._up = threading.Event()
        self._controller: Controller | None = None
        self._stop: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name=f"rekindle-{self.name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wait_up(self, seconds: float) -> bool:
        """Whether every shard was served within this time."""
        return self._up.wait(seconds)

    @property
    def leads(self) -> bool:
        """Whether it leads, rather than stands by."""
        return self._controller is not None and self._controller.leads

    def said(self) -> list[str]:
        """What it said last, newest last."""
        return list(self._said)

    def stop(self) -> str:
        """Stop the application; why it ended."""
        self._stop()
        self._thread.join(START_MAX_S)
        return self.reason or f"the controller did not end within {START_MAX_S} s"

    def _say(self, line: str) -> None:
        self._said.append(line)
        log.warning("%s", line)

    def _run(self) -> None:
        try:
            self.reason = asyncio.run(self._lead())
        except Exception as error:  # noqa: BLE001 - nobody above this thread would hear of it
            self.reason = f"{type(error).__name__}: {error}"
        self._say(f"controller {self.name} ended: {self.reason}")

    async def _lead(self) -> str:
        """Lead; if an error ended that, lead again."""
        app, cluster = load(self.launch.target, self.launch.path), self._cluster()
        stopping = asyncio.Event()
        self._stop = partial(_call_in, asyncio.get_running_loop(), stopping.set)
        while not stopping.is_set():
            try:
                return await self._lead_once(app, cluster, stopping)
            except RekindleError as error:
                if not _can_pass(error):
                    raise
                self._up.clear()
                self._say(f"controller {self.name} leads no more, it will try again: {type(error).__name__}: {error}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAD_AGAIN_S):
                    await stopping.wait()
        return "stopped"

    async def _lead_once(self, app: Application, cluster: Cluster, stopping: asyncio.Event) -> str:
        """Stand by, and lead, with one connection to the log."""
        async with opened(self.launch.log or app.log, self.launch.snapshots or app.snapshots, app.name) as (
            event_log,
            store,
        ):
            host = real_host(event_log, store, self.launch, self._say)
            console = Console(host, app.name)
            address = await console.start(self.launch.bind, self.launch.advertise)
            leads = partial(self._on_leading, console)
            candidate = Candidate(app.name, app.tree, cluster, host, self.name, console=address, on_leading=leads)
            leading = asyncio.get_running_loop().create_task(candidate.run(self.launch.bind))
            stopped = asyncio.get_running_loop().create_task(self._stop_when(stopping, leading))
            try:
                return await leading
            except asyncio.CancelledError:
                if not stopping.is_set():
                    raise
                return "stopped"
            finally:
                stopped.cancel()
                await console.close()

    def _on_leading(self, console: Console, controller: Controller) -> None:
        self._controller = console.controller = controller
        self._telling = asyncio.get_running_loop().create_task(self._tell_up(controller))

    async def _tell_up(self, controller: Controller) -> None:
        await controller.up.wait()
        self._up.set()

    async def _stop_when(self, stopping: asyncio.Event, leading: asyncio.Task[str]) -> None:
        """Who leads stops the application; who stands by only leaves."""
        await stopping.wait()
        if self.leads and self._controller is not None:
            self._controller.stop()
        else:
            leading.cancel()


def _can_pass(error: RekindleError) -> bool:
    """Whether trying again may help: not against a wrong declaration, or a log that is not what it was."""
    return not isinstance(error, (DeclarationError, CallError)) and type(error).__name__ not in FINAL_ERRORS
