"""The `Cluster` seam on plain processes of this machine: no Ray, for tests, benches and the process engine of chaos.

A node here is a name: instances of one node are killed together by `kill_node`. Every child ends when this process
does, also when that is killed (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from rekindle.supervisors.cluster import KILL_MAX_S, SPAWN_MAX_S, Node, Spawned, SpawnFailed
from rekindle.supervisors.hosting import InstanceThread, Launch

_PR_SET_PDEATHSIG: Final = 1
_LAST_WORDS: Final = 2_000


def die_with_parent() -> None:
    """Be killed when the process that made this one dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class ProcessCluster:
    """Instances as child processes."""

    def __init__(self, launch: Launch, nodes: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.launch = launch
        self._nodes = [Node(name, "127.0.0.1") for name in nodes]
        self._environment = {**os.environ, **(environment or {})}
        self._children: dict[str, tuple[str, asyncio.subprocess.Process]] = {}

    async def nodes(self) -> list[Node]:
        return list(self._nodes)

    async def spawn(self, service: str, incarnation: str, node: Node) -> Spawned:
        what = json.dumps({"launch": self.launch.dump(), "service": service, "incarnation": incarnation})
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import sys; from rekindle.supervisors.processes import main; sys.exit(main(sys.argv[1]))",
            what,
            stdout=asyncio.subprocess.PIPE,
            stdin=asyncio.subprocess.DEVNULL,
            env=self._environment,
            preexec_fn=die_with_parent,
        )
        self._children[incarnation] = (node.name, child)
        try:
            address, beacon = await self._ready(child)
        except (TimeoutError, ValueError) as error:
            await self.kill(incarnation)
            raise SpawnFailed(
                f"{incarnation} on {node.name} did not come up within {SPAWN_MAX_S} s: {error!r}"
            ) from error
        return Spawned(incarnation, node.name, address, beacon)

    async def _ready(self, child: asyncio.subprocess.Process) -> tuple[str, str]:
        assert child.stdout is not None, "the child was made without a pipe"
        async with asyncio.timeout(SPAWN_MAX_S):
            line = await child.stdout.readline()
        address, beacon = json.loads(line)
        return str(address), str(beacon)

    async def kill(self, incarnation: str) -> None:
        self.signal(incarnation, signal.SIGKILL)
        if incarnation in self._children:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILL_MAX_S):
                    await self._children[incarnation][1].wait()

    async def watch(self, incarnation: str) -> str:
        if incarnation not in self._children:
            await asyncio.get_running_loop().create_future()
        code = await self._children[incarnation][1].wait()
        return f"its process ended with {code}"

    def signal(self, incarnation: str, number: signal.Signals) -> bool:
        """Send a signal to one instance; whether it was there to get it."""
        known = self._children.get(incarnation)
        if known is None or known[1].returncode is not None:
            return False
        with contextlib.suppress(ProcessLookupError):
            known[1].send_signal(number)
            return True
        return False

    def kill_node(self, node: str) -> list[str]:
        """SIGKILL all instances of a node, and take the node away; which ones they were."""
        self._nodes = [known for known in self._nodes if known.name != node]
        return [
            name for name, (where, _) in self._children.items() if where == node and self.signal(name, signal.SIGKILL)
        ]

    def running(self) -> list[str]:
        """The instances that have not ended."""
        return [name for name, (_, child) in self._children.items() if child.returncode is None]

    async def close(self) -> None:
        """Kill what is left."""
        await asyncio.gather(*(self.kill(name) for name in self.running()))


def main(what: str) -> int:
    """A child: one instance."""
    asked = json.loads(what)
    instance = InstanceThread(Launch(**asked["launch"]), asked["service"], asked["incarnation"])
    addresses = instance.start()
    sys.stdout.write(json.dumps(addresses) + "\n")
    sys.stdout.flush()
    instance.wait()
    return 0 if instance.error is None else 1
