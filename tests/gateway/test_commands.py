"""Commands and queries over HTTP.

Goal: an answer is the handler's own, a refusal is typed, and a command under an Idempotency-Key is applied once, whichever
gateway is asked and whatever dies meanwhile. Method: real gateways, sockets and instances; the log says what was applied.
"""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx2
import pytest

from tests.support.gateways import Gateway, served
from tests.support.operated import Operated

ATTEMPTS: Final = 8


@pytest.fixture
def key() -> str:
    """An entity that no other test has."""
    return f"sku-{secrets.token_hex(6)}"


def stock(key: str, what: str) -> str:
    return f"/v1/services/stock/entities/{key}/{what}"


def receive(http: httpx2.Client, key: str, qty: int, idempotency_key: str | None = None) -> httpx2.Response:
    headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
    return http.post(stock(key, "commands/receive"), json={"qty": qty}, headers=headers)


def applied(http: httpx2.Client, key: str) -> list[Any]:
    """The events of an entity, by the log."""
    page = http.get(stock(key, "history"), params={"limit": 1000}).json()
    assert page["complete"]
    return [event["data"] for commit in page["commits"] for event in commit["events"]]


def test_a_command_and_a_query(http: httpx2.Client, key: str) -> None:
    assert receive(http, key, 5).json() == 5
    answer = http.post(stock(key, "commands/reserve"), json={"order": "o-1", "qty": 2})
    assert (answer.status_code, answer.json()) == (200, 3)
    assert http.get(stock(key, "queries/available")).json() == 3
    assert http.get(stock(key, "queries/available"), params={"max_staleness": 60}).json() == 3


@pytest.mark.parametrize("key", ["a/b", "commands/receive", "ä €", "100%", "?x=1#y", " "])
def test_any_text_is_a_key(http: httpx2.Client, key: str) -> None:
    quoted = "".join(f"%{byte:02X}" for byte in key.encode())
    before = http.get(stock(quoted, "queries/available")).json()
    assert receive(http, quoted, 1).json() == before + 1
    assert http.get(stock(quoted, "state")).json()["key"] == key


def test_a_refusal_has_its_type_and_its_fields(http: httpx2.Client, key: str) -> None:
    answer = http.post(stock(key, "commands/reserve"), json={"order": "o-1", "qty": 2})
    assert (answer.status_code, answer.headers["content-type"]) == (409, "application/problem+json")
    assert answer.json() == {
        "type": "/problems/out-of-stock",
        "title": "OutOfStock",
        "status": 409,
        "detail": "left=0",
        "instance": stock(key, "commands/reserve"),
        "fields": {"left": 0},
    }


@pytest.mark.parametrize(
    ("body", "status", "name", "detail"),
    [
        (b'{"qty": "many"}', 422, "wrong-arguments", "body.qty: Input should be a valid integer"),
        (b'{"qty": 1, "colour": "red"}', 422, "wrong-arguments", "body.colour: Extra inputs are not permitted"),
        (b"{}", 422, "wrong-arguments", "body.qty: Field required"),
        (b"[1]", 422, "wrong-arguments", "body: "),
        (b"", 422, "wrong-arguments", "body: Field required"),
        (b'{"qty": ', 400, "malformed", "the body is not JSON"),
        (b'{"qty": 36893488147419103232}', 422, "bad-request", "cannot encode"),
        (b"\xff\xfe", 400, "malformed", ""),
        (b"[" * 100_000, 400, "malformed", ""),
    ],
    ids=["text", "more", "less", "list", "nothing", "half", "huge", "bytes", "deep"],
)
def test_a_wrong_body_is_refused(
    http: httpx2.Client, key: str, body: bytes, status: int, name: str, detail: str
) -> None:
    answer = http.post(stock(key, "commands/receive"), content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["type"] == f"/problems/{name}"
    assert detail in answer.json()["detail"]
    assert applied(http, key) == []


def test_a_lone_surrogate_is_no_text(http: httpx2.Client, key: str) -> None:
    body = b'{"order": "\\ud800", "qty": 1}'
    answer = http.post(stock(key, "commands/reserve"), content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed")


@pytest.mark.parametrize("timeout", ["0", "-1", "61", "nan", "inf", "soon"])
def test_a_timeout_has_bounds(http: httpx2.Client, key: str, timeout: str) -> None:
    answer = http.get(stock(key, "queries/available"), headers={"Rekindle-Timeout": timeout})
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/wrong-arguments")


def test_what_is_not_there_is_said(http: httpx2.Client, key: str) -> None:
    for method, path, status, name in (
        ("GET", "/v1/services/till/entities/a/queries/count", 404, "not-found"),
        ("POST", stock(key, "commands/available"), 404, "not-found"),
        ("GET", stock(key, "commands/receive"), 405, "method-not-allowed"),
        ("DELETE", stock(key, "queries/available"), 405, "method-not-allowed"),
        ("BREW", "/v1/status", 400, "malformed"),
    ):
        answer = http.request(method, path)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), path
        assert answer.json()["type"] == f"/problems/{name}"


# Under an Idempotency-Key


def test_a_retry_is_answered_as_the_first_time(http: httpx2.Client, key: str) -> None:
    assert [receive(http, key, 5, "k").json() for _ in range(3)] == [5, 5, 5]
    assert receive(http, key, 5, "another").json() == 10
    assert receive(http, key, 5, '"k"').json() == 5  # as the structured string that its draft wants
    assert applied(http, key) == [{"qty": 5}, {"qty": 5}]


def test_another_command_under_the_same_key_is_refused(http: httpx2.Client, key: str) -> None:
    receive(http, key, 5, "k")
    reserve = http.post(stock(key, "commands/reserve"), json={"order": "o", "qty": 5}, headers={"Idempotency-Key": "k"})
    for answer in (receive(http, key, 6, "k"), reserve):
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/key-reused")
    assert applied(http, key) == [{"qty": 5}]


def test_the_order_of_a_bodys_members_means_nothing(http: httpx2.Client, key: str) -> None:
    receive(http, key, 5)
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    bodies = (b'{"order": "o", "qty": 2}', b'{ "qty":2,"order":"o"}')
    answers = [http.post(stock(key, "commands/reserve"), content=body, headers=headers).json() for body in bodies]
    assert answers == [3, 3]


def test_a_key_belongs_to_its_entity(http: httpx2.Client, key: str) -> None:
    assert [receive(http, f"{key}-{n}", 5, "k").json() for n in range(3)] == [5, 5, 5]


def test_a_refusal_is_remembered_too(http: httpx2.Client, key: str) -> None:
    def reserve() -> httpx2.Response:
        body, headers = {"order": "o", "qty": 2}, {"Idempotency-Key": "k"}
        return http.post(stock(key, "commands/reserve"), json=body, headers=headers)

    assert reserve().json()["fields"] == {"left": 0}
    receive(http, key, 5)
    assert reserve().json()["fields"] == {"left": 0}
    assert applied(http, key) == [{"qty": 5}]


@pytest.mark.parametrize("idempotency_key", ["", "k" * 256])
def test_a_key_has_bounds(http: httpx2.Client, key: str, idempotency_key: str) -> None:
    assert receive(http, key, 5, idempotency_key).status_code == 422


def test_concurrent_retries_at_two_gateways_are_one_command(shop: Operated, gateway: Gateway, key: str) -> None:
    with (
        served(shop.app, shop.log) as another,
        gateway.client() as one,
        another.client() as two,
        ThreadPoolExecutor(2 * ATTEMPTS) as pool,
    ):

        def order(http: httpx2.Client) -> int:
            return int(receive(http, key, 7, "k").json())

        answers = list(pool.map(order, [one, two] * ATTEMPTS))
        assert answers == [7] * (2 * ATTEMPTS)
        assert applied(one, key) == [{"qty": 7}]


def test_a_new_gateway_knows_the_keys_of_one_that_ended(shop: Operated, key: str) -> None:
    for _ in range(3):
        with served(shop.app, shop.log) as gateway, gateway.client() as http:
            assert receive(http, key, 7, "k").json() == 7
            assert applied(http, key) == [{"qty": 7}]


def test_a_new_owner_knows_the_keys_of_one_that_was_killed(shop: Operated, http: httpx2.Client, key: str) -> None:
    shop.heal()
    assert receive(http, key, 7, "k").json() == 7
    shop.kill("stock")
    assert receive(http, key, 7, "k").json() == 7
    assert receive(http, key, 8, "k").json()["type"] == "/problems/key-reused"
    assert applied(http, key) == [{"qty": 7}]
    shop.heal()


def test_commands_under_way_while_their_owner_is_killed_are_applied_once(
    shop: Operated, gateway: Gateway, key: str
) -> None:
    """Each is retried until it is answered, as a client would; the kill falls in between."""
    shop.heal()
    with gateway.client() as http, ThreadPoolExecutor(4) as pool:

        def order(number: int) -> int:
            for _ in range(ATTEMPTS):
                answer = receive(http, key, number, f"k-{number}")
                if answer.status_code == 200:
                    return int(answer.json())
                assert answer.status_code in (429, 503, 504), answer.text
            raise AssertionError(f"command {number} was not answered in {ATTEMPTS} attempts")

        numbers = range(1, 101)
        answers = [pool.submit(order, number) for number in numbers]
        shop.kill("stock")
        sums = [answer.result() for answer in answers]
        again = [order(number) for number in numbers]
        events = applied(http, key)
    assert again == sums
    assert sorted(event["qty"] for event in events) == list(numbers)
    assert max(sums) == sum(numbers)
    shop.heal()


def test_a_command_that_finds_nobody_says_that_it_had_no_effect(shop: Operated, http: httpx2.Client) -> None:
    """The ledger has one instance: while it is gone there is nobody to send to."""
    shop.heal()
    shop.hold_starts()
    try:
        shop.kill("ledger")
        path, headers = "/v1/services/ledger/entities/gone/commands/append", {"Rekindle-Timeout": "0.5"}
        answer = http.post(path, json={"op": "x"}, headers=headers)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["type"] == "/problems/deadline-exceeded"
        assert "it had no effect" in answer.json()["detail"]
    finally:
        shop.let_start()
        shop.heal()
