"""The world that policies see, put together from what is decided and what is reported."""

from __future__ import annotations

from rekindle import Service, Supervisor
from rekindle.actors import Floor, WebsocketWire
from rekindle.supervisors.control import Control
from rekindle.supervisors.decided import Owned, Running
from rekindle.supervisors.view import Sight, world_of
from rekindle.supervisors.ward import Ward
from tests.support.inprocess import Tally, in_loop

SPEC = Service("a", Tally, shards=1, instances=3, standbys=2)


def ward_of(sequence: int | None, *, caught_up: bool = True) -> Ward:
    """An instance that has followed the shard so far; None: it has not."""
    running = Running(service="a", node="n", address="127.0.0.1:1", beacon="127.0.0.1:2")
    ward = Ward("", running, WebsocketWire(), None, lambda: None)
    ward.ready = True
    ward.followed = {} if sequence is None else {0: (Floor(1, 1, sequence), caught_up)}
    return ward


def behind(wards: dict[str, Ward]) -> dict[str, int | None]:
    """How far the standbys x and y are behind."""
    control = Control.describe().new("control")
    assert isinstance(control, Control)
    control.services = {"a": [Owned(number=1, incarnation="owner", standbys=["x", "y"])]}
    world = world_of(control, Sight(Supervisor("root", children=[SPEC]), wards, [], {}), 0, frozen=False, chance=0.5)
    return dict(world.services["a"].shards[0].behind)


@in_loop
async def test_standbys_of_a_dead_owner_are_measured_by_each_other() -> None:
    wards = {"x": ward_of(5), "y": ward_of(9)}
    assert behind(wards) == {"x": 4, "y": 0}
    wards["owner"] = ward_of(None)
    wards["owner"].positions[0] = Floor(1, 1, 12)
    assert behind(wards) == {"x": 7, "y": 3}


@in_loop
async def test_one_that_has_not_caught_up_is_none_that_is_behind() -> None:
    assert behind({"x": ward_of(20, caught_up=False), "y": ward_of(9)}) == {"x": None, "y": 11}
    assert behind({"y": ward_of(9)}) == {"x": None, "y": 0}
