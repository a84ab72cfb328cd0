"""How a call ended, as it travels: one packed list, its first item a code.

[OK, value]   [REJECTED, module:class, fields]   [FAILED, text]     outcomes of commands: they are in the log
[OK, value, age in ms]                                              a local query
[REFUSED, error class, text]                                        certainly not run; the same every time
[MOVED, address | None, assignment]   [BUSY, waiting, limit]        not run here and now: the client tries again
[FORGOTTEN, text]                                                   it may have been run; never again
"""

from __future__ import annotations

from typing import Any, Final

from rekindle.actors.entity import EntityType, HandlerType, Rejected, name_of
from rekindle.actors.errors import (
    BadRequest,
    CallError,
    CommandFailed,
    EntityQuarantined,
    OutcomeUnknown,
    ShardRefused,
    Stale,
)
from rekindle.events import Unencodable, pack

OK: Final = 0
REJECTED: Final = 1
FAILED: Final = 2
REFUSED: Final = 3
MOVED: Final = 4
BUSY: Final = 5
FORGOTTEN: Final = 6

_REFUSALS: Final = {cls.__name__: cls for cls in (BadRequest, EntityQuarantined, ShardRefused, Stale, CommandFailed)}
_TEXT_MAX: Final = 2_000


def text_of(error: BaseException) -> str:
    """The error's text such that it can travel, whatever the user's class does to it."""
    try:
        text = str(error)
    except Exception as worse:  # noqa: BLE001 - a `__str__` may raise anything
        text = f"(its text cannot be had: {type(worse).__name__})"
    return text[:_TEXT_MAX].encode(errors="backslashreplace").decode()


def rejected(error: Rejected) -> bytes:
    """The outcome of a command that was refused by its handler."""
    return pack([REJECTED, name_of(type(error)), vars(error)])


def failed(error: BaseException) -> bytes:
    """The outcome of a command whose handler raised."""
    return pack([FAILED, f"{type(error).__name__}: {text_of(error)}"])


def raised(error: BaseException) -> bytes:
    """The outcome of a command whose handler raised this."""
    try:
        return rejected(error) if isinstance(error, Rejected) else failed(error)
    except Unencodable as worse:
        return failed(worse)


def refused(error: CallError) -> bytes:
    """The answer to a call that was not run and never will be."""
    return pack([REFUSED, type(error).__name__, text_of(error)])


def moved(address: str | None, assignment: int) -> bytes:
    """The answer of an instance that does not own the shard: who does, as far as it knows."""
    return pack([MOVED, address, assignment])


def busy(waiting: int, limit: int) -> bytes:
    """The answer of a full queue."""
    return pack([BUSY, waiting, limit])


def forgotten(text: str) -> bytes:
    """The answer to a command of a session that the shard has forgotten."""
    return pack([FORGOTTEN, text])


def result_of(outcome: list[Any], entity: EntityType, handler: HandlerType) -> Any:
    """The value of an outcome, or its error raised. MOVED and BUSY never come here: the client deals with them."""
    match outcome[0], outcome[1:]:
        case 0, (value, *_):
            return value if handler.returns is None else handler.returns.validate_python(value)
        case 1, (name, fields):
            raise _rejection(entity, name, fields)
        case 2, (text,):
            raise CommandFailed(f"{handler.name} failed, its events were undone: {text}")
        case 3, (name, text):
            raise _REFUSALS.get(name, BadRequest)(text)
        case _, (text, *_):
            raise OutcomeUnknown(str(text))
        case _:
            raise OutcomeUnknown(f"an answer that this build does not know: {outcome!r}")


def _rejection(entity: EntityType, name: str, fields: dict[str, Any]) -> Rejected:
    cls = entity.rejection(name)
    return Rejected(**{"rejection": name, **fields}) if cls is None else cls(**fields)
