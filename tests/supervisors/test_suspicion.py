"""Suspicion is not proof: who is silent for a moment costs a move at most, and not one each time.

Goal: a node that flaps moves a shard at most once in `SUSPICION_ONCE_IN_S`, however often it is silent. Method: a simulated
world in which nothing dies; everything on one node is stopped for longer than `SUSPECT_S` again and again, and the control
log says how often shards were given to somebody else.

That a handler which takes all of a processor moves no shard is in `test_killers`, with real processes.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import Final

from rekindle import Service
from rekindle.supervisors.controller import SUSPICION_ONCE_IN_S
from rekindle.supervisors.ward import SUSPECT_S
from tests.support.service import Stock
from tests.support.simulated import QuietWorld

SHARDS: Final = 6
FLAPS: Final = 10
SILENT_S: Final = SUSPECT_S + 0.5
BETWEEN_S: Final = 0.5


def test_a_node_that_flaps_moves_its_shards_once_in_a_while() -> None:
    world = QuietWorld(Service("stock", Stock, shards=SHARDS, instances=3))

    async def main() -> None:
        await world.prepare()
        controller = world.lead()
        await controller.up.wait()
        control = controller.decisions.control
        owner = control.services["stock"][0].incarnation
        assert owner is not None
        node = control.instances[owner].node
        began = asyncio.get_running_loop().time()
        before = [owned.number for owned in control.services["stock"]]
        for _ in range(FLAPS):
            stopped = [world.process_of(name) for name, running in control.instances.items() if running.node == node]
            for process in stopped:
                process.set_pace(inf)
            await asyncio.sleep(SILENT_S)
            for process in stopped:
                process.set_pace(0)
            await asyncio.sleep(BETWEEN_S)
        took_s = asyncio.get_running_loop().time() - began
        moves = [owned.number - number for owned, number in zip(control.services["stock"], before, strict=True)]
        assert 1 <= max(moves) <= 1 + took_s // SUSPICION_ONCE_IN_S, f"moves in {took_s:.1f} s, by shard: {moves}"
        await world.until("all is well again", lambda: not controller.world().services["stock"].unserved())

    world.run(main())
