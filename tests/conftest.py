"""The fixtures of every room.

A test that asks for `kafka` or `kafka3` gets a real one and the mark `kafka`; one that asks for `redis_server` runs where that
is installed. Where they cannot be had it is skipped, loudly; under CI=true it fails, because there a check that did not run
must not look like one that passed.
"""

import os
import re
import secrets
import shutil
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Literal, NoReturn

import pytest

from tests.support.jars import KafkaMissing
from tests.support.kafka import KafkaCluster
from tests.support.postgres import Postgres, PostgresMissing

_BROKERS = {"kafka", "three_brokers"}
_MISSING = pytest.StashKey[dict[str, str]]()
_KAFKA, _REDIS = "everything that needs a real Kafka", "the supervision of a real Redis"
_POSTGRES = "read models in a real PostgreSQL"


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config) -> Generator[str]:
    """The address of one broker, `host:port`; the tester's own if REKINDLE_TEST_KAFKA names it."""
    if own := os.environ.get("REKINDLE_TEST_KAFKA"):
        yield own
    else:
        with _cluster(pytestconfig, brokers=1) as cluster:
            yield cluster.bootstrap


@pytest.fixture(scope="session")
def three_brokers(pytestconfig: pytest.Config) -> Generator[KafkaCluster]:
    """The cluster behind `kafka3`, for fixtures that outlive a test."""
    with _cluster(pytestconfig, brokers=3) as cluster:
        yield cluster


@pytest.fixture
def kafka3(three_brokers: KafkaCluster) -> Generator[KafkaCluster]:
    """Three brokers. A test may kill any of them: they are back before the next test."""
    yield three_brokers
    three_brokers.heal()


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    """A prefix for topics and apps that no other test and no earlier run has used; it says which test it was."""
    test = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    return f"{test[:40]}-{secrets.token_hex(4)}"


@contextmanager
def _cluster(config: pytest.Config, brokers: Literal[1, 3]) -> Generator[KafkaCluster]:
    with ExitStack() as stack:
        try:
            cluster = stack.enter_context(KafkaCluster(brokers))
        except KafkaMissing as missing:
            reason = str(missing)
        else:
            yield cluster
            return
    _do_without(config, _KAFKA, reason)


@pytest.fixture
def redis_server(pytestconfig: pytest.Config) -> None:
    """There is a `redis-server` to be started."""
    if shutil.which("redis-server") is None:
        _do_without(pytestconfig, _REDIS, "redis-server is not installed: apt-get install redis-server")


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> Generator[Postgres]:
    """The server behind `postgres`."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(Postgres())
        except PostgresMissing as missing:
            reason = str(missing)
        else:
            yield server
            return
    _do_without(pytestconfig, _POSTGRES, reason)


@pytest.fixture
def postgres(postgres_server: Postgres) -> Generator[Postgres]:
    """A PostgreSQL. A test may kill it: it is back before the next test."""
    yield postgres_server
    postgres_server.start()


def _do_without(config: pytest.Config, what: str, reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    config.stash.setdefault(_MISSING, {})[what] = reason
    pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """So that `-m "not kafka"` leaves out what needs a broker, without anybody having to say so at the test."""
    for item in items:
        if isinstance(item, pytest.Function) and not _BROKERS.isdisjoint(item.fixturenames):
            item.add_marker("kafka")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Skips are easily overlooked: say at the end, in red, what was not tested and what to do about it."""
    missing = config.stash.setdefault(_MISSING, {})
    for what, reason in missing.items():
        terminalreporter.section(f"NOT TESTED: {what}", red=True, bold=True)
        terminalreporter.line(reason)
        if what == _KAFKA:
            terminalreporter.line("For the tests of one broker you can give your own: REKINDLE_TEST_KAFKA=host:port")
