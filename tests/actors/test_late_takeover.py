"""A takeover that is overtaken by the next one: by when it looks for a snapshot, there is one of its successor.

Goal: an owner that stood still between its claim and its replay finds that it is fenced; it does not take a snapshot
that is newer than its claim for the sign of a log that was cut. Method: its store is held until the next owner has
written a snapshot. (Found by tests/supervisors/test_zombies.py, where owners are stopped anywhere.)
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from rekindle.events import Partition, Pointer
from rekindle.events.stores import DirectoryStore
from tests.support.inprocess import GatedLog, Tally, hosted_of, in_loop, key_in, running

TALLY = hosted_of(Tally, snapshot_every=4)
KEY = key_in(0)


class HeldStore(DirectoryStore):
    """A store that does not answer before it may."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()

    async def pointers(self, partition: Partition) -> list[Pointer]:
        """See `SnapshotStore`."""
        self.asked.set()
        await self.gate.wait()
        return await super().pointers(partition)


@in_loop
async def test_an_owner_that_finds_a_snapshot_newer_than_its_claim_is_fenced(tmp_path: Path) -> None:
    held, store, log = HeldStore(tmp_path), DirectoryStore(str(tmp_path)), GatedLog()
    await held.open()
    await store.open()
    async with running(TALLY, log, held, shards=()) as late:
        await late.controller.assign(0)
        await held.asked.wait()
        async with running(TALLY, log, store) as successor:
            while not await successor.snapshots():
                await successor.client.get(Tally, KEY).add(1)
            total = await successor.client.get(Tally, KEY).add(1)
            held.gate.set()
            lost = await late.controller.wait_lost(0)
            assert (lost.error, lost.seen) == (None, successor.controller.numbers[0])
            assert lost.reason.startswith("fenced by assignment")
            assert await successor.client.get(Tally, KEY).read() == total
