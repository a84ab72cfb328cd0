"""The sidecar: one `redis-server` beside an instance, on a free loopback port, with the instance's life.

It begins as a replica of nobody: it can be read and not written. What it becomes is told by the policy (`failover`):

    detach                 a replica of nobody again: nothing reaches it from its old primary any more
    promote                a primary; it can be written once a replica follows it
    follow(host, port)     a replica of that one; performed when it has everything that the other had

Each is performed as well the second time as the first, and answers what the server is then: its address, the history that
its data belongs to (Redis' replication id), and how far in it that is.

Invariants:
- A server without replicas cannot be written (`min-replicas-to-write`), whatever it takes itself for.
- Nothing is kept on disk (a replica's first copy lies there for a moment): a server that has died comes back as another
  instance, empty, which is told what to follow. (A primary that restarts empty under its old name would have its replicas
  throw away what they have.)
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Final

from examples.redis.resp import RedisError, ask

HOST: Final = "127.0.0.1"
NOBODY: Final = (HOST, "0")
"""The primary of a detached replica: nothing can listen on port 0. Unlike `REPLICAOF NO ONE` it keeps the server read-only,
and able to go on where it was with a replica of the same primary, instead of copying everything."""

SETTINGS: Final = {
    "replicaof": " ".join(NOBODY),
    "min-replicas-to-write": "1",
    "repl-diskless-sync-delay": "0",
    "repl-backlog-ttl": "0",  # else a primary without replicas would begin another history after an hour
    "rdb-del-sync-files": "yes",
    "dir": gettempdir(),
    "save": "",
    "appendonly": "no",
    "bind": HOST,
}
PORTS_TRIED: Final = 5
LOOK_S: Final = 0.02
PING_S: Final = 0.5
SILENT_MAX: Final = 4
"""A server that has not answered so many pings in a row is as good as dead."""


class RedisServer:
    """One server (a `rekindle` Sidecar). name: the instance that it belongs to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = ""
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Until it answers. Raises `RedisError` if it does not, `FileNotFoundError` if there is no Redis."""
        if shutil.which("redis-server") is None:
            raise FileNotFoundError("redis-server is not installed on this node: apt-get install redis-server")
        for _ in range(PORTS_TRIED):  # between the look and the start somebody else may take the port
            if await self._start_on(_free_port()):
                return
        raise RedisError(f"redis-server did not start on {PORTS_TRIED} different ports")

    async def _start_on(self, port: int) -> bool:
        leash = Path(__file__).with_name("leash.py")
        settings = [word for name, value in SETTINGS.items() for word in (f"--{name}", *value.split(" "))]
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", str(leash), str(os.getpid()), "redis-server"),
            *("--port", str(port), "--dbfilename", f"{self.name}.rdb", *settings),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )
        self.address = f"{HOST}:{port}"
        while self._process.returncode is None:
            with suppress(OSError, EOFError, RedisError):
                if await ask(self.address, "PING") == "PONG":
                    return True
            await asyncio.sleep(LOOK_S)
        return False

    async def stop(self) -> None:
        """Kill it; there is nothing that it would have to write down."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def wait(self) -> str:
        """Until it has died, or answers nothing any more; why."""
        assert self._process is not None, "waited for before it was started"
        ended = asyncio.ensure_future(self._process.wait())
        silent = 0
        while silent < SILENT_MAX:
            await asyncio.wait([ended], timeout=PING_S)
            if ended.done():
                return f"redis-server ended with {ended.result()}"
            silent = 0 if await self._answers() else silent + 1
        return f"redis-server has not answered {silent} pings"

    async def _answers(self) -> bool:
        """A refusal is an answer, too."""
        try:
            await ask(self.address, "PING")
        except (OSError, EOFError):
            return False
        except RedisError:
            return True
        return True

    async def perform(self, operation: str, args: dict[str, Any]) -> dict[str, Any]:
        """What a policy asks for. Raises `RedisError`, `OSError`, `ValueError`."""
        match operation, args:
            case "detach", {}:
                await ask(self.address, "REPLICAOF", *NOBODY)
            case "promote", {}:
                await ask(self.address, "REPLICAOF", "NO", "ONE")
            case "follow", {"host": str(host), "port": int(port)}:
                await ask(self.address, "REPLICAOF", host, str(port))
                while (await self._replication())["master_link_status"] != "up":  # noqa: ASYNC110 - Redis does not tell
                    await asyncio.sleep(LOOK_S)
            case _:
                raise ValueError(f"expected detach, promote, or follow with a host and a port; got {operation}({args})")
        known = await self._replication()
        return {"address": self.address, "history": known["master_replid"], "offset": int(known["master_repl_offset"])}

    async def _replication(self) -> dict[str, str]:
        """What it says of its replication."""
        lines = str(await ask(self.address, "INFO", "replication")).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
