"""Histories and states of entities, read from the log.

Goal: what is told is what counts in the log, all of it and nothing else, and a state is what the entity was. Method: an entity
is written to, pages of every size are put together again, and states are held against the answers of then.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from typing import Any, Final

import httpx2
import pytest

from rekindle.events import Claim
from rekindle.events.records import encode_claim
from rekindle.gateway import histories, reading
from rekindle.gateway.reading import Reading
from tests.support.gateways import Gateway
from tests.support.operated import Operated

LEDGER: Final = "/v1/services/ledger/entities"


@pytest.fixture
def key() -> str:
    return f"book-{secrets.token_hex(6)}"


def append(http: httpx2.Client, key: str, *ops: str) -> list[int]:
    return [http.post(f"{LEDGER}/{key}/commands/append", json={"op": op}).json() for op in ops]


def pages(http: httpx2.Client, key: str, limit: int) -> list[dict[str, Any]]:
    """All commits, page by page."""
    found: list[dict[str, Any]] = []
    after = -1
    for _ in range(1_000):
        page = http.get(f"{LEDGER}/{key}/history", params={"after": after, "limit": limit}).json()
        assert len(page["commits"]) <= limit
        assert page["scanned_to"] > after or page["complete"]
        found += page["commits"]
        after = page["scanned_to"]
        if page["complete"]:
            return found
    raise AssertionError(f"no end after {len(found)} commits")


def ops(commits: list[dict[str, Any]]) -> list[str]:
    return [event["data"]["op"] for commit in commits for event in commit["events"]]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 1_000])
def test_pages_of_any_size_are_the_whole_history(http: httpx2.Client, key: str, limit: int) -> None:
    other = f"{key}-other"
    for number in range(7):
        append(http, key, f"op-{number}")
        append(http, other, "noise")
    commits = pages(http, key, limit)
    assert ops(commits) == [f"op-{number}" for number in range(7)]
    assert [commit["version"] for commit in commits] == list(range(1, 8))
    assert [commit["offset"] for commit in commits] == sorted({commit["offset"] for commit in commits})


def test_what_does_not_count_is_not_told(shop: Operated, http: httpx2.Client, key: str) -> None:
    """A claim of an assignment long gone, a copy of a commit, and bytes of a stranger, right in the log."""
    append(http, key, "one")
    partition = shop.app.services[1].hosted(shop.app.name).partition(0)
    offset = pages(http, key, 10)[0]["offset"]

    async def copy() -> bytes:
        async with shop.event_log.reader(partition, offset) as reader:
            value = (await reader.next(5.0))[0].value
        assert value is not None
        return value

    async def litter() -> None:
        claim = encode_claim(Claim(0, "nobody", 0))
        await shop.event_log.append(partition, [(None, await copy()), (None, claim), (None, b"graffiti")])

    shop.loop.run(litter())
    append(http, key, "two")
    assert ops(pages(http, key, 10)) == ["one", "two"]


def test_a_refusal_is_told_without_events(http: httpx2.Client, key: str) -> None:
    path = f"/v1/services/stock/entities/{key}"
    http.post(f"{path}/commands/reserve", json={"order": "o", "qty": 1})
    http.post(f"{path}/commands/receive", json={"qty": 1})
    commits = http.get(f"{path}/history").json()["commits"]
    assert [(c["outcome"], c["version"], len(c["events"])) for c in commits] == [("rejected", 0, 0), ("ok", 1, 1)]


def test_a_long_log_is_read_in_steps(
    gateway: Gateway, http: httpx2.Client, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One page reads so many records at most, found or not; the next one goes on."""
    append(http, key, *(f"op-{number}" for number in range(5)))
    monkeypatch.setattr(Reading.read, "__defaults__", (1,))
    page = http.get(f"{LEDGER}/{key}-nobody/history").json()
    assert (page["commits"], page["complete"]) == ([], True) or page["scanned_to"] >= 0
    assert ops(pages(http, key, 2)) == [f"op-{number}" for number in range(5)]


def test_a_state_at_an_offset_and_at_a_time(http: httpx2.Client, key: str) -> None:
    append(http, key, *(f"op-{number}" for number in range(5)))
    state = f"{LEDGER}/{key}/state"
    commits = pages(http, key, 10)
    for number, commit in enumerate(commits):
        told = http.get(state, params={"at": commit["offset"]}).json()
        assert (told["offset"], told["version"]) == (commit["offset"], number + 1)
        assert told["state"] == {"entries": number + 1, "last": f"op-{number}"}
    now = http.get(state).json()
    assert now["state"] == {"entries": 5, "last": "op-4"}
    last = datetime.fromisoformat(commits[-1]["at"])
    assert http.get(state, params={"at": (last + timedelta(days=1)).isoformat()}).json()["state"] == now["state"]
    same = [c for c in commits if c["at"] == commits[-1]["at"]]
    before = http.get(state, params={"at": (last - timedelta(milliseconds=1)).isoformat()}).json()
    assert before["version"] == 5 - len(same)
    assert http.get(state, params={"at": "2001-01-01T00:00:00Z"}).json()["state"] is None
    assert http.get(state, params={"at": "2001-01-01T00:00"}).json()["state"] is None


def test_an_entity_that_was_never_written_to_is_as_new(http: httpx2.Client, key: str) -> None:
    told = http.get(f"{LEDGER}/{key}/state").json()
    assert (told["version"], told["state"]) == (0, None)
    assert pages(http, key, 10) == []


@pytest.mark.parametrize(
    ("at", "name"),
    [
        ("999999999999", "no-such-offset"),
        ("yesterday", "wrong-arguments"),
        ("2026-13-01T00:00", "wrong-arguments"),
        ("-1", "wrong-arguments"),
        ("9" * 30, "wrong-arguments"),
    ],
)
def test_a_place_that_is_none_is_said(http: httpx2.Client, key: str, at: str, name: str) -> None:
    answer = http.get(f"{LEDGER}/{key}/state", params={"at": at})
    assert (answer.status_code, answer.json()["type"]) == (422, f"/problems/{name}")


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 1001}, {"after": -2}, {"after": 1 << 60}, {"limit": "all"}])
def test_a_page_has_bounds(http: httpx2.Client, key: str, query: dict[str, Any]) -> None:
    assert http.get(f"{LEDGER}/{key}/history", params=query).status_code == 422


def test_a_state_that_is_too_far_is_refused(http: httpx2.Client, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    append(http, key, "one")
    monkeypatch.setattr(histories, "TRAVEL_RECORDS_MAX", 0)
    for at in (None, "2030-01-01T00:00Z"):
        answer = http.get(f"{LEDGER}/{key}/state", params={} if at is None else {"at": at})
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/too-far")


def test_too_many_readings_at_a_time_are_told_to_come_again(
    http: httpx2.Client, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histories, "TRAVELS_MAX", 0)
    answer = http.get(f"{LEDGER}/{key}/history")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


def test_places_are_bounded() -> None:
    places = reading.Places(places_max=2)
    for offset in range(3):
        places.keep("topic", 0, reading.Found(offset, None, [offset + 1, 0, 1, "a", 1, 1, 600_000]))  # type: ignore[arg-type]
    assert places.behind("topic", 0, 0) is None
    found = places.behind("topic", 0, 2)
    assert found is not None
    assert (found.offset, found.sequence) == (3, 1)
