"""What the controller decides, as an entity: the same after a replay, whatever was decided.

Goal: the next controller reads what this one knew. Method: the entity is driven through a real shard (`Decisions` on a
simulated log), first by hand, then by hypothesis; after each history another controller leads and compares.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle import CommandFailed
from rekindle.actors import Host, WebsocketWire
from rekindle.events import Partition, Topic
from rekindle.events.followers import FollowingReader
from rekindle.supervisors.control import DEATHS_MAX, Control, ShardsAreFixed, control_log
from rekindle.supervisors.decided import Owned, Position, Running
from rekindle.supervisors.decisions import Decisions, NotLeading
from tests.support.inprocess import Clock, GatedLog, in_loop
from tests.support.loops import run

L = TypeVar("L", bound=GatedLog)

SHARDS = 3
SESSION, OTHER = b"session-1", b"session-2"


def running(service: str = "a") -> Running:
    return Running(service=service, node="n", address="127.0.0.1:1", beacon="127.0.0.1:2")


def host_of(log: GatedLog) -> Host:
    return Host(log, None, WebsocketWire(), Clock(), asyncio.to_thread, list[str]().append)


async def make_log() -> GatedLog:
    return await made(GatedLog())


async def made(log: L) -> L:
    await log.create(Topic(control_log("app").partition(0).topic, 1))
    return log


@asynccontextmanager
async def leading(log: GatedLog, name: str = "controller") -> AsyncGenerator[Decisions]:
    """A controller that has claimed the control log."""
    decisions = Decisions("app", name, host_of(log))
    await decisions.lead()
    try:
        yield decisions
    finally:
        decisions.resign()
        await decisions.wait_fenced()


def state_of(decisions: Decisions) -> dict[str, Any]:
    """All fields of the control entity."""
    return dict(vars(decisions.control))


# One after the other


@in_loop
async def test_the_shards_of_a_service_are_fixed_by_its_first_declaration() -> None:
    async with leading(await make_log()) as decisions:
        await decisions.decide("declare", "a", SHARDS)
        await decisions.decide("declare", "a", SHARDS)
        with pytest.raises(ShardsAreFixed) as fixed:
            await decisions.decide("declare", "a", SHARDS + 1)
        assert (fixed.value.service, fixed.value.declared, fixed.value.found) == ("a", SHARDS + 1, SHARDS)
        assert decisions.control.services == {"a": [Owned()] * SHARDS}


@in_loop
async def test_every_assignment_has_a_higher_number_than_all_before_it() -> None:
    async with leading(await make_log()) as decisions:
        await decisions.decide("declare", "a", SHARDS)
        assert await decisions.decide("assign", "a", [(0, "x"), (2, "y")]) == [(0, 1), (2, 1)]
        assert await decisions.decide("assign", "a", [(0, None)]) == [(0, 2)]
        assert await decisions.decide("assign", "a", [(0, "y"), (1, "y")], 7) == [(0, 8), (1, 8)]
        owned = decisions.control.services["a"]
        assert [(o.number, o.incarnation) for o in owned] == [(8, "y"), (8, "y"), (1, "y")]


@in_loop
async def test_an_instance_is_there_from_its_start_to_its_death() -> None:
    async with leading(await make_log()) as decisions:
        await decisions.decide("declare", "a", SHARDS)
        await decisions.decide("started", "x", running())
        assert decisions.control.instances == {"x": running()}
        await decisions.decide("gone", "x", "killed", [], [])
        await decisions.decide("gone", "x", "killed again", [0], [(SESSION, 1, "add")])  # it counts once
        assert decisions.control.instances == {}
        assert decisions.control.suspects == {}
        assert decisions.control.services["a"][0].deaths == 0


@in_loop
async def test_a_command_is_poison_when_two_instances_died_of_it() -> None:
    async with leading(await make_log()) as decisions:
        await decisions.decide("declare", "a", SHARDS)
        for name, commands in {
            "x": [(SESSION, 1, "add"), (OTHER, 1, "add")],
            "y": [(SESSION, 1, "add"), (SESSION, 2, "add")],
            "z": [(OTHER, 2, "announced"), (OTHER, 2, "announced")],  # known of two deaths at the second one
        }.items():
            await decisions.decide("started", name, running())
            assert (SESSION, 1) not in decisions.control.poison() or name == "z"
            await decisions.decide("gone", name, "killed", [], commands)
        assert sorted(decisions.control.poison()) == [(SESSION, 1), (OTHER, 2)]
        assert decisions.control.suspects[f"{SESSION.hex()}/1"].text == "add"


@in_loop
async def test_deaths_of_a_replay_are_counted_until_the_shard_gets_on() -> None:
    async with leading(await make_log()) as decisions:
        await decisions.decide("declare", "a", SHARDS)
        for name in ("x", "y"):
            await decisions.decide("started", name, running())
            await decisions.decide("gone", name, "killed", [0, 1], [])
        await decisions.decide("observe", "a", [(1, Position(term=1, offset=2, sequence=3))])
        owned = decisions.control.services["a"]
        assert [o.deaths for o in owned] == [DEATHS_MAX, 0, 0]
        assert owned[1].position == Position(term=1, offset=2, sequence=3)
        await decisions.decide("refuse", "a", 0, "poison")
        assert (owned[0].refused, owned[0].deaths) == ("poison", 0)
        await decisions.decide("refuse", "a", 0, None)
        assert owned[0].refused is None


@in_loop
async def test_a_decision_that_cannot_be_taken_changes_nothing() -> None:
    async with leading(await make_log()) as decisions:
        await decisions.decide("declare", "a", SHARDS)
        before = state_of(decisions)
        with pytest.raises(CommandFailed, match="KeyError: 'b'"):
            await decisions.decide("assign", "b", [(0, "x")])
        with pytest.raises(CommandFailed, match="IndexError"):
            await decisions.decide("assign", "a", [(0, "x"), (SHARDS, "x")])
        with pytest.raises(CommandFailed, match="IndexError"):
            await decisions.decide("refuse", "a", SHARDS, "x")
        assert state_of(decisions) == before


@in_loop
async def test_a_controller_that_was_replaced_decides_nothing_any_more() -> None:
    log = await make_log()
    async with leading(log, "first") as first:
        await first.decide("declare", "a", SHARDS)
        async with leading(log, "second") as second:
            assert second.term > first.term
            with pytest.raises(NotLeading, match="first does not lead any more: fenced by assignment 1 of second"):
                await first.decide("declare", "b", SHARDS)
            assert list(second.control.services) == ["a"]


class CountingLog(GatedLog):
    """Counts how often somebody begins to read."""

    opened = 0

    @asynccontextmanager
    async def reader(self, partition: Partition, offset: int) -> AsyncGenerator[FollowingReader]:
        """See `EventLog`."""
        self.opened += 1
        async with super().reader(partition, offset) as reader:
            yield reader


@in_loop
async def test_whoever_has_followed_the_log_leads_with_what_it_has_read() -> None:
    log = await made(CountingLog())
    second = Decisions("app", "second", host_of(log))
    async with leading(log, "first") as first:
        await first.decide("declare", "a", SHARDS)
        await second.read()
        await first.decide("declare", "b", SHARDS)
        assert len((await second.read()).entities) == 1
    opened = log.opened
    await second.lead()
    assert list(second.control.services) == ["a", "b"]
    assert log.opened == opened
    second.resign()
    await second.wait_fenced()


# Any number of them

names = st.sampled_from(["x", "y", "z"])
services = st.sampled_from(["a", "b"])
shards = st.integers(0, SHARDS - 1)
commands = st.lists(st.tuples(st.sampled_from([SESSION, OTHER]), st.integers(1, 3), st.just("add")), max_size=3)
positions = st.builds(Position, term=st.integers(0, 9), offset=st.integers(0, 9), sequence=st.integers(0, 9))
decisions_taken = st.one_of(
    st.tuples(st.just("started"), names, services.map(running)),
    st.tuples(st.just("gone"), names, st.just("killed"), st.lists(shards, unique=True), commands),
    st.tuples(st.just("assign"), services, st.lists(st.tuples(shards, st.none() | names)), st.integers(0, 9)),
    st.tuples(st.just("observe"), services, st.lists(st.tuples(shards, positions))),
    st.tuples(st.just("refuse"), services, shards, st.none() | st.just("damaged")),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(decisions_taken, max_size=30))
def test_the_next_controller_knows_what_this_one_knew(taken: list[tuple[Any, ...]]) -> None:
    async def main() -> None:
        log = await make_log()
        async with leading(log) as decisions:
            for service in ("a", "b"):
                await decisions.decide("declare", service, SHARDS)
            for decision in taken:
                await decisions.decide(*decision)
            known = state_of(decisions)
        async with leading(log, "successor") as successor:
            assert state_of(successor) == known

    run(main())


def test_every_decision_is_a_command() -> None:
    handlers = Control.describe().handlers
    assert handlers
    assert all(handler.is_command for handler in handlers.values())
