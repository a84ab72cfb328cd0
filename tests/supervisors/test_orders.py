"""Orders: what was decided is sent once, and replays only as many at a time as are permitted.

Goal: a mass failure does not become a recovery storm, and what callers wait for comes first.
"""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from rekindle import Service
from rekindle.actors import Floor
from rekindle.actors.frames import ASSIGN, FOLLOW, RELEASE, TABLE, parse
from rekindle.supervisors.decided import Running
from rekindle.supervisors.orders import REPLAYS_MAX, REPLAYS_PER_NODE, Orders, Wish, permitted
from rekindle.supervisors.ward import Ward
from tests.supervisors.cluster_model import Puppet
from tests.supervisors.leader_model import Sighted
from tests.supervisors.ledger import Ledger
from tests.support.inprocess import Tally

TERM = 7


def wish(shard: int, node: str = "n1", priority: int = 0, waiting: int = 0) -> Wish:
    return Wish((-priority, -waiting, shard), "a", shard, f"a-{node}", node)


# What is permitted


def test_services_of_a_higher_priority_come_first_then_shards_that_calls_wait_for() -> None:
    wishes = [wish(0), wish(1, waiting=3), wish(2, waiting=9), wish(3, priority=1)]
    assert [w.shard for w in permitted(wishes, {})] == [3, 2, 1, 0]


def test_a_node_replays_a_few_shards_at_a_time() -> None:
    wishes = [wish(shard) for shard in range(REPLAYS_PER_NODE + 5)]
    assert [w.shard for w in permitted(wishes, {})] == [*range(REPLAYS_PER_NODE)]
    assert [w.shard for w in permitted(wishes, {"n1": REPLAYS_PER_NODE - 2})] == [0, 1]
    assert permitted(wishes, {"n1": REPLAYS_PER_NODE}) == []


def test_a_full_node_is_passed_over_not_waited_for() -> None:
    wishes = [wish(0, priority=9), wish(1, "n2")]
    assert [w.shard for w in permitted(wishes, {"n1": REPLAYS_PER_NODE})] == [1]


def test_the_cluster_replays_not_more_than_its_bound() -> None:
    nodes = [f"n{number}" for number in range(2 * REPLAYS_MAX)]
    assert len(permitted([wish(0, node) for node in nodes], {})) == REPLAYS_MAX
    assert len(permitted([wish(0, node) for node in nodes], {"m": REPLAYS_MAX - 3})) == 3


@given(
    st.lists(st.builds(wish, st.integers(0, 400), st.sampled_from(["n1", "n2", "n3"]), st.integers(0, 2))),
    st.dictionaries(st.sampled_from(["n1", "n2", "n3", "n4"]), st.integers(0, REPLAYS_PER_NODE)),
)
def test_permits_are_kept_and_none_is_left_over(wishes: list[Wish], replaying: dict[str, int]) -> None:
    chosen = permitted(wishes, replaying)
    loads = {node: replaying.get(node, 0) + sum(w.node == node for w in chosen) for node in {w.node for w in wishes}}
    assert all(load <= max(REPLAYS_PER_NODE, replaying.get(node, 0)) for node, load in loads.items())
    left = sorted(wishes)
    for w in chosen:
        left.remove(w)
    assert all(loads[w.node] >= REPLAYS_PER_NODE for w in left), "the bound of the cluster is far away"
    assert chosen == sorted(chosen)


# What is sent


class Wards:
    """Instances of a service, and what each of them was sent."""

    def __init__(self, ledger: Ledger, **nodes: str) -> None:
        self.heard: list[list[Any]] = []
        self.seen: dict[str, Sighted] = {}
        for name, node in nodes.items():
            running = Running(service=name[0], node=node, address=f"{name}:1", beacon="")
            ledger.run(0, "started", name, running)
            self.seen[name] = Sighted(Puppet(name, name[0], node, 0), running, self._hear)
        self.wards = cast("dict[str, Ward]", self.seen)

    def _hear(self, puppet: Puppet, data: bytes) -> None:
        kind, term, entries = parse(data)
        self.heard.append([puppet.name, kind, term, [entry[: 1 if kind == FOLLOW else 2] for entry in entries]])

    def new(self) -> list[list[Any]]:
        heard, self.heard = self.heard, []
        return heard


def setting(shards: int = 3, **nodes: str) -> tuple[Ledger, Orders, Wards]:
    ledger = Ledger()
    for name in "ab":
        ledger.run(0, "declare", name, shards)
    services = [
        Service("a", Tally, shards=shards, instances=1),
        Service("b", Tally, shards=shards, instances=1, priority=1),
    ]
    return ledger, Orders(services), Wards(ledger, **(nodes or {"a1": "n1", "a2": "n2"}))


def sent(ledger: Ledger, orders: Orders, wards: Wards) -> list[list[Any]]:
    orders.send(ledger.control, wards.wards, TERM, lambda _: {})
    return wards.new()


def test_an_assignment_is_sent_once_in_one_frame_for_each_instance() -> None:
    ledger, orders, wards = setting()
    ledger.run(0, "assign", "a", [(0, "a1"), (1, "a2"), (2, "a1")])
    assert sent(ledger, orders, wards) == [["a1", ASSIGN, TERM, [[0, 1], [2, 1]]], ["a2", ASSIGN, TERM, [[1, 1]]]]
    assert sent(ledger, orders, wards) == []


def test_who_has_lost_a_shard_is_told_before_the_next_owner_is() -> None:
    ledger, orders, wards = setting()
    ledger.run(0, "assign", "a", [(0, "a1")])
    sent(ledger, orders, wards)
    wards.seen["a1"].serving[0] = 1
    ledger.run(0, "assign", "a", [(0, "a2")])
    assert sent(ledger, orders, wards) == [["a1", RELEASE, TERM, [[0, 1]]], ["a2", ASSIGN, TERM, [[0, 2]]]]
    assert wards.seen["a1"].serving == {}


def test_instances_are_told_the_complete_list_of_what_they_follow_when_it_changes() -> None:
    ledger, orders, wards = setting()
    ledger.run(0, "assign", "a", [(0, "a1"), (1, "a1")])
    sent(ledger, orders, wards)
    for shard in (0, 1):
        ledger.control.services["a"][shard].standbys = ["a2"]
    assert sent(ledger, orders, wards) == [["a2", FOLLOW, TERM, [[0], [1]]]]
    assert sent(ledger, orders, wards) == []
    ledger.control.services["a"][0].standbys = []
    assert sent(ledger, orders, wards) == [["a2", FOLLOW, TERM, [[1]]]]


def test_the_rest_is_held_back_until_replays_are_done() -> None:
    ledger, orders, wards = setting(REPLAYS_PER_NODE + 3, a1="n1")
    ledger.run(0, "assign", "a", [(shard, "a1") for shard in range(REPLAYS_PER_NODE + 3)])
    [[_, _, _, first]] = sent(ledger, orders, wards)
    assert [shard for shard, _ in first] == [*range(REPLAYS_PER_NODE)]
    assert sent(ledger, orders, wards) == []
    wards.seen["a1"].serving |= {0: 1, 1: 1}
    [[_, _, _, then]] = sent(ledger, orders, wards)
    assert [shard for shard, _ in then] == [REPLAYS_PER_NODE, REPLAYS_PER_NODE + 1]


def test_replays_of_all_services_on_a_node_count_together() -> None:
    ledger, orders, wards = setting(REPLAYS_PER_NODE, a1="n1", b1="n1")
    for name in "ab":
        ledger.run(0, "assign", name, [(shard, f"{name}1") for shard in range(REPLAYS_PER_NODE)])
    [[name, _, _, entries]] = sent(ledger, orders, wards)
    assert (name, len(entries)) == ("b1", REPLAYS_PER_NODE), "the one with the higher priority"


def test_nothing_is_sent_to_the_dead_and_a_floor_goes_with_each_shard() -> None:
    ledger, orders, wards = setting()
    ledger.run(0, "assign", "a", [(0, "a1"), (1, "a2")])
    wards.seen["a1"].dead = "killed"
    frames: list[list[Any]] = []
    wards.seen["a2"].send = lambda data: frames.append(parse(data))  # type: ignore[method-assign]
    orders.send(ledger.control, wards.wards, TERM, lambda name: {1: Floor(4, 5, 6)} if name == "a" else {})
    assert frames == [[ASSIGN, TERM, [[1, 1, [4, 5, 6], False, []]]]]


def test_everybody_is_told_who_owns_what_and_what_is_kept_down() -> None:
    ledger, orders, wards = setting()
    ledger.run(0, "assign", "a", [(0, "a1"), (1, "a9")])
    ledger.run(0, "refuse", "a", 2, "poison")
    frames: dict[str, list[Any]] = {}
    for name, ward in wards.seen.items():
        ward.send = lambda data, name=name: frames.update({name: parse(data)})  # type: ignore[misc, method-assign]
    orders.publish(ledger.control, wards.wards, TERM)
    table = [TABLE, [TERM, 1], {"a": [["a1:1", 1], None, None], "b": [None] * 3}, {"a": {2: "poison"}, "b": {}}]
    assert frames == {"a1": table, "a2": table}
