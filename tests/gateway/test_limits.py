"""What one request, one client and all of them together may cost.

Goal: whatever is sent, slowly or at once, is answered by a clear problem or hung up on, and the gateway serves on. Method: raw
sockets against a real server; where a bound is a time or a number of its own, the test makes it small.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, Final

import httpx2
import pytest

from rekindle.gateway import door, patience
from rekindle.gateway.door import BODY_BYTES_MAX
from rekindle.gateway.patience import HEAD_BYTES_MAX, PIPELINED_MAX
from rekindle.supervisors.hosting import resident_bytes
from tests.support.gateways import Gateway
from tests.support.loops import eventually, run
from tests.support.operated import Operated

WAIT_S: Final = 20.0
PATH: Final = "/v1/services/stock/entities/a/commands/receive"
SCHEMA: Final = b"GET /openapi.json HTTP/1.1\r\nHost: gateway\r\n\r\n"
"""What has a long answer."""

HEAD: Final = b"POST " + PATH.encode() + b" HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"


@contextmanager
def connected(gateway: Gateway) -> Generator[socket.socket]:
    host, _, port = gateway.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as connection:
        yield connection


def answer_of(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """The answer until the server hangs up, or until its body is whole."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65_536)
        assert piece, f"hung up without an answer: {data!r}"
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65_536)
    return int(status.split()[1]), headers, json.loads(body)


def assert_problem(answer: tuple[int, dict[str, str], Any], status: int, name: str) -> None:
    assert (answer[0], answer[1]["content-type"]) == (status, "application/problem+json")
    assert (answer[2]["type"], answer[2]["status"]) == (f"/problems/{name}", status)


def is_served(gateway: Gateway) -> bool:
    with gateway.client() as http:
        return http.post(PATH, json={"qty": 1}).status_code == 200


def pushed(connection: socket.socket, data: bytes, at_most: int) -> int:
    """How many bytes could be sent, again and again, before the server hung up."""
    sent = 0
    with suppress(ConnectionError):
        while sent < at_most:
            connection.sendall(data)
            sent += len(data)
    return sent


def hung_up(connection: socket.socket) -> bool:
    """Whether the server ends the connection."""
    try:
        while connection.recv(65_536):
            pass
    except ConnectionError:
        return True
    return True


# Size


def test_a_body_that_says_it_is_too_large_is_not_read(gateway: Gateway) -> None:
    with connected(gateway) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (BODY_BYTES_MAX + 1))
        answer = answer_of(connection)
        assert_problem(answer, 413, "body-too-large")
        assert str(BODY_BYTES_MAX) in answer[2]["detail"]


def test_a_body_that_does_not_say_its_size_is_counted(gateway: Gateway) -> None:
    """It never ends, and never says how long it is: the gateway takes as much as is allowed, and no more."""
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    before = resident_bytes()
    with connected(gateway) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        sent = pushed(connection, chunk, 200 * BODY_BYTES_MAX)
    assert sent < 20 * BODY_BYTES_MAX  # what fits the buffers of two sockets
    assert resident_bytes() - before < 50 * BODY_BYTES_MAX
    assert is_served(gateway)


def test_a_chunked_body_that_is_too_large_gets_its_answer(gateway: Gateway) -> None:
    with connected(gateway) as connection:
        body = b"x" * (BODY_BYTES_MAX + 1)
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(body), body))
        assert_problem(answer_of(connection), 413, "body-too-large")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * HEAD_BYTES_MAX + b" HTTP/1.1\r\nHost: gateway\r\n\r\n",
        HEAD + b"X-Long: " + b"a" * HEAD_BYTES_MAX + b"\r\n\r\n",
        HEAD + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 100) for n in range(400)) + b"\r\n",
    ],
    ids=["target", "header", "headers"],
)
def test_a_head_has_a_bound(gateway: Gateway, head: bytes) -> None:
    with connected(gateway) as connection:
        connection.sendall(head)
        assert_problem(answer_of(connection), 431, "head-too-large")
        assert hung_up(connection)


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02\x00\x01", b"hello\r\n\r\n", b"GET / HTTP/9\r\n\r\n", HEAD + b"Content-Length: -1\r\n\r\n"],
)
def test_what_is_no_http_is_told_so(gateway: Gateway, data: bytes) -> None:
    with connected(gateway) as connection:
        connection.sendall(data)
        assert_problem(answer_of(connection), 400, "malformed")
        assert hung_up(connection)
    assert is_served(gateway)


# Time


def test_a_head_that_does_not_come_is_not_waited_for(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "HEAD_MAX_S", 0.2)
    for beginning in (b"", HEAD):
        with connected(gateway) as connection:
            connection.sendall(beginning)
            assert_problem(answer_of(connection), 408, "request-timeout")
            assert hung_up(connection)


def test_the_second_head_of_a_connection_is_not_waited_for_either(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(gateway) as connection:
        connection.sendall(HEAD + b'Content-Length: 10\r\n\r\n{"qty": 1}')
        assert answer_of_any(connection).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(patience, "HEAD_MAX_S", 0.2)
        connection.sendall(HEAD)
        assert_problem(answer_of(connection), 408, "request-timeout")


def answer_of_any(connection: socket.socket) -> bytes:
    return connection.recv(65_536)


def test_a_body_that_does_not_come_is_not_waited_for(gateway: Gateway) -> None:
    door_of(gateway).body_max_s = 0.2
    try:
        with connected(gateway) as connection:
            connection.sendall(HEAD + b'Content-Length: 100\r\n\r\n{"qty"')
            answer = answer_of(connection)
            assert_problem(answer, 408, "request-timeout")
            assert "only 6 bytes" in answer[2]["detail"]
            assert hung_up(connection)
    finally:
        door_of(gateway).body_max_s = door.BODY_MAX_S
    assert is_served(gateway)


def test_who_does_not_read_is_hung_up_on(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers that nobody takes fill the buffers, and then the connection is given up."""
    monkeypatch.setattr(patience, "READ_MAX_S", 0.2)
    connections = gateway.server.server_state.connections
    before = set(connections)
    with unread(gateway) as connection:
        connection.sendall(SCHEMA * PIPELINED_MAX)
        run(eventually(lambda: connections - before))
        run(eventually(lambda: not connections - before))
    assert is_served(gateway)


def test_what_waits_on_one_connection_is_bounded(gateway: Gateway) -> None:
    """Requests that come faster than they are answered: it does not matter how many the client would send."""
    before = resident_bytes()
    with unread(gateway) as connection:
        assert pushed(connection, SCHEMA * 100, 50 * BODY_BYTES_MAX) < 20 * BODY_BYTES_MAX
    assert resident_bytes() - before < 50 * BODY_BYTES_MAX
    assert is_served(gateway)


@contextmanager
def unread(gateway: Gateway) -> Generator[socket.socket]:
    """A connection of a client that never reads."""
    host, _, port = gateway.address.rpartition(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.settimeout(WAIT_S)
        connection.connect((host, int(port)))
        yield connection


# Numbers


def door_of(gateway: Gateway) -> door.Door:
    """The door of a gateway that has served something."""
    assert is_served(gateway)
    found: Any = gateway.app.middleware_stack
    while not isinstance(found, door.Door):
        found = found.app
    return found


def test_too_much_at_a_time_is_told_to_come_again(gateway: Gateway) -> None:
    its_door = door_of(gateway)
    its_door.in_flight_max = 0
    try:
        with gateway.client() as http:
            answer = http.post(PATH, json={"qty": 1})
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
            assert answer.json()["type"] == "/problems/overloaded"
            assert http.get("/healthz").status_code == 200  # a probe is served all the same
    finally:
        its_door.in_flight_max = door.IN_FLIGHT_MAX
    assert is_served(gateway)
    assert its_door.in_flight == 0


def test_one_connection_too_many_is_told_so(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    with gateway.client() as http:
        assert http.get("/healthz").status_code == 200
        monkeypatch.setattr(patience, "CONNECTIONS_MAX", 0)
        with connected(gateway) as connection:
            assert_problem(answer_of(connection), 429, "overloaded")
            assert hung_up(connection)
        assert http.get("/healthz").status_code == 200  # who is connected is served on


# Probes and metrics


def test_probes_say_how_it_is(shop: Operated, http: httpx2.Client) -> None:
    shop.heal()
    assert http.get("/healthz").json() == {"status": "alive"}
    assert http.get("/readyz").json() == {"status": "ready"}


def test_requests_are_counted_by_route_and_status(http: httpx2.Client) -> None:
    def counted() -> Callable[[str], float]:
        lines = http.get("/metrics").text.splitlines()
        values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}
        return lambda name: values.get(name, 0.0)

    template = "/v1/services/stock/entities/{key}/commands/receive"
    served = f'rekindle_gateway_requests_total{{method="POST",route="{template}",status="200"}}'
    refused = f'rekindle_gateway_requests_total{{method="POST",route="{template}",status="422"}}'
    lost = 'rekindle_gateway_requests_total{method="GET",route="unmatched",status="404"}'
    took = f'rekindle_gateway_request_duration_seconds_count{{route="{template}"}}'
    before = counted()
    for qty in (1, "x"):
        http.post(PATH, json={"qty": qty})
    for path in ("/nowhere", "/nowhere/else"):
        http.get(path)
    after = counted()
    assert [after(name) - before(name) for name in (served, refused, lost, took)] == [1, 1, 2, 2]
    assert after("rekindle_gateway_requests_in_flight") == 0
