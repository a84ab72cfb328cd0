"""The routing table: which instance owns which shard, as the controller last said it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Route(NamedTuple):
    """An owner: the address it is reached at and the number of its assignment."""

    address: str
    assignment: int


@dataclass(slots=True)
class Table:
    """Owners by service and shard, and why shards are kept down. `version` is (control term, count): the higher one is
    the newer."""

    version: tuple[int, int] = (-1, 0)
    services: dict[str, list[Route | None]] = field(default_factory=dict[str, list[Route | None]])
    refused: dict[str, dict[int, str]] = field(default_factory=dict[str, dict[int, str]])

    def owner(self, service: str, shard: int) -> Route | None:
        """Who owns the shard, as far as this table knows."""
        routes = self.services.get(service, ())
        return routes[shard] if shard < len(routes) else None

    def learn(self, service: str, shard: int, route: Route) -> bool:
        """Take the word of an instance that knows of a newer assignment; whether it was news."""
        known = self.owner(service, shard)
        routes = self.services.get(service, [])
        if shard >= len(routes) or (known is not None and known.assignment >= route.assignment):
            return False
        routes[shard] = route
        return True

    @property
    def addresses(self) -> list[str]:
        """All addresses, each once, in a fixed order."""
        return list(dict.fromkeys(r.address for routes in self.services.values() for r in routes if r is not None))

    def refusal(self, service: str, shard: int) -> str | None:
        """Why nobody may serve the shard, if that is so."""
        return self.refused.get(service, {}).get(shard)

    def dump(self) -> list[Any]:
        """In native types, for a frame."""
        return [list(self.version), self.services, self.refused]

    @classmethod
    def load(
        cls, version: list[int], services: dict[str, list[list[Any] | None]], refused: dict[str, dict[int, str]]
    ) -> Table:
        """What `dump` gave."""
        table = {name: [None if r is None else Route(*r) for r in routes] for name, routes in services.items()}
        return cls((version[0], version[1]), table, refused)
