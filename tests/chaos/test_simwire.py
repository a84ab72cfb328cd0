"""The simulated wire keeps what TCP keeps, and loses what TCP loses."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from contextlib import suppress
from itertools import pairwise
from math import inf
from random import Random
from typing import Any

import pytest

from rekindle.actors import Closed, ConnectFailed, Connection
from rekindle.actors.wire import CONNECT_MAX_S, SEND_BUFFER_BYTES
from rekindle.chaos import Net, Process, SimLoop, WireFaults, new_loop
from tests.chaos.virtual import pass_time


class Two:
    """A server and a client on two hosts; the server keeps what it receives."""

    def __init__(self, loop: SimLoop) -> None:
        self.loop = loop
        self.net = Net(loop, Random(1))
        self.server, self.client = Process(loop, "server", "one"), Process(loop, "client", "two")
        self.server_wire, self.client_wire = self.net.join(self.server), self.net.join(self.client)
        self.received: list[bytes] = []
        self.ended_at: float | None = None

    async def connect(self) -> Connection:
        """Serve, and connect."""
        listening = await self.server_wire.serve("one:0", self._accept)
        return await self.client_wire.connect(listening.address)

    async def _accept(self, connection: Connection) -> None:
        try:
            while True:
                self.received.append(await connection.receive())
        except Closed:
            self.ended_at = self.loop.time()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it in the world."""
        self.loop.run_until_complete(work)


@pytest.fixture
def two() -> Generator[Two]:
    """Two hosts."""
    made = Two(new_loop())
    yield made
    made.loop.close()
    assert made.loop.failures == []


FRAMES = [b"%d" % number for number in range(100)]


async def send_all(connection: Connection) -> None:
    """All frames at once."""
    for frame in FRAMES:
        await connection.send(frame)


def test_frames_arrive_in_order_however_long_each_takes(two: Two) -> None:
    async def main() -> None:
        two.net.faults = WireFaults(slow=0.5, slow_s=2)
        await send_all(await two.connect())
        await pass_time(60)

    two.run(main())
    assert two.received == FRAMES


def test_what_was_sent_before_its_sender_died_may_still_arrive_and_then_the_end(two: Two) -> None:
    async def main() -> None:
        await send_all(await two.connect())
        two.client.kill()
        await pass_time(1)

    two.run(main())
    assert two.received == FRAMES[: len(two.received)]
    assert two.ended_at is not None


def test_a_lost_connection_loses_the_end_never_the_middle(two: Two) -> None:
    async def main() -> None:
        two.net.faults = WireFaults(loss=0.05)
        connection = await two.connect()
        with suppress(Closed):
            while True:
                await send_all(connection)
                await pass_time(0.01)

    two.run(main())
    assert two.received == (FRAMES * 100)[: len(two.received)]
    assert two.net.took["lost_connection"] == 1


def test_a_cut_delays_and_loses_nothing(two: Two) -> None:
    async def main() -> None:
        connection = await two.connect()
        two.net.cut("one", "two")
        await send_all(connection)
        await pass_time(30)
        assert two.received == []
        two.net.heal()
        await pass_time(1)

    two.run(main())
    assert two.received == FRAMES


def test_nobody_is_reached_across_a_cut(two: Two) -> None:
    async def main() -> None:
        listening = await two.server_wire.serve("one:0", _hang)
        two.net.cut("one", "two")
        with pytest.raises(ConnectFailed, match=f"in {CONNECT_MAX_S} s"):
            await two.client_wire.connect(listening.address)

    two.run(main())
    assert two.loop.time() == pytest.approx(CONNECT_MAX_S)


async def _hang(connection: Connection) -> None:
    await connection.receive()


def test_a_host_that_goes_dark_refuses_nothing_and_ends_nothing(two: Two) -> None:
    async def main() -> None:
        connection = await two.connect()
        two.net.go_dark("one")
        two.server.kill()
        await connection.send(b"hello?")
        receiving = two.loop.create_task(connection.receive())
        await pass_time(1_000)
        assert not receiving.done()

    two.run(main())


def test_nobody_listens_where_a_process_was_killed(two: Two) -> None:
    async def main() -> None:
        listening = await two.server_wire.serve("one:0", _hang)
        two.server.kill()
        with pytest.raises(ConnectFailed, match="nobody listens"):
            await two.client_wire.connect(listening.address)

    two.run(main())


def test_a_stopped_process_takes_no_connection_and_its_buffers_fill(two: Two) -> None:
    async def main() -> None:
        connection = await two.connect()
        two.server.set_pace(inf)
        with pytest.raises(ConnectFailed, match="no answer"):
            await two.client_wire.connect(next(iter(two.net.listeners)))
        frame = bytes(SEND_BUFFER_BYTES // 2 + 1)
        sending = two.loop.create_task(_send_some(connection, [frame] * 4))
        await pass_time(10)
        assert not sending.done()
        two.server.set_pace(0)
        await sending

    two.run(main())


async def _send_some(connection: Connection, frames: list[bytes]) -> None:
    for frame in frames:
        await connection.send(frame)


def test_a_beacon_is_heard_from_a_slow_process_and_not_from_a_stopped_one(two: Two) -> None:
    heard: list[float] = []

    async def main() -> None:
        beacon = two.server_wire.beacon("one:0", "token", lambda: b"pulse", 0.2)
        connection = await two.client_wire.connect(beacon.address)
        await connection.send(b"token")
        two.loop.call_at(1, two.server.set_pace, 5)
        two.loop.call_at(2, two.server.set_pace, inf)
        two.loop.call_at(4, two.server.set_pace, 0)
        two.loop.call_at(5, two.server.kill)
        with suppress(Closed):
            while await connection.receive():
                heard.append(two.loop.time())

    two.run(main())
    gaps = [later - earlier for earlier, later in pairwise(heard)]
    assert [gap for gap in gaps if gap > 0.3] == [pytest.approx(2, abs=0.3)]
    assert heard[-1] < 5.1
