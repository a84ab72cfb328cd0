"""Brokers that die or freeze under load: three of them, every record on two at least.

Goal: what was acknowledged meanwhile is there, once; every shard is served again within a bound, without anybody doing
anything; an append whose outcome nobody knows is resolved by a second claim (rule 4).

Method: the leader of a shard that is being written to is killed, or frozen, and comes back while the load goes on. Once
both followers are frozen, until a caller has run out of patience: then the leader has appends that it cannot
acknowledge, the library's second attempts of them, and the claims of owners in doubt, all in some order. The log shows
how many of each there were.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Final

import pytest

from rekindle import Client
from rekindle.supervisors import ControllerThread, ProcessCluster
from rekindle.up import create_topics
from tests.support.judge import End, History
from tests.support.kafka import KafkaCluster
from tests.support.listeners import listener_at
from tests.support.running import KEYS, NODES, UP_MAX_S, Running, ask_all, launch_of, load, running, verdict_of
from tests.support.service import Ledger, app_of

BROKERS: Final = (1, 2, 3)
KILLS: Final = 3
ACKNOWLEDGED_BETWEEN: Final = 200
SERVED_MAX_S: Final = 60.0
"""A new leader takes 2 to 3 s on a quiet machine; the brokers share this one with the instances, and with others."""

PATIENCE_S: Final = 8.0
"""Of a caller. Longer than an append may take (`APPEND_TIMEOUT_S`), so its owner is in doubt by then."""


async def _kill_leader(shop: Running, kafka: KafkaCluster, number: int) -> None:
    """Kill the leader of a shard; every shard must be served without it. Then it comes back."""
    leader = await _leader(shop, kafka, number)
    await asyncio.to_thread(kafka.kill, leader)
    await _see_served(shop, f"broker {leader} was killed")
    await asyncio.to_thread(kafka.restart, leader)


async def _freeze_leader(shop: Running, kafka: KafkaCluster, number: int) -> None:
    """Freeze the leader of a shard; every shard must be served without it. Then it wakes up, and leads no more."""
    leader = await _leader(shop, kafka, number)
    _send(kafka, [leader], signal.SIGSTOP)
    try:
        await _see_served(shop, f"broker {leader} was frozen")
    finally:
        _send(kafka, [leader], signal.SIGCONT)


async def _freeze_followers(shop: Running, kafka: KafkaCluster) -> None:
    """Freeze two brokers: nothing can be acknowledged until they go on, and then everything is."""
    leader = await _leader(shop, kafka, 0)
    followers = [i for i in BROKERS if i != leader]
    _send(kafka, followers, signal.SIGSTOP)
    try:
        ends = await asyncio.gather(*(_lose_patience(shop, key) for key in KEYS["ledger"]))
        assert set(ends) == {End.UNKNOWN}, "nothing was acknowledged by one broker alone"
    finally:
        _send(kafka, followers, signal.SIGCONT)
    await _see_served(shop, f"brokers {followers} were frozen, and went on")


async def _leader(shop: Running, kafka: KafkaCluster, number: int) -> int:
    """The leader of a shard that is being written to."""
    service = shop.app.services[number % len(shop.app.services)]
    await shop.history.wait_acknowledged(ACKNOWLEDGED_BETWEEN, SERVED_MAX_S)
    return await asyncio.to_thread(kafka.leader_of, f"{shop.app.name}.{service.name}", number % service.shards)


def _send(kafka: KafkaCluster, brokers: Sequence[int], what: signal.Signals) -> None:
    addresses = kafka.bootstrap.split(",")  # of broker 1, 2 and 3
    for i in brokers:
        listener_at(addresses[i - 1]).send_signal(what)


async def _lose_patience(shop: Running, key: str) -> End:
    append = shop.client.get(Ledger, key, timeout=PATIENCE_S).append
    return await shop.history.tell(f"ledger/{key}", "append in vain", 1, append("in vain"))


async def _see_served(shop: Running, what: str) -> None:
    began = time.monotonic()
    async with asyncio.timeout(SERVED_MAX_S):
        await ask_all(shop.client, shop.history)
    print(f"{what}: every shard is served {time.monotonic() - began:.1f} s later")
    await shop.history.wait_acknowledged(ACKNOWLEDGED_BETWEEN, SERVED_MAX_S)


def test_leaders_die_and_come_back_under_load(kafka3: KafkaCluster, unique: str) -> None:
    async def run() -> None:
        async with running(unique, f"kafka://{kafka3.bootstrap}") as shop:
            async with load(shop.client, shop.history):
                for number in range(KILLS):
                    await _kill_leader(shop, kafka3, number)
                await _freeze_leader(shop, kafka3, KILLS)
                await _freeze_followers(shop, kafka3)
            verdict = await shop.verdict()
            print(verdict)
            assert verdict.faults == []
            assert verdict.figures["doubts"] > 0

    asyncio.run(run())


def test_the_controller_leads_again_after_the_log_was_away_for_too_long(
    kafka3: KafkaCluster, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rekindle.actors.owner.LOG_AWAY_MAX_S", PATIENCE_S)  # the controller's, for it runs in here
    app, launch = app_of(unique, f"kafka://{kafka3.bootstrap}"), launch_of(unique, f"kafka://{kafka3.bootstrap}")
    asyncio.run(create_topics(app))
    cluster = ProcessCluster(launch, NODES)
    thread = ControllerThread(launch, lambda: cluster)
    history = History()

    async def append_everywhere(op: str) -> None:
        async with app.connect() as client:
            await asyncio.gather(*(_append(client, history, key, op) for key in KEYS["ledger"]))
            await ask_all(client, history)

    thread.start()
    try:
        assert thread.wait_up(UP_MAX_S), thread.said()
        asyncio.run(append_everywhere("before"))
        _take_the_log_away(kafka3, thread, cluster)
        assert thread.wait_up(UP_MAX_S), thread.said()
        asyncio.run(append_everywhere("after"))
    finally:
        reason = thread.stop()
    assert reason == "stopped"
    verdict = asyncio.run(verdict_of(app, app.log, history))
    print(verdict, *thread.said(), sep="\n  ")
    assert verdict.faults == []
    assert verdict.figures["ok"] == 2 * len(KEYS["ledger"]) + 2 * sum(map(len, KEYS.values()))


def _take_the_log_away(kafka: KafkaCluster, thread: ControllerThread, cluster: ProcessCluster) -> None:
    """Freeze two brokers and kill an instance, until the controller has lost its patience with writing that down."""
    with _heard("leads no more") as lost:
        _send(kafka, BROKERS[:2], signal.SIGSTOP)
        try:
            assert cluster.signal(cluster.running()[0], signal.SIGKILL)
            assert lost.wait(SERVED_MAX_S), thread.said()
        finally:
            _send(kafka, BROKERS[:2], signal.SIGCONT)


@contextmanager
def _heard(text: str) -> Generator[threading.Event]:
    """Set when a line with this text is said, in whatever thread."""
    heard, handler = threading.Event(), logging.Handler()
    handler.emit = lambda record: heard.set() if text in record.getMessage() else None  # type: ignore[method-assign]
    logger = logging.getLogger("rekindle")
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)


async def _append(client: Client, history: History, key: str, op: str) -> None:
    append = client.get(Ledger, key, timeout=SERVED_MAX_S).append
    await history.tell(f"ledger/{key}", f"append {op}", 1, append(op))
