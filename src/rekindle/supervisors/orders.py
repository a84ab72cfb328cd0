"""What was decided becomes orders to instances, and a table for everybody: desired state against what was sent.

A decision may assign a thousand shards at once; orders for them go out as far as replays are permitted, so that a mass
failure does not become a recovery storm: at most `REPLAYS_PER_NODE` on a node and `REPLAYS_MAX` in the cluster, services
of a higher priority first, then the shards for which most calls wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from rekindle.actors import Floor, Route, Table
from rekindle.actors.frames import ASSIGN, FOLLOW, RELEASE, TABLE, frame
from rekindle.supervisors.control import Control
from rekindle.supervisors.decided import Owned
from rekindle.supervisors.tree import Service
from rekindle.supervisors.view import sum_of
from rekindle.supervisors.ward import Ward

Floors: TypeAlias = Callable[[str], Mapping[int, Floor]]
"""The highest known positions of a service's shards."""

REPLAYS_PER_NODE: Final = 16
REPLAYS_MAX: Final = 128


class Wish(NamedTuple):
    """A shard that is to be replayed on a node; the smallest goes first."""

    rank: tuple[int, int, int]
    service: str
    shard: int
    incarnation: str
    node: str


def permitted(wishes: Iterable[Wish], replaying: Mapping[str, int]) -> list[Wish]:
    """Those that may begin now. replaying: shards that are being replayed, by node. Pure."""
    rooms = dict(replaying)
    left = REPLAYS_MAX - sum(rooms.values())
    chosen: list[Wish] = []
    for wish in sorted(wishes):
        if left <= 0:
            break
        if rooms.get(wish.node, 0) < REPLAYS_PER_NODE:
            rooms[wish.node] = rooms.get(wish.node, 0) + 1
            left -= 1
            chosen.append(wish)
    return chosen


class Orders:
    """What instances were told, and what they are to be told."""

    def __init__(self, services: Sequence[Service]) -> None:
        self.services = {service.name: service for service in services}
        self.table = Table()

    def send(self, control: Control, wards: Mapping[str, Ward], term: int, floors: Floors) -> None:
        """Send every instance what it has not been told yet, as far as replays are permitted."""
        wishes: list[Wish] = []
        replaying: dict[str, int] = {}
        for name in self.services:
            mine = [ward for ward in wards.values() if ward.running.service == name and ward.alive]
            owned = control.services[name]
            following = _followers(owned)
            for ward in mine:
                self._release(ward, owned, term)
                wanted = {*following.get(ward.incarnation, ()), *_promoted(ward, owned)}
                self._follow(ward, name, sorted(wanted), term, floors)
                node = ward.running.node
                replaying[node] = replaying.get(node, 0) + sum(
                    ward.serving.get(shard) != number for shard, number in ward.sent.items()
                )
            wishes += self._wishes(name, owned, {ward.incarnation: ward for ward in mine})
        self._assign(permitted(wishes, replaying), control, wards, term, floors)

    def _wishes(self, service: str, owned: Sequence[Owned], wards: Mapping[str, Ward]) -> list[Wish]:
        priority = -self.services[service].priority
        asked = sum_of(ward.asked for ward in wards.values())
        return [
            Wish((priority, -asked.get(shard, 0), shard), service, shard, ward.incarnation, ward.running.node)
            for shard, o in enumerate(owned)
            if (ward := wards.get(o.incarnation or "")) is not None and ward.sent.get(shard) != o.number
        ]

    def _assign(
        self,
        wishes: Sequence[Wish],
        control: Control,
        wards: Mapping[str, Ward],
        term: int,
        floors: Floors,
    ) -> None:
        orders: dict[str, list[Any]] = {}
        poison = control.poison() if wishes else []
        for wish in wishes:
            owned = control.services[wish.service][wish.shard]
            floor = floors(wish.service).get(wish.shard, Floor())
            wards[wish.incarnation].sent[wish.shard] = owned.number
            order = [wish.shard, owned.number, floor, owned.deaths > 0, poison]
            orders.setdefault(wish.incarnation, []).append(order)
        for incarnation, entries in orders.items():
            wards[incarnation].send(frame(ASSIGN, term, entries))

    def _release(self, ward: Ward, owned: Sequence[Owned], term: int) -> None:
        """Take back what belongs to somebody else now."""
        gone = [shard for shard in ward.sent if owned[shard].incarnation != ward.incarnation]
        if gone:
            numbers = [(shard, ward.sent.pop(shard)) for shard in gone]
            for shard in gone:
                ward.serving.pop(shard, None)
            ward.send(frame(RELEASE, term, numbers))

    def _follow(
        self,
        ward: Ward,
        service: str,
        wanted: list[int],
        term: int,
        floors: Floors,
    ) -> None:
        if wanted != ward.following and ward.may_follow:
            ward.following = wanted
            ward.followed = {shard: known for shard, known in ward.followed.items() if shard in wanted}
            ward.send(frame(FOLLOW, term, [[shard, floors(service).get(shard, Floor())] for shard in wanted]))

    def publish(self, control: Control, wards: Mapping[str, Ward], term: int) -> None:
        """Tell everybody who owns what."""
        services = {
            name: [
                Route(ward.running.address, o.number) if (ward := wards.get(o.incarnation or "")) is not None else None
                for o in control.services[name]
            ]
            for name in self.services
        }
        refused = {
            name: {shard: o.refused for shard, o in enumerate(control.services[name]) if o.refused is not None}
            for name in self.services
        }
        self.table = Table((term, self.table.version[1] + 1), services, refused)
        self.tell(wards.values())

    def tell(self, wards: Iterable[Ward]) -> None:
        """Send the table as it is."""
        data = frame(TABLE, *self.table.dump())
        for ward in wards:
            ward.send(data)


def _followers(owned: Sequence[Owned]) -> dict[str, list[int]]:
    """The shards that each instance is to follow."""
    following: dict[str, list[int]] = {}
    for shard, o in enumerate(owned):
        for name in o.standbys:
            following.setdefault(name, []).append(shard)
    return following


def _promoted(ward: Ward, owned: Sequence[Owned]) -> list[int]:
    """The shards that it follows and is to own, but was not told so yet: the order to own them must find its follower."""
    return [
        shard
        for shard in ward.following
        if owned[shard].incarnation == ward.incarnation and ward.sent.get(shard) != owned[shard].number
    ]
