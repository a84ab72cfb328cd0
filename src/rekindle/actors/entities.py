"""The entities of one shard in memory: few as objects, most of them encoded, some in quarantine.

Invariants:
- A key is in at most one of `active`, `idle`, `quarantined`; a key in none of them is a new entity.
- An active entity's state is `base` (encoded; None: as new) plus the commits `since`, in order. So a handler's emits
  can be undone, and an entity put aside as it last was good, without a copy of the state before each command.
- `since` is bounded by the size of the state, so its cost is a constant share of each command.
- `bytes` is the encoded size of all states, as of when each was encoded last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from rekindle.actors.entity import Entity, EntityType
from rekindle.events import Commit, Deleted, NewerRecord, Undecodable, Unencodable, decode, pack, unpack
from rekindle.events.records import RawEvent

ACTIVE_MAX: Final = 16_384
"""Entities of one shard kept as objects; above it the least recently used are encoded."""

SWEEP_FOR_ONE: Final = 3
"""Looked at for each one above it: more than the two looks, on average, after which one is encoded, or they grow in number."""

SINCE_MIN: Final = 32
_BYTES_PER_COMMIT: Final = 32


class Active:
    """An entity as an object.

    last: sequence of its newest command. busy: an async handler runs or waits to; `queue` is what waits behind it.
    since: values of the commits that `base` does not contain.
    """

    __slots__ = ("base", "busy", "entity", "last", "queue", "since", "since_max", "touched", "version")

    def __init__(self, entity: Entity, version: int, base: bytes | None) -> None:
        self.entity = entity
        self.version = version
        self.base = base
        self.since: list[bytes] = []
        self.since_max = SINCE_MIN if base is None else SINCE_MIN + len(base) // _BYTES_PER_COMMIT
        self.last = 0
        self.busy = False
        self.queue: deque[Any] = _EMPTY
        self.touched = True


_EMPTY: Final[deque[Any]] = deque(maxlen=0)


class Quarantined:
    """An entity that cannot be rebuilt: its last good state, the raw events since, and why."""

    __slots__ = ("base", "events", "reason")

    def __init__(self, base: bytes | None, events: list[RawEvent], reason: str) -> None:
        self.base = base
        self.events = events
        self.reason = reason


class Captured(NamedTuple):
    """All entities at one sequence, each encoded."""

    entities: dict[str, bytes]
    quarantined: dict[str, tuple[bytes | None, list[RawEvent], str]]


class Entities:
    """All entities of one shard. on_quarantine: is told why, whenever one is put in quarantine."""

    def __init__(self, kind: EntityType, on_quarantine: Callable[[str], None]) -> None:
        self.kind = kind
        self.on_quarantine = on_quarantine
        self.active: dict[str, Active] = {}
        self.idle: dict[str, bytes] = {}
        self.quarantined: dict[str, Quarantined] = {}
        self.bytes = 0
        self._hand: Iterator[str] = iter(())

    def __len__(self) -> int:
        return len(self.active) + len(self.idle) + len(self.quarantined)

    def activate(self, key: str) -> Active:
        """The entity as an object. Raises `Undecodable` if its state does not fit its class."""
        data = self.idle.get(key)
        if data is None:
            active = Active(self.kind.new(key), 0, None)
        else:
            active = Active(*self._restored(key, data), data)
            del self.idle[key]
        self.active[key] = active
        if len(self.active) > ACTIVE_MAX:
            self.sweep(SWEEP_FOR_ONE)
        return active

    def _restored(self, key: str, data: bytes) -> tuple[Entity, int]:
        version, state = unpack(data)
        return self.kind.restore(key, state), version

    def executed(self, key: str, active: Active, value: bytes, version: int) -> None:
        """A commit of the entity, just executed or just replayed: remember it; a deleted entity is dropped."""
        active.touched = True
        active.version = version
        if version == 0:
            self._drop(key, active)
            return
        active.since.append(value)
        if len(active.since) > active.since_max:
            self._rebase(key, active)

    def _drop(self, key: str, active: Active) -> None:
        self.bytes -= len(active.base or b"")
        active.base, active.since = None, []
        if not active.busy:
            del self.active[key]

    def _rebase(self, key: str, active: Active) -> bytes | None:
        """Encode the state; None: it cannot be encoded, the entity was put aside with all of its events."""
        try:
            base = pack((active.version, vars(active.entity)))
        except Unencodable as error:
            self._put_aside(key, active, [], error)
            return None
        self.bytes += len(base) - len(active.base or b"")
        active.base, active.since = base, []
        active.since_max = SINCE_MIN + len(base) // _BYTES_PER_COMMIT
        return base

    def undo(self, active: Active) -> None:
        """Back to the state after the last command that was executed; if that cannot be rebuilt, it is put aside."""
        try:
            active.entity = self._rebuilt(active)
        except Exception as error:  # noqa: BLE001 - as in `replay`
            self._put_aside(active.entity.key, active, [], error)

    def _rebuilt(self, active: Active) -> Entity:
        key = active.entity.key
        entity = self.kind.new(key) if active.base is None else self._restored(key, active.base)[0]
        self._apply(entity, self._events(active.since))
        return entity

    def _apply(self, entity: Entity, events: Iterable[RawEvent]) -> None:
        apply, event_of = self.kind.apply, self.kind.events.decode
        for raw in events:
            event = event_of(raw)
            if type(event) is Deleted:
                self.kind.reset(entity)
            else:
                apply(entity, event)
        self.kind.check_fields(entity)

    def _events(self, values: list[bytes]) -> Iterator[RawEvent]:
        for value in values:
            commit = decode(value)
            assert isinstance(commit, Commit), f"not a commit: {commit!r}"
            yield from commit.events

    def replay(self, commit: Commit, value: bytes) -> None:
        """Apply one commit of the log. Raises `NewerRecord`."""
        key = commit.entity
        active = self.active.get(key)
        if active is None:
            if key in self.quarantined:
                self._replay_quarantined(key, commit)
                return
            try:
                active = self.activate(key)
            except Undecodable as error:
                self._quarantine(key, self.idle.pop(key), commit.events, error)
                return
        try:
            self._apply(active.entity, commit.events)
        except NewerRecord:
            raise
        except Exception as error:  # noqa: BLE001 - `apply` is the user's code: whatever it raises puts this entity aside
            self._put_aside(key, active, commit.events, error)
        else:
            self.executed(key, active, value, commit.version)

    def _replay_quarantined(self, key: str, commit: Commit) -> None:
        if commit.version == 0:
            self.bytes -= len(self.quarantined.pop(key).base or b"")
        else:
            self.quarantined[key].events += commit.events

    def quarantine_idle(self, key: str, error: Undecodable) -> None:
        """Put an entity aside whose encoded state does not fit its class."""
        self._quarantine(key, self.idle.pop(key), [], error)

    def _put_aside(self, key: str, active: Active, events: list[RawEvent], error: Exception) -> None:
        del self.active[key]
        self._quarantine(key, active.base, [*self._events(active.since), *events], error)

    def _quarantine(self, key: str, base: bytes | None, events: list[RawEvent], error: Exception) -> None:
        reason = f"{self.kind.name} {key!r}: {type(error).__name__}: {error}"
        self.quarantined[key] = Quarantined(base, list(events), reason)
        self.on_quarantine(reason)

    def sweep(self, steps: int) -> None:
        """Encode entities that were not touched since the last time round; look at `steps` of them (the clock algorithm)."""
        for _ in range(steps):
            key = next(self._hand, None)
            if key is None:
                self._hand = iter(list(self.active))
                return
            active = self.active.get(key)
            if active is None or active.busy:
                continue
            if active.touched:
                active.touched = False
            else:
                self._encode(key, active)

    def _encode(self, key: str, active: Active) -> None:
        if not active.version:
            del self.active[key]
        elif (data := self._current(key, active)) is not None:
            self.idle[key] = data
            del self.active[key]

    def _current(self, key: str, active: Active) -> bytes | None:
        if active.base is not None and not active.since:
            return active.base
        return self._rebase(key, active)

    def capture(self) -> Captured:
        """All states as of now, between handlers: what an async handler that still runs has emitted is not in it."""
        entities = dict(self.idle)
        for key, active in tuple(self.active.items()):
            if active.version:
                data = self._committed(key, active) if active.busy else self._current(key, active)
                if data is not None:
                    entities[key] = data
        return Captured(entities, {key: (q.base, list(q.events), q.reason) for key, q in self.quarantined.items()})

    def _committed(self, key: str, active: Active) -> bytes | None:
        try:
            return pack((active.version, vars(self._rebuilt(active))))
        except Exception as error:  # noqa: BLE001 - as in `replay`
            self._put_aside(key, active, [], error)
            return None

    def restore(self, captured: Captured) -> None:
        """All states as a snapshot has them. What was in quarantine is tried again: this build may be a mended one."""
        self.idle = captured.entities
        for key, (base, events, _) in captured.quarantined.items():
            try:
                self.idle[key] = self._with_events(key, base, events)
            except NewerRecord:
                raise
            except Exception as error:  # noqa: BLE001 - as in `replay`
                self._quarantine(key, base, events, error)
        bases = (quarantined.base or b"" for quarantined in self.quarantined.values())
        self.bytes = sum(map(len, (*self.idle.values(), *bases)))

    def _with_events(self, key: str, base: bytes | None, events: list[RawEvent]) -> bytes:
        entity, version = (self.kind.new(key), 0) if base is None else self._restored(key, base)
        self._apply(entity, events)
        return pack((version + len(events), vars(entity)))
