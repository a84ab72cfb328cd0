"""`rekindle gateway`: a process that serves.

Goal: it serves what the options say, ends when it is told to, and refuses to start where it would be unsafe, each with its exit
code. Method: real processes and signals where they are the point, the command in this process where they are not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import httpx2
import pytest

from rekindle.cli import NOT_REACHABLE, USAGE, main
from rekindle.gateway.access import GATEWAY_TOKEN_VARIABLE, READ_TOKEN_VARIABLE
from tests.support import REPOSITORY
from tests.support.operated import Operated

END_MAX_S: Final = 30.0
RECEIVE: Final = "/v1/services/stock/entities/served/commands/receive"


@contextmanager
def process(shop: Operated, **variables: str) -> Generator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and the address that it tells."""
    command = [sys.executable, "-m", "rekindle.cli", "gateway", "--app", shop.target, "--log", shop.log]
    started = subprocess.Popen(
        [*command, "--bind", "127.0.0.1:0"],
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        assert line.startswith(f"{shop.app.name}: http://127.0.0.1:"), started.communicate()
        yield started, line.partition(": ")[2].strip()
    finally:
        started.kill()
        started.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end(shop: Operated, number: signal.Signals) -> None:
    shop.heal()
    with (
        process(shop) as (gateway, address),
        httpx2.Client(base_url=address, trust_env=False, timeout=END_MAX_S) as http,
    ):
        assert http.get("/readyz").json() == {"status": "ready"}
        before = http.post(RECEIVE, json={"qty": 1}, headers={"Idempotency-Key": "k"}).json()
        with http.stream("GET", "/v1/stream") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: hello"
            gateway.send_signal(number)
            assert any('"the gateway ends"' in line for line in lines)
        _, said = gateway.communicate(timeout=END_MAX_S)
        assert (gateway.returncode in (0, 130, -number), "Traceback" in said) == (True, False), said
    with process(shop) as (_, address), httpx2.Client(base_url=address, trust_env=False) as http:
        assert http.post(RECEIVE, json={"qty": 1}, headers={"Idempotency-Key": "k"}).json() == before


def test_it_takes_its_tokens_from_the_environment(shop: Operated) -> None:
    tokens = {GATEWAY_TOKEN_VARIABLE: "change", READ_TOKEN_VARIABLE: "read"}
    with process(shop, **tokens) as (_, address), httpx2.Client(base_url=address, trust_env=False) as http:
        found = {
            token: (
                http.get("/v1/tree", headers={"Authorization": f"Bearer {token}"}).status_code,
                http.post(RECEIVE, json={"qty": 1}, headers={"Authorization": f"Bearer {token}"}).status_code,
            )
            for token in ("change", "read", "other")
        }
    assert found == {"change": (200, 200), "read": (200, 403), "other": (401, 401)}


@pytest.mark.parametrize(
    ("arguments", "tokens", "text"),
    [
        (["--bind", "0.0.0.0:0"], {}, "takes a token (REKINDLE_GATEWAY_TOKEN)"),
        (["--bind", "[::]:0"], {}, "takes a token (REKINDLE_GATEWAY_TOKEN)"),
        (["--bind", "example.org:80"], {}, "takes a token (REKINDLE_GATEWAY_TOKEN)"),
        (["--bind", "127.0.0.1"], {}, "expected an address as host:port"),
        (["--bind", "127.0.0.1:http"], {}, "expected an address as host:port"),
        (["--bind", "127.0.0.1:70000"], {}, "expected an address as host:port"),
        (["--bind", "127.0.0.1:0"], {READ_TOKEN_VARIABLE: "read"}, "anybody could change things"),
    ],
)
def test_what_would_be_unsafe_or_wrong_is_refused(
    shop: Operated,
    arguments: list[str],
    tokens: dict[str, str],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in (GATEWAY_TOKEN_VARIABLE, READ_TOKEN_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name, value in tokens.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(["gateway", "--app", shop.target, "--log", shop.log, *arguments])
    assert ended.value.code == USAGE
    assert text in capsys.readouterr().err


def test_an_address_that_is_taken_is_said(shop: Operated, capsys: pytest.CaptureFixture[str]) -> None:
    with process(shop) as (_, address), pytest.raises(SystemExit) as ended:
        main(["gateway", "--app", shop.target, "--log", shop.log, "--bind", address.removeprefix("http://")])
    assert ended.value.code == USAGE
    assert "cannot listen on 127.0.0.1:" in capsys.readouterr().err


def test_a_log_that_is_away_has_its_exit_code(shop: Operated, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["gateway", "--app", shop.target, "--log", "kafka://127.0.0.1:1", "--bind", "127.0.0.1:0"])
    assert ended.value.code == NOT_REACHABLE
    assert "LogUnavailable" in capsys.readouterr().err
