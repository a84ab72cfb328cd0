"""Commands under a key that their caller chose.

Goal: whoever comes with the key, whenever within its lifetime, to whichever owner, the command is applied once and everybody
gets the same answer; another command under the key is refused. Method: several clients, each with a clock of its own, of one
instance whose clock the test moves; the log is held at its gate where attempts are to meet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from rekindle import BadRequest, Client, CommandFailed, Entity, Event, OutcomeUnknown, Rejected, command, query
from rekindle.actors import LIFETIME_MS, TIMEOUT_MAX_S, KeyReused, Proxy, once
from rekindle.actors.keyed import BUCKET_MS, SKEW_MAX_MS
from rekindle.events import SESSION_TTL_MS
from tests.support.inprocess import START_MS, Clock, GatedLog, Stage, hosted_of, in_loop, key_in, running
from tests.support.loops import eventually


class Put(Event):
    n: int


class Full(Rejected):
    holds: int


class Box(Entity):
    """Takes ten."""

    holds: int = 0

    def apply(self, event: Put) -> None:
        self.holds += event.n

    @command
    def put(self, n: int) -> int:
        if self.holds + n > 10:
            raise Full(holds=self.holds)
        self.emit(Put(n=n))
        return self.holds

    @command
    async def put_slowly(self, n: int) -> int:
        self.emit(Put(n=n))
        return self.holds

    @command
    def put_and_break(self, n: int) -> int:
        self.emit(Put(n=n))
        raise RuntimeError(f"broken at {self.holds}")

    @query
    def read(self) -> int:
        return self.holds


BOX: Final = hosted_of(Box)
KEY: Final = key_in(0)
SECOND: Final = 1_000
BORDER: Final = START_MS // BUCKET_MS * BUCKET_MS + BUCKET_MS
"""Where a bucket begins."""


@asynccontextmanager
async def client_of(stage: Stage, clock: Clock) -> AsyncGenerator[Client]:
    """One more client, with its own clock."""
    async with stage.another_client(now_ms=clock) as client:
        await client.get(Box, KEY).read()  # connected: it knows the instance's clock
        yield client


async def put(client: Client, n: int, *, key: bytes = b"k", command: str = "put", within_s: float = 20.0) -> Any:
    """A command under a key; the fingerprint is that of its argument, as a caller would make it."""
    proxy = client.get(Box, KEY, timeout=within_s)
    assert isinstance(proxy, Proxy)
    return await once(client, proxy, command, ([], {"n": n}), key=key, fingerprint=f"{command} {n}".encode())


@in_loop
async def test_it_is_applied_once_for_all_who_have_the_key() -> None:
    clock = Clock(BORDER + SECOND)
    async with (
        running(BOX, GatedLog(), clock=clock) as stage,
        client_of(stage, clock) as one,
        client_of(stage, clock) as two,
    ):
        answers = await asyncio.gather(*(put(client, 3) for client in (one, two, one, two)))
        assert [*answers, await put(two, 3)] == [3] * 5
        assert await put(one, 3, key=b"another") == 6
        assert await one.get(Box, KEY).read() == 6


@in_loop
async def test_attempts_meet_across_the_border_of_two_buckets() -> None:
    """One client is in the bucket before, one in the next: whoever is first decides, also if they come at the same time."""
    clock, before, behind = Clock(BORDER), Clock(BORDER - SKEW_MAX_MS // 2), Clock(BORDER + SKEW_MAX_MS // 2)
    clock.now_ms = before.now_ms
    async with (
        running(BOX, GatedLog(), clock=clock) as stage,
        client_of(stage, before) as one,
        client_of(stage, behind) as two,
    ):
        assert (await put(one, 1, key=b"a"), await put(two, 1, key=b"a")) == (1, 1)
        assert (await put(two, 1, key=b"b"), await put(one, 1, key=b"b")) == (2, 2)
        for number in range(3, 9):
            order = (one, two) if number % 2 else (two, one)
            answers = await asyncio.gather(*(put(client, 1, key=b"%d" % number) for client in order))
            assert answers == [number, number]


@pytest.mark.parametrize("began_ms", [BORDER, BORDER + BUCKET_MS // 2, BORDER + BUCKET_MS - 1])
@in_loop
async def test_a_key_holds_for_its_lifetime_and_then_is_as_new(began_ms: int) -> None:
    clock = Clock(began_ms)
    async with running(BOX, GatedLog(), clock=clock) as stage, client_of(stage, clock) as client:
        assert await put(client, 1) == 1
        for now_ms in (began_ms + LIFETIME_MS // 2, began_ms + LIFETIME_MS):
            clock.now_ms = now_ms
            await put(client, 1, key=b"%d" % now_ms)  # time passes in the log, too
            assert await put(client, 1) == 1
        clock.now_ms = began_ms + 2 * BUCKET_MS
        assert await put(client, 1) == 4


@in_loop
async def test_a_key_holds_in_a_log_that_was_asleep() -> None:
    """Nothing was written for an hour: what the shard takes for its time is long ago, and no old session may be run in."""
    clock = Clock(BORDER)
    async with running(BOX, GatedLog(), clock=clock) as stage, client_of(stage, clock) as client:
        await put(client, 1, key=b"first")
        clock.now_ms += 6 * SESSION_TTL_MS
        assert [await put(client, 1) for _ in range(2)] == [2, 2]
        clock.now_ms += LIFETIME_MS
        assert await put(client, 1) == 2


@in_loop
async def test_a_new_owner_knows_the_key() -> None:
    log, clock = GatedLog(), Clock(BORDER)
    for _ in range(3):
        async with running(BOX, log, clock=clock) as stage, client_of(stage, clock) as client:
            assert await put(client, 4) == 4
            with pytest.raises(Full, match="holds=4"):
                await put(client, 9, key=b"too much")
            clock.now_ms += LIFETIME_MS // 4


@in_loop
async def test_an_attempt_that_was_given_up_is_found_by_the_next() -> None:
    clock = Clock(BORDER)
    async with running(BOX, log := GatedLog(), clock=clock) as stage, client_of(stage, clock) as client:
        assert await put(client, 1, key=b"warm") == 1
        log.gate.clear()
        with pytest.raises(OutcomeUnknown):
            await put(client, 2, within_s=0.1)
        log.gate.set()
        assert [await put(client, 2), await put(client, 2)] == [3, 3]


@in_loop
async def test_an_attempt_given_up_while_its_command_is_on_its_way_is_found_in_the_next_bucket() -> None:
    clock = Clock(BORDER)
    async with running(BOX, log := GatedLog(), clock=clock) as stage, client_of(stage, clock) as client:
        log.gate.clear()
        attempt = asyncio.create_task(put(client, 2))
        await eventually(lambda: log.held)
        sequence = stage.owner().shard.fold.sequence
        log.gate.set()
        log.gate.clear()  # who waited goes on, who comes later waits
        await eventually(lambda: stage.owner().shard.fold.sequence > sequence and log.held)
        attempt.cancel()
        await asyncio.wait([attempt])
        log.gate.set()
        clock.now_ms += BUCKET_MS - 1
        assert [await put(client, 2), await put(client, 2)] == [2, 2]


@in_loop
async def test_another_command_under_the_same_key_is_refused() -> None:
    clock = Clock(BORDER - SECOND)
    async with running(BOX, GatedLog(), clock=clock) as stage, client_of(stage, clock) as client:
        await put(client, 1)
        for now_ms in (clock.now_ms, BORDER + SECOND):
            clock.now_ms = now_ms
            for other in (put(client, 2), put(client, 1, command="put_slowly")):
                with pytest.raises(KeyReused, match="another command, or other arguments"):
                    await other
        assert await client.get(Box, KEY).read() == 1


@in_loop
async def test_what_was_refused_stays_refused_under_its_key() -> None:
    clock = Clock(BORDER)
    async with running(BOX, GatedLog(), clock=clock) as stage, client_of(stage, clock) as client:
        for _ in range(2):
            with pytest.raises(Full, match="holds=0"):
                await put(client, 11)
            await client.get(Box, KEY).put(1)
        with pytest.raises(KeyReused):
            await put(client, 1)


@in_loop
async def test_what_failed_left_no_trace_and_stays_failed() -> None:
    clock = Clock(BORDER)
    async with running(BOX, GatedLog(), clock=clock) as stage, client_of(stage, clock) as client:
        for _ in range(2):
            with pytest.raises(CommandFailed, match="broken at 1"):
                await put(client, 1, command="put_and_break")
        assert await client.get(Box, KEY).read() == 0


@in_loop
async def test_an_async_command_under_a_key() -> None:
    clock = Clock(BORDER)
    async with running(BOX, GatedLog(), clock=clock) as stage, client_of(stage, clock) as client:
        assert await asyncio.gather(*(put(client, 1, command="put_slowly") for _ in range(3))) == [1, 1, 1]


@in_loop
async def test_wrong_arguments_do_not_use_the_key_up() -> None:
    clock = Clock(BORDER)
    async with running(BOX, GatedLog(), clock=clock) as stage, client_of(stage, clock) as client:
        with pytest.raises(BadRequest, match="n: "):
            await put(client, "many")  # type: ignore[arg-type]
        assert await put(client, 1) == 1


@in_loop
async def test_what_cannot_be_kept_is_said() -> None:
    clock = Clock(BORDER)
    async with running(BOX, GatedLog(), clock=clock) as stage, client_of(stage, clock) as client:
        with pytest.raises(BadRequest, match=f"at most {TIMEOUT_MAX_S} s"):
            await put(client, 1, within_s=TIMEOUT_MAX_S + 1)
        for name in ("read", "fall"):
            with pytest.raises(BadRequest, match=f"no command '{name}'"):
                await put(client, 1, command=name)
