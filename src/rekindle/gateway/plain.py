"""What a log holds, as JSON can say it: what it does not know is text, and no text breaks it."""

from __future__ import annotations

import base64
import math
from typing import Any

from pydantic import BaseModel


def plain(value: Any) -> Any:
    """The value in JSON's types. Bytes are base64; numbers that JSON has not, and all else, are text."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case str():
            return value.encode(errors="backslashreplace").decode()
        case bytes():
            return base64.b64encode(value).decode()
        case BaseModel():
            return plain(vars(value))
        case dict():
            return {_key(key): plain(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
        case _:
            return plain(str(value))


def _key(key: Any) -> str:
    return plain(key) if isinstance(key, str) else str(plain(key))
