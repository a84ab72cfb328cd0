"""One instance and one client in one event loop, over the real wire, with a controller that the test plays.

    async with running(hosted, log) as stage:               # an instance that owns every shard, and a client
        await stage.client.get(Stock, "a").receive(5)
        caller = await stage.caller()                       # frames by hand
        lost = await stage.controller.wait_lost(0)          # what the instance told its controller

Whoever enters `running` again on the same log takes the shards over: every assignment has a higher number than all
before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple, ParamSpec

from rekindle import Entity, Event, command, query
from rekindle.actors import (
    Client,
    Closed,
    Connection,
    Floor,
    Host,
    Hosted,
    Instance,
    Owner,
    Route,
    Table,
    WebsocketWire,
)
from rekindle.actors.frames import (
    ANSWER,
    ASSIGN,
    CALL,
    CLIENT,
    CONTROLLER,
    FOLLOW,
    FOLLOWED,
    HELLO,
    LOST,
    POSITIONS,
    PROTOCOL,
    PULSE,
    RELEASE,
    SERVING,
    TABLE,
    TELL,
    TOLD,
    UNFOLLOWED,
    frame,
    parse,
)
from rekindle.actors.outcomes import result_of
from rekindle.actors.owner import SNAPSHOT_EVERY
from rekindle.events import EventLog, Keyed, Partition, SnapshotStore, Topic, session_name, shard_of, unpack
from rekindle.events.embedded import EmbeddedLog
from rekindle.events.simulated import SimulatedLog
from tests.support.loops import eventually, run
from tests.support.watch import Watch

P = ParamSpec("P")

BIND: Final = "127.0.0.1:0"
WAIT_S: Final = 30.0
"""How long a test waits for what the instance must say."""

START_MS: Final = 1_700_000_000_000
"""What a `Clock` shows first."""

TERM: Final = 1
"""Of the controller that the test plays."""

NO_FLOOR: Final = Floor()
_numbers: Final = itertools.count(1)


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """An async function as a test: on a loop of its own, with a deadline."""

    @wraps(test)
    def on_a_loop(*args: P.args, **kwargs: P.kwargs) -> None:
        run(test(*args, **kwargs))

    return on_a_loop


class Clock:
    """A wall clock that stands still until a test moves it."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def hosted_of(
    entity: type[Entity], shards: int = 2, *, name: str | None = None, snapshot_every: int = SNAPSHOT_EVERY
) -> Hosted:
    """A service of this entity. Builds of one service have the same name."""
    return Hosted("app", name or entity.__name__.lower(), entity.describe(), shards, snapshot_every)


def key_in(shard: int, shards: int = 2, prefix: str = "key") -> str:
    """A key that is in this shard."""
    return next(key for n in itertools.count() if shard_of(key := f"{prefix}-{n}", shards) == shard)


class GatedLog(SimulatedLog):
    """A simulated log without faults whose appends a test can hold, or have refused; and which it can change at once."""

    def __init__(self) -> None:
        super().__init__(Random(0))
        self.gate = asyncio.Event()
        self.gate.set()
        self.held = 0
        self.refusals: list[Exception] = []

    def put(self, partition: Partition, *values: bytes) -> None:
        """Have these in the log, before anybody else does anything."""
        self._shelf(partition).put([(None, value) for value in values])
        self._followers.wake(partition)

    async def append(self, partition: Partition, records: Sequence[Keyed]) -> int:
        """See `EventLog`."""
        self.held += 1
        await self.gate.wait()
        self.held -= 1
        if self.refusals:
            raise self.refusals.pop()
        return await super().append(partition, records)


@asynccontextmanager
async def embedded(folder: Path) -> AsyncGenerator[EmbeddedLog]:
    """The embedded log in this folder, open."""
    log = EmbeddedLog(folder / "log.sqlite")
    await log.open()
    try:
        yield log
    finally:
        await log.close()


class Added(Event):
    n: int


class Tally(Entity):
    """The entity of the tests that need no other one: it adds up."""

    total: int = 0

    def apply(self, event: Added) -> None:
        self.total += event.n

    @command
    def add(self, n: int) -> int:
        self.emit(Added(n=n))
        return self.total

    @query
    def read(self) -> int:
        return self.total


class Lost(NamedTuple):
    """A LOST frame."""

    shard: int
    number: int
    reason: str
    error: str | None
    position: Floor
    seen: int


class Followed(NamedTuple):
    """What a FOLLOWED frame says of a shard."""

    position: Floor
    caught_up: bool


class Unfollowed(NamedTuple):
    """An UNFOLLOWED frame."""

    shard: int
    reason: str
    error: str


class Controller:
    """The controller's end of a connection to an instance: gives orders, keeps what it hears."""

    def __init__(self, connection: Connection, hosted: Hosted, address: str) -> None:
        self.hosted = hosted
        self.address = address
        self.numbers: dict[int, int] = {}
        self.serving: dict[int, int] = {}
        self.lost: list[Lost] = []
        self.followed: dict[int, Followed] = {}
        self.unfollowed: list[Unfollowed] = []
        self.called: Counter[int] = Counter()
        self.turned_away = 0
        self.told: dict[int | str, list[Any]] = {}
        self._connection = connection
        self._heard = Watch()
        self._tables = itertools.count()

    async def listen(self) -> None:
        """Hear the instance until it is gone."""
        try:
            while True:
                self._hear(parse(await self._connection.receive()))
                self._heard.changed()
        except Closed:
            return

    def _hear(self, fields: list[Any]) -> None:
        match fields:
            case [kind, shard, number, *_] if kind == SERVING:
                self.serving[shard] = number
            case [kind, *rest] if kind == LOST:
                lost = Lost(*rest)
                self.lost.append(lost._replace(position=Floor(*lost.position)))
            case [kind, followed] if kind == FOLLOWED:
                self.followed.update(
                    (shard, Followed(Floor(*position), caught_up)) for shard, position, caught_up in followed
                )
            case [kind, *rest] if kind == UNFOLLOWED:
                self.unfollowed.append(Unfollowed(*rest))
                self.followed.pop(rest[0], None)
            case [kind, _, called, turned_away] if kind == POSITIONS:
                self.turned_away += turned_away
                self.called.update(called)
            case [kind, id, answer] if kind == TOLD:
                self.told[id] = answer
            case _:
                pass

    async def assign(
        self, shard: int, *, floor: Floor = NO_FLOOR, suspect: bool = False, poison: Sequence[tuple[bytes, int]] = ()
    ) -> int:
        """Give the shard to the instance, under a number that is higher than any before it."""
        number = self.numbers[shard] = next(_numbers)
        await self._connection.send(frame(ASSIGN, TERM, [[shard, number, floor, suspect, poison]]))
        return number

    async def release(self, shard: int, *, term: int = TERM, over: Connection | None = None) -> None:
        """Take the shard away; as a controller of that term, over that connection."""
        await (over or self._connection).send(frame(RELEASE, term, [[shard, self.numbers[shard]]]))

    async def follow(self, *shards: int, floor: Floor = NO_FLOOR, term: int = TERM) -> None:
        """Have the instance follow these shards and no others."""
        await self._connection.send(frame(FOLLOW, term, [[shard, floor] for shard in shards]))

    async def tell(self, id: int | str, operation: str, *, term: int = TERM, **args: Any) -> None:
        """Have the sidecar perform an operation."""
        await self._connection.send(frame(TELL, term, id, operation, args))

    async def publish(self, refused: dict[int, str] | None = None, moved: dict[int, Route] | None = None) -> None:
        """Tell the instance, and through it the clients, that it owns what it was assigned, but for what is kept down, or
        is somebody else's."""
        shards = range(self.hosted.shards)
        owned = self.numbers.keys() - (refused or {}).keys()
        routes = [Route(self.address, self.numbers[shard]) if shard in owned else None for shard in shards]
        for shard, route in (moved or {}).items():
            routes[shard] = route
        table = Table((TERM, next(self._tables)), {self.hosted.name: routes}, {self.hosted.name: refused or {}})
        await self._connection.send(frame(TABLE, *table.dump()))

    async def wait_serving(self, shard: int) -> None:
        """Until the instance serves the shard under its newest number."""

        def holds() -> bool:
            return self.serving.get(shard) == self.numbers[shard]

        await self._heard.until(f"shard {shard} is served (lost so far: {self.lost})", holds, WAIT_S)

    async def wait_caught_up(self, *shards: int) -> None:
        """Until the instance follows these shards and has caught up with them."""

        def holds() -> bool:
            return all(shard in self.followed and self.followed[shard].caught_up for shard in shards)

        await self._heard.until(f"{shards} are followed to the end, not {self.followed}", holds, WAIT_S)

    async def wait_followed_to(self, shard: int, offset: int) -> None:
        """Until the instance has read a shard up to an offset."""

        def holds() -> bool:
            return shard in self.followed and self.followed[shard].position.offset >= offset

        await self._heard.until(f"shard {shard} is followed to {offset}", holds, WAIT_S)

    async def wait_unfollowed(self, shard: int) -> Unfollowed:
        """How the last follower of a shard has ended by itself."""

        def found() -> list[Unfollowed]:
            return [unfollowed for unfollowed in self.unfollowed if unfollowed.shard == shard]

        await self._heard.until(f"shard {shard} is not followed any more", lambda: bool(found()), WAIT_S)
        return found()[-1]

    async def wait_called(self, shard: int, times: int) -> None:
        """Until a shard was asked for so often that is not served."""
        what = f"shard {shard} was asked for {times} times, not {self.called}"
        await self._heard.until(what, lambda: self.called[shard] >= times, WAIT_S)

    async def wait_told(self, id: int | str) -> list[Any]:
        """What came of an operation."""
        await self._heard.until(f"operation {id!r} is answered", lambda: id in self.told, WAIT_S)
        return self.told.pop(id)

    async def wait_lost(self, shard: int) -> Lost:
        """How the shard's newest ownership ended."""

        def found() -> list[Lost]:
            return [lost for lost in self.lost if (lost.shard, lost.number) == (shard, self.numbers[shard])]

        await self._heard.until(f"shard {shard} is lost", lambda: bool(found()), WAIT_S)
        return found()[0]


@dataclass
class Caller:
    """A client by hand: sends whatever frames a test makes, and keeps the answers by the number of their call."""

    connection: Connection
    hosted: Hosted
    session: bytes
    answers: dict[int, list[Any]] = field(default_factory=dict[int, list[Any]])
    goodbye: str | None = None
    gone: str | None = None

    async def greet(self, *fields: Any) -> list[Any]:
        """Send this as the first frame; the frame that comes back."""
        await self.connection.send(frame(*fields))
        return parse(await self.connection.receive())

    async def listen(self) -> None:
        """Keep what comes, until the connection is gone."""
        try:
            while True:
                fields = parse(await self.connection.receive())
                if fields[0] == ANSWER:
                    self.answers.update((call, unpack(payload)) for call, payload in fields[1])
                elif fields[0] != TABLE:
                    self.goodbye = fields[1]
        except Closed as closed:
            self.gone = str(closed)

    async def send(self, call: int, number: int, key: str, handler: str, *args: Any, **options: Any) -> None:
        """Send a call. Options: shard, session, low, suspect, kwargs, staleness, which have the usual values if not given."""
        shard = options["shard"] if "shard" in options else shard_of(key, self.hosted.shards)
        named = [call, number, key, handler, args, options.get("kwargs", {}), options.get("staleness")]
        session, low = options.get("session", self.session), options.get("low", 1)
        await self.connection.send(frame(CALL, [[shard, session, low, options.get("suspect", False), [named]]]))

    async def answer(self, call: int) -> list[Any]:
        """The outcome of a call that was sent."""
        await eventually(lambda: call in self.answers or self.gone is not None)
        assert call in self.answers, f"no answer to call {call}, the connection is gone: {self.goodbye or self.gone}"
        return self.answers.pop(call)

    async def ask(self, call: int, number: int, key: str, handler: str, *args: Any, **options: Any) -> Any:
        """Send a call; its value, or its error raised."""
        await self.send(call, number, key, handler, *args, **options)
        kind = self.hosted.kind
        return result_of(
            await self.answer(call), kind, kind.handlers.get(handler) or next(iter(kind.handlers.values()))
        )

    async def wait_gone(self) -> str:
        """The reason that the instance gave before it closed the connection."""
        await eventually(lambda: self.gone is not None)
        return self.goodbye or f"no reason was given ({self.gone})"


@dataclass
class Stage:
    """What plays: one instance, its controller, one client."""

    hosted: Hosted
    log: EventLog
    host: Host
    instance: Instance
    address: str
    beacon: str
    controller: Controller
    client: Client
    said: list[str]
    tasks: list[asyncio.Task[None]]

    def heard(self, text: str) -> bool:
        """Whether a line with this text was said to the operator."""
        return any(text in line for line in self.said)

    async def connect(self) -> Caller:
        """A connection that has not greeted yet."""
        name = session_name(self.host.now_ms(), next(_numbers).to_bytes(8, "big"))
        return Caller(await self.host.wire.connect(self.address), self.hosted, name)

    async def caller(self) -> Caller:
        """A client by hand, welcome and listening."""
        caller = await self.connect()
        await caller.greet(HELLO, PROTOCOL, self.host.token, CLIENT)
        self.tasks.append(asyncio.create_task(caller.listen()))
        return caller

    def another_client(self, *, token: str | None = None, now_ms: Callable[[], int] | None = None) -> Client:
        """A client of its own; to be entered."""
        return _client(self.hosted, self.address, now_ms or self.host.now_ms, token or self.host.token)

    @asynccontextmanager
    async def announced(self) -> AsyncGenerator[list[list[Any]]]:
        """What the instance says over its beacon within the block, but for its pulses."""
        said: list[list[Any]] = []
        beacon = await self.host.wire.connect(self.beacon)
        await beacon.send((self.host.token or "").encode())
        assert parse(await beacon.receive())[0] == PULSE
        task = asyncio.create_task(_keep_announcements(beacon, said))
        yield said
        await beacon.close()
        await task

    async def take(self, *shards: int, **assignment: Any) -> None:
        """Have the shards served by the instance, under a new number."""
        for shard in shards:
            await self.controller.assign(shard, **assignment)
        await self.controller.publish()
        for shard in shards:
            await self.controller.wait_serving(shard)

    def partition(self, shard: int = 0) -> Partition:
        """Where the shard's log is."""
        return self.hosted.partition(shard)

    def owner(self, shard: int = 0) -> Owner:
        """The instance's owner of the shard."""
        return self.instance.owners[shard]

    async def snapshots(self, shard: int = 0) -> int:
        """How many were saved of all shards, when none of this one is on its way any more."""
        owner = self.owner(shard)
        await eventually(lambda: not owner._saving)  # pyright: ignore[reportPrivateUsage]
        return self.instance.around.counters.get("snapshot_saved", 0)

    async def put(self, *values: bytes, shard: int = 0) -> None:
        """Append these to a shard's log, as somebody would who is no owner."""
        await self.log.append(self.partition(shard), [(None, value) for value in values])


@asynccontextmanager
async def running(
    hosted: Hosted,
    log: EventLog,
    store: SnapshotStore | None = None,
    *,
    shards: Sequence[int] | None = None,
    clock: Callable[[], int] | None = None,
    token: str | None = None,
) -> AsyncGenerator[Stage]:
    """An instance that serves `shards` (default: all), and a client of it. The topic is made if it is not there."""
    await log.create(Topic(hosted.partition(0).topic, hosted.shards))
    said: list[str] = []
    wire = WebsocketWire()
    now_ms = clock or Clock()
    host = Host(log, store, wire, now_ms, asyncio.to_thread, said.append, token=token)
    instance = Instance(hosted, f"instance-{next(_numbers)}", host)
    address, beacon = await instance.start(BIND)
    tasks: list[asyncio.Task[None]] = []
    try:
        connection = await wire.connect(address)
        await connection.send(frame(HELLO, PROTOCOL, token, CONTROLLER))
        await connection.receive()
        controller = Controller(connection, hosted, address)
        tasks.append(asyncio.create_task(controller.listen()))
        async with _client(hosted, address, now_ms, token) as client:
            stage = Stage(hosted, log, host, instance, address, beacon, controller, client, said, tasks)
            await stage.take(*(range(hosted.shards) if shards is None else shards))
            yield stage
    finally:
        await instance.stop()
        await asyncio.gather(*tasks)
    bugs = [line for line in said if line.startswith("bug:")]
    assert not bugs, f"expected no task of the instance to die, got {bugs}"


async def _keep_announcements(beacon: Connection, said: list[list[Any]]) -> None:
    with contextlib.suppress(Closed):
        while True:
            fields = parse(await beacon.receive())
            if fields[0] != PULSE:
                said.append(fields)


def _client(hosted: Hosted, address: str, now_ms: Callable[[], int], token: str | None) -> Client:
    async def seeds() -> list[str]:
        return [address]

    return Client(hosted.app, [hosted], WebsocketWire(), seeds, now_ms, token)
