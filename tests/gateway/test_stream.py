"""The control log as server-sent events.

Goal: whoever listens gets everything that was decided, once and in order, also after a connection that broke off anywhere; who
is too slow is told so and sent away. Method: a running application that operators speak to; streams are cut after each message
and taken up again, and held against the log; queues are filled by hand where that is the point.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import pytest
from fastapi.sse import ServerSentEvent

from rekindle.gateway import stream
from rekindle.gateway.stream import QUEUE_MAX, STATE, TOPICS, Client, Message
from tests.support.gateways import Gateway, served
from tests.support.loops import run
from tests.support.operated import Operated

SAYINGS: Final = 6


@dataclass(frozen=True)
class Event:
    """One event as it came."""

    name: str
    id: int | None
    data: Any


@contextmanager
def listening(http: httpx2.Client, topics: str, last: int | None = None) -> Generator[Iterator[Event]]:
    """What comes, after the greeting."""
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    with http.stream("GET", "/v1/stream", params={"topics": topics}, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = parsed(answer.iter_lines())
        assert next(events).name == "hello"
        yield events


def parsed(lines: Iterator[str]) -> Iterator[Event]:
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield Event(fields["event"], int(fields["id"]) if "id" in fields else None, json.loads(fields["data"]))
            fields = {}
        else:
            fields = {}


def say(http: httpx2.Client, reason: str) -> None:
    body = {"who": "ann", "reason": reason, "service": "stock", "instances": 2}
    assert http.post("/v1/control/scale", json=body).status_code == 200


def reasons(events: list[Event]) -> list[str]:
    said = [inner["data"]["saying"]["reason"] for event in events for inner in event.data["events"]]
    return [reason for reason in said if reason.startswith("stream")]


def test_what_is_decided_comes_while_it_happens(shop: Operated, gateway: Gateway) -> None:
    shop.heal()
    with gateway.client() as http, gateway.client() as other, listening(http, "sayings") as events:
        for number in range(3):
            say(other, f"stream live {number}")
            event = next(events)
            assert (event.name, reasons([event])) == ("sayings", [f"stream live {number}"])
            assert event.id == event.data["offset"]


@pytest.mark.parametrize("recent_max", [stream.RECENT_MAX, 0], ids=["from memory", "from the log"])
def test_a_stream_that_is_cut_anywhere_goes_on_without_a_gap(shop: Operated, recent_max: int) -> None:
    """A new connection for every event; what is said meanwhile is missed by nobody. Also when nothing is kept in memory."""
    with served(shop.app, shop.log) as gateway, gateway.client() as http, gateway.client() as other:
        with listening(http, "sayings") as events:
            say(other, "stream cut 0")
            last = next(events).id
        if not recent_max:
            gateway.app.state.feed._recent_from = 1 << 60
        for number in range(1, SAYINGS):
            say(other, f"stream cut {number}")
        found: list[Event] = []
        while len(found) < SAYINGS - 1:
            with listening(http, "sayings", last) as events:
                found.append(next(events))
                last = found[-1].id
        assert reasons(found) == [f"stream cut {number}" for number in range(1, SAYINGS)]


def test_a_stream_goes_on_at_another_gateway(shop: Operated, gateway: Gateway) -> None:
    """From the very beginning of the log: a gateway that has just come up knows as much as one that has seen it all."""
    with gateway.client() as http, served(shop.app, shop.log) as another, another.client() as other:
        say(http, "stream elsewhere")
        told: list[list[str]] = []
        for client in (http, other):
            with listening(client, "sayings", 0) as events:
                found = [next(events)]
                while reasons(found)[-1:] != ["stream elsewhere"]:
                    found.append(next(events))
                told.append(reasons(found))
                ids = [event.id for event in found if event.id is not None]
                assert ids == sorted(set(ids))
        assert told[0] == told[1]


def test_an_incident_is_told_by_topic(shop: Operated, gateway: Gateway) -> None:
    shop.heal()
    with gateway.client() as http, listening(http, "incidents,plans,instances,shards") as events:
        dead = shop.kill("stock")
        seen: set[str] = set()
        while seen < {"incidents", "plans", "instances", "shards"}:
            event = next(events)
            seen.add(event.name)
            assert {inner["type"] for inner in event.data["events"]} <= set(TOPICS[event.name])
            if event.name == "instances" and event.data["events"][0]["type"] == "Gone":
                assert event.data["events"][0]["data"]["incarnation"] == dead
    shop.heal()


def test_the_state_comes_at_once_and_when_it_changes(shop: Operated, gateway: Gateway) -> None:
    shop.heal()
    with gateway.client() as http, gateway.client() as other, listening(http, STATE) as events:
        first = next(events)
        assert (first.name, first.id) == (STATE, None)
        assert [service["name"] for service in first.data["report"]["services"]] == ["stock", "ledger"]
        other.post("/v1/control/scale", json={"who": "a", "reason": "b", "service": "stock", "instances": 3})
        wanted = [next(events).data["report"]["services"][0]["wanted"]]
        while wanted[-1] != 3:
            wanted.append(next(events).data["report"]["services"][0]["wanted"])
        other.post("/v1/control/scale", json={"who": "a", "reason": "b", "service": "stock", "instances": 2})
    shop.heal()


def test_who_comes_from_another_log_is_told_to_begin_anew(http: httpx2.Client) -> None:
    with listening(http, "sayings", 1 << 40) as events:
        event = next(events)
        assert (event.name, event.id) == ("reset", None)
        assert event.data["position"] < 1 << 40


def test_who_was_away_for_too_long_is_told_to_begin_anew(
    gateway: Gateway, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "RECORDS_MAX", 0)
    monkeypatch.setattr(gateway.app.state.feed, "_recent_from", 1 << 60)
    say(http, "stream late")
    with listening(http, "sayings", 0) as events:
        event = next(events)
        assert event.name == "reset"
        assert "records were missed, 0 are looked up" in event.data["reason"]


@pytest.mark.parametrize("query", [{"topics": "weather"}, {"topics": ","}, {"topics": "plans,weather"}])
def test_a_topic_that_is_none(http: httpx2.Client, query: dict[str, str]) -> None:
    answer = http.get("/v1/stream", params=query)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


def test_one_client_too_many_is_told_so(http: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "STREAMS_MAX", 0)
    answer = http.get("/v1/stream")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


def test_a_gateway_that_ends_says_so_to_its_clients(shop: Operated) -> None:
    with served(shop.app, shop.log) as gateway, gateway.client() as http, listening(http, "sayings") as events:
        gateway.server.should_exit = True
        event = next(events)
        assert (event.name, event.data["reason"]) == ("end", "the gateway ends")
        assert next(events, None) is None


# One client's queue


def messages(offset: int, *topics: str) -> list[Message]:
    return [Message(topic, offset, {"offset": offset}) for topic in topics]


async def everything(client: Client) -> list[ServerSentEvent]:
    return [event async for event in client.coming()]


def test_who_is_too_slow_gets_what_waits_and_then_where_to_go_on() -> None:
    async def main() -> None:
        client = Client(frozenset({"plans"}), 0)
        for offset in range(1, QUEUE_MAX + 100):
            client.offer(messages(offset, "plans"))
        *got, last = await everything(client)
        assert [event.id for event in got] == [str(offset) for offset in range(1, QUEUE_MAX + 1)]
        assert (last.event, last.data) == ("end", {"reason": "too slow", "resume": QUEUE_MAX})

    run(main())


def test_half_a_record_is_not_taken_for_all_of_it() -> None:
    async def main() -> None:
        client = Client(frozenset({"plans", "sayings"}), 0)
        client.offer(messages(1, "plans", "sayings", "incidents"))
        client.offer(messages(2, "incidents"))
        client.offer(messages(3, "plans"))
        client.end("enough")
        got = await everything(client)
        assert [(event.event, event.id) for event in got] == [
            ("plans", None),
            ("sayings", "1"),
            ("plans", "3"),
            ("end", None),
        ]

    run(main())


def test_a_state_replaces_the_one_before() -> None:
    async def main() -> None:
        client = Client(frozenset({STATE}), 0)
        for offset in range(1_000):
            client.show({"n": offset}, offset)
        client.end("enough")
        got = await everything(client)
        assert [event.event for event in got] == [STATE, "end"]
        assert got[0].data == {"offset": 999, "report": {"n": 999}}

    run(main())
