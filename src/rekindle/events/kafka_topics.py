"""The topic contract in Kafka's words: what `create` asks for, and what `check` finds wrong. Pure, without a client.

Every setting here is one whose absence loses data, sooner or later: a clock that deletes events, a leader that lacks
some of them, an acknowledgement that one dead broker takes back. Settings that only cost space are asked for and never
insisted on: an operator may know better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rekindle.events.log import BATCH_BYTES_MAX, Topic

REPLICATION: Final = 3
IN_SYNC_MIN: Final = 2
"""One broker of three may die: what was acknowledged is on another, and appends go on."""

HEADERS_BYTES_MAX: Final = 256 * 1024
"""Room in a batch for Kafka's own headers, at most some 20 bytes for each record."""

_UNLIMITED: Final = "-1"

_TIDY: Final = {
    "segment.ms": "600000",
    "max.compaction.lag.ms": "3600000",
    "min.cleanable.dirty.ratio": "0.2",
}
"""Compaction leaves the newest segment alone, so it must not take a week (Kafka's default) until there is a next."""


@dataclass(frozen=True, slots=True)
class LiveTopic:
    """A topic as the cluster describes it. replication: of the partition that has the fewest replicas."""

    partitions: int
    replication: int
    led: bool
    settings: Mapping[str, str]

    def as_topic(self, name: str) -> Topic:
        """What appends need to know of it."""
        largest = int(self.settings["max.message.bytes"]) - HEADERS_BYTES_MAX
        return Topic(name, self.partitions, "compact" in self.settings["cleanup.policy"], max(0, largest))


def batch_bytes_max(topic: Topic) -> int:
    """The largest batch of the topic with its headers: as many records as an append takes, or the one largest."""
    return max(BATCH_BYTES_MAX, topic.record_bytes_max) + HEADERS_BYTES_MAX


def replication(single_broker: bool) -> int:
    """How many brokers have a copy of the topic."""
    return 1 if single_broker else REPLICATION


def wanted(topic: Topic, single_broker: bool) -> dict[str, str]:
    """The settings to create the topic with."""
    return _exactly(topic) | {k: str(v) for k, v in _at_least(topic, single_broker).items()} | _tidy(topic)


def faults(topic: Topic, single_broker: bool, live: LiveTopic) -> list[str]:
    """Everything in which the live topic breaks the contract, expected and found."""
    found = live.settings
    wrong = [
        f"{name}: expected {value}, found {found.get(name)}"
        for name, value in _exactly(topic).items()
        if found.get(name) != value
    ]
    wrong += [
        f"{name}: expected at least {least}, found {found.get(name)}"
        for name, least in _at_least(topic, single_broker).items()
        if int(found.get(name, -1)) < least
    ]
    if live.partitions != topic.partitions:
        wrong.append(f"partitions: expected {topic.partitions}, found {live.partitions}")
    if live.replication < replication(single_broker):
        wrong.append(f"replication: expected at least {replication(single_broker)}, found {live.replication}")
    return wrong


def _exactly(topic: Topic) -> dict[str, str]:
    settings = {"unclean.leader.election.enable": "false"}
    if topic.compacted:
        settings["cleanup.policy"] = "compact"
    else:
        settings |= {"cleanup.policy": "delete", "retention.ms": _UNLIMITED, "retention.bytes": _UNLIMITED}
    if topic.fsync:
        settings["flush.messages"] = "1"
    return settings


def _at_least(topic: Topic, single_broker: bool) -> dict[str, int]:
    in_sync = 1 if single_broker else IN_SYNC_MIN
    return {"min.insync.replicas": in_sync, "max.message.bytes": batch_bytes_max(topic)}


def _tidy(topic: Topic) -> dict[str, str]:
    return _TIDY if topic.compacted else {}
