"""Which process of ours listens at an address: to stop or kill exactly that one.

Only descendants of this process are looked at, so nobody else's process is ever found.
"""

from __future__ import annotations

import psutil


def listener_at(address: str) -> psutil.Process:
    """The descendant of this process that listens at `host:port`."""
    host, _, port = address.rpartition(":")
    found = [child for child in psutil.Process().children(recursive=True) if _listens(child, host, int(port))]
    assert len(found) == 1, f"expected one process of ours that listens at {address}, found {found}"
    return found[0]


def _listens(process: psutil.Process, host: str, port: int) -> bool:
    try:
        connections = process.net_connections("tcp")
    except psutil.NoSuchProcess:
        return False
    mine = [c for c in connections if c.status == psutil.CONN_LISTEN and c.laddr.port == port]
    return any(c.laddr.ip in (host, "::", "0.0.0.0", f"::ffff:{host}") for c in mine)
