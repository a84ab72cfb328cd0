"""Events as users write them, and how old ones are read: versions and upcasters.

    class Received(Event, version=2):
        qty: int
        unit: str

        @upcast(1)                                  # from version 1 to 2
        def _add_unit(data: dict[str, Any]) -> dict[str, Any]:
            return {**data, "unit": "piece"}

An event is a frozen pydantic model. Its name and version go into the record; a stored event of an older version is
lifted step by step, one of a newer version (or an unknown name) stops the reader with `NewerRecord`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict

from rekindle.events.codec import pack
from rekindle.events.errors import NewerRecord, SchemaError, Undecodable
from rekindle.events.records import RawEvent

Data = dict[str, Any]
_MARK: Final = "__rekindle_upcast__"


def upcast(from_version: int) -> Callable[[Callable[[Data], Data]], Any]:
    """Mark a function in an event's class that lifts stored data from `from_version` to the next one."""

    def mark(function: Callable[[Data], Data]) -> Any:
        setattr(function, _MARK, from_version)
        return staticmethod(function)

    return mark


class Event(BaseModel):
    """A fact, in the past tense, never changed.

    Class arguments: `version` (default 1), the schema version that is written; `name` (default: the class's name), what
    the log calls it, so that a class can be renamed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)

    event_name: ClassVar[str] = "Event"
    event_version: ClassVar[int] = 1
    upcasters: ClassVar[dict[int, Callable[[Data], Data]]] = {}

    def __init_subclass__(cls, *, version: int = 1, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.event_name = name or cls.__name__
        cls.event_version = version
        found = {
            getattr(f.__func__, _MARK): f.__func__
            for f in vars(cls).values()
            if isinstance(f, staticmethod) and hasattr(f.__func__, _MARK)
        }
        missing = sorted(set(range(1, version)) - set(found))
        if missing or len(found) >= max(version, 1):
            raise SchemaError(
                f"event {cls.event_name} is version {version}: it needs one @upcast for each of {list(range(1, version))}, it has {sorted(found)}"
            )
        cls.upcasters = found


class Deleted(Event, name="rekindle.Deleted"):
    """The entity is gone; the next command finds it as new. Emitted by `Entity.delete`."""


def pack_event(event: Event) -> bytes:
    """The event as it goes into a record. Raises `Unencodable`."""
    return _head_of(type(event)) + pack(event.__dict__)


@cache  # pydantic's classes are slow to ask
def _head_of(cls: type[Event]) -> bytes:
    """What comes before the fields: the header of an array of three, the name, the version."""
    return b"\x93" + pack(cls.event_name) + pack(cls.event_version)


class EventTypes:
    """The events of one entity type, by the names that the log knows."""

    def __init__(self, classes: Iterable[type[Event]]) -> None:
        self._by_name: dict[str, type[Event]] = {}
        every: list[type[Event]] = [*classes, Deleted]
        for cls in every:
            known = self._by_name.setdefault(cls.event_name, cls)
            if known is not cls:
                raise SchemaError(
                    f"two events of one entity are called {cls.event_name!r}: {known.__qualname__} and {cls.__qualname__}"
                )

        self.classes = frozenset(self._by_name.values())
        self._current: dict[str, tuple[int, Callable[[Data], Event]]] = {
            cls.event_name: (cls.event_version, cls.__pydantic_validator__.validate_python) for cls in self.classes
        }

    @property
    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(self._by_name)

    def decode(self, raw: RawEvent) -> Event:
        """The event of a record, lifted to today's version. Raises `NewerRecord` and `Undecodable`."""
        name, version, data = raw
        known = self._current.get(name)
        if known is None:
            raise NewerRecord(f"event {name!r} is unknown to this build, which knows {self.names}")
        current, validate = known
        if version != current:
            data = _lift(self._by_name[name], version, data)
        try:
            return validate(data)
        except ValueError as error:
            raise Undecodable(
                f"event {name!r} version {version} does not fit {self._by_name[name].__qualname__}: {error}"
            ) from error


def _lift(cls: type[Event], version: int, data: Data) -> Data:
    if version > cls.event_version:
        raise NewerRecord(f"event {cls.event_name!r} has version {version}; this build reads up to {cls.event_version}")
    try:
        for step in range(version, cls.event_version):
            data = cls.upcasters[step](data)
    except Exception as error:
        raise Undecodable(f"event {cls.event_name!r} version {version}: its upcaster failed: {error!r}") from error
    return data
