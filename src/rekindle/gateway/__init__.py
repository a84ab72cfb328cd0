"""The gateway: an application over HTTP, for whoever is not written in Python, or not inside the cluster.

Reading order: `building` (all of it, put together), `entities` (commands and queries), `histories` (what was), `control`
(operators), `stream` (what happens), `access` (who may), `problems` (what is answered if not), `door` and `serving` (the edge).
"""

from rekindle.gateway.access import Caller, Tenancy, one_tenant
from rekindle.gateway.building import build

__all__ = ["Caller", "Tenancy", "build", "one_tenant"]
