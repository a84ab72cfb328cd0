"""A Ray cluster that a test may destroy: its nodes belong to a child process, and so does every trace of Ray.

    with RayNodes(3) as ray:
        ray.kill(ray.workers[0])                           # a whole node, at once
        ray.destroy()                                      # all of them, the head too, at once

Ray keeps threads in every process that talks to its head, and ends the process when the head stays away. So the process
that runs the tests does not talk to Ray: it says over a pipe what is to happen, and reads a line when it has.

As a script this module is that child. It ends, and Ray with it, when its standard input does.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import psutil

from tests.support import REPOSITORY

STEP_MAX_S: Final = 120.0


class RayNodes:
    """Ray nodes on this machine, each with a loopback address of its own. workers: those that are not the head.

    settings: Ray's, instead of those of `LocalNodes`; empty: Ray's own defaults.
    """

    def __init__(self, count: int, settings: dict[str, Any] | None = None) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", __name__, str(count), json.dumps(settings)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._known: list[psutil.Process] = []
        try:
            self.address, *self.workers = self._read()
        except BaseException:
            self.destroy()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()

    @property
    def alive(self) -> bool:
        """Whether it was not destroyed."""
        return self._child.returncode is None

    def kill(self, host: str) -> None:
        """SIGKILL a node and everything that runs on it."""
        self._tell("kill", host)
        self.workers.remove(host)

    def add(self) -> str:
        """One more node; its host."""
        (host,) = self._tell("add")
        self.workers.append(host)
        return host

    def tree(self, host: str) -> list[psutil.Process]:
        """The processes of a node: its raylet, and everything below it."""
        flag = f"--node_ip_address={host}"
        raylets = [p for p in self._descendants() if _name(p) == "raylet" and flag in _title(p).split()]
        assert len(raylets) == 1, f"expected one raylet at {host}, found {raylets}"
        return [raylets[0], *raylets[0].children(recursive=True)]

    def processes(self, title: str) -> list[psutil.Process]:
        """The processes of this cluster whose title begins like this: Ray says there what an actor is."""
        return [process for process in self._descendants() if _title(process).startswith(title)]

    def destroy(self) -> None:
        """SIGKILL everything at once; back when it is gone. Nothing happens the second time."""
        processes = [psutil.Process(self._child.pid), *self._descendants()] if self.alive else []
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        _, left = psutil.wait_procs(processes, STEP_MAX_S)
        self._child.communicate()
        assert not left, f"expected every process of Ray to end, these live on: {left}"

    def _descendants(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._child.pid).children(recursive=True)
        return []

    def _tell(self, *words: str) -> list[str]:
        assert self._child.stdin is not None, "the child was made with a pipe"
        self._child.stdin.write(json.dumps(words).encode() + b"\n")
        self._child.stdin.flush()
        return self._read()

    def _read(self) -> list[str]:
        assert self._child.stdout is not None, "the child was made with a pipe"
        ready, _, _ = select.select([self._child.stdout], [], [], STEP_MAX_S)
        line = self._child.stdout.readline() if ready else b""
        assert line, f"the process that keeps the Ray nodes said nothing within {STEP_MAX_S} s"
        answer: list[str] = json.loads(line)
        return answer


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def main() -> None:
    """Keep nodes, and do what is read from standard input."""
    from rekindle.supervisors.ray_cluster import LocalNodes

    nodes: Any = LocalNodes(int(sys.argv[1]), json.loads(sys.argv[2]))

    def say(*words: str) -> None:
        print(json.dumps(words), flush=True)

    say(nodes.address, *nodes.workers)
    for line in sys.stdin:
        match json.loads(line):
            case ["add"]:
                say(nodes.add())
            case ["kill", host]:
                nodes.kill(host)
                say()
            case other:
                raise ValueError(f"expected add or kill, got {other}")
    nodes.close()


if __name__ == "__main__":
    main()
