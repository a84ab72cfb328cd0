"""A catalog, prices that are made from it, and a checkout that sells at these prices: checkout needs pricing needs catalog.

    rekindle up examples.shop.app:app --local 3         # in one terminal
    python -m examples.shop.app                         # in another

The right answer here is to restart what fails together with everything that needs it (`CoordinatedRestart`): a checkout must
not go on with what an instance of pricing has said that is not there any more. The checkout is quiesced first (its callers
wait, none fails), then pricing; pricing starts and serves, then the checkout. The catalog needs neither, and serves on.
"""

from __future__ import annotations

import asyncio

from rekindle import App, Entity, Event, Service, Supervisor, command, query
from rekindle.supervisors.policies import CoordinatedRestart


class Listed(Event):
    title: str


class Product(Entity):
    """What is for sale."""

    title: str = ""

    def apply(self, event: Listed) -> None:
        self.title = event.title

    @command
    def list_as(self, title: str) -> None:
        """Put it into the catalog."""
        self.emit(Listed(title=title))

    @query
    def show(self) -> str:
        """Its title."""
        return self.title


class Priced(Event):
    cents: int


class Price(Entity):
    """What a product costs."""

    cents: int = 0
    changes: int = 0

    def apply(self, event: Priced) -> None:
        self.cents = event.cents
        self.changes += 1

    @command
    def set(self, cents: int) -> int:
        """Change it; how often it was changed."""
        self.emit(Priced(cents=cents))
        return self.changes

    @query
    def quote(self) -> int:
        """What it is, in cents."""
        return self.cents


class Bought(Event):
    product: str
    cents: int


class Cart(Entity):
    """What one customer has bought."""

    items: int = 0
    cents: int = 0

    def apply(self, event: Bought) -> None:
        self.items += 1
        self.cents += event.cents

    @command
    def buy(self, product: str, cents: int) -> int:
        """Buy a product at the price that was quoted; how many items there are now."""
        self.emit(Bought(product=product, cents=cents))
        return self.items


TOGETHER = [CoordinatedRestart()]

app = App(
    "shop-example",
    tree=Supervisor(
        "shop-example",
        children=[
            Service("catalog", Product, shards=2, instances=1, on_failure=TOGETHER),
            Service("pricing", Price, shards=2, instances=2, on_failure=TOGETHER, needs=["catalog"]),
            Service("checkout", Cart, shards=2, instances=1, on_failure=TOGETHER, needs=["pricing"]),
        ],
    ),
)


async def main(log: str | None = None) -> None:
    """List a lamp, price it, buy it."""
    async with app.connect(log=log) as shop:
        await shop.get(Product, "lamp").list_as("a lamp")
        await shop.get(Price, "lamp").set(4_900)
        cents = await shop.get(Price, "lamp").quote()
        items = await shop.get(Cart, "anna").buy("lamp", cents)
        print(f"anna has bought {items}: {await shop.get(Product, 'lamp').show()} for {cents} cents")


if __name__ == "__main__":
    asyncio.run(main())
