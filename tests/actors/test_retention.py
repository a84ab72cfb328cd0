"""A service with retention keeps of its log what two snapshots need; one without keeps all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rekindle.events.stores import DirectoryStore
from tests.support.inprocess import GatedLog, Tally, hosted_of, in_loop, key_in, running

TALLY = hosted_of(Tally, snapshot_every=4)
KEY = key_in(0)
SNAPSHOTS = 4


@pytest.mark.parametrize("retention", [True, False])
@in_loop
async def test_what_is_kept(retention: bool, tmp_path: Path) -> None:
    hosted = replace(TALLY, retention=retention)
    store = DirectoryStore(str(tmp_path))
    await store.open()
    total = 0
    async with running(hosted, log := GatedLog(), store) as stage:
        while await stage.snapshots() < SNAPSHOTS:
            total = await stage.client.get(Tally, KEY).add(1)
        newest, before = await store.pointers(stage.partition())
        start = (await log.bounds(stage.partition())).start
    assert newest.offset > before.offset
    assert start == (before.offset if retention else 0)
    (tmp_path / "blobs" / newest.blob).unlink()
    async with running(hosted, log, store) as stage:
        assert await stage.client.get(Tally, KEY).read() == total
