"""docker-compose.yml and the Dockerfile, checked as far as that goes without an engine.

Goal: what a user starts is what the tests ran on, and it holds together.
Method: the compose specification's own JSON schema, then what the schema cannot know: Kafka's settings are SETTINGS,
every broker is reached where it says it is, and whoever is waited for can become healthy.
"""

import json
import re
from importlib import resources
from typing import Any, Final

import jsonschema
import pytest
import yaml

from tests.support import REPOSITORY
from tests.support.jars import POM
from tests.support.kafka import SETTINGS

_COMPOSE: Final[dict[str, Any]] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
_SERVICES: Final[dict[str, dict[str, Any]]] = _COMPOSE["services"]
_BROKERS: Final = {name: service for name, service in _SERVICES.items() if service["image"].startswith("apache/kafka:")}
_each_broker = pytest.mark.parametrize("name", _BROKERS)


def _listeners(setting: str) -> dict[str, str]:
    """`NAME://address,…` by name."""
    return dict(listener.split("://") for listener in setting.split(","))


def test_it_follows_the_compose_specification() -> None:
    schema = resources.files("check_jsonschema").joinpath("builtin_schemas", "vendor", "compose-spec.json")
    jsonschema.validate(_COMPOSE, json.loads(schema.read_text()))


def test_there_are_three_brokers_of_the_tested_version() -> None:
    tested = re.search(r"<artifactId>kafka_2.13</artifactId>\s*<version>(.+)</version>", POM.read_text())
    assert tested is not None
    assert [broker["image"] for broker in _BROKERS.values()] == [f"apache/kafka:{tested[1]}"] * 3


@_each_broker
def test_a_broker_has_the_tested_settings(name: str) -> None:
    environment = _BROKERS[name]["environment"]
    expected = {f"KAFKA_{setting.upper().replace('.', '_')}": value for setting, value in SETTINGS.items()}
    assert {variable: environment[variable] for variable in expected} == expected


@_each_broker
def test_a_broker_is_a_voter_under_its_own_number(name: str) -> None:
    environment = _BROKERS[name]["environment"]
    port = _listeners(environment["KAFKA_LISTENERS"])["CONTROLLER"]
    assert f"{environment['KAFKA_NODE_ID']}@{name}{port}" in environment["KAFKA_CONTROLLER_QUORUM_VOTERS"].split(",")


@_each_broker
def test_a_broker_is_reached_where_it_says_it_is(name: str) -> None:
    """By the containers under its name, from the machine at the one port that is published for it."""
    environment = _BROKERS[name]["environment"]
    listening = _listeners(environment["KAFKA_LISTENERS"])
    advertised = _listeners(environment["KAFKA_ADVERTISED_LISTENERS"])
    assert advertised["CONTAINERS"] == f"{name}{listening['CONTAINERS']}"
    assert _BROKERS[name]["ports"] == [f"{advertised['MACHINE']}{listening['MACHINE']}"]


def test_no_two_brokers_share_a_number_a_port_or_data() -> None:
    environments = [broker["environment"] for broker in _BROKERS.values()]
    own = [(env["KAFKA_NODE_ID"], env["KAFKA_ADVERTISED_LISTENERS"]) for env in environments]
    data = [volume.partition(":")[0] for broker in _BROKERS.values() for volume in broker["volumes"]]
    for values in (*zip(*own, strict=True), data):
        assert len(set(values)) == len(_BROKERS)
    assert set(data) == set(_COMPOSE["volumes"])


def test_a_broker_keeps_its_data_in_its_volume() -> None:
    for broker in _BROKERS.values():
        assert broker["volumes"][0].endswith(f":{broker['environment']['KAFKA_LOG_DIRS']}")


def test_whoever_is_waited_for_can_become_healthy() -> None:
    awaited = {name for service in _SERVICES.values() for name in service.get("depends_on", {})}
    assert awaited == {*_BROKERS, "ray-head"}
    assert all("healthcheck" in _SERVICES[name] for name in awaited)


def test_a_head_and_two_workers_run_the_same_image() -> None:
    rays = {name: service for name, service in _SERVICES.items() if name not in _BROKERS}
    assert sorted(rays) == ["ray-head", "ray-worker-1", "ray-worker-2"]
    assert {service["image"] for service in rays.values()} == {"rekindle"}
    assert all(service["init"] is True and "--block" in service["command"] for service in rays.values())


def test_the_image_finds_all_that_it_copies() -> None:
    lines = (REPOSITORY / "Dockerfile").read_text().splitlines()
    copied = {name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
    kept = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {name.removeprefix("./") for name in copied} == kept
    assert all((REPOSITORY / name).exists() for name in kept)
