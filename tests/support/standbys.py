"""Instances of one service in one event loop, over the real wire and a real log, with a script for a controller.

async with standbys(hosted, place) as stage:            # the first owns every shard, all follow what they do not own
    async with load(stage.client, stage.history, ["ledger"]):
        await stage.move([3], to=stage.puppets[1])      # warm; back when it serves
verdict = await stage.verdict()
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from rekindle.actors import Client, Host, Hosted, Instance, WebsocketWire
from rekindle.events import SnapshotStore
from rekindle.supervisors import Spawned
from rekindle.supervisors.hosting import now_ms
from tests.support.judge import History, Verdict, judge, raw_log
from tests.support.logs import Place
from tests.support.puppets import Puppet, Script

BIND: Final = "127.0.0.1:0"


@dataclass
class Stage:
    """What plays."""

    hosted: Hosted
    place: Place
    script: Script
    client: Client
    instances: dict[Puppet, Instance] = field(default_factory=dict[Puppet, Instance])
    said: list[str] = field(default_factory=list[str])
    history: History = field(default_factory=History)

    @property
    def puppets(self) -> list[Puppet]:
        """The instances, in the order in which they were started."""
        return self.script.puppets

    async def move(self, shards: Sequence[int], to: Puppet) -> None:
        """Hand shards over to an instance that is warm. The owners before serve on until it serves."""
        await self.script.wait_warm(to, shards)
        await self.script.assign(shards, to)
        await self.script.wait_served(shards)
        for puppet in self.puppets:
            await self.script.release(puppet)

    def inherited(self) -> int:
        """How many takeovers have begun with what a follower had."""
        return sum(instance.around.counters.get("inherited", 0) for instance in self.instances.values())

    async def verdict(self) -> Verdict:
        """The judge's word on the history, by the log."""
        assert self.place.url is not None, "only a log that others can reach can be judged"
        url = self.place.url.removeprefix("sqlite://")
        records = await raw_log(url, self.hosted.partition(0).topic, self.hosted.shards)
        return judge(self.history, {self.hosted.name: records})


@asynccontextmanager
async def standbys(
    hosted: Hosted, place: Place, store: SnapshotStore | None = None, instances: int = 2
) -> AsyncGenerator[Stage]:
    """Instances that follow everything, the first of which owns everything, and a client. Each has a log object of its own."""
    script = Script(hosted)

    async def addresses() -> list[str]:
        return [puppet.address for puppet in script.puppets]

    async with AsyncExitStack() as stack:
        listening = await stack.enter_async_context(asyncio.TaskGroup())
        client = Client(hosted.app, [hosted], WebsocketWire(), addresses, now_ms)
        stage = Stage(hosted, place, script, client)
        for number in range(instances):
            log = await stack.enter_async_context(place.opened())
            await log.create(hosted.topic())
            host = Host(log, store, WebsocketWire(), now_ms, asyncio.to_thread, stage.said.append)
            instance = Instance(hosted, f"{hosted.name}-{number}", host)
            address, beacon = await instance.start(BIND)
            stack.push_async_callback(instance.stop)
            puppet = await script.adopt(Spawned(instance.incarnation, "here", address, beacon))
            stage.instances[puppet] = instance
            listening.create_task(script.listen(puppet))
        for puppet in stage.puppets:
            await script.follow(puppet, range(hosted.shards))
        await stack.enter_async_context(client)
        await stage.script.assign(range(hosted.shards), stage.puppets[0])
        await stage.script.wait_served(range(hosted.shards))
        yield stage
    bugs = [line for line in stage.said if line.startswith("bug:")]
    assert not bugs, f"expected no task of an instance to die, got {bugs}"
