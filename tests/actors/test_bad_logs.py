"""Logs that are not as they should be: what is not ours is skipped and counted, everything else stops the shard, loudly.

Goal: no owner guesses. Bytes of strangers are void; a record of a newer build, one that no owner can have written, a log
that was cut, made anew or set up wrongly end the ownership, and the controller learns which of these it was. Method: the
log is spoiled behind the owner's back, under a running owner and while none runs; other shards are served on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rekindle import Entity, Event, command, query, upcast
from rekindle.actors import Floor
from rekindle.events import AppendRefused, Commit, Partition, RekindleError, Topic, TopicContractBroken, encode, pack
from rekindle.events.records import CLAIM, COMMAND, MARK, NO_SESSION, SNAPSHOTTED, VERSION
from tests.support.inprocess import Added, GatedLog, Stage, Tally, embedded, hosted_of, in_loop, key_in, running

TALLY = hosted_of(Tally)


async def assert_lost(stage: Stage, error: str, text: str, shard: int = 0) -> None:
    """The shard was given up, with this class of error, and the other one is served."""
    lost = await stage.controller.wait_lost(shard)
    assert (lost.error, text in lost.reason) == (error, True), lost
    assert stage.heard(f"{stage.partition(shard)}: gave up: {lost.reason}")
    assert await stage.client.get(Tally, key_in(1 - shard)).add(1) > 0


# Strangers


@pytest.mark.parametrize(
    "value", [b"", b"garbage", b"\xc1", pack({"a": 1}), pack([[1, 2], []]), pack([["rK", 1], []]), pack([[], []])]
)
@in_loop
async def test_what_is_not_ours_is_void_and_counted_and_said(value: bytes) -> None:
    async with running(TALLY, GatedLog()) as stage:
        tally = stage.client.get(Tally, key_in(0))
        assert await tally.add(1) == 1
        await stage.put(value, value)
        assert await tally.add(1) == 2
        assert stage.instance.around.counters["strangers"] == 2
        assert stage.heard("app.tally/0: 2 records from offset 2 to 4 are not ours, they count for nothing")
    async with running(TALLY, stage.log) as stage:
        assert await stage.client.get(Tally, key_in(0)).read() == 2
        assert stage.instance.around.counters["strangers"] == 2
        assert stage.heard("app.tally/0: 2 records from offset ")


# Records that no owner writes


def head_of(stage: Stage, **changed: Any) -> list[Any]:
    """The head of the record that the shard's owner would write next, but for what is changed."""
    fold = stage.owner().shard.fold
    fields: dict[str, Any] = {
        "mark": MARK, "format": VERSION, "kind": COMMAND, "term": fold.term, "sequence": fold.sequence + 1, "time": fold.time,
        "session": b"session", "number": 1, "low": 1, "entity": key_in(0), "version": 1, "reply": b"", "trace": None,
    }  # fmt: skip
    return list({**fields, **changed}.values())


MISSHAPEN: dict[str, Callable[[Stage], bytes]] = {
    "no fields": lambda stage: pack([[MARK], []]),
    "a field too few": lambda stage: pack([head_of(stage)[:-1], []]),
    "a kind that is text": lambda stage: pack([head_of(stage, kind="command"), []]),
    "a version of nothing": lambda stage: pack([head_of(stage, format=None), []]),
    "a sequence that is text": lambda stage: pack([head_of(stage, sequence="next"), []]),
    "a low mark of nothing": lambda stage: pack([head_of(stage, low=None), []]),
    "a session that is a list": lambda stage: pack([head_of(stage, session=[1]), []]),
    "a hole in the sequence": lambda stage: pack([head_of(stage, sequence=100), []]),
    "a claim that is text": lambda stage: pack([[MARK, VERSION, CLAIM, "mine", "somebody", 0], []]),
    "a claim with a field too many": lambda stage: pack([[MARK, VERSION, CLAIM, 10**9, "somebody", 0, 0], []]),
}


@pytest.mark.parametrize("misshapen", MISSHAPEN.values(), ids=MISSHAPEN.keys())
@in_loop
async def test_a_record_that_no_owner_can_have_written_stops_the_shard(misshapen: Callable[[Stage], bytes]) -> None:
    async with running(TALLY, GatedLog()) as stage:
        tally = stage.client.get(Tally, key_in(0), timeout=0.3)
        assert await tally.add(1) == 1
        await stage.put(misshapen(stage))
        call = tally.add(1)
        await assert_lost(stage, "LogDamaged", "")
        with pytest.raises(RekindleError):
            await call
        await stage.controller.assign(0)
        await assert_lost(stage, "LogDamaged", "")


# Records of a newer build


@pytest.mark.parametrize(
    ("changed", "text"),
    [({"format": VERSION + 1}, "version 2, kind 2"), ({"kind": SNAPSHOTTED + 1}, f"version {VERSION}, kind 5")],
)
@in_loop
async def test_a_record_of_a_newer_build_stops_the_shard(changed: dict[str, int], text: str) -> None:
    async with running(TALLY, GatedLog()) as stage:
        assert await stage.client.get(Tally, key_in(0)).add(1) == 1
        await stage.put(pack([head_of(stage, **changed), []]))
        call = stage.client.get(Tally, key_in(0), timeout=0.3).add(1)
        await assert_lost(stage, "NewerRecord", text)
        with pytest.raises(RekindleError):
            await call
    async with running(TALLY, stage.log, shards=[1]) as stage:
        await stage.controller.assign(0)
        await assert_lost(stage, "NewerRecord", text)


class AddedWithUnit(Event, name="Added", version=2):
    n: int
    unit: str

    @upcast(1)
    def _add_unit(data: dict[str, Any]) -> dict[str, Any]:  # pyright: ignore[reportGeneralTypeIssues]
        return {**data, "unit": "piece"}


class Subtracted(Event):
    n: int


class NewerTally(Entity):
    """What `Tally` will be: it has a new version of its event, and another event."""

    total: int = 0

    def apply(self, event: AddedWithUnit | Subtracted) -> None:
        self.total += event.n if isinstance(event, AddedWithUnit) else -event.n

    @command
    def add(self, n: int) -> int:
        self.emit(AddedWithUnit(n=n, unit="piece"))
        return self.total

    @command
    def subtract(self, n: int) -> int:
        self.emit(Subtracted(n=n))
        return self.total

    @query
    def read(self) -> int:
        return self.total


def write_a_newer_version(tally: NewerTally) -> Awaitable[int]:
    return tally.add(1)


def write_another_event(tally: NewerTally) -> Awaitable[int]:
    return tally.subtract(1)


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (write_a_newer_version, "event 'Added' has version 2; this build reads up to 1"),
        (write_another_event, "event 'Subtracted' is unknown to this build, which knows ['Added', "),
    ],
)
@in_loop
async def test_an_event_of_a_newer_build_stops_the_shard_until_that_build_is_back(
    write: Callable[[NewerTally], Awaitable[int]], text: str
) -> None:
    """Never skipped and never quarantined: the other entities of the shard have to wait, too."""
    newer = hosted_of(NewerTally, name="tally")
    async with running(TALLY, GatedLog()) as stage:
        assert await stage.client.get(Tally, key_in(0)).add(5) == 5
    async with running(newer, stage.log) as stage:
        total = await write(stage.client.get(NewerTally, key_in(0)))
    async with running(TALLY, stage.log, shards=[1]) as stage:
        await stage.controller.assign(0)
        await assert_lost(stage, "NewerRecord", text)
        assert not stage.heard("quarantined")
    async with running(newer, stage.log) as stage:
        assert await stage.client.get(NewerTally, key_in(0)).read() == total


# Logs that were cut or made anew


def truncate(log: GatedLog, partition: Partition) -> None:
    log.truncate(partition, 2)


def recreate(log: GatedLog, partition: Partition) -> None:
    log.recreate(partition.topic)


@pytest.mark.parametrize("cut", [truncate, recreate])
@in_loop
async def test_a_log_that_is_cut_under_its_owner_stops_the_shard(cut: Callable[[GatedLog, Partition], None]) -> None:
    async with running(TALLY, log := GatedLog()) as stage:
        for n in range(1, 4):
            assert await stage.client.get(Tally, key_in(0)).add(1) == n
        cut(log, stage.partition())
        call = stage.client.get(Tally, key_in(0), timeout=0.3).add(1)
        lost = await stage.controller.wait_lost(0)
        assert lost.error == "LogTruncated"
        assert "app.tally/0 was truncated or recreated: expected at least offset 4, found " in lost.reason
        assert lost.position == Floor(0, 4, 3)
        with pytest.raises(RekindleError):
            await call


@in_loop
async def test_a_log_that_is_cut_while_nobody_owns_it_stops_the_next_owner() -> None:
    async with running(TALLY, log := GatedLog()) as stage:
        for n in range(1, 4):
            assert await stage.client.get(Tally, key_in(0)).add(1) == n
        floor = stage.owner().position
    log.truncate(stage.partition(), 3)
    async with running(TALLY, log, shards=[1]) as stage:
        await stage.controller.assign(0, floor=floor)
        await assert_lost(stage, "LogTruncated", f"expected at least offset {floor.offset}, found ")


@in_loop
async def test_a_log_that_was_made_anew_and_has_grown_again_stops_the_next_owner() -> None:
    """It is long enough. But what was known at the floor's offset, is not there."""
    async with running(TALLY, log := GatedLog()) as stage:
        for n in range(1, 4):
            assert await stage.client.get(Tally, key_in(0)).add(1) == n
        floor = stage.owner().position
    log.recreate(stage.partition().topic)
    for total in (1, 4):
        async with running(TALLY, log) as stage:
            while await stage.client.get(Tally, key_in(0)).add(1) < total:
                pass
    async with running(TALLY, log, shards=[1]) as stage:
        await stage.controller.assign(0, floor=floor)
        await assert_lost(stage, "LogTruncated", f"(was term 2 sequence 2 at offset {floor.offset})")


@in_loop
async def test_a_floor_that_the_log_confirms_stops_nobody() -> None:
    async with running(TALLY, log := GatedLog()) as stage:
        assert await stage.client.get(Tally, key_in(0)).add(1) == 1
        floor = stage.owner().position
    async with running(TALLY, log, shards=[1]) as stage:
        await stage.take(0, floor=floor)
        assert await stage.client.get(Tally, key_in(0)).read() == 1


def remove_all(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


@in_loop
async def test_an_embedded_log_that_is_made_anew_stops_its_owner_and_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file under a running owner is another one: to this process the log is away. The next process sees that it is new."""
    monkeypatch.setattr("rekindle.actors.owner.LOG_AWAY_MAX_S", 0.2)
    async with embedded(tmp_path) as log, running(TALLY, log) as stage:
        assert await stage.client.get(Tally, key_in(0)).add(1) == 1
        floor = stage.owner().position
        remove_all(tmp_path)
        async with embedded(tmp_path) as anew, running(TALLY, anew, shards=[1]) as successor:
            call = stage.client.get(Tally, key_in(0), timeout=0.3).add(1)
            lost = await stage.controller.wait_lost(0)
            assert (lost.error, "it was removed or replaced" in lost.reason) == ("LogUnavailable", True)
            with pytest.raises(RekindleError):
                await call
            await successor.controller.assign(0, floor=floor)
            await assert_lost(successor, "LogTruncated", f"expected at least offset {floor.offset}, found 1")


# Appends that are refused, topics that are set up wrongly


@in_loop
async def test_a_refused_append_costs_nobody_his_command() -> None:
    """It is not one command's error: the owner forgets what was never answered, reads what is true, and runs it again."""
    async with running(TALLY, log := GatedLog()) as stage:
        first, second = (stage.client.get(Tally, key_in(0, prefix=prefix)) for prefix in ("first", "second"))
        assert [await first.add(1), await second.add(1)] == [1, 1]
        log.refusals.append(AppendRefused("not today"))
        assert [await call for call in (first.add(1), second.add(1), first.add(1))] == [2, 2, 3]
        assert stage.instance.around.counters["append_refused"] == 1
        assert stage.heard("app.tally/0: the log refused an append, state discarded: not today")
        assert stage.controller.lost == []


@in_loop
async def test_a_log_that_refuses_every_append_loses_its_owner() -> None:
    async with running(TALLY, log := GatedLog()) as stage:
        log.refusals += [AppendRefused("never again")] * 100
        call = stage.client.get(Tally, key_in(0), timeout=0.3).add(1)
        lost = await stage.controller.wait_lost(0)
        assert (lost.error, lost.reason) == (
            "LogUnavailable",
            "LogUnavailable: app.tally/0: 3 takeovers came to nothing, see what was said before",
        )
        with pytest.raises(RekindleError):
            await call


@in_loop
async def test_a_shard_without_a_topic_is_given_up() -> None:
    async with running(TALLY, GatedLog()) as stage:
        await stage.controller.assign(2)
        lost = await stage.controller.wait_lost(2)
        assert (lost.error, "'app.tally' has partitions 0 to 1, no 2" in lost.reason) == ("TopicMissing", True)


@in_loop
async def test_every_wrong_setting_of_a_topic_is_named() -> None:
    log = GatedLog()
    await log.create(Topic("app.tally", 3, compacted=True, record_bytes_max=10))
    with pytest.raises(TopicContractBroken) as broken:
        async with running(TALLY, log):
            pass
    assert broken.value.faults == [
        "partitions: expected 2, found 3",
        "cleanup.policy: expected delete, found compact",
        "record_bytes_max: expected 1000000, found 10",
    ]


def test_the_forged_record_is_one_of_ours() -> None:
    """What the tests above spoil would count if they did not."""
    commit = Commit(COMMAND, 0, 1, 0, NO_SESSION, 0, 0, "a", 1, b"", None, [["Added", 1, {"n": 1}]])
    assert encode(commit) == pack([[MARK, VERSION, *commit[:-1]], [["Added", 1, Added(n=1).model_dump()]]])
