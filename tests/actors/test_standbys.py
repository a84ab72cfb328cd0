"""Standbys: an instance follows shards that it does not own, and owns one of them at once when it is told to.

Goal: a follower knows what the log says, all of it and nothing else; an owner that begins with a follower's state is as
safe as one that begins with nothing. Method: one instance owns, another follows on the same log; the log is taken away,
cut, spoiled and trimmed; readers and stores are held where the order of things matters.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from rekindle.actors import Floor, Hosted
from rekindle.actors import follower as follower_module
from rekindle.actors.frames import BEGAN, ENDED
from rekindle.events import Claim, Commit, EventLog, Partition, Pointer, SnapshotStore, Stored, encode, pack
from rekindle.events.followers import FollowingReader
from rekindle.events.records import BARRIER, COMMAND, MARK, NO_SESSION, VERSION
from rekindle.events.simulated import SimulatedLog
from rekindle.events.stores import DirectoryStore
from tests.support.inprocess import TERM, GatedLog, Stage, Tally, hosted_of, in_loop, key_in, running
from tests.support.loops import eventually

TALLY = hosted_of(Tally, snapshot_every=4)
KEY = key_in(0)
AWAY_S = 0.3
ABOVE_ALL = 10**6
"""An assignment, for a claim that nobody made."""


class HeldLog(SimulatedLog):
    """Another object for the same log. Who follows by it stands still while the gate is closed."""

    def __init__(self, log: SimulatedLog) -> None:
        super().__init__(Random(0))
        self._topics, self._shelves, self._followers = log._topics, log._shelves, log._followers  # pyright: ignore[reportPrivateUsage]
        self.gate = asyncio.Event()
        self.gate.set()

    @asynccontextmanager
    async def follow(self, partition: Partition, offset: int) -> AsyncGenerator[FollowingReader]:
        """See `EventLog`."""
        yield FollowingReader(self._followers, partition, offset, self._look_through_the_gate)

    async def _look_through_the_gate(self, partition: Partition, offset: int) -> list[Stored]:
        await self.gate.wait()
        return await self._look(partition, offset)


class SlowStore(DirectoryStore):
    """A store that has no answer for the first who asks."""

    asked = 0

    async def pointers(self, partition: Partition) -> list[Pointer]:
        """See `SnapshotStore`."""
        self.asked += 1
        if self.asked == 1:
            await asyncio.Event().wait()
        return await super().pointers(partition)


@asynccontextmanager
async def owner_and_standby(
    log: EventLog,
    *,
    seen_by_standby: EventLog | None = None,
    store: SnapshotStore | None = None,
    hosted: Hosted = TALLY,
) -> AsyncGenerator[tuple[Stage, Stage]]:
    """An instance that owns everything, and one that owns nothing and follows nothing yet."""
    async with (
        running(hosted, log, store) as owner,
        running(hosted, seen_by_standby or log, store, shards=()) as standby,
    ):
        yield owner, standby


async def directory(folder: Path) -> DirectoryStore:
    """A store for snapshots, open."""
    store = DirectoryStore(str(folder))
    await store.open()
    return store


async def add(stage: Stage, times: int) -> int:
    """Commands of one entity in shard 0; its total."""
    total = 0
    for _ in range(times):
        total = await stage.client.get(Tally, KEY).add(1)
    return total


async def follow_to_the_end(owner: Stage, standby: Stage) -> None:
    """Have the standby follow shard 0, and wait until it knows all that the owner knows."""
    await standby.controller.follow(0)
    await standby.controller.wait_caught_up(0)
    await standby.controller.wait_followed_to(0, owner.owner().position.offset)


def followed(stage: Stage) -> list[int]:
    """The shards that are followed."""
    return sorted(stage.instance.following.followers)


# Following


@in_loop
async def test_a_follower_says_when_it_has_caught_up_and_reads_on() -> None:
    async with owner_and_standby(GatedLog()) as (owner, standby):
        await add(owner, 3)
        await standby.controller.follow(0)
        await standby.controller.wait_caught_up(0)
        assert standby.controller.followed[0].position == owner.owner().position
        await add(owner, 2)
        await standby.controller.wait_followed_to(0, owner.owner().position.offset)
        assert standby.controller.followed[0].position == owner.owner().position
        replica = standby.instance.following.followers[0].replica
        assert replica.state(KEY) == (5, {"total": 5})


@in_loop
async def test_a_follower_begins_with_the_newest_snapshot(tmp_path: Path) -> None:
    async with owner_and_standby(log := GatedLog(), store=await directory(tmp_path)) as (owner, standby):
        total = 0
        while not await owner.snapshots():
            total = await add(owner, 1)
        mark = (await (await directory(tmp_path)).pointers(owner.partition()))[0].offset
        await log.trim(owner.partition(), mark)  # so that nothing else can be begun with
        await follow_to_the_end(owner, standby)
        assert standby.instance.following.followers[0].replica.state(KEY) == (total, {"total": total})


@in_loop
async def test_the_list_is_complete() -> None:
    async with owner_and_standby(GatedLog()) as (_, standby):
        controller, following = standby.controller, standby.instance.following
        await controller.follow(0)
        await controller.wait_caught_up(0)
        first = following.followers[0]
        await controller.follow(0, 1)
        await controller.wait_caught_up(0, 1)
        assert following.followers[0] is first
        await controller.follow(1)
        await eventually(lambda: followed(standby) == [1])
        await controller.follow()
        await eventually(lambda: followed(standby) == [])
        assert controller.unfollowed == []


@in_loop
async def test_a_controller_that_leads_no_more_is_refused() -> None:
    async with owner_and_standby(GatedLog()) as (_, standby):
        await standby.controller.follow(0, term=TERM + 1)
        await standby.controller.wait_caught_up(0)
        await standby.controller.follow(1, term=TERM)
        await eventually(lambda: standby.heard(f"a controller of term {TERM} was refused"))
        assert followed(standby) == [0]


@in_loop
async def test_while_the_log_is_away_a_follower_waits() -> None:
    async with owner_and_standby(log := GatedLog()) as (owner, standby):
        log.go_away(AWAY_S)
        await standby.controller.follow(0)
        await standby.controller.wait_caught_up(0)
        log.go_away(AWAY_S)
        total = await add(owner, 1)
        await standby.controller.wait_followed_to(0, owner.owner().position.offset)
        assert standby.instance.around.counters["log_unavailable"] > 0
        assert standby.controller.unfollowed == []
        await standby.take(0)
        assert await add(standby, 1) == total + 1


# What ends a follower


def cut_and_grow(log: GatedLog, partition: Partition) -> None:
    """Behind the back of one who is at offset 4: what it reads there was written under a claim that it never saw."""
    log.truncate(partition, 2)
    log.put(partition, encode(Claim(ABOVE_ALL, "who", 0)), *(barrier(term=2, sequence=n) for n in (2, 3, 4)))


SPOILED: dict[str, tuple[Callable[[GatedLog, Partition], None], str]] = {
    "cut": (lambda log, partition: log.truncate(partition, 2), "LogTruncated"),
    "made anew": (lambda log, partition: log.recreate(partition.topic), "LogTruncated"),
    "of a newer build": (lambda log, at: log.put(at, pack([[MARK, VERSION + 1, COMMAND], []])), "NewerRecord"),
    "damaged": (lambda log, partition: log.put(partition, pack([[MARK, VERSION, COMMAND], []])), "LogDamaged"),
    "cut, and grown again": (cut_and_grow, "LogTruncated"),
}


def barrier(term: int, sequence: int) -> bytes:
    """A commit without a command."""
    return encode(Commit(BARRIER, term, sequence, 0, NO_SESSION, 0, 0, "", 0, b"", None, []))


@pytest.mark.parametrize(("spoil", "error"), SPOILED.values(), ids=SPOILED.keys())
@in_loop
async def test_what_makes_its_state_worthless_ends_it_and_is_said(
    spoil: Callable[[GatedLog, Partition], None], error: str
) -> None:
    async with owner_and_standby(log := GatedLog()) as (owner, standby):
        await add(owner, 3)  # one claim and three commits: the log ends at offset 4
        await follow_to_the_end(owner, standby)
        spoil(log, owner.partition())
        unfollowed = await standby.controller.wait_unfollowed(0)
        assert (unfollowed.error, unfollowed.reason.startswith(f"{error}: ")) == (error, True)
        assert standby.heard(f"app.tally/0 is not followed any more: {unfollowed.reason}")
        assert followed(standby) == []


@in_loop
async def test_one_that_has_ended_is_begun_again_by_the_next_list() -> None:
    async with owner_and_standby(log := GatedLog()) as (owner, standby):
        await add(owner, 3)
        await follow_to_the_end(owner, standby)
        log.truncate(owner.partition(), 2)
        await standby.controller.wait_unfollowed(0)
        await standby.controller.follow(0)
        await standby.controller.wait_caught_up(0)
        assert standby.controller.followed[0].position == Floor(0, 2, 1)


@pytest.mark.parametrize(
    ("floor", "text"),
    [
        (Floor(0, 100, 99), "expected at least offset 100, found 5"),
        (Floor(0, 2, 7), "was term 0 sequence 1 at offset 2"),
        (Floor(7, 4, 3), "was term 0 sequence 3 at offset 4"),
    ],
)
@in_loop
async def test_a_follower_that_finds_less_than_is_known_ends(floor: Floor, text: str) -> None:
    async with owner_and_standby(GatedLog()) as (owner, standby):
        await add(owner, 3)
        await owner.put(b"a stranger, so that there is something behind the floor")
        await standby.controller.follow(0, floor=floor)
        unfollowed = await standby.controller.wait_unfollowed(0)
        assert (unfollowed.error, text in unfollowed.reason) == ("LogTruncated", True), unfollowed


@in_loop
async def test_a_follower_that_is_behind_what_retention_has_left_begins_anew(tmp_path: Path) -> None:
    log, store = GatedLog(), await directory(tmp_path)
    hosted, held = replace(TALLY, retention=True), HeldLog(log)
    async with owner_and_standby(log, seen_by_standby=held, store=store, hosted=hosted) as (owner, standby):
        await follow_to_the_end(owner, standby)
        first = standby.instance.following.followers[0].replica
        held.gate.clear()
        while (await log.bounds(owner.partition())).start <= first.fold.offset:
            await add(owner, 1)
            await owner.snapshots()
        held.gate.set()
        await standby.controller.wait_followed_to(0, owner.owner().position.offset)
        assert standby.instance.following.followers[0].replica is not first
        assert standby.controller.unfollowed == []


# Owning what was followed


@in_loop
async def test_the_owner_goes_on_with_what_the_follower_has() -> None:
    async with owner_and_standby(GatedLog()) as (owner, standby):
        await add(owner, 3)
        await follow_to_the_end(owner, standby)
        replica = standby.instance.following.followers[0].replica
        await standby.take(0)
        shard = standby.owner().shard
        assert (shard.fold is replica.fold, shard.entities is replica.entities) == (True, True)
        assert followed(standby) == []
        assert await add(standby, 2) == 5


@in_loop
async def test_the_next_snapshot_is_taken_where_it_is_due(tmp_path: Path) -> None:
    async with owner_and_standby(GatedLog(), store=await directory(tmp_path)) as (owner, standby):
        await follow_to_the_end(owner, standby)
        await add(owner, 3)
        await standby.controller.wait_followed_to(0, owner.owner().position.offset)
        await standby.take(0)
        await add(standby, 1)
        assert await standby.snapshots() == 1


@in_loop
async def test_one_that_has_not_caught_up_is_of_no_use_and_ends(tmp_path: Path) -> None:
    store = SlowStore(str(tmp_path))
    await store.open()
    async with running(TALLY, log := GatedLog()) as owner:
        total = await add(owner, 3)
        async with running(TALLY, log, store, shards=()) as standby:
            await standby.controller.follow(0)
            await eventually(lambda: store.asked)
            await standby.take(0)
            assert "inherited" not in standby.instance.around.counters
            assert await add(standby, 1) == total + 1


@in_loop
async def test_an_owner_does_not_wait_for_a_follower_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower_module, "HAND_OVER_MAX_S", 0.0)
    log = GatedLog()
    held = HeldLog(log)
    async with owner_and_standby(log, seen_by_standby=held) as (owner, standby):
        await follow_to_the_end(owner, standby)
        held.gate.clear()
        total = await add(owner, 3)
        await standby.take(0)
        assert standby.instance.around.counters["inherited"] == 1
        assert await add(standby, 1) == total + 1


@in_loop
async def test_an_owner_whose_follower_was_left_behind_by_retention_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "HAND_OVER_MAX_S", 0.0)
    log, store = GatedLog(), await directory(tmp_path)
    hosted, held = replace(TALLY, retention=True), HeldLog(log)
    async with owner_and_standby(log, seen_by_standby=held, store=store, hosted=hosted) as (owner, standby):
        await follow_to_the_end(owner, standby)
        position = standby.controller.followed[0].position
        held.gate.clear()
        total = 0
        while (await log.bounds(owner.partition())).start <= position.offset:
            total = await add(owner, 1)
            await owner.snapshots()
        await standby.take(0, floor=owner.owner().position)
        assert standby.heard("app.tally/0: the log was trimmed meanwhile, state discarded")
        assert await add(standby, 1) == total + 1


@in_loop
async def test_the_tail_of_a_suspect_shard_is_read_by_name() -> None:
    async with owner_and_standby(GatedLog()) as (owner, standby):
        await follow_to_the_end(owner, standby)
        async with standby.announced() as said:
            await standby.take(0, suspect=True)
            await eventually(lambda: len(said) == 2)
            assert [fields[:3] for fields in said] == [[BEGAN, b"", 0], [ENDED, b"", 0]]
        assert standby.instance.around.counters["inherited"] == 1


@in_loop
async def test_an_owner_that_loses_its_shard_follows_it_if_it_is_told_to() -> None:
    async with owner_and_standby(GatedLog()) as (owner, standby):
        await owner.controller.follow(0, 1)
        await follow_to_the_end(owner, standby)
        assert followed(owner) == []
        await standby.take(0)
        await (await owner.caller()).send(1, 1, KEY, "add", 1)
        await owner.controller.wait_lost(0)
        await owner.controller.wait_caught_up(0)
        assert followed(owner) == [0]
        total = await add(standby, 1)
        await owner.controller.wait_followed_to(0, standby.owner().position.offset)
        await owner.take(0)
        assert await add(owner, 1) == total + 1
        assert owner.instance.around.counters["inherited"] == 1


@in_loop
async def test_a_log_that_was_cut_is_found_by_an_owner_that_was_warm() -> None:
    async with owner_and_standby(GatedLog()) as (owner, standby):
        await add(owner, 3)
        await follow_to_the_end(owner, standby)
        position = owner.owner().position
        await standby.controller.assign(0, floor=position._replace(offset=ABOVE_ALL, sequence=ABOVE_ALL))
        lost = await standby.controller.wait_lost(0)
        assert lost.error == "LogTruncated", lost


# Who is waited for


@in_loop
async def test_calls_for_what_is_not_served_here_are_counted(tmp_path: Path) -> None:
    store = SlowStore(str(tmp_path))
    await store.open()
    async with running(TALLY, GatedLog(), store, shards=()) as stage:
        caller = await stage.caller()
        for call in range(3):
            await caller.send(call, 0, key_in(1), "read")
        await stage.controller.wait_called(1, 3)
        await stage.controller.assign(0)
        await eventually(lambda: store.asked)
        for call in range(3, 5):
            await caller.send(call, 0, KEY, "read")
        await stage.controller.wait_called(0, 2)
        await stage.take(1)
        await caller.ask(5, 0, key_in(1), "read")
        assert (stage.controller.called, stage.instance.called) == ({0: 2, 1: 3}, {})
