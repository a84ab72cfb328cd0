"""Accounts in one shard, so that all that happens to them has one order: a primary, and two standbys that follow its log.

    rekindle up examples.ledger.app:app --local 3       # in one terminal
    python -m examples.ledger.app                       # in another

The right answer to the primary's death is to promote the standby that is the most caught up (`PromoteStandby`, which comes
before the default wherever there are standbys; it is named here only to be seen). It has the state in memory: it claims the
shard, reads the tail of the log, and serves. There is one writer at any time, because the log makes it so: what an old
primary writes after the claim of the new one does not count, and is not acknowledged; also if it was only frozen.
"""

from __future__ import annotations

import asyncio

from rekindle import App, Entity, Event, Rejected, Service, Supervisor, command, query
from rekindle.supervisors.policies import PromoteStandby


class Deposited(Event):
    amount: int


class Withdrawn(Event):
    amount: int


class Overdrawn(Rejected):
    """There is less on the account."""

    balance: int


class Account(Entity):
    """How much is on it, and how often something was booked."""

    balance: int = 0
    bookings: int = 0

    def apply(self, event: Deposited | Withdrawn) -> None:
        self.balance += event.amount if isinstance(event, Deposited) else -event.amount
        self.bookings += 1

    @command
    def deposit(self, amount: int) -> int:
        """Book an amount; how many bookings there are now."""
        self.emit(Deposited(amount=amount))
        return self.bookings

    @command
    def withdraw(self, amount: int) -> int:
        """Book an amount that is there; how many bookings there are now. Raises `Overdrawn`."""
        if amount > self.balance:
            raise Overdrawn(balance=self.balance)
        self.emit(Withdrawn(amount=amount))
        return self.bookings

    @query
    def total(self) -> int:
        """What is on it."""
        return self.balance


app = App(
    "ledger-example",
    tree=Supervisor(
        "ledger-example",
        children=[Service("ledger", Account, shards=1, instances=3, standbys=2, on_failure=[PromoteStandby()])],
    ),
)


async def main(log: str | None = None) -> None:
    """Book, and book more than there is."""
    async with app.connect(log=log) as ledger:
        account = ledger.get(Account, "anna")
        await account.deposit(100)
        try:
            await account.withdraw(1_000_000)
        except Overdrawn as refusal:
            print(f"refused, there are {refusal.balance}")
        await account.withdraw(30)
        print(f"now there are {await account.total()}")


if __name__ == "__main__":
    asyncio.run(main())
