"""Who asks an instance that has lost a shard, or is about to, is sent to the one that has it, at once.

Goal: in a move nobody waits longer than it takes, and nobody is sent in circles. Method: the log is held at its gate, so
that calls are in flight when the shard is given to somebody else, who need not even be there.
"""

from __future__ import annotations

import pytest

from rekindle.actors import Route, Table, outcomes
from rekindle.actors.client import Client
from rekindle.actors.outcomes import MOVED
from rekindle.actors.peer import Call
from rekindle.events import Claim, encode
from tests.support.inprocess import TERM, Caller, GatedLog, Stage, Tally, hosted_of, in_loop, key_in, running
from tests.support.loops import eventually

TALLY = hosted_of(Tally)
KEY = key_in(0)
ELSEWHERE = "127.0.0.1:1"


async def in_flight(stage: Stage, log: GatedLog) -> Caller:
    """A caller whose command waits for the log."""
    caller = await stage.caller()
    log.gate.clear()
    await caller.send(1, 1, KEY, "add", 5)
    await eventually(lambda: log.held)
    return caller


# The owner


@in_loop
async def test_who_waits_when_a_shard_is_taken_away_is_told_where_it_goes() -> None:
    async with running(TALLY, log := GatedLog()) as stage:
        caller = await in_flight(stage, log)
        number = stage.controller.numbers[0]
        await stage.controller.publish(moved={0: Route(ELSEWHERE, number + 1)})
        await stage.controller.release(0)
        assert await caller.answer(1) == [MOVED, ELSEWHERE, number + 1]
        await caller.send(2, 2, KEY, "add", 5)
        assert await caller.answer(2) == [MOVED, ELSEWHERE, number + 1]
        log.gate.set()


@pytest.mark.parametrize("is_known", [True, False])
@in_loop
async def test_an_owner_that_meets_somebody_elses_record_gives_way(is_known: bool) -> None:
    async with running(TALLY, log := GatedLog()) as stage:
        caller = await in_flight(stage, log)
        number = stage.controller.numbers[0] + 1
        if is_known:
            await stage.controller.publish(moved={0: Route(ELSEWHERE, number)})
            await eventually(lambda: stage.instance.table.owner("tally", 0) == (ELSEWHERE, number))
        log.gate.set()
        log.put(stage.partition(), encode(Claim(number, "somebody", 0)))
        assert await caller.answer(1) == ([MOVED, ELSEWHERE, number] if is_known else [MOVED, None, number])
        lost = await stage.controller.wait_lost(0)
        assert (lost.error, lost.reason.startswith(f"fenced by assignment {number}")) == (None, True), lost
        assert lost.seen == (number - 1 if is_known else number), "it did, or did not, look who has written"


@in_loop
async def test_an_owner_that_meets_nobody_else_serves_on_whatever_the_table_says() -> None:
    async with running(TALLY, log := GatedLog()) as stage:
        caller = await in_flight(stage, log)
        await stage.controller.publish(moved={0: Route(ELSEWHERE, stage.controller.numbers[0] + 1)})
        await eventually(lambda: stage.instance.table.addresses.count(ELSEWHERE))
        log.gate.set()
        assert await caller.answer(1) == [outcomes.OK, 5]


# The client


async def asked(stage: Stage, log: GatedLog) -> tuple[Client, Call, Route]:
    """A client, its call that is on its way, and where that is."""
    log.gate.clear()
    _ = stage.client.get(Tally, KEY).read()  # what comes of it, nobody asks
    await eventually(lambda: log.held)
    (call,) = stage.client.calls.values()
    route = stage.client.table.owner("tally", 0)
    assert route is not None
    return stage.client, call, route


@in_loop
async def test_a_call_goes_at_once_to_whoever_it_is_sent_to() -> None:
    async with running(TALLY, log := GatedLog()) as stage:
        client, call, here = await asked(stage, log)
        client.on_answer(call, outcomes.moved(ELSEWHERE, here.assignment + 1))
        assert (call.peer, call in client.sent_away) == (client.peers[ELSEWHERE], False)
        log.gate.set()


@in_loop
async def test_a_call_goes_at_once_to_whom_the_client_knows_better() -> None:
    async with running(TALLY, log := GatedLog()) as stage:
        client, call, here = await asked(stage, log)
        client.table.learn("tally", 0, Route(ELSEWHERE, here.assignment + 1))
        client.on_answer(call, outcomes.moved(None, here.assignment + 1))
        assert (call.peer, call in client.sent_away) == (client.peers[ELSEWHERE], False)
        log.gate.set()


@pytest.mark.parametrize("later", [-1, 0, 7])
@in_loop
async def test_a_call_pauses_before_it_goes_to_where_it_came_from(later: int) -> None:
    """The instance may not have heard yet that it is to own the shard; or nobody knows who does."""
    async with running(TALLY, log := GatedLog()) as stage:
        client, call, here = await asked(stage, log)
        client.on_answer(call, outcomes.moved(None if later > 0 else here.address, here.assignment + later))
        assert (call.peer, call in client.sent_away) == (None, True)
        log.gate.set()


@in_loop
async def test_what_pauses_goes_on_when_its_shard_is_known_to_have_moved() -> None:
    async with running(TALLY, log := GatedLog()) as stage:
        client, call, here = await asked(stage, log)
        client.on_answer(call, outcomes.moved(None, here.assignment))
        other = client.table.owner("tally", 1)
        client.on_table(Table((TERM + 1, 0), {"tally": [here, other]}))
        assert call in client.sent_away, "it would go where it came from"
        client.on_table(Table((TERM + 1, 1), {"tally": [Route(ELSEWHERE, here.assignment + 1), other]}))
        assert (call.peer, call in client.sent_away) == (client.peers[ELSEWHERE], False)
        log.gate.set()
