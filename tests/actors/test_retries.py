"""Calls that are sent again, come late, wait too long or find a queue full: run once or not at all, and never in doubt
without saying so.

Goal: an error that promises "no effect" keeps that promise, and a command that was answered is never run again. Method:
retries and stragglers are sent by hand; the log is held at its gate; the shard's time moves by a fake clock.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from rekindle import CommandFailed, DeadlineExceeded, Entity, Event, OutcomeUnknown, Overloaded, command, query
from rekindle.actors import ShardRefused, Stale
from rekindle.actors.frames import BEGAN, ENDED
from rekindle.events import SESSION_TTL_MS, session_name
from tests.support.inprocess import Caller, Clock, GatedLog, Stage, Tally, hosted_of, in_loop, key_in, running
from tests.support.loops import eventually

TALLY = hosted_of(Tally)
KEY = key_in(0)
OK = 0
FOREVER_S = 100.0


class Ticked(Event):
    pass


class Slow(Entity):
    """Ticks, after the test has let it."""

    ticks: int = 0

    def apply(self, event: Ticked) -> None:
        self.ticks += 1

    @command
    async def tick(self) -> int:
        await _pendulum.wait()
        self.emit(Ticked())
        return self.ticks

    @query
    def read(self) -> int:
        return self.ticks


_pendulum = asyncio.Event()


@pytest.fixture
def pendulum(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    pendulum = asyncio.Event()
    monkeypatch.setattr(f"{__name__}._pendulum", pendulum)
    return pendulum


# Commands that come again


@in_loop
async def test_a_retried_command_gets_the_answer_of_the_first_time() -> None:
    async with running(TALLY, log := GatedLog()) as stage:
        caller = await stage.caller()
        assert await caller.ask(1, 1, KEY, "add", 5) == 5
        assert await caller.ask(2, 2, KEY, "add", 5) == 10
        assert await caller.ask(3, 1, KEY, "add", 5) == 5
        assert await caller.ask(4, 1, KEY, "add", 70) == 5  # by its number it is the same
    async with running(TALLY, log) as stage:
        again = await stage.caller()
        again.session = caller.session
        assert await again.ask(1, 2, KEY, "add", 5) == 10
        assert await stage.client.get(Tally, KEY).read() == 10


@in_loop
async def test_a_command_that_comes_again_before_it_is_in_the_log_waits_for_it() -> None:
    async with running(TALLY, log := GatedLog()) as stage:
        caller = await stage.caller()
        log.gate.clear()
        await caller.send(1, 1, KEY, "add", 5)
        await caller.send(2, 1, KEY, "add", 5)
        await eventually(lambda: log.held)
        await everything_came(stage)
        assert not caller.answers
        log.gate.set()
        assert await caller.answer(1) == await caller.answer(2) == [OK, 5]
        assert await stage.client.get(Tally, KEY).read() == 5


@in_loop
async def test_a_failure_too_is_the_same_every_time() -> None:
    """A refusal that left no trace would run when a copy of it comes later, although its caller knows it as failed."""
    async with running(TALLY, GatedLog()) as stage:
        caller = await stage.caller()
        await stage.client.get(Tally, KEY).add(2**63)
        for call in range(1, 3):
            with pytest.raises(CommandFailed, match="Unencodable"):
                await caller.ask(call, 1, KEY, "add", 2**63)
            await stage.client.get(Tally, KEY).add(-(2**62))


@in_loop
async def test_a_straggler_from_below_the_mark_is_ignored() -> None:
    async with running(TALLY, GatedLog()) as stage:
        caller = await stage.caller()
        assert await caller.ask(1, 2, KEY, "add", 5, low=2) == 5
        await caller.send(2, 1, KEY, "add", 70, low=1)
        assert await caller.ask(3, 3, KEY, "add", 5, low=2) == 10
        assert await stage.client.get(Tally, KEY).read() == 10
        assert 2 not in caller.answers


@in_loop
async def test_a_command_of_a_forgotten_session_is_never_run() -> None:
    clock = Clock()
    async with running(TALLY, log := GatedLog(), clock=clock) as stage:
        caller, other = await stage.caller(), await stage.caller()
        assert await caller.ask(1, 1, KEY, "add", 5) == 5
        clock.now_ms += SESSION_TTL_MS + 1
        other.session = session_name(clock.now_ms, b"other")
        assert await other.ask(1, 1, KEY, "add", 1) == 6
        for call, number in ((2, 1), (3, 2)):  # answered long ago; never seen
            with pytest.raises(OutcomeUnknown, match="has forgotten the session of this command; it may have been run"):
                await caller.ask(call, number, KEY, "add", 70)
    async with running(TALLY, log, clock=clock) as stage:
        assert await stage.client.get(Tally, KEY).read() == 6


@in_loop
async def test_a_session_that_is_used_is_not_forgotten() -> None:
    clock = Clock()
    async with running(TALLY, GatedLog(), clock=clock) as stage:
        caller = await stage.caller()
        for number in range(1, 6):
            assert await caller.ask(number, number, KEY, "add", 1) == number
            clock.now_ms += SESSION_TTL_MS - 1


@in_loop
async def test_a_client_whose_clock_is_slow_loses_one_command_at_most() -> None:
    """Its first session is born, by its own clock, before the shard's memory begins. The next one goes by the shard's."""
    clock = Clock()
    slow = Clock(clock.now_ms - 2 * SESSION_TTL_MS)
    async with running(TALLY, GatedLog(), clock=clock) as stage, stage.another_client(now_ms=slow) as client:
        assert await stage.client.get(Tally, KEY).add(1) == 1
        with pytest.raises(OutcomeUnknown, match="has forgotten the session"):
            await client.get(Tally, KEY).add(1)
        assert await client.get(Tally, KEY).add(1) == 2


# Queues that are full


@in_loop
async def test_a_full_queue_is_waited_for_until_the_deadline_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks at the queue nothing of the call is anywhere: so it certainly had no effect."""
    monkeypatch.setattr("rekindle.actors.shard.UNVERIFIED_MAX", 2)
    async with running(TALLY, log := GatedLog()) as stage:
        log.gate.clear()
        taken = [stage.client.get(Tally, KEY).add(1) for _ in range(2)]
        await eventually(lambda: log.held)
        patient, impatient = stage.client.get(Tally, KEY), stage.client.get(Tally, KEY, timeout=0.45)
        waiting = asyncio.ensure_future(patient.add(1))
        full = r"\(shard 0 of tally\) was not run before its deadline: 2 requests wait for the shard, 2 may"
        for refused in (impatient.add(70), impatient.read()):
            with pytest.raises(Overloaded, match=full):
                await refused
        assert not waiting.done()
        log.gate.set()
        assert [await call for call in (*taken, waiting)] == [1, 2, 3]


@in_loop
async def test_queries_that_wait_for_the_log_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rekindle.actors.shard.UNVERIFIED_MAX", 3)
    async with running(TALLY, log := GatedLog()) as stage:
        log.gate.clear()
        tally = stage.client.get(Tally, KEY, timeout=0.45)
        calls = [tally.read() for _ in range(5)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert Counter(map(type, outcomes)) == {DeadlineExceeded: 3, Overloaded: 2}
        log.gate.set()


@in_loop
async def test_what_waits_for_a_replay_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rekindle.actors.shard.WAITING_MAX", 2)
    async with running(TALLY, log := GatedLog()) as stage:
        log.gate.clear()
        await stage.controller.assign(0)
        await stage.controller.publish()
        await eventually(lambda: log.held)
        calls = [stage.client.get(Tally, KEY, timeout=timeout).add(1) for timeout in (FOREVER_S, FOREVER_S, 0.45)]
        with pytest.raises(Overloaded, match="2 requests wait for the shard, 2 may"):
            await calls[2]
        log.gate.set()
        assert [await call for call in calls[:2]] == [1, 2]


@in_loop
async def test_what_waits_behind_an_async_handler_is_bounded(
    monkeypatch: pytest.MonkeyPatch, pendulum: asyncio.Event
) -> None:
    monkeypatch.setattr("rekindle.actors.shard.WAITING_MAX", 2)
    async with running(hosted_of(Slow), GatedLog()) as stage:
        slow, impatient = stage.client.get(Slow, KEY), stage.client.get(Slow, KEY, timeout=0.45)
        running_now = slow.tick()
        await eventually(lambda: KEY in stage.owner().shard.entities.active and not stage.owner().shard.queued)
        waiting = [slow.read(), slow.tick()]
        await eventually(lambda: stage.owner().shard.queued == 2)
        with pytest.raises(Overloaded, match="2 requests wait for the shard, 2 may"):
            await impatient.tick()
        pendulum.set()
        assert [await running_now, await waiting[0] in (1, 2), await waiting[1]] == [1, True, 2]


@in_loop
async def test_a_client_takes_no_more_than_it_can_remember(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rekindle.actors.client.OUTSTANDING_MAX", 3)
    async with running(TALLY, log := GatedLog()) as stage:
        log.gate.clear()
        calls = [stage.client.get(Tally, KEY).add(1) for _ in range(3)]
        with pytest.raises(Overloaded, match="3 calls are unanswered, 3 are allowed"):
            stage.client.get(Tally, KEY).add(1)
        log.gate.set()
        assert [await call for call in calls] == [1, 2, 3]
        assert await stage.client.get(Tally, KEY).add(1) == 4


# Deadlines


@in_loop
async def test_a_call_that_was_never_sent_certainly_had_no_effect() -> None:
    async with running(TALLY, GatedLog(), shards=[1]) as stage:
        tally = stage.client.get(Tally, KEY, timeout=0.1)
        for call in (tally.add(1), tally.read()):
            with pytest.raises(
                DeadlineExceeded, match=r"'key-1' \(shard 0 of tally\) before its deadline; it had no effect"
            ):
                await call


@in_loop
async def test_a_command_that_was_sent_and_not_answered_is_in_doubt_and_a_query_is_not() -> None:
    async with running(TALLY, log := GatedLog()) as stage:
        assert await stage.client.get(Tally, KEY).add(1) == 1
        log.gate.clear()
        tally = stage.client.get(Tally, KEY, timeout=0.1)
        doubtful, certain = tally.add(1), tally.read()
        with pytest.raises(
            OutcomeUnknown, match=r"no answer to Tally\.add of 'key-1' .* before its deadline; it may have been run"
        ):
            await doubtful
        with pytest.raises(DeadlineExceeded, match=r"Tally\.read .* it had no effect"):
            await certain
        log.gate.set()
        assert await stage.client.get(Tally, KEY).read() == 2


@in_loop
async def test_a_command_in_doubt_stays_so_however_full_the_next_queue_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first copy was on its way when its owner was replaced; that the next one is busy says nothing about it."""
    async with running(TALLY, log := GatedLog()) as stage:
        log.gate.clear()
        call = stage.client.get(Tally, KEY, timeout=0.45).add(1)
        await eventually(lambda: log.held)
        monkeypatch.setattr("rekindle.actors.shard.WAITING_MAX", 0)
        await stage.controller.assign(0)
        with pytest.raises(OutcomeUnknown, match="it may have been run"):
            await call
        log.gate.set()
        await stage.controller.wait_serving(0)
        assert await stage.client.get(Tally, KEY).read() in (0, 1)


@in_loop
async def test_callers_of_a_shard_that_is_kept_down_are_told_why_at_once() -> None:
    """What was on its way may have been run; whatever comes now, was not."""
    async with running(TALLY, log := GatedLog()) as stage:
        tally = stage.client.get(Tally, KEY, timeout=FOREVER_S)
        log.gate.clear()
        on_its_way, looking = tally.add(1), tally.read()
        await eventually(lambda: log.held)
        await stage.controller.release(0)
        await stage.controller.publish(refused={0: "LogDamaged: broken"})
        with pytest.raises(
            OutcomeUnknown, match=r"may have been run: shard 0 of tally is kept down: LogDamaged: broken"
        ):
            await on_its_way
        for call in (looking, tally.add(1), tally.read()):
            with pytest.raises(ShardRefused, match="shard 0 of tally is kept down: LogDamaged: broken"):
                await call
        log.gate.set()
        assert await stage.client.get(Tally, key_in(1)).add(1) == 1
        await stage.take(0)
        assert await tally.add(1) in (1, 2)


# Local queries


@in_loop
async def test_a_local_query_is_answered_without_the_log_until_it_is_too_old() -> None:
    clock = Clock()
    async with running(TALLY, log := GatedLog(), clock=clock) as stage:
        assert await stage.client.get(Tally, KEY).add(1) == 1
        log.gate.clear()
        local = stage.client.get(Tally, KEY, max_staleness=5)
        clock.now_ms += 5_000
        assert await local.read() == 1
        clock.now_ms += 1
        with pytest.raises(Stale, match="5001 ms since the log confirmed this shard, 5000 ms allowed"):
            await local.read()
        log.gate.set()
        assert await stage.client.get(Tally, KEY).read() == 1
        assert await local.read() == 1


@in_loop
async def test_a_local_answer_says_how_old_it_may_be() -> None:
    clock = Clock()
    async with running(TALLY, GatedLog(), clock=clock) as stage:
        caller = await stage.caller()
        assert await caller.ask(1, 1, KEY, "add", 1) == 1
        clock.now_ms += 7
        await caller.send(2, 0, KEY, "read", staleness=60_000)
        assert await caller.answer(2) == [OK, 1, 7]


# Calls that instances died of


@in_loop
async def test_a_suspect_call_is_announced_by_its_name_before_it_runs() -> None:
    """A query has no number: it goes by its caller's own of the call. What has no name, cannot be announced."""
    async with running(TALLY, GatedLog()) as stage, stage.announced() as announced:
        caller = await stage.caller()
        assert await caller.ask(1, 1, KEY, "add", 1, suspect=True) == 1
        assert await caller.ask(2, 0, KEY, "read", suspect=True) == 1
        assert await caller.ask(3, 0, KEY, "read", suspect=True, staleness=60_000) == 1
        assert await caller.ask(4, 0, KEY, "read", suspect=True, session=b"") == 1
        assert await caller.ask(5, 2, KEY, "add", 1) == 2
        expected = [(1, "add"), (2, "read"), (3, "read")]
        await eventually(lambda: len(announced) == 2 * len(expected))
        for (name, handler), began, ended in zip(expected, announced[::2], announced[1::2], strict=True):
            assert began == [BEGAN, caller.session, name, f"Tally.{handler} of '{KEY}'"]
            assert ended == [ENDED, caller.session, name]


@in_loop
async def test_poison_is_not_run_again_and_everything_else_is() -> None:
    async with running(TALLY, GatedLog(), shards=[]) as stage:
        caller = await stage.caller()
        await stage.take(0, poison=[(caller.session, 1), (caller.session, 3)])
        for call in (1, 2):
            with pytest.raises(
                CommandFailed, match=r"poison: two instances died while Tally\.add of 'key-1' was running"
            ):
                await caller.ask(call, 1, KEY, "add", 70, suspect=True)
        for options in ({}, {"staleness": 60_000}):
            with pytest.raises(
                CommandFailed, match=r"poison: two instances died while Tally\.read of 'key-1' was running"
            ):
                await caller.ask(3, 0, KEY, "read", suspect=True, **options)
        assert await caller.ask(4, 2, KEY, "add", 1, suspect=True) == 1
        assert await stage.client.get(Tally, KEY).read() == 1


async def everything_came(stage: Stage) -> None:
    """What was sent over other connections before has reached the shard: a local query that came later was answered."""
    caller: Caller = await stage.caller()
    await caller.ask(1, 0, KEY, "read", staleness=1_000_000)
