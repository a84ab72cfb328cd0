"""The test Kafka itself: what the other tests take for granted about it.

Goal: a broker dies when it is told to, comes back with its data, and never outlives the run that started it.
Method: real brokers, through aiokafka as the product uses it; the run that dies is a child, killed with SIGKILL.
"""

import asyncio
import os
import select
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.support import REPOSITORY
from tests.support.jars import KafkaMissing, kafka_jars
from tests.support.kafka import KafkaCluster
from tests.support.metadata import ask_metadata
from tests.support.ports import leased_ports

_DEADLINE_S = 30.0

_PARENT = """
import sys, pathlib
from tests.support.child import start_child
print(start_child(["sleep", "600"], pathlib.Path(sys.argv[1])).pid, flush=True)
sys.stdin.read()
"""

_MAVEN = """#!/bin/sh
echo called >> "{calls}"
for option; do case "$option" in -DoutputDirectory=*) folder="${{option#*=}}" ;; esac; done
mkdir "$folder" && : > "$folder/kafka.jar"
"""


async def _create(bootstrap: str, topic: str, replicas: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, replicas)])
    finally:
        await admin.close()


async def _append(bootstrap: str, topic: str, value: bytes) -> int:
    async with asyncio.timeout(_DEADLINE_S), AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        offset: int = (await producer.send_and_wait(topic, value, partition=0)).offset
        return offset


async def _read(bootstrap: str, topic: str, count: int) -> list[bytes | None]:
    async with asyncio.timeout(_DEADLINE_S), AIOKafkaConsumer(bootstrap_servers=bootstrap) as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        await consumer.seek_to_beginning()
        return [(await consumer.getone()).value for _ in range(count)]


def test_one_broker_keeps_what_it_is_given(kafka: str, unique: str) -> None:
    asyncio.run(_create(kafka, unique, replicas=1))
    assert asyncio.run(_append(kafka, unique, b"a")) == 0
    assert asyncio.run(_append(kafka, unique, b"b")) == 1
    assert asyncio.run(_read(kafka, unique, 2)) == [b"a", b"b"]


def test_the_leader_dies_another_goes_on_and_it_comes_back(kafka3: KafkaCluster, unique: str) -> None:
    asyncio.run(_create(kafka3.bootstrap, unique, replicas=3))
    asyncio.run(_append(kafka3.bootstrap, unique, b"before"))
    killed = kafka3.leader_of(unique, 0)
    kafka3.kill(killed)
    assert kafka3.leader_of(unique, 0) != killed
    asyncio.run(_append(kafka3.bootstrap, unique, b"without it"))
    kafka3.restart(killed)
    asyncio.run(_append(kafka3.bootstrap, unique, b"with it"))
    assert asyncio.run(_read(kafka3.bootstrap, unique, 3)) == [b"before", b"without it", b"with it"]


def test_brokers_for_another_process_end_with_its_pipe() -> None:
    command = [sys.executable, "-m", "tests.support.kafka", "--brokers", "1"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        port = int(run.stdout.readline().rpartition(":")[2])
        assert ask_metadata(port) is not None
        run.stdin.close()
        assert run.wait(_DEADLINE_S) == 0
    assert ask_metadata(port) is None


def test_a_child_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path / "log")], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = os.pidfd_open(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    ended, _, _ = select.select([child], [], [], _DEADLINE_S)  # a pidfd is readable once its process has ended
    os.close(child)
    assert ended


def test_leases_do_not_overlap() -> None:
    with leased_ports(3) as ours, leased_ports(3) as theirs:
        assert not set(ours) & set(theirs)


def test_a_port_stays_leased_while_nobody_listens() -> None:
    with (
        leased_ports(1) as (port,),
        socket.socket(type=socket.SOCK_DGRAM) as other,
        pytest.raises(OSError, match="use"),
    ):
        other.bind(("127.0.0.1", port))


@pytest.fixture
def maven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Maven that fetches one empty jar; returns the file to which it adds a line each time."""
    calls = tmp_path / "calls"
    program = tmp_path / "bin" / "mvn"
    program.parent.mkdir()
    program.write_text(_MAVEN.format(calls=calls))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("REKINDLE_KAFKA_LIBS", str(tmp_path / "cache" / "libs"))
    return calls


def test_runs_in_parallel_fetch_the_jars_once(maven: Path) -> None:
    with ThreadPoolExecutor() as runs:
        first, second = runs.submit(kafka_jars), runs.submit(kafka_jars)
    assert first.result() == second.result()
    assert sorted(path.name for path in first.result().iterdir()) == ["kafka.jar", "pom.xml"]
    assert maven.read_text() == "called\n"


def test_another_pom_fetches_again(maven: Path) -> None:
    (kafka_jars() / "pom.xml").write_text("of an older Kafka")
    kafka_jars()
    assert maven.read_text() == "called\n" * 2


def test_a_machine_without_maven_is_told_what_to_install(maven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maven.parent.joinpath("bin", "mvn").unlink()
    monkeypatch.setenv("PATH", str(maven.parent / "bin"))
    with pytest.raises(KafkaMissing, match="Install Maven"):
        kafka_jars()
