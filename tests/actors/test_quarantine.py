"""Entities that cannot be rebuilt: each is put aside alone, with all of its events, and comes back with a mended build.

Goal: an `apply` that raises, a state that no longer fits its class or cannot be encoded costs one entity, never a shard,
never an event. Method: `_bugs` is what differs between two builds of the same class; shards are taken over in between,
by full replay and from snapshots (then the log below the snapshot is gone, so that nothing else can have been used).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import AfterValidator

from rekindle import CommandFailed, Entity, EntityQuarantined, Event, command, query
from rekindle.events.stores import DirectoryStore
from tests.support.inprocess import GatedLog, Stage, hosted_of, in_loop, key_in, running
from tests.support.loops import eventually

SNAPSHOT_EVERY = 4

_bugs: set[str] = set()


@pytest.fixture(autouse=True)
def bugs(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What is wrong with the build that runs."""
    found: set[str] = set()
    monkeypatch.setattr(f"{__name__}._bugs", found)
    return found


class Fed(Event):
    word: str


class Swallowed(Event):
    number: int


def _short(meal: list[str]) -> list[str]:
    if "picky" in _bugs and len(meal) > 1:
        raise ValueError("nobody eats so much")
    return meal


class Patient(Entity):
    """Keeps what it was fed."""

    meal: Annotated[list[str], AfterValidator(_short)] = []
    number: int = 0

    def apply(self, event: Fed | Swallowed) -> None:
        match event:
            case Swallowed(number=number):
                self.number += number
            case Fed(word=word):
                self.meal.append(word)
                if word in _bugs:
                    raise RuntimeError(f"allergic to {word}")
                if word == "a hook":
                    self.hook = 1
                if word == "a bite" and self.meal:
                    del self.meal

    @command
    def feed(self, *words: str) -> list[str]:
        for word in words:
            self.emit(Fed(word=word))
        return self.meal

    @command
    def feed_carefully(self, word: str) -> str:
        try:
            self.emit(Fed(word=word))
        except RuntimeError:
            return "that went wrong"
        return "fine"

    @command
    def feed_and_fail(self, word: str, bug: str) -> None:
        self.emit(Fed(word=word))
        _bugs.add(bug)
        raise LookupError("no more")

    @command
    def swallow(self, number: int) -> None:
        self.emit(Swallowed(number=number))

    @command
    def bury(self) -> None:
        self.delete()

    @query
    def eaten(self) -> list[str]:
        return self.meal

    @query
    def read(self) -> int:
        return self.number


PATIENT = hosted_of(Patient, snapshot_every=SNAPSHOT_EVERY)
ILL, WELL, ELSEWHERE = key_in(0, prefix="ill"), key_in(0, prefix="well"), key_in(1)


async def assert_only_the_ill_one_is_refused(stage: Stage, reason: str) -> None:
    ill, well, elsewhere = (stage.client.get(Patient, key) for key in (ILL, WELL, ELSEWHERE))
    for call in (ill.eaten, ill.feed, ill.read):
        with pytest.raises(EntityQuarantined, match=f"quarantined: Patient '{ILL}': {reason}"):
            await call()
    assert "bread" in await well.feed("bread")
    assert "bread" in await elsewhere.feed("bread")
    assert stage.heard(f"app.patient/0: quarantined Patient '{ILL}': ")


async def wait_for_snapshot(stage: Stage) -> int:
    """Have a snapshot made of shard 0; the offset of its record."""
    before = await stage.snapshots()
    while await stage.snapshots() == before:
        await stage.client.get(Patient, WELL).feed("rice")
    store = stage.host.snapshots
    assert store is not None
    return (await store.pointers(stage.partition()))[0].offset


@in_loop
async def test_an_apply_that_raises_on_replay_puts_its_entity_aside_until_it_is_mended(bugs: set[str]) -> None:
    async with running(PATIENT, log := GatedLog()) as stage:
        await stage.client.get(Patient, ILL).feed("soup", "nuts", "cake")
        await stage.client.get(Patient, WELL).feed("soup")
    bugs.add("nuts")
    async with running(PATIENT, log) as stage:
        await assert_only_the_ill_one_is_refused(stage, "RuntimeError: allergic to nuts")
        assert stage.instance.around.counters["quarantined"] == 1
    bugs.clear()
    async with running(PATIENT, log) as stage:
        assert await stage.client.get(Patient, ILL).feed("tea") == ["soup", "nuts", "cake", "tea"]
        assert await stage.client.get(Patient, WELL).eaten() == ["soup", "bread"]


@in_loop
async def test_a_snapshot_keeps_what_was_put_aside_with_its_events(bugs: set[str], tmp_path: Path) -> None:
    """The bad event may come before, between and after what the snapshot's own state has of the entity."""
    store = DirectoryStore(str(tmp_path))
    await store.open()
    async with running(PATIENT, log := GatedLog(), store) as stage:
        await stage.client.get(Patient, ILL).feed("soup")
        await wait_for_snapshot(stage)
    async with running(PATIENT, log) as stage:
        await stage.client.get(Patient, ILL).feed("nuts", "cake")
        await stage.client.get(Patient, ILL).feed("tea")
    bugs.add("nuts")
    for _ in range(2):
        async with running(PATIENT, log, store) as stage:
            await assert_only_the_ill_one_is_refused(stage, "RuntimeError: allergic to nuts")
            await log.trim(stage.partition(), await wait_for_snapshot(stage))
    bugs.clear()
    async with running(PATIENT, log, store) as stage:
        assert await stage.client.get(Patient, ILL).feed("beer") == ["soup", "nuts", "cake", "tea", "beer"]
        assert not stage.heard("quarantined")
        await log.trim(stage.partition(), await wait_for_snapshot(stage))
    async with running(PATIENT, log, store) as stage:
        assert await stage.client.get(Patient, ILL).eaten() == ["soup", "nuts", "cake", "tea", "beer"]


@in_loop
async def test_who_was_deleted_afterwards_needs_no_quarantine(bugs: set[str]) -> None:
    async with running(PATIENT, log := GatedLog()) as stage:
        await stage.client.get(Patient, ILL).feed("nuts")
        await stage.client.get(Patient, ILL).bury()
        await stage.client.get(Patient, ILL).feed("cake")
    bugs.add("nuts")
    async with running(PATIENT, log) as stage:
        assert await stage.client.get(Patient, ILL).eaten() == ["cake"]


@in_loop
async def test_a_state_that_the_class_does_not_take_any_more_puts_its_entity_aside(
    bugs: set[str], tmp_path: Path
) -> None:
    store = DirectoryStore(str(tmp_path))
    await store.open()
    async with running(PATIENT, log := GatedLog(), store) as stage:
        await stage.client.get(Patient, ILL).feed("soup", "cake")
        await log.trim(stage.partition(), await wait_for_snapshot(stage))
        await stage.client.get(Patient, ILL).feed("tea")
    bugs.add("picky")
    async with running(PATIENT, log, store, shards=[0]) as stage:
        with pytest.raises(
            EntityQuarantined, match=r"state of Patient .* does not fit the class: meal: .*nobody eats so much"
        ):
            await stage.client.get(Patient, ILL).eaten()
    bugs.clear()
    async with running(PATIENT, log, store) as stage:
        assert await stage.client.get(Patient, ILL).eaten() == ["soup", "cake", "tea"]


@in_loop
async def test_a_state_that_cannot_be_encoded_puts_its_entity_aside(tmp_path: Path) -> None:
    """Each event can be kept, their sum cannot: 2**64 is too large for msgpack. Whoever needs the state encoded, meets it."""
    store = DirectoryStore(str(tmp_path))
    await store.open()
    async with running(PATIENT, log := GatedLog(), store) as stage:
        for _ in range(2):
            await stage.client.get(Patient, ILL).swallow(1 << 63)
        await wait_for_snapshot(stage)
        await assert_only_the_ill_one_is_refused(stage, "Unencodable: cannot encode")
    async with running(PATIENT, log, store) as stage:
        await assert_only_the_ill_one_is_refused(stage, "Unencodable: cannot encode")


@in_loop
async def test_an_event_that_apply_refuses_undoes_its_command(bugs: set[str]) -> None:
    async with running(PATIENT, log := GatedLog()) as stage:
        ill = stage.client.get(Patient, ILL)
        await ill.feed("soup")
        bugs.add("nuts")
        with pytest.raises(CommandFailed, match="RuntimeError: allergic to nuts"):
            await ill.feed("cake", "nuts")
        assert await ill.eaten() == ["soup"]
    async with running(PATIENT, log) as stage:
        assert await stage.client.get(Patient, ILL).eaten() == ["soup"]


@in_loop
async def test_a_handler_cannot_keep_an_event_that_apply_refused(bugs: set[str]) -> None:
    """It would be in the log, and no replay could get past it."""
    async with running(PATIENT, log := GatedLog()) as stage:
        ill = stage.client.get(Patient, ILL)
        bugs.add("nuts")
        with pytest.raises(CommandFailed, match="`apply` raised on an event that was emitted, and the handler went on"):
            await ill.feed_carefully("nuts")
        assert await ill.feed_carefully("soup") == "fine"
    async with running(PATIENT, log) as stage:
        assert await stage.client.get(Patient, ILL).eaten() == ["soup"]


@pytest.mark.parametrize(("word", "field"), [("a hook", "hook"), ("a bite", "meal")])
@in_loop
async def test_apply_can_neither_add_nor_remove_fields(word: str, field: str) -> None:
    """What is no field is in no snapshot: it would be there until the entity is put away, and then be gone."""
    async with running(PATIENT, GatedLog()) as stage:
        ill = stage.client.get(Patient, ILL)
        with pytest.raises(CommandFailed, match=rf"TypeError: Patient: \['{field}'\] set or deleted"):
            await ill.feed(word)
        assert await ill.feed("soup") == ["soup"]


@in_loop
async def test_an_entity_whose_commands_cannot_be_undone_is_put_aside(bugs: set[str]) -> None:
    """An `apply` that raises now where it did not before: the state before the command cannot be had any more."""
    async with running(PATIENT, log := GatedLog()) as stage:
        ill = stage.client.get(Patient, ILL)
        await ill.feed("nuts")
        with pytest.raises(EntityQuarantined, match="RuntimeError: allergic to nuts"):
            await ill.feed_and_fail("cake", bug="nuts")
        await assert_only_the_ill_one_is_refused(stage, "RuntimeError: allergic to nuts")
    bugs.clear()
    async with running(PATIENT, log) as stage:
        assert await stage.client.get(Patient, ILL).eaten() == ["nuts"]


@in_loop
async def test_housekeeping_outlives_an_entity_that_cannot_be_put_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs in the task that shows that the loop turns: without that an instance is taken for hung."""
    monkeypatch.setattr("rekindle.actors.instance.SWEEP_S", 0.05)
    async with running(PATIENT, GatedLog()) as stage:
        for _ in range(2):
            await stage.client.get(Patient, ILL).swallow(1 << 63)
        await stage.client.get(Patient, WELL).feed("soup")
        await eventually(lambda: WELL in stage.owner().shard.entities.idle)
        await assert_only_the_ill_one_is_refused(stage, "Unencodable: cannot encode")
