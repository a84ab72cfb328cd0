"""Owners that are stopped, replaced, and wake up: on a real Kafka, in real processes.

Goal: rule 5. Whoever takes an owner for dead may be wrong about it: that costs a move, and never data. Nothing that was
acknowledged is lost or there twice. An owner that was replaced acknowledges nothing from then on, writes nothing that
counts, and gives its shard up by itself.

Method: owners get SIGSTOP while commands are in flight, and SIGCONT before, while or after the next one claims; some
are replaced by one that is stopped itself before it serves. The real controller would kill them, so a script hands the
shards on. A witness asks every owner for its shards also when another is known to serve them. The judge reads the log.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Final

from rekindle import Client
from rekindle.actors import Hosted, WebsocketWire
from rekindle.actors.frames import CLIENT
from rekindle.events import shard_of
from rekindle.events.kafka import APPEND_TIMEOUT_S
from rekindle.supervisors import ProcessCluster
from rekindle.supervisors.hosting import now_ms
from rekindle.up import create_topics
from tests.support.judge import History, Owner
from tests.support.puppets import STEP_MAX_S, Owning, Puppet, Script, Witness, greeted
from tests.support.running import KEYS, NODES, ask_all, launch_of, load, running, verdict_of
from tests.support.service import Ledger, app_of

INSTANCES: Final = 4
LONGER_THAN_AN_APPEND_S: Final = APPEND_TIMEOUT_S + 1.0
OWNERS_MIN: Final = 20
ACKNOWLEDGED_BETWEEN: Final = 60
FREEZES: Final = 3


class Wakes(Enum):
    """When a stopped owner goes on."""

    BEFORE = "before the next one claims"
    WHILE = "while the next one claims"
    AFTER = "after the next one serves"
    LAST = "after the next but one serves, as the next one was stopped too"
    DOUBTING = "after the next one serves, and so late that it does not know what became of its appends"


ROUNDS: Final = [Wakes.BEFORE, Wakes.WHILE, Wakes.AFTER, Wakes.LAST] * 6 + [Wakes.DOUBTING]


@dataclass
class Stage:
    """Everything that takes part. fenced: the owners that were replaced, and how each of them woke up."""

    cluster: ProcessCluster
    script: Script
    history: History
    client: Client
    random: Random
    witnesses: dict[Puppet, Witness] = field(default_factory=dict[Puppet, Witness])
    fenced: dict[Owner, Wakes] = field(default_factory=dict[Owner, Wakes])

    async def ask(self, puppet: Puppet, owned: list[Owning], *, late: bool = False) -> None:
        """Ask an instance for shards that it owns, or owned."""
        for shard, _ in owned:
            await self.witnesses[puppet].ask(shard, self.random.choice(_KEYS_OF[shard]), late=late)

    def stop(self, puppet: Puppet) -> None:
        """It does nothing any more."""
        assert self.cluster.signal(puppet.name, signal.SIGSTOP)

    def go_on(self, puppet: Puppet) -> None:
        """It does what it was about to do."""
        assert self.cluster.signal(puppet.name, signal.SIGCONT)


_LEDGER: Final = next(s for s in app_of("keys-only").services if s.entity is Ledger)
_KEYS_OF: Final = {
    shard: [key for key in KEYS["ledger"] if shard_of(key, _LEDGER.shards) == shard] for shard in range(_LEDGER.shards)
}


async def _round(stage: Stage, wakes: Wakes) -> None:
    """Stop an owner at a random moment, give its shards to another one, wake it up, see it give them up."""
    script = stage.script
    await stage.history.wait_acknowledged(stage.random.randint(1, ACKNOWLEDGED_BETWEEN), STEP_MAX_S)
    victim, *others = _shuffled(stage)
    owned = script.owned_by(victim)
    await stage.ask(victim, owned)
    stage.stop(victim)
    heir, skipped = others[0], list[Owning]()
    if wakes is Wakes.BEFORE:
        stage.go_on(victim)
    await script.assign([shard for shard, _ in owned], heir)
    if wakes is Wakes.WHILE:
        stage.go_on(victim)
    if wakes is Wakes.LAST:
        stage.stop(heir)
        skipped = [owning for owning in script.owned_by(heir) if owning.shard in {shard for shard, _ in owned}]
        await script.assign([shard for shard, _ in skipped], others[1])
    await script.wait_served([shard for shard, _ in owned])
    for puppet, lost in ((victim, owned), (heir, skipped)):
        await stage.ask(puppet, lost, late=True)
    if wakes is Wakes.DOUBTING:
        await asyncio.sleep(LONGER_THAN_AN_APPEND_S)  # what is waited for is that the sleeper's own time runs out
    if wakes in (Wakes.AFTER, Wakes.LAST, Wakes.DOUBTING):
        stage.go_on(victim)
    if wakes is Wakes.LAST:
        stage.go_on(heir)
    await _see_fenced(stage, victim, owned, wakes)
    await _see_fenced(stage, heir, skipped, Wakes.WHILE)  # how far it had come, nobody knows


def _shuffled(stage: Stage) -> list[Puppet]:
    """The instances in a random order, but the first one owns something, and the next one least."""
    puppets = stage.random.sample(stage.script.puppets, INSTANCES)
    victim = next(puppet for puppet in puppets if stage.script.owned_by(puppet))
    others = sorted((p for p in puppets if p is not victim), key=lambda p: len(stage.script.owned_by(p)))
    return [victim, *others]


async def _see_fenced(stage: Stage, puppet: Puppet, owned: list[Owning], wakes: Wakes) -> None:
    await stage.script.wait_lost(puppet, owned)
    await stage.witnesses[puppet].wait_answered()
    for owning in owned:
        assert puppet.lost[owning].startswith("fenced by assignment"), (
            f"{owning} of {puppet.name}: {puppet.lost[owning]}"
        )
        stage.fenced[Owner(puppet.name, owning.number)] = wakes


@asynccontextmanager
async def _stage(name: str, log: str, hosted: Hosted) -> AsyncGenerator[Stage]:
    """Instances that own all shards, a client and a witness for each."""
    cluster, script, history = ProcessCluster(launch_of(name, log), NODES), Script(hosted), History()

    async def addresses() -> list[str]:
        return [puppet.address for puppet in script.puppets]

    seed = secrets.randbelow(1 << 32)
    print(f"the script's seed is {seed}")
    nodes = await cluster.nodes()
    try:
        async with (
            asyncio.TaskGroup() as listening,
            Client(name, [hosted], WebsocketWire(), addresses, now_ms) as client,
        ):
            stage = Stage(cluster, script, history, client, Random(seed))
            names = [f"{hosted.name}-{number}" for number in range(INSTANCES)]
            for spawned in await asyncio.gather(*(cluster.spawn(hosted.name, name, nodes[0]) for name in names)):
                puppet = await script.adopt(spawned)
                witness = Witness(puppet.name, await greeted(puppet.address, CLIENT), history, hosted)
                stage.witnesses[puppet] = witness
                listening.create_task(script.listen(puppet))
                listening.create_task(witness.listen())
            for shard in range(hosted.shards):
                await script.assign([shard], script.puppets[shard % INSTANCES])
            await script.wait_served(range(hosted.shards))
            yield stage
            await cluster.close()  # with them their connections end, and whoever listens
    finally:
        await cluster.close()


def test_owners_that_wake_up_after_they_were_replaced(kafka: str, unique: str) -> None:
    log = f"kafka://{kafka}?single_broker=true"
    app = app_of(unique, log)

    async def run() -> None:
        await create_topics(app, log)
        async with _stage(unique, log, _LEDGER.hosted(unique)) as stage:
            async with load(stage.client, stage.history, [_LEDGER.name]):
                for wakes in ROUNDS:
                    await _round(stage, wakes)
            await ask_all(stage.client, stage.history, [_LEDGER.name])
        verdict = await verdict_of(app, log, stage.history)
        print(f"{len(stage.fenced)} owners were fenced. {verdict}")
        assert verdict.faults == []
        assert len(stage.fenced) >= OWNERS_MIN
        for witness in stage.witnesses.values():
            assert witness.believed_late() == []
        slept = {owner for owner, wakes in stage.fenced.items() if wakes not in (Wakes.BEFORE, Wakes.WHILE)}
        wrote = slept & verdict.late.keys()
        # Not all: one that hears of its successor first, and had nothing on its way, gives way without a word.
        assert len(wrote) > len(slept) // 2, f"of {len(slept)} that slept through the takeover {len(wrote)} wrote on"

    asyncio.run(run())


def test_the_controller_replaces_and_kills_what_does_not_move(kafka: str, unique: str) -> None:
    log = f"kafka://{kafka}?single_broker=true"

    async def run() -> None:
        async with running(unique, log) as shop:
            async with load(shop.client, shop.history):
                for number in range(FREEZES):
                    await shop.history.wait_acknowledged(ACKNOWLEDGED_BETWEEN, STEP_MAX_S)
                    frozen = shop.instances_of(shop.app.services[number % 2].name)[0]
                    started = shop.lines.count("was started")
                    assert shop.cluster.signal(frozen, signal.SIGSTOP)
                    async with asyncio.timeout(STEP_MAX_S):
                        await shop.cluster.watch(frozen)
                    await ask_all(shop.client, shop.history)
                    await shop.lines.wait("was started", started + 1, STEP_MAX_S)
            verdict = await shop.verdict()
            print(f"{FREEZES} instances were replaced. {verdict}")
            assert verdict.faults == []

    asyncio.run(run())
