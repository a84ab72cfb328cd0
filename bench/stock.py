"""The service of the benches: the stock example, as a user writes it."""

from __future__ import annotations

from rekindle import App, Backoff, Entity, Event, Rejected, Service, Supervisor, command, query

SHARDS = 8


class Received(Event):
    qty: int


class Reserved(Event):
    order: str
    qty: int


class OutOfStock(Rejected):
    left: int


class Stock(Entity):
    """As the hand-written loop keeps it: what is on hand, and how many orders hold some of it."""

    on_hand: int = 0
    held: int = 0

    def apply(self, event: Received | Reserved) -> None:
        match event:
            case Received(qty=qty):
                self.on_hand += qty
            case Reserved(qty=qty):
                self.on_hand -= qty
                self.held += 1

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


def _app(name: str, shards: int, instances: int) -> App:
    return App(name, tree=Supervisor("bench", children=[Service("stock", Stock, shards=shards, instances=instances)]))


app = _app("bench", SHARDS, 1)
fsync_app = _app("bench-fsync", SHARDS, 1)
"""The same on topics of its own, which the broker syncs to disk for every batch."""
one_shard_app = _app("bench-one", 1, 1)


def _killed_app(name: str, shards: int, instances: int, standbys: int) -> App:
    """An application that is killed again and again: no restart of it waits long, and none is one too many."""
    service = Service("stock", Stock, shards=shards, instances=instances, standbys=standbys)
    backoff = Backoff(first_s=0.05, factor=1.0, max_s=0.05)
    return App(name, tree=Supervisor("bench", max_restarts=1_000, backoff=backoff, children=[service]))


takeover_app = _killed_app("bench-takeover", shards=64, instances=2, standbys=0)
"""32 shards on each of two instances."""

standby_app = _killed_app("bench-killed", shards=32, instances=3, standbys=1)
bare_app = _killed_app("bench-killed", shards=32, instances=3, standbys=0)
"""The same log, without standbys."""
cold_app = _killed_app("bench-cold", shards=1_000, instances=4, standbys=0)
cold_quick_app = _killed_app("bench-cold-quick", shards=100, instances=4, standbys=0)
