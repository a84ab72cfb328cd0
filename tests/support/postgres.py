"""A PostgreSQL of a test's own: the system's server on a loopback port, in a folder that goes with it.

with Postgres() as postgres:
    url = postgres.database("some-test")
    postgres.kill()                             # SIGKILL, all of it, in the middle of whatever it does
    postgres.start()

The server refuses to run as root; then it runs as the system's user `postgres`.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, Self

import psutil
import psycopg
from psycopg import sql

from tests.support.child import start_child
from tests.support.ports import leased_ports

USER: Final = "postgres"
START_MAX_S: Final = 30.0
STOP_MAX_S: Final = 30.0
_LOOK_S: Final = 0.05

SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "50",
    "unix_socket_directories": "",
}


class PostgresMissing(Exception):
    """There is no server to be started."""


def server_folder() -> Path:
    """Where the server's programs are. Raises `PostgresMissing`."""
    found = shutil.which("postgres")
    if found is not None and shutil.which("initdb") is not None:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version)
    if not versions:
        raise PostgresMissing("PostgreSQL is not installed: apt-get install postgresql")
    return versions[-1].parent


def _version(path: Path) -> int:
    return int(re.sub(r"\D", "", path.parts[-3]) or 0)


class Postgres:
    """A server. fsync: what it acknowledges survives a power cut, too; that of the server's own death it survives anyway."""

    def __init__(self, *, fsync: bool = False) -> None:
        self.settings = SETTINGS | {"fsync": "on" if fsync else "off"}
        self.bin = server_folder()
        self.folder = Path(tempfile.mkdtemp(prefix="rekindle-postgres-"))
        self.data = self.folder / "data"
        self._leases = ExitStack()
        (self.port,) = self._leases.enter_context(leased_ports(1))
        self._as_user = self._become()
        self._process: subprocess.Popen[bytes] | None = None

    def _become(self) -> list[str]:
        """What is put before a command so that it does not run as root."""
        if os.getuid() != 0:
            return []
        try:
            user = pwd.getpwnam(USER)
        except KeyError:
            raise PostgresMissing(f"PostgreSQL does not run as root, and there is no user {USER!r}") from None
        os.chown(self.folder, user.pw_uid, user.pw_gid)
        return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]

    def __enter__(self) -> Self:
        init = [
            str(self.bin / "initdb"),
            "--pgdata",
            str(self.data),
            "--username",
            USER,
            "--auth",
            "trust",
            "--no-sync",
        ]
        subprocess.run([*self._as_user, *init], check=True, stdout=subprocess.DEVNULL, cwd=self.folder)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._leases.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start it, if it does not run; back when it answers."""
        if self._process is not None:
            return
        options = [f"-c{name}={value}" for name, value in self.settings.items()]
        command = [str(self.bin / "postgres"), "-D", str(self.data), "-p", str(self.port), *options]
        self._process = start_child([*self._as_user, *command], self.folder / "log")
        until = time.monotonic() + START_MAX_S
        while not self._answers():
            assert self._process.poll() is None, f"PostgreSQL ended: {(self.folder / 'log').read_text()[-2000:]}"
            assert time.monotonic() < until, f"PostgreSQL did not start within {START_MAX_S} s"
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_LOOK_S)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(USER), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL for the server and everything that it has started."""
        if self._process is None:
            return
        server = psutil.Process(self._process.pid)
        for process in [server, *server.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self._process.wait(STOP_MAX_S)
        self._process = None

    def database(self, name: str) -> str:
        """Make a database; its address."""
        with psycopg.connect(self.url(USER), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def url(self, database: str) -> str:
        """The address of a database."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"
