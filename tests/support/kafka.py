"""A real Kafka for the tests: brokers as child processes on free loopback ports, with their data in a temporary folder.

    with KafkaCluster(brokers=3) as kafka:
        ...                                                # kafka.bootstrap is what a client connects to
        kafka.kill(kafka.leader_of("orders", 0))           # SIGKILL

Every broker is a KRaft broker and controller in one; brokers are numbered from 1, as Kafka numbers its nodes.
Nothing here waits blindly: a wait ends with its condition, with a broker that ended by itself, or with its deadline.
The calls block: from a coroutine use `asyncio.to_thread`.

Outside of pytest, `python -m tests.support.kafka --brokers 1` prints the bootstrap address as its first line and runs
until its standard input closes or SIGTERM arrives.
"""

import argparse
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType, TracebackType
from typing import Final, Literal, NoReturn, Self, TypeVar

from tests.support.child import start_child
from tests.support.jars import java, kafka_jars
from tests.support.metadata import Metadata, ask_metadata
from tests.support.ports import leased_ports

T = TypeVar("T")

SETTINGS: Final[Mapping[str, str]] = {
    # An acknowledged record is in the memory of two brokers, and no broker without it may become the leader.
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "unclean.leader.election.enable": "false",
    "offsets.topic.replication.factor": "3",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    # Topics are made on purpose, with the contract of rekindle.events.log; none loses its events to a clock.
    "auto.create.topics.enable": "false",
    "log.retention.ms": "-1",
    # A new leader 2 to 3 seconds after the death of the old one; with Kafka's defaults it takes 10.
    "broker.heartbeat.interval.ms": "300",
    "broker.session.timeout.ms": "1500",
    "controller.quorum.election.timeout.ms": "500",
    "controller.quorum.fetch.timeout.ms": "1000",
}
"""What keeps acknowledged events safe and failover short. docker-compose.yml says the same: tests/test_compose.py."""

_ALONE: Final = {name: "1" for name in SETTINGS if name.endswith(("replication.factor", "min.isr", "insync.replicas"))}
"""One broker cannot replicate."""

_SMALL: Final = {
    "group.initial.rebalance.delay.ms": "0",
    "log.cleaner.dedupe.buffer.size": "4194304",  # the default of 128 MiB does not fit into the heap below
    "log.cleaner.threads": "1",
    "num.io.threads": "2",
    "num.network.threads": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    "transaction.state.log.num.partitions": "4",
}
"""Three brokers share the machine with the tests."""

_JVM: Final = (
    "-Xms128m",
    "-Xmx384m",
    "-Xss512k",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:MaxDirectMemorySize=64m",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.server=info",
)

_FORMAT_DEADLINE_S: Final = 60.0
_SERVE_DEADLINE_S: Final = 60.0
_POLL_S: Final = 0.1


class KafkaBroken(Exception):
    """A broker did not do what it was asked to; the message ends with the last lines of its log."""


@dataclass(slots=True)
class Broker:
    """One broker: its place on disk, its ports, and its process while it runs."""

    number: int
    folder: Path
    port: int
    controller_port: int
    runtime: Sequence[str]
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def voter(self) -> str:
        return f"{self.number}@127.0.0.1:{self.controller_port}"

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    @property
    def _log(self) -> Path:
        return self.folder / "log.txt"

    def prepare(self, cluster: str, settings: Mapping[str, str]) -> None:
        """Write the configuration and format the empty data folder."""
        self.folder.mkdir()
        properties = {**settings, **self._own_settings()}
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        # `=` because a random id may begin with a dash
        formatting = self._start("kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c")
        if formatting.wait(_FORMAT_DEADLINE_S) != 0:
            raise KafkaBroken(f"broker {self.number} could not be formatted:\n{self.log_tail()}")

    def _own_settings(self) -> dict[str, str]:
        client = f"PLAINTEXT://{self.address}"
        return {
            "process.roles": "broker,controller",
            "node.id": str(self.number),
            "listeners": f"{client},CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": client,
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
        }

    def _start(self, *main: str) -> subprocess.Popen[bytes]:
        return start_child([*self.runtime, *main, str(self._properties)], self._log)

    def start(self) -> None:
        """Start the process; it is not ready yet."""
        assert self.process is None, f"broker {self.number} runs already"
        self.process = self._start("kafka.Kafka")

    def kill(self) -> None:
        """SIGKILL the process, if it runs, and wait until it is gone. Its data stays."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def watch(self, seconds: float) -> None:
        """Let a moment pass, in which the process must not end by itself."""
        assert self.process is not None, f"broker {self.number} does not run"
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(seconds)
            raise KafkaBroken(f"broker {self.number} ended by itself with {code}:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines that it wrote, for the message of an error."""
        return self._log.read_text(errors="replace")[-4_000:]


class KafkaCluster:
    """One broker, or three of which any one may die without a loss."""

    def __init__(self, brokers: Literal[1, 3] = 1) -> None:
        self._count = brokers
        self._brokers: dict[int, Broker] = {}
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as resources:
            folder = Path(resources.enter_context(TemporaryDirectory(prefix="rekindle-kafka-")))
            ports = resources.enter_context(leased_ports(2 * self._count))
            resources.callback(self._kill_all)
            self._prepare(folder, ports)
            self.heal()
            self._resources = resources.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def bootstrap(self) -> str:
        """Where a client connects: the addresses of all brokers, `host:port,host:port`."""
        return ",".join(broker.address for broker in self._brokers.values())

    def kill(self, i: int) -> None:
        """SIGKILL broker `i`."""
        self._brokers[i].kill()

    def restart(self, i: int) -> None:
        """Start broker `i` again where it was killed; returns when it has caught up with its partitions."""
        self.kill(i)
        self._start([self._brokers[i]])

    def heal(self) -> None:
        """Restart every broker that was killed."""
        self._start([broker for broker in self._brokers.values() if broker.process is None])

    def leader_of(self, topic: str, partition: int) -> int:
        """The running broker that leads the partition; waits while an election goes on."""
        running = self._running()

        def leader(known: Metadata) -> int | None:
            found = known.leader_of(topic, partition)
            return found if found in running else None

        return self._wait_until(f"{topic}/{partition} has a leader", list(running.values()), leader)

    def stop(self) -> None:
        """End every broker and delete their data; may be called again. Nobody reads that data: they are killed."""
        self._resources.close()

    def _prepare(self, folder: Path, ports: list[int]) -> None:
        runtime = (java(), *_JVM, "-cp", f"{kafka_jars()}/*")
        for i in range(1, self._count + 1):
            self._brokers[i] = Broker(i, folder / f"broker-{i}", ports.pop(), ports.pop(), runtime)
        voters = ",".join(broker.voter for broker in self._brokers.values())
        settings = {**SETTINGS, **(_ALONE if self._count == 1 else {}), **_SMALL, "controller.quorum.voters": voters}
        cluster = secrets.token_urlsafe(16)
        with ThreadPoolExecutor() as aside:
            for prepared in [aside.submit(broker.prepare, cluster, settings) for broker in self._brokers.values()]:
                prepared.result()

    def _start(self, brokers: Sequence[Broker]) -> None:
        """All of them before any is waited for: one alone would wait for the others' votes."""
        for broker in brokers:
            broker.start()
        for broker in brokers:
            self._wait_in_sync(broker.number)

    def _kill_all(self) -> None:
        for broker in self._brokers.values():
            broker.kill()

    def _wait_in_sync(self, i: int) -> None:
        """Only the broker itself is asked: the others go on listing it for a while after it was killed."""
        self._wait_until(f"broker {i} is in sync", [self._brokers[i]], lambda known: known.is_in_sync(i) or None)

    def _wait_until(self, what: str, asked: Sequence[Broker], answer: Callable[[Metadata], T | None]) -> T:
        """The first answer that the metadata of one of these brokers gives."""
        deadline = time.monotonic() + _SERVE_DEADLINE_S
        while time.monotonic() < deadline:
            for broker in asked:
                known = ask_metadata(broker.port)
                if known is not None and (found := answer(known)) is not None:
                    return found
                broker.watch(_POLL_S)
        raise KafkaBroken(f"expected that {what} within {_SERVE_DEADLINE_S} s:\n{self._log_tails()}")

    def _running(self) -> dict[int, Broker]:
        running = {i: broker for i, broker in self._brokers.items() if broker.process is not None}
        assert running, "expected a running broker, all of them were killed"
        return running

    def _log_tails(self) -> str:
        return "\n".join(f"broker {broker.number}:\n{broker.log_tail()}" for broker in self._brokers.values())


def _leave(signal_number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def main() -> None:
    """Run Kafka brokers until standard input closes; the first line of output is their address."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.kafka", description=main.__doc__)
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=1)
    signal.signal(signal.SIGTERM, _leave)
    with KafkaCluster(parser.parse_args().brokers) as kafka, suppress(KeyboardInterrupt):
        print(kafka.bootstrap, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
