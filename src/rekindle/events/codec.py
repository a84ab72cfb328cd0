"""msgpack in and out: what Python values may stand in events, arguments, replies and state, and as what they travel.

Native msgpack types travel as they are. The common rest travels as the form that pydantic reads back into the same
type: models as maps, dates, times and durations in ISO 8601, decimals and UUIDs as text, enums as their value, sets as lists.
Anything else is `Unencodable`; nothing is ever pickled.
"""

from __future__ import annotations

import threading
from collections import deque
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import Any
from uuid import UUID

import msgpack
from pydantic import BaseModel

from rekindle.events.errors import Unencodable


def _travels_as(value: Any) -> Any:
    """The msgpack form of a value that msgpack does not know."""
    match value:
        case BaseModel():
            return _fields_of(value)
        case set() | frozenset() | deque():
            return list(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return _iso_duration(value)
        case Decimal() | UUID():
            return str(value)
        case Enum():
            return value.value
        case _:
            raise TypeError(f"a {type(value).__name__} cannot be kept in the log")


def _fields_of(model: BaseModel) -> Any:
    """What the model's own validation reads back: its undeclared fields too, and aliases where it insists on them."""
    extra, aliases = model.__pydantic_extra__, _aliases(type(model))
    if not extra and not aliases:
        return model.__dict__
    return {aliases.get(name, name): value for name, value in (*model.__dict__.items(), *(extra or {}).items())}


@cache
def _aliases(cls: type[BaseModel]) -> dict[str, Any]:
    if cls.model_config.get("validate_by_name") or cls.model_config.get("populate_by_name"):
        return {}
    return {name: f.validation_alias for name, f in cls.model_fields.items() if f.validation_alias is not None}


def _iso_duration(value: timedelta) -> str:
    """To the microsecond, which a float of seconds is not."""
    sign, value = ("-", -value) if value.days < 0 else ("", value)
    return f"{sign}P{value.days}DT{value.seconds}.{value.microseconds:06}S"


class _Packers(threading.local):
    """A packer has one buffer: threads that share it (the beacon's, those that encode snapshots) would mix their values."""

    def __init__(self) -> None:
        self.packer = msgpack.Packer(default=_travels_as)


_packers = _Packers()


def pack(value: Any) -> bytes:
    """The value as msgpack. Raises `Unencodable`, which names the type."""
    packer = _packers.packer
    try:
        return packer.pack(value)  # type: ignore[no-any-return]
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        packer.reset()
        raise Unencodable(f"cannot encode {type(value).__name__}: {error}") from error


class _MapKey(dict[Any, Any]):
    """A model that is a key of a map, until pydantic has made it one again."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


def _with_any_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    return {_hashable(key): value for key, value in pairs}


def _hashable(key: Any) -> Any:
    match key:
        case list():
            return tuple(map(_hashable, key))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        case dict():
            return _MapKey(key)  # pyright: ignore[reportUnknownArgumentType]
        case _:
            return key


def unpack(data: bytes | memoryview) -> Any:
    """What `pack` made, in native types. Raises ValueError (or a subclass) on anything that is not one msgpack value."""
    try:
        return msgpack.unpackb(data, strict_map_key=False)
    except TypeError:  # a tuple, or a model, is the key of a map: rare, and four times slower to read
        return msgpack.unpackb(data, strict_map_key=False, object_pairs_hook=_with_any_keys)
