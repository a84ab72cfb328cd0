"""The sharded store: when an instance dies the survivors serve its shards at once; what can wait comes later.

Method: callers put values into every shard all the time; an instance is killed; the plan is read from the control log.
"""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from examples.store.app import Slot, main
from rekindle.supervisors import Control
from rekindle.supervisors.plans import Own, Served, Start, State
from tests.examples.stage import CALL_MAX_S, Stage, calling, is_healed, plans_of, stage
from tests.support.loops import run
from tests.support.service import keys_of_every_shard

SHARDS: Final = 12
INSTANCES: Final = 3
KEYS: Final = keys_of_every_shard(SHARDS)


class Caller:
    """Puts value after value under one key, and knows which version each of them must be."""

    def __init__(self, store: Stage, key: str) -> None:
        self.slot = store.client.get(Slot, key, timeout=CALL_MAX_S)
        self.version = 0

    async def put(self) -> None:
        """Once."""
        self.version += 1
        assert await self.slot.put(f"value {self.version}") == self.version

    async def check(self) -> None:
        """What was put last is there."""
        assert await self.slot.get() == f"value {self.version}"


def is_balanced(control: Control) -> bool:
    """Whether every instance has as many shards as any other."""
    loads = Counter(owned.incarnation for owned in control.services["store"])
    return set(loads) == set(control.instances) and set(loads.values()) == {SHARDS // INSTANCES}


def test_survivors_take_the_orphans_at_once_and_the_rest_comes_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def kill() -> None:
        async with stage("examples.store.app:app", tmp_path) as store:
            control = await store.until(is_balanced)
            victim = await store.owner("store")
            survivors = set(control.instances) - {victim}
            orphans = {n for n, owned in enumerate(control.services["store"]) if owned.incarnation == victim}
            callers = [Caller(store, key) for key in KEYS]
            async with calling([caller.put for caller in callers]):
                assert store.machines.signal(victim, signal.SIGKILL)
                control = await store.until(lambda known: is_healed(known) and is_balanced(known))
            for caller in callers:
                await caller.check()
            await main(store.log)
        assert "blue: a blue thing, version 1" in capsys.readouterr().out

        (plan,) = plans_of(control, "reshuffle")
        assert [phase.name for phase in plan.phases] == ["own store", "replace store"]
        assert {step.state for _, _, step in plan.steps()} == {State.DONE}
        taken = [step.action for step in plan.phases[0].steps if isinstance(step.action, Own)]
        assert {number for own in taken for number, _ in own.moves} == orphans
        assert {to for own in taken for _, to in own.moves} == survivors
        (replacing,) = plan.phases[1].steps
        assert isinstance(replacing.action, Start)
        assert replacing.guards == [Served(service="store")]
        assert {plan.policy for plan in control.plans.values()} == {"upkeep", "reshuffle"}

    run(kill())
