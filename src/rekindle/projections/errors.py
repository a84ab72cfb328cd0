"""What can go wrong between the log and a read model. The base is `rekindle.events.RekindleError`.

RekindleError
└── ProjectionError                something about a read model; what is in its tables stays as it is
    ├── ProjectionFenced           someone else went on: this projector applies nothing any more
    ├── PositionNotConfirmed       the log does not hold what the read model was made of: rebuild it
    ├── HistoryGone                the log's first records are deleted: there is nothing to build it from
    ├── RebuildNeeded              the tables were made by another version of the projection
    ├── PoisonEvent                a handler cannot take an event; it stands still before it
    ├── OneNodeOnly                a SQLite file is written from another node than the one it belongs to
    ├── DatabaseAway               the database cannot be reached now; nothing was changed, or in doubt
    ├── DatabaseRefused            the database said no, for good
    │   └── DataRefused            because of what was to be written, so one event is to blame
    └── ViewIsBehind               a reader waited for a position that was not reached in time

A wrong declaration is a `DeclarationError`, as it is for the tree.
"""

from __future__ import annotations

from collections.abc import Sequence

from rekindle.events import RekindleError


class ProjectionError(RekindleError):
    """The base of everything that can go wrong with a projection."""


class ProjectionFenced(ProjectionError):
    """The stored position is not where this projector left it: another one went on from there. Nothing was applied.

    Nobody has to do anything: the other one goes on. One that is to go on in its place begins from what is stored.
    """

    def __init__(self, projection: str, what: str) -> None:
        super().__init__(
            f"projection {projection!r} is fenced: {what}; another projector went on, this one has stopped"
        )
        self.projection = projection


class PositionNotConfirmed(ProjectionError):
    """The log does not confirm the position that the read model stands at: it was truncated, recreated or trimmed.

    offset: the next record that was to be read. found: the number that contradicts it.
    """

    def __init__(self, projection: str, where: str, offset: int, found: int, why: str) -> None:
        super().__init__(
            f"projection {projection!r} stands at offset {offset} of {where}, but {why}; its rows may hold what is in no "
            f"log any more. Rebuild it: rekindle projection rebuild {projection}"
        )
        self.projection = projection
        self.where = where
        self.offset = offset
        self.found = found


class HistoryGone(ProjectionError):
    """A projection that begins needs every event, and the log's first records are deleted (its service has retention)."""

    def __init__(self, projection: str, where: str, start: int) -> None:
        super().__init__(
            f"projection {projection!r} begins at offset 0 of {where}, whose first record is at offset {start}: what was "
            "before is deleted (the service has retention), so its read model cannot be built"
        )
        self.start = start


class RebuildNeeded(ProjectionError):
    """The stored tables are not those that this build of the projection makes."""

    def __init__(self, projection: str, why: str) -> None:
        super().__init__(f"projection {projection!r}: {why}. Rebuild it: rekindle projection rebuild {projection}")
        self.projection = projection


class PoisonEvent(ProjectionError):
    """A handler raised for an event, or the database does not take what it made of it. All events before it are applied.

    Mend the handler and start the projection again, or let it park such events (`on_poison=PARK`).
    """

    def __init__(
        self, projection: str, service: str, key: str, shard: int, offset: int, sequence: int, event: str, why: str
    ) -> None:
        super().__init__(
            f"projection {projection!r} stands still before {event} of {service} {key!r} (shard {shard}, offset {offset}, "
            f"sequence {sequence}): {why}. Mend the handler and run the projection again, or declare on_poison=PARK"
        )
        self.projection = projection
        self.service = service
        self.key = key
        self.shard = shard
        self.offset = offset
        self.sequence = sequence
        self.event = event
        self.why = why


class OneNodeOnly(ProjectionError):
    """A read model in SQLite lives on one node: two of them would write two files, or one file over a network."""

    def __init__(self, path: str, owner: str, node: str) -> None:
        super().__init__(
            f"the read models in {path} belong to node {owner!r}, this is {node!r}: SQLite is for projectors of one node. "
            "Give a PostgreSQL address (--database postgresql://...), or, if the file has moved here for good: "
            f"UPDATE rk_meta SET value = '{node}' WHERE name = 'node'"
        )
        self.owner = owner
        self.node = node


class DatabaseAway(ProjectionError):
    """The database cannot be reached, or is too busy. Trying again later is safe: positions tell what has been done."""


class DatabaseRefused(ProjectionError):
    """The database refused a statement for good: a table or a right is missing, the file is damaged."""


class DataRefused(DatabaseRefused):
    """What was to be written does not fit: a constraint, a type, a size. Somewhere in the batch is an event to blame."""


class ViewIsBehind(ProjectionError):
    """A read model did not get as far as it was waited for."""

    def __init__(
        self, projection: str, service: str, shard: int, wanted: int, reached: int | None, within_s: float, state: str
    ) -> None:
        stands = "has no position there" if reached is None else f"is at {reached}"
        super().__init__(
            f"projection {projection!r} (state {state!r}) {stands} in shard {shard} of {service}, not at offset {wanted}, "
            f"after {within_s:g} s"
        )
        self.projection = projection
        self.wanted = wanted
        self.reached = reached


def one_line(error: BaseException) -> str:
    """The error's class and text, on one line, of bounded length: it goes into a table and into a message."""
    try:
        text = " ".join(str(error).split())
    except Exception as worse:  # noqa: BLE001 - a `__str__` may raise anything
        text = f"(its text cannot be had: {type(worse).__name__})"
    return f"{type(error).__name__}: {text}"[:ERROR_CHARS_MAX]


ERROR_CHARS_MAX = 2_000
"""Of an error as it is kept in the tables."""


def listed(names: Sequence[str]) -> str:
    """Names for a message."""
    return ", ".join(names) if names else "none"
