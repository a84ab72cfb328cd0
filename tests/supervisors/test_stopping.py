"""What ends while it starts something leaves nothing behind.

Goal: no instance runs on without anybody knowing of it. Method: an application is stopped in the moment in which one of
its instances is being started; and an instance is started that no controller ever greets, in time that jumps.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

from rekindle.actors import Host, Instance, WebsocketWire
from rekindle.actors.instance import UNWANTED_MAX_S
from rekindle.events.simulated import SimulatedLog
from rekindle.supervisors import Launch, Node, ProcessCluster, Spawned
from tests.support.inprocess import Clock, Tally, hosted_of
from tests.support.loops import run, run_virtually
from tests.support.running import running

STEP_MAX_S: Final = 60.0


class Watched(ProcessCluster):
    """Tells when it begins to start an instance."""

    def __init__(self, launch: Launch, nodes: Sequence[str]) -> None:
        super().__init__(launch, nodes)
        self.starts = asyncio.Event()

    async def spawn(self, service: str, incarnation: str, node: Node) -> Spawned:
        """See `Cluster`."""
        self.starts.set()
        return await super().spawn(service, incarnation, node)


def test_who_is_stopped_while_it_starts_an_instance_ends_that_one_too(unique: str, tmp_path: Path) -> None:
    async def stop_in_the_middle() -> None:
        async with running(unique, str(tmp_path / "log.sqlite"), Watched) as shop:
            assert isinstance(shop.cluster, Watched)
            shop.cluster.starts.clear()
            assert shop.cluster.signal(shop.instances_of("ledger")[0], signal.SIGKILL)
            async with asyncio.timeout(STEP_MAX_S):
                await shop.cluster.starts.wait()
                shop.controller.stop()
                assert await shop.leading == "stopped"
            assert shop.cluster.running() == []

    run(stop_in_the_middle())


def test_an_instance_that_no_controller_greets_ends_by_itself() -> None:
    async def nobody_comes() -> None:
        loop, said = asyncio.get_running_loop(), list[str]()
        log = SimulatedLog(Random(0))
        host = Host(log, None, WebsocketWire(), Clock(), asyncio.to_thread, said.append, monotonic=loop.time)
        instance = Instance(hosted_of(Tally), "nobodys", host)
        await instance.start("127.0.0.1:0")
        await instance.stopped.wait()
        assert loop.time() > UNWANTED_MAX_S
        assert said == [f"nobodys: no controller has greeted it in {UNWANTED_MAX_S:g} s, it ends"]
        await instance.stop()

    run_virtually(nobody_comes())
