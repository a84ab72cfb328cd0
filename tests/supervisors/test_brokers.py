"""Brokers that die under load: three of them, every record on two at least, the leader killed again and again.

Goal: what was acknowledged while brokers die and come back is there, once; every shard is served again within a bound,
without anybody doing anything.

Method: SIGKILL of the broker that leads a shard that is being written to, then of the next shard's leader, and so on;
each one is restarted while the load goes on. Appends that were in flight have no known outcome: the log shows how
often an owner had to claim again (doubts), and how many batches the client library sent twice (duplicates).
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from tests.support.kafka import KafkaCluster
from tests.support.running import Running, ask_all, load, running

KILLS: Final = 4
ACKNOWLEDGED_BETWEEN: Final = 200
SERVED_MAX_S: Final = 45.0
"""A new leader takes 2 to 3 s on a quiet machine; the brokers share this one with the instances, and with others."""


async def _kill_leader(shop: Running, kafka: KafkaCluster, number: int) -> None:
    """Kill the leader of one shard; every shard must be served without it, and when it is back."""
    service = shop.app.services[number % len(shop.app.services)]
    topic = f"{shop.app.name}.{service.name}"
    await shop.history.wait_acknowledged(ACKNOWLEDGED_BETWEEN, SERVED_MAX_S)
    leader = await asyncio.to_thread(kafka.leader_of, topic, number % service.shards)
    await asyncio.to_thread(kafka.kill, leader)
    killed = time.monotonic()
    async with asyncio.timeout(SERVED_MAX_S):
        await ask_all(shop.client, shop.history)
    print(f"broker {leader} killed, every shard served after {time.monotonic() - killed:.1f} s")
    await shop.history.wait_acknowledged(ACKNOWLEDGED_BETWEEN, SERVED_MAX_S)
    await asyncio.to_thread(kafka.restart, leader)


def test_leaders_die_and_come_back_under_load(kafka3: KafkaCluster, unique: str) -> None:
    async def run() -> None:
        async with running(unique, f"kafka://{kafka3.bootstrap}") as shop:
            async with load(shop.client, shop.history):
                for number in range(KILLS):
                    await _kill_leader(shop, kafka3, number)
            verdict = await shop.verdict()
            print(f"{KILLS} brokers were killed. {verdict}")
            print("\n".join(shop.lines.said))
            assert verdict.faults == []
            assert verdict.figures["ok"] >= 2 * KILLS * ACKNOWLEDGED_BETWEEN

    asyncio.run(run())
