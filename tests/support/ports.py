"""Loopback TCP ports that no parallel run on this machine uses, and that stay ours while nobody listens on them.

A broker that was killed comes back on its old port, so a port must be kept while it is not in use. Its lock is the UDP
port of the same number: the kernel gives it to one process only and takes it back when that process ends, however it
ends. The ports lie below the range from which the kernel picks those of outgoing connections.
"""

import random
import socket
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice

_PORTS = range(21_000, 31_000)


@contextmanager
def leased_ports(count: int) -> Generator[list[int]]:
    """That many free ports, ours until the end of the block."""
    with ExitStack() as leases:
        ports = list(islice(_free_ports(leases), count))
        assert len(ports) == count, f"expected {count} free ports in {_PORTS}, found {len(ports)}"
        yield ports


def _free_ports(leases: ExitStack) -> Iterator[int]:
    for port in random.sample(_PORTS, len(_PORTS)):
        lease = leases.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        if _binds(lease, port) and _is_unused(port):
            yield port
        else:
            lease.close()


def _is_unused(port: int) -> bool:
    """Whether a server could listen there; what its predecessor left in TIME_WAIT is no obstacle to one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _binds(probe, port)


def _binds(end: socket.socket, port: int) -> bool:
    try:
        end.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
