"""The entities of a shard in memory, against a plain dictionary.

Goal: however commands, undone commands, deletions, sweeps, snapshots and takeovers follow each other, every entity is what
its events make it, and what is kept of it stays bounded. Method: hypothesis makes the histories. The model is a list of
words per key; the invariants of the module's head are checked after every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rekindle import Entity, Event
from rekindle.actors import entities as under_test
from rekindle.actors.entities import SINCE_MIN, Active, Entities
from rekindle.events import Commit, Deleted, decode, encode, pack_event, unpack
from rekindle.events.records import COMMAND

ACTIVE_MAX = 4
KEYS = [f"scroll-{number}" for number in range(3 * ACTIVE_MAX)]
CURSE = "curse"

_cursed: set[str] = set()


class Written(Event):
    words: list[str]


class Scroll(Entity):
    """Words in the order in which they were written."""

    words: list[str] = []
    letters: int = 0

    def apply(self, event: Written) -> None:
        if _cursed.intersection(event.words):
            raise RuntimeError("the scroll burns")
        self.words += event.words
        self.letters += sum(map(len, event.words))


KIND = Scroll.describe()
WORD = Written(words=["a"])

keys = st.sampled_from(KEYS)
texts = st.lists(st.sampled_from(["a", "longer", "x" * 200, CURSE]), min_size=1, max_size=3)


class Library(RuleBasedStateMachine):
    """Entities, what should be in them, and the log of all commits."""

    def __init__(self) -> None:
        super().__init__()
        _cursed.clear()
        self.quarantined: list[str] = []
        self.entities = self.new_entities()
        self.words: dict[str, list[str]] = {}
        self.versions: dict[str, int] = {}
        self.log: list[bytes] = []

    def new_entities(self) -> Entities:
        return Entities(KIND, self.quarantined.append)

    def active(self, key: str) -> Active:
        return self.entities.active.get(key) or self.entities.activate(key)

    def commit(self, key: str, events: Sequence[Event], version: int) -> bytes:
        self.log.append(_committed(key, events, version))
        return self.log[-1]

    # What a shard does with them

    @rule(key=keys, texts=st.lists(texts, min_size=1, max_size=3))
    def execute(self, key: str, texts: list[list[str]]) -> None:
        """A command that emits."""
        active = self.active(key)
        entity = active.entity
        assert isinstance(entity, Scroll)
        entity._emitted = []  # pyright: ignore[reportPrivateUsage]
        for text in texts:
            entity.emit(Written(words=text))
        entity._emitted = None  # pyright: ignore[reportPrivateUsage]
        self.versions[key] = self.versions.get(key, 0) + len(texts)
        value = self.commit(key, [Written(words=text) for text in texts], self.versions[key])
        self.entities.executed(key, active, value, self.versions[key])
        self.words.setdefault(key, []).extend(word for text in texts for word in text)

    @rule(key=keys, count=st.integers(SINCE_MIN, 3 * SINCE_MIN))
    def execute_often(self, key: str, count: int) -> None:
        """Enough commands that the state is encoded in between."""
        for _ in range(count):
            self.execute(key, [["a"]])

    @rule(key=keys, text=texts)
    def fail(self, key: str, text: list[str]) -> None:
        """A command that emits and raises."""
        active = self.active(key)
        active.entity._emitted = []  # pyright: ignore[reportPrivateUsage]
        active.entity.emit(Written(words=text))
        self.entities.undo(active)

    @rule(key=keys, text=texts)
    def replay(self, key: str, text: list[str]) -> None:
        """A commit of somebody else."""
        self.versions[key] = self.versions.get(key, 0) + 1
        value = self.commit(key, [Written(words=text)], self.versions[key])
        self.entities.replay(_commit_of(value), value)
        self.words.setdefault(key, []).extend(text)

    @rule(key=keys, live=st.booleans())
    def delete(self, key: str, live: bool) -> None:
        """A deletion, here or somewhere else."""
        value = self.commit(key, [Deleted()], 0)
        if live:
            active = self.active(key)
            active.entity._emitted = []  # pyright: ignore[reportPrivateUsage]
            active.entity.delete()
            self.entities.executed(key, active, value, 0)
        else:
            self.entities.replay(_commit_of(value), value)
        self.words.pop(key, None)
        self.versions.pop(key, None)

    @rule(key=keys)
    def look(self, key: str) -> None:
        """A query."""
        entity = self.active(key).entity
        assert isinstance(entity, Scroll)
        assert entity.words == self.words.get(key, [])
        assert entity.letters == sum(map(len, entity.words))

    @rule(steps=st.integers(0, 3 * ACTIVE_MAX))
    def sweep(self, steps: int) -> None:
        """Housekeeping."""
        self.entities.sweep(steps)

    # What becomes of them elsewhere

    @rule()
    def take_over_from_a_snapshot(self) -> None:
        captured = self.entities.capture()
        self.entities = self.new_entities()
        self.entities.restore(captured)

    @rule()
    def take_over_by_replay(self) -> None:
        self.entities = self.new_entities()
        self.replay_all(self.entities, self.log)

    @precondition(lambda self: any(CURSE in words for words in self.words.values()))
    @rule(at=st.floats(0, 1))
    def take_over_with_a_broken_build_and_back(self, at: float) -> None:
        """A build whose `apply` raises goes on from a snapshot; a mended build starts from a snapshot of that one."""
        good, broken, mended = self.new_entities(), self.new_entities(), self.new_entities()
        middle = int(at * len(self.log))
        self.replay_all(good, self.log[:middle])
        _cursed.add(CURSE)
        broken.restore(good.capture())
        self.replay_all(broken, self.log[middle:])
        captured = broken.capture()
        _cursed.clear()
        assert broken.quarantined.keys() <= {key for key, words in self.words.items() if CURSE in words}
        mended.restore(captured)
        assert not mended.quarantined
        self.entities = mended

    def replay_all(self, entities: Entities, values: list[bytes]) -> None:
        for value in values:
            entities.replay(_commit_of(value), value)

    # What holds at all times

    @invariant()
    def every_entity_is_what_its_events_made_it(self) -> None:
        captured = _copy(self.entities).capture()
        found = {key: unpack(data) for key, data in captured.entities.items()}
        expected = {
            key: [self.versions[key], {"words": words, "letters": sum(map(len, words))}]
            for key, words in self.words.items()
        }
        assert found == expected

    @invariant()
    def a_key_is_in_one_place(self) -> None:
        places = (self.entities.active, self.entities.idle, self.entities.quarantined)
        found = [key for place in places for key in place]
        assert len(found) == len(set(found)) == len(self.entities)

    @invariant()
    def its_size_is_what_it_says(self) -> None:
        bases = [active.base or b"" for active in self.entities.active.values()]
        assert self.entities.bytes == sum(map(len, (*bases, *self.entities.idle.values())))

    @invariant()
    def what_is_kept_for_undoing_is_bounded(self) -> None:
        for active in self.entities.active.values():
            assert len(active.since) <= active.since_max <= SINCE_MIN + len(active.base or b"")


@pytest.mark.parametrize("again", [1, 2])
def test_however_many_are_used_few_of_them_are_objects(again: int) -> None:
    entities = Entities(KIND, list[str]().append)
    for key in again * [f"scroll-{number}" for number in range(50 * ACTIVE_MAX)]:
        active = entities.activate(key)
        entities.executed(key, active, _committed(key, [WORD], active.version + 1), active.version + 1)
        assert len(entities.active) <= 2 * ACTIVE_MAX
    assert len(entities) == 50 * ACTIVE_MAX


def test_what_is_not_used_any_more_is_put_away_for_good() -> None:
    """Also what was only looked at, and then nothing is kept of it."""
    entities = Entities(KIND, list[str]().append)
    for key in KEYS[:ACTIVE_MAX]:
        entities.activate(key)
    entities.executed(KEYS[0], entities.active[KEYS[0]], _committed(KEYS[0], [WORD], 1), 1)
    for _ in range(4):
        entities.sweep(2 * ACTIVE_MAX)
    assert (list(entities.active), list(entities.idle), len(entities)) == ([], [KEYS[0]], 1)


def _committed(key: str, events: Sequence[Event], version: int) -> bytes:
    raw = [unpack(pack_event(event)) for event in events]
    return encode(Commit(COMMAND, 0, 1, 0, b"s", 1, 1, key, version, b"", None, raw))


def _commit_of(value: bytes) -> Commit:
    commit = decode(value)
    assert isinstance(commit, Commit)
    return commit


def _copy(entities: Entities) -> Entities:
    """To look at everything without changing anything."""
    copy = Entities(KIND, entities.on_quarantine)
    copy.idle = dict(entities.idle)
    for key, active in entities.active.items():
        copied = copy.active[key] = Active(active.entity, active.version, active.base)
        copied.since = list(active.since)
    return copy


@pytest.fixture(autouse=True)
def few_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "ACTIVE_MAX", ACTIVE_MAX)


TestLibrary = Library.TestCase
TestLibrary.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
