"""A store of values by key, in twelve shards on three instances.

    rekindle up examples.store.app:app --local 3        # in one terminal
    python -m examples.store.app                        # in another

The right answer to a death is the default (`reshuffle`), so nothing is declared here: any instance can serve any shard, and
the log has all of it. The survivors take the orphaned shards at once, and nothing else moves; only then a new instance is
started, and when it is there, some shards move to it, a few at a time, while they are served.
"""

from __future__ import annotations

import asyncio

from rekindle import App, Entity, Event, Service, Supervisor, command, query


class Stored(Event):
    value: str


class Slot(Entity):
    """One key's value, and how often it was stored."""

    value: str = ""
    version: int = 0

    def apply(self, event: Stored) -> None:
        self.value = event.value
        self.version += 1

    @command
    def put(self, value: str) -> int:
        """Store a value; its version."""
        self.emit(Stored(value=value))
        return self.version

    @query
    def get(self) -> str:
        """The value; an empty one if there is none."""
        return self.value


app = App(
    "store-example",
    tree=Supervisor("store-example", children=[Service("store", Slot, shards=12, instances=3)]),
)


async def main(log: str | None = None) -> None:
    """Put three values, and get them."""
    async with app.connect(log=log) as store:
        for key in ("red", "green", "blue"):
            slot = store.get(Slot, key)
            version = await slot.put(f"a {key} thing")
            print(f"{key}: {await slot.get()}, version {version}")


if __name__ == "__main__":
    asyncio.run(main())
