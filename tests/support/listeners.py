"""Which process of ours listens where: to stop or kill exactly that one.

Only descendants of this process are looked at, so nobody else's process is ever found.
"""

from __future__ import annotations

from contextlib import suppress

import psutil


def listeners() -> dict[str, psutil.Process]:
    """The descendants of this process that listen, by `host:port`."""
    found: dict[str, psutil.Process] = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            ends = [c.laddr for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr]
            found |= {f"{end.ip.removeprefix('::ffff:')}:{end.port}": process for end in ends}
    return found


def listener_at(address: str) -> psutil.Process:
    """The descendant of this process that listens at `host:port`."""
    found = listeners()
    assert address in found, f"expected a process of ours that listens at {address}, they listen at {sorted(found)}"
    return found[address]
