"""The application of the tests, as a user writes one; `tests.support.running` runs it and puts a load on it.

Two services: `Stock`, the example of all documents, and `Ledger`, which counts what it was asked to append: lost,
doubled and reordered commands show in its answers.

An application is named by its target: `tests.support.service:my-app` is the application `my-app` (any name with a
dash), so that tests which share a Kafka do not share topics.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Final

from rekindle import App, Entity, Event, Rejected, Service, Supervisor, command, query
from rekindle.events import shard_of

STOCK_SHARDS: Final = 4
LEDGER_SHARDS: Final = 8
SNAPSHOT_EVERY: Final = 100
"""So that takeovers begin with a snapshot, as they do in real life."""


class Received(Event):
    qty: int


class Reserved(Event):
    order: str
    qty: int


class OutOfStock(Rejected):
    left: int


class Stock(Entity):
    """What is on hand of one thing."""

    on_hand: int = 0
    held: dict[str, int] = {}

    def apply(self, event: Received | Reserved) -> None:
        match event:
            case Received(qty=qty):
                self.on_hand += qty
            case Reserved(order=order, qty=qty):
                self.on_hand -= qty
                self.held[order] = qty

    @command
    def receive(self, qty: int) -> int:
        self.emit(Received(qty=qty))
        return self.on_hand

    @command
    def reserve(self, order: str, qty: int) -> int:
        if qty > self.on_hand:
            raise OutOfStock(left=self.on_hand)
        self.emit(Reserved(order=order, qty=qty))
        return self.on_hand

    @query
    def available(self) -> int:
        return self.on_hand


class Appended(Event):
    op: str


class Ledger(Entity):
    """Counts. It never looks whether it has seen an `op` before: that a command counts once is Rekindle's promise."""

    entries: int = 0
    last: str = ""

    def apply(self, event: Appended) -> None:
        self.entries += 1
        self.last = event.op

    @command
    def append(self, op: str) -> int:
        self.emit(Appended(op=op))
        return self.entries

    @query
    def count(self) -> int:
        return self.entries


def app_of(name: str, log: str | None = None) -> App:
    """The application of that name."""
    stock = Service("stock", Stock, shards=STOCK_SHARDS, instances=2, snapshot_every=SNAPSHOT_EVERY)
    ledger = Service("ledger", Ledger, shards=LEDGER_SHARDS, instances=3, snapshot_every=SNAPSHOT_EVERY)
    return App(name, log=log, tree=Supervisor(name, children=[stock, ledger]))


def target_of(name: str) -> str:
    """The application of that name, for another process."""
    return f"{__name__}:{name}"


if not TYPE_CHECKING:  # a type checker would take any name for an application

    def __getattr__(name: str) -> App:
        if "-" not in name:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return app_of(name)


def keys_of_every_shard(shards: int, each: int = 1, prefix: str = "key") -> list[str]:
    """Keys such that every shard has so many of them."""
    found: dict[int, list[str]] = {shard: [] for shard in range(shards)}
    numbers = count()
    while any(len(keys) < each for keys in found.values()):
        key = f"{prefix}-{next(numbers)}"
        its_shard = found[shard_of(key, shards)]
        if len(its_shard) < each:
            its_shard.append(key)
    return [key for keys in found.values() for key in keys]
