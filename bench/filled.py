"""Logs with a long history, written at once as an owner would have written them one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice

from rekindle.events import Claim, Commit, EventLog, Keyed, Partition, encode, pack, session_name
from rekindle.events.records import COMMAND, encode_head, with_events

BATCH = 4_000
OPENING_STOCK = 10**12


def history(entities: int, events: int, keys: list[str]) -> Iterator[Keyed]:
    """A claim, then one commit with one event for each command: stock comes in, then orders take one each."""
    now = time.time_ns() // 1_000_000
    yield None, encode(Claim(0, "filler", now))
    session = session_name(now, b"filler--")
    received = pack(("Received", 1, {"qty": OPENING_STOCK}))
    versions = [0] * entities
    for number in range(1, events + 1):
        entity = (number - 1) % entities
        versions[entity] += 1
        event = received if number <= entities else pack(("Reserved", 1, {"order": f"order-{number}", "qty": 1}))
        reply = pack((0, OPENING_STOCK - versions[entity] + 1))
        key = keys[entity]
        commit = Commit(COMMAND, 0, number, now, session, number, number, key, versions[entity], reply, None, [])
        yield key.encode(), with_events(encode_head(commit), [event])


async def fill(log: EventLog, partition: Partition, keys: list[str], events: int) -> None:
    """Write a history into an empty partition."""
    records = history(len(keys), events, keys)
    while batch := list(islice(records, BATCH)):
        await log.append(partition, batch)
