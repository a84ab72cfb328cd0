"""Who asks, and what of: credentials, tenants, and the three things a route may want of its caller.

A tenant is a prefix of keys. A `Tenancy` decides from the credential alone who the caller is; the rest follows: a key that
does not begin with the caller's prefix is not there (404), for reading and writing alike.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Final, TypeAlias

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import Request

from rekindle.gateway.problems import Problem

GATEWAY_TOKEN_VARIABLE: Final = "REKINDLE_GATEWAY_TOKEN"
READ_TOKEN_VARIABLE: Final = "REKINDLE_GATEWAY_READ_TOKEN"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. prefix: of the keys that are theirs. operates: sees and says what concerns the whole application."""

    tenant: str
    prefix: str = ""
    writes: bool = True
    operates: bool = True

    def check_key(self, key: str) -> None:
        """Raises a 404 for the key of another tenant: it does not even tell whether it is there."""
        if not key.startswith(self.prefix):
            raise Problem(404, "not-found", f"there is no entity {key!r:.100}")


Tenancy: TypeAlias = "Callable[[str | None], Caller | None]"
"""Who has this credential (None: none was given); None: nobody."""


def one_tenant(token: str | None, read_token: str | None = None) -> Tenancy:
    """Everybody is the same tenant. token: what it takes to change something; None: nothing, so the gateway listens on
    loopback only. read_token: what it takes to read; None: nothing."""

    def caller(credential: str | None) -> Caller | None:
        if token is None or _is(credential, token):
            return Caller("everybody")
        if read_token is None and credential is None:
            return Caller("everybody", writes=False)
        return Caller("everybody", writes=False) if read_token and _is(credential, read_token) else None

    return caller


def _is(credential: str | None, token: str) -> bool:
    """In a time that tells nothing of either."""
    digests = [sha256(text.encode(errors="backslashreplace")).digest() for text in (credential or "", token)]
    return hmac.compare_digest(*digests) and credential is not None


class Access:
    """The dependencies of routes: who asks, if they may."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy

    def caller(self, credential: str | None) -> Caller:
        """Who it is. Raises a 401."""
        found = self._tenancy(credential)
        if found is None:
            detail = "no token was given" if credential is None else "the token is not known"
            raise _unauthorized(f"{detail}; say Authorization: Bearer TOKEN")
        return found

    def writer(self, credential: str | None) -> Caller:
        """Who it is, if they may change something. Raises a 401 or a 403."""
        found = self.caller(credential)
        if found.writes:
            return found
        if credential is None:
            raise _unauthorized("changing something takes a token; say Authorization: Bearer TOKEN")
        raise Problem(403, "forbidden", "this token is for reading only")


def _unauthorized(detail: str) -> Problem:
    return Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})


_bearer: Final = HTTPBearer(auto_error=False, description="The gateway's token, or a tenant's.")


def _credential(bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str | None:
    return None if bearer is None else bearer.credentials


async def reader(request: Request, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Caller:
    """Anybody who may read."""
    return _access(request).caller(_credential(bearer))


async def writer(request: Request, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Caller:
    """Anybody who may change something."""
    return _access(request).writer(_credential(bearer))


async def viewer(caller: Annotated[Caller, Depends(reader)]) -> Caller:
    """Who may see what concerns the whole application."""
    return _operating(caller)


async def operator(caller: Annotated[Caller, Depends(writer)]) -> Caller:
    """Who may say what concerns the whole application."""
    return _operating(caller)


def _operating(caller: Caller) -> Caller:
    if not caller.operates:
        raise Problem(403, "forbidden", f"tenant {caller.tenant!r} sees and changes its own entities only")
    return caller


def _access(request: Request) -> Access:
    access = request.app.state.access
    assert isinstance(access, Access), f"the gateway has no access rules: {access!r}"
    return access


Reader = Annotated[Caller, Depends(reader)]
Writer = Annotated[Caller, Depends(writer)]
Viewer = Annotated[Caller, Depends(viewer)]
Operating = Annotated[Caller, Depends(operator)]
