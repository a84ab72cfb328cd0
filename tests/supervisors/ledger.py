"""The control log without a log: `Control` runs its commands as its shard runs them, and what each one emitted is kept.

    ledger = Ledger()
    ledger.run(now_ms, "declare", "stock", 4)
    again = ledger.until(1)                     # what a controller knows that read the first record

A record is what one command emitted: all of it is in the log, or nothing. So these are the points at which a controller
can die, and what the next one knows then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from rekindle.events import Event, unpack
from rekindle.supervisors import Control
from rekindle.supervisors.control import KEY

KIND = Control.describe()


class Record(NamedTuple):
    """What one command emitted, as it stands in the log."""

    command: str
    at_ms: int
    emitted: tuple[bytes, ...]

    def events(self) -> Iterator[Event]:
        """As whoever reads the log finds them."""
        return (KIND.events.decode(unpack(data)) for data in self.emitted)


class Ledger:
    """The control log, and what it adds up to. on_record: is told of every record."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.records = list(records)
        self.on_record: Callable[[Record], None] = lambda _: None
        self.control = _folded(self.records)

    def run(self, now_ms: int, command: str, *args: Any) -> Any:
        """Run a command; what it returned. Raises what it raised, and then nothing has happened."""
        handler, emitted = KIND.handlers[command], list[bytes]()
        taken, named = handler.arguments_of(list(args), {})
        self.control.now_ms = now_ms
        self.control._emitted = emitted  # pyright: ignore[reportPrivateUsage]
        try:
            result = handler.function(self.control, *taken, **named)
        except Exception:
            self.control = _folded(self.records)
            raise
        finally:
            self.control._emitted = None  # pyright: ignore[reportPrivateUsage]
        if emitted:
            self.records.append(Record(command, now_ms, tuple(emitted)))
            self.on_record(self.records[-1])
        return result

    def until(self, count: int) -> Ledger:
        """What is known of whoever has read so many records."""
        return Ledger(self.records[:count])

    def events(self) -> Iterator[Event]:
        """All that was decided, in order."""
        return (event for record in self.records for event in record.events())


def _folded(records: Iterable[Record]) -> Control:
    control = KIND.new(KEY)
    assert isinstance(control, Control), f"expected the control entity, got a {type(control).__name__}"
    for record in records:
        for event in record.events():
            KIND.apply(control, event)
    return control
