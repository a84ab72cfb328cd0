"""Planned moves of shards that are warm at their new owner, while callers go on asking.

Goal: a move loses nothing and doubles nothing, and whoever asks in the gap is sent to the right place; the new owner
begins with what it has in memory. Method: two instances on a real log and real connections hand a shard back and forth
under load; the judge reads the log.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rekindle.actors import Hosted
from rekindle.events.stores import DirectoryStore
from tests.support import logs
from tests.support.loops import run
from tests.support.running import ask_all, load
from tests.support.service import LEDGER_SHARDS, SNAPSHOT_EVERY, Ledger
from tests.support.standbys import standbys

MOVES = 20
ACKNOWLEDGED_BETWEEN = 50
WITHIN_S = 30.0
MOVED = [0, 5]


@pytest.mark.parametrize("kind", ["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def test_a_warm_shard_is_moved_back_and_forth(
    kind: str, request: pytest.FixtureRequest, unique: str, tmp_path: Path
) -> None:
    place = logs.embedded(tmp_path) if kind == "embedded" else logs.kafka(request.getfixturevalue("kafka"))
    hosted = Hosted(unique, "ledger", Ledger.describe(), LEDGER_SHARDS, SNAPSHOT_EVERY)

    async def main() -> None:
        store = DirectoryStore(str(tmp_path / "snapshots"))
        await store.open()
        async with standbys(hosted, place, store) as stage:
            cold = stage.inherited()
            async with load(stage.client, stage.history, ["ledger"]):
                for number in range(1, MOVES + 1):
                    await stage.history.wait_acknowledged(ACKNOWLEDGED_BETWEEN, WITHIN_S)
                    await stage.move(MOVED, to=stage.puppets[number % 2])
            await ask_all(stage.client, stage.history, ["ledger"])
            verdict = await stage.verdict()
            print(verdict)
            assert verdict.faults == []
            assert stage.inherited() - cold == MOVES * len(MOVED)
            assert verdict.figures["unknown"] == 0, "a caller was left without an answer"

    run(main())
