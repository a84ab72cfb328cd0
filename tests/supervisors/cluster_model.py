"""A cluster as plain data: nodes, instances and what becomes of the orders they are given. Time is a number.

    cluster.advance(now_ms)                     # what is due happens: instances come up, replays end, faults strike

An instance does what real ones do, as far as a controller can tell: it claims what it is assigned, which fences the
owner before, replays, serves; it follows what it is told to follow; it refuses orders of a lower term; and it ends by
itself if no controller has greeted it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from rekindle.actors.frames import ASSIGN, FOLLOW, RELEASE, parse
from rekindle.supervisors import Node

START_MS: Final = (300, 2_000)
REPLAY_MS: Final = (20, 400)
FOLLOW_MS: Final = (100, 1_000)
STALL_MS: Final = 70_000
"""A replay that stalls takes so long: longer than the deadline of a step."""

NOTICE_MS: Final = 1_500
"""After this time the cluster, too, knows that a node is gone."""

UNGREETED_MS: Final = 30_000

Key = tuple[str, int]
"""A service's shard."""


@dataclass
class Puppet:
    """An instance. replaying, following: until when. greeted: a controller knows it."""

    name: str
    service: str
    node: str
    started_ms: int
    alive: bool = True
    greeted: bool = False
    hung: bool = False
    term: int = 0
    serving: dict[int, int] = field(default_factory=dict[int, int])
    replaying: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    following: dict[int, int] = field(default_factory=dict[int, int])
    lost: list[tuple[int, int, str, str | None]] = field(default_factory=list[tuple[int, int, str, str | None]])
    died_replaying: list[int] = field(default_factory=list[int])

    def has(self, shard: int, number: int) -> bool:
        """Whether it owns the shard under this number already."""
        return self.serving.get(shard) == number or self.replaying.get(shard, (0, 0))[0] == number


@dataclass
class Starting:
    """An instance that is being started, and by which controller."""

    name: str
    service: str
    node: str
    due_ms: int
    term: int
    key: tuple[int, int, int]
    fails: bool


@dataclass(order=True)
class Fault:
    """What happens to the cluster, and when. what: the name of a method of `Cluster`. which: which of those that there are."""

    at_ms: int
    what: str
    which: int = 0


@dataclass
class Cluster:
    """What there is. away: nodes that were lost, with their zone. claims: who took each shard last, under which number.

    effects: how often each thing was really done, for whoever wants to know whether it was done twice.
    """

    zones: dict[str, str]
    shards: Mapping[str, int]
    random: Random
    faults: list[Fault] = field(default_factory=list[Fault])
    now_ms: int = 0
    fails_share: float = 0.0
    puppets: dict[str, Puppet] = field(default_factory=dict[str, Puppet])
    starting: dict[str, Starting] = field(default_factory=dict[str, Starting])
    outcomes: list[tuple[Starting, str | None]] = field(default_factory=list[tuple[Starting, str | None]])
    away: dict[str, str] = field(default_factory=dict[str, str])
    gone_since: dict[str, int] = field(default_factory=dict[str, int])
    claims: dict[Key, tuple[int, str]] = field(default_factory=dict[Key, tuple[int, str]])
    closed: set[Key] = field(default_factory=set[Key])
    poison: set[Key] = field(default_factory=set[Key])
    stalled: set[Key] = field(default_factory=set[Key])
    suspected: list[str] = field(default_factory=list[str])
    slow: list[str] = field(default_factory=list[str])
    effects: Counter[tuple[Any, ...]] = field(default_factory=Counter[tuple[Any, ...]])

    # --- what a controller can do and see --------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        """Those that the cluster names: one that died is named for a while."""
        listed = {**self.zones, **{name: self.away[name] for name in self.gone_since}}
        return [Node(name, f"host-{name}", zone) for name, zone in sorted(listed.items())]

    def start(self, name: str, service: str, node: str, term: int, key: tuple[int, int, int]) -> None:
        """Begin to start an instance; what comes of it is among `outcomes` later."""
        fails = self.random.random() < self.fails_share
        due_ms = self.now_ms + self.random.randint(*START_MS)
        self.starting[name] = Starting(name, service, node, due_ms, term, key, fails)

    def kill(self, name: str) -> None:
        """As a cluster does: whoever it was, nothing happens if it is gone."""
        if (starting := self.starting.pop(name, None)) is not None:
            self.outcomes.append((starting, "it was killed"))
        puppet = self.puppets.get(name)
        if puppet is not None and puppet.alive:
            self.effects["kill", name] += 1
            self._end(puppet)

    def hear(self, puppet: Puppet, data: bytes) -> None:
        """An order reaches an instance."""
        kind, term, *fields = parse(data)
        if not puppet.alive or kind not in (ASSIGN, RELEASE, FOLLOW) or term < puppet.term:
            return
        puppet.term = term
        if kind == ASSIGN:
            for shard, number, *_ in fields[0]:
                self._take(puppet, shard, number)
        elif kind == RELEASE:
            for shard, number in fields[0]:
                if puppet.has(shard, number):
                    puppet.serving.pop(shard, None)
                    puppet.replaying.pop(shard, None)
        else:
            self._follow(puppet, [shard for shard, _ in fields[0]])

    def _take(self, puppet: Puppet, shard: int, number: int) -> None:
        key = puppet.service, shard
        known, owner = self.claims.get(key, (0, ""))
        if puppet.has(shard, number):
            return
        if number < known or (number == known and owner != puppet.name):
            puppet.lost.append((shard, number, f"fenced by {known}", None))
            return
        self.claims[key] = number, puppet.name
        self.effects["claim", *key, number] += 1
        for other in self.of(puppet.service):
            other.serving.pop(shard, None)
            other.replaying.pop(shard, None)
        is_warm = puppet.following.pop(shard, self.now_ms + 1) <= self.now_ms
        took_ms = STALL_MS if key in self.stalled else 1 if is_warm else self.random.randint(*REPLAY_MS)
        self.stalled.discard(key)
        puppet.replaying[shard] = number, self.now_ms + took_ms

    def _follow(self, puppet: Puppet, shards: Sequence[int]) -> None:
        puppet.following = {
            shard: puppet.following.get(shard, self.now_ms + self.random.randint(*FOLLOW_MS))
            for shard in shards
            if shard not in puppet.serving and shard not in puppet.replaying
        }

    # --- what happens ------------------------------------------------------------------------------------------------

    def of(self, service: str) -> list[Puppet]:
        """The service's instances that live."""
        return [p for _, p in sorted(self.puppets.items()) if p.service == service and p.alive]

    def alive(self) -> list[Puppet]:
        """All instances that live."""
        return [p for _, p in sorted(self.puppets.items()) if p.alive]

    def next_ms(self) -> int | None:
        """When something happens next by itself."""
        times = [s.due_ms for s in self.starting.values()]
        times += [due for p in self.alive() for _, due in p.replaying.values()]
        times += [due for p in self.alive() for due in p.following.values()]
        times += [since + NOTICE_MS for since in self.gone_since.values()]
        times += [fault.at_ms for fault in self.faults[:1]]
        return min((time for time in times if time > self.now_ms), default=None)

    def advance(self, now_ms: int) -> None:
        """What is due until then happens, in its order."""
        while (at := self.next_ms()) is not None and at <= now_ms:
            self.now_ms = at
            self._happen()
        self.now_ms = now_ms
        self._happen()

    def _happen(self) -> None:
        for starting in [s for s in self.starting.values() if s.due_ms <= self.now_ms]:
            self._come_up(starting)
        for puppet in self.alive():
            if not puppet.greeted and self.now_ms - puppet.started_ms > UNGREETED_MS:
                self._end(puppet)
            elif not puppet.hung:
                self._get_on(puppet)
        for node in [n for n, since in self.gone_since.items() if self.now_ms >= since + NOTICE_MS]:
            del self.gone_since[node]
        while self.faults and self.faults[0].at_ms <= self.now_ms:
            fault = self.faults.pop(0)
            getattr(self, fault.what)(fault.which)

    def _come_up(self, starting: Starting) -> None:
        del self.starting[starting.name]
        if starting.fails or starting.node not in self.zones:
            self.outcomes.append((starting, "it did not come up"))
            return
        self.effects["start", *starting.key[:2]] += 1
        self.puppets[starting.name] = Puppet(starting.name, starting.service, starting.node, self.now_ms)
        self.outcomes.append((starting, None))

    def _get_on(self, puppet: Puppet) -> None:
        for shard, (number, due_ms) in list(puppet.replaying.items()):
            if (puppet.service, shard) in self.poison:
                puppet.died_replaying = [shard]
                self._end(puppet)
                return
            if due_ms > self.now_ms:
                continue
            del puppet.replaying[shard]
            if (puppet.service, shard) in self.closed:
                puppet.lost.append((shard, number, "the log is away", "LogUnavailable"))
            else:
                puppet.serving[shard] = number

    def _end(self, puppet: Puppet) -> None:
        puppet.alive = False
        puppet.serving, puppet.replaying, puppet.following = {}, {}, {}

    # --- faults ------------------------------------------------------------------------------------------------------

    def crash(self, which: int) -> None:
        """An instance dies."""
        if alive := self.alive():
            self._end(alive[which % len(alive)])

    def lose_node(self, which: int) -> None:
        """A node dies with all that is on it. One always stays."""
        if len(self.zones) > 1:
            name = sorted(self.zones)[which % len(self.zones)]
            self.away[name] = self.zones.pop(name)
            self.gone_since[name] = self.now_ms
            for puppet in self.alive():
                if puppet.node == name:
                    self._end(puppet)

    def lose_zone(self, which: int) -> None:
        """All nodes of a zone die at once."""
        zones = sorted(set(self.zones.values()))
        for name in [n for n, zone in sorted(self.zones.items()) if zone == zones[which % len(zones)]]:
            self.lose_node(sorted(self.zones).index(name))

    def regain_node(self, which: int) -> None:
        """A node is back, empty."""
        if self.away:
            name = sorted(self.away)[which % len(self.away)]
            self.zones[name] = self.away.pop(name)
            self.gone_since.pop(name, None)

    def suspect(self, which: int) -> None:
        """An instance that lives sends no pulse for a while."""
        if alive := self.alive():
            self.suspected.append(alive[which % len(alive)].name)

    def lag(self, which: int) -> None:
        """An instance is far slower than its peers."""
        if alive := self.alive():
            self.slow.append(alive[which % len(alive)].name)

    def give_up(self, which: int) -> None:
        """An instance gives up a shard."""
        served = [(puppet, shard) for puppet in self.alive() for shard in sorted(puppet.serving)]
        if served:
            puppet, shard = served[which % len(served)]
            puppet.lost.append((shard, puppet.serving.pop(shard), "gave up", None))

    def close_log(self, which: int) -> None:
        """A shard's log is away: its owner gives it up, and nobody else can serve it."""
        key = self._key(which)
        self.closed.add(key)
        for puppet in self.of(key[0]):
            if key[1] in puppet.serving:
                puppet.lost.append((key[1], puppet.serving.pop(key[1]), "the log is away", "LogUnavailable"))

    def open_log(self, which: int) -> None:
        """All logs are there again."""
        self.closed.clear()

    def spoil(self, which: int) -> None:
        """The replay of a shard kills whoever runs it, from its next owner on."""
        self.poison.add(self._key(which))

    def stall(self, which: int) -> None:
        """The next replay of a shard takes very long."""
        self.stalled.add(self._key(which))

    def calm(self, which: int) -> None:
        """Nothing fails any more, and all that was lost is there again."""
        self.fails_share = 0.0
        self.closed.clear()
        self.poison.clear()
        self.stalled.clear()
        for _ in range(len(self.away)):
            self.regain_node(0)

    def _key(self, which: int) -> Key:
        keys = [(name, shard) for name, count in sorted(self.shards.items()) for shard in range(count)]
        return keys[which % len(keys)]


def spread(nodes: int, zones: int) -> dict[str, str]:
    """So many nodes in so many zones."""
    return {f"n{number}": f"z{number % zones}" for number in range(nodes)}


def each_shard(shards: Mapping[str, int], do: Callable[[str, int], None]) -> None:
    """For each shard of each service."""
    for name, count in shards.items():
        for shard in range(count):
            do(name, shard)


def names(puppets: Iterable[Puppet]) -> list[str]:
    """Their names."""
    return [puppet.name for puppet in puppets]
