"""msgpack in and out: what Python values may stand in events, arguments, replies and state, and as what they travel.

Native msgpack types travel as they are. The common rest travels as the form that pydantic reads back into the same
type: models as maps, dates and times in ISO 8601, decimals and UUIDs as text, enums as their value, sets as lists.
Anything else is `Unencodable`; nothing is ever pickled.
"""

from __future__ import annotations

from collections import deque
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgpack
from pydantic import BaseModel

from rekindle.events.errors import Unencodable


def _travels_as(value: Any) -> Any:
    """The msgpack form of a value that msgpack does not know."""
    match value:
        case BaseModel():
            return value.__dict__
        case set() | frozenset() | deque():
            return list(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal() | UUID():
            return str(value)
        case Enum():
            return value.value
        case _:
            raise TypeError(f"a {type(value).__name__} cannot be kept in the log")


_packer = msgpack.Packer(default=_travels_as)


def pack(value: Any) -> bytes:
    """The value as msgpack. Raises `Unencodable`, which names the type."""
    try:
        return _packer.pack(value)  # type: ignore[no-any-return]
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        _packer.reset()
        raise Unencodable(f"cannot encode {type(value).__name__}: {error}") from error


def unpack(data: bytes | memoryview) -> Any:
    """What `pack` made, in native types. Raises ValueError (or a subclass) on anything that is not one msgpack value."""
    return msgpack.unpackb(data, strict_map_key=False)
