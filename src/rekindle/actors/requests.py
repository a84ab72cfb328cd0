"""What goes through a shard: a request, the commit that comes of it, and who is to hear of both."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol

from rekindle.actors.entities import Captured
from rekindle.actors.entity import HandlerType
from rekindle.actors.routes import Route
from rekindle.events import Commit, Keyed


class Sink(Protocol):
    """Where a reply goes: a connection."""

    def reply(self, call: int, payload: bytes) -> None: ...


class Request(NamedTuple):
    """One call as it came.

    number: 0 for a query. suspect: sent before to an instance that died with it.
    staleness_ms: None, or the greatest age that the caller of a local query accepts.
    """

    sink: Sink
    call: int
    session: bytes
    number: int
    low: int
    key: str
    handler: HandlerType
    args: list[Any]
    kwargs: dict[str, Any]
    suspect: bool
    staleness_ms: int | None

    @property
    def identity(self) -> tuple[bytes, int]:
        """What names it to those who look for a killer. A query has no number: it goes by its caller's own of the call."""
        return self.session, self.number or self.call

    @property
    def title(self) -> str:
        """What it is, for people."""
        return f"{self.handler.name} of {self.key!r}"


class Staged(NamedTuple):
    """A commit that was executed and is not verified, and who waits for it."""

    commit: Commit
    keyed: Keyed
    sink: Sink | None
    call: int


class Witness(Protocol):
    """Who is told what runs, so that it can be named if the process dies of it."""

    executing: Request | None

    def began(self, session: bytes, number: int, text: str) -> None:
        """Something begins that may kill the process: a command that was in flight at an instance that died, or the
        replay of a shard (no session, the shard's number) during which one died."""
        ...

    def ended(self, session: bytes, number: int) -> None:
        """It did not kill this one."""
        ...


def _nowhere() -> Route | None:
    return None


class Edge(NamedTuple):
    """What the shard asks of its surroundings; all of it is free of I/O for the caller. route: who owns the shard, as
    far as it is known here."""

    now_ms: Callable[[], int]
    wake: Callable[[], None]
    spawn: Callable[[Coroutine[Any, Any, None]], object]
    witness: Witness
    on_snapshot: Callable[[Captured, list[Any], int], None]
    on_quarantine: Callable[[str], None]
    route: Callable[[], Route | None] = _nowhere
