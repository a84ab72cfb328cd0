"""The judge itself: it must see every kind of damage, and nothing in a run without any.

Goal: a verdict of "no faults" means something. Method: a clean run of a few operations, worked out by hand, written down
as a history and as raw records; then one thing at a time is damaged, in the log or in what the callers were told. The
records are packed here, field by field, as `rekindle.events.records` documents them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import msgpack
import pytest

from rekindle import CommandFailed, OutcomeUnknown
from tests.support.judge import End, History, Operation, Owner, Raw, Verdict, judge
from tests.support.service import OutOfStock

SESSION = b"\x00\x00\x00\x00\x00\x01one"


def claim(number: int, who: str) -> bytes:
    return packed(["rk", 1, 1, number, who, 0], [])


def commit(term: int, sequence: int, number: int = 0, events: list[Any] | None = None, entity: str = "a") -> bytes:
    kind = 2 if number else 3
    session = SESSION if number else b""
    return packed(["rk", 1, kind, term, sequence, sequence, session, number, 1, entity, 0, b"", None], events or [])


def packed(head: list[Any], events: list[Any]) -> bytes:
    data: bytes = msgpack.packb([head, events])
    return data


def appended(op: str) -> list[Any]:
    return [["Appended", 1, {"op": op}]]


def received(qty: int) -> list[Any]:
    return [["Received", 1, {"qty": qty}]]


def reserved(order: str, qty: int) -> list[Any]:
    return [["Reserved", 1, {"order": order, "qty": qty}]]


def clean_log() -> list[bytes]:
    """One partition: two owners, the first of them in doubt once and late once, a batch that was sent twice."""
    return [
        claim(1, "x"),  # 0
        commit(0, 1, 1, appended("1")),  # 1
        commit(0, 2, 2, appended("2")),  # 2
        commit(0, 1, 1, appended("1")),  # 3: a duplicate
        claim(1, "x"),  # 4: doubt
        commit(0, 3, 3, appended("3")),  # 5: a straggler of the term before
        commit(4, 3, 3, appended("3")),  # 6
        claim(2, "y"),  # 7
        commit(4, 4, 4, appended("late")),  # 8: late
        claim(1, "x"),  # 9: late too
        commit(7, 4),  # 10: a barrier
        commit(7, 5, 5, appended("5")),  # 11
        commit(7, 6, 6, received(5), entity="b"),  # 12
        commit(7, 7, 7, reserved("o", 2), entity="b"),  # 13
    ]
