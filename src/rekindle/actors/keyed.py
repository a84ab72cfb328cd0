"""Commands under a key that their caller chose: exactly once among all who use it, whoever they are and whenever they began.

A client's own sessions know nothing of another client. Here the session's name is computed from the key, so that all who
have it meet in the shard's log, at number 1 of that session: what is committed there first is the outcome for everybody.
A session's name begins with its birth, so there is one session for every `BUCKET_MS`, and an attempt does this:

    seal the session of the bucket before      a command without effect: it finds the outcome, if there is one, or makes
                                               sure that nothing is ever run there
    run the command in the current one         or find its outcome; if it is sealed, an attempt that began in the next
                                               bucket was faster: meet it there

Invariants:
- In bucket N a command is run only after number 1 of bucket N - 1 was sealed, so it is run in one of two neighbours.
- A session outlives the next bucket, with the longest deadline and the greatest difference of two clocks
  (`2 * BUCKET_MS + TIMEOUT_MAX + SKEW_MAX_MS <= SESSION_TTL_MS`), so a seal, or an outcome, is found when it is looked for.
- So a key holds for `LIFETIME_MS` from its first use. Later it is as good as new.
- An outcome carries the fingerprint of its command: who comes with another command under the same key is told so.

The rules of the log are what they were: a seal is the commit of a command that was refused, as any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from rekindle.actors import outcomes
from rekindle.actors.client import Client, Proxy
from rekindle.actors.entity import HandlerType
from rekindle.actors.errors import BadRequest, DeadlineExceeded, KeyReused, OutcomeUnknown
from rekindle.actors.kept import Kept, Sealed, keyed_handler, seal_handler
from rekindle.actors.outcomes import result_of
from rekindle.actors.peer import Session
from rekindle.events import SESSION_TTL_MS, session_name, unpack

BUCKET_MS: Final = 240_000
TIMEOUT_MAX_S: Final = 60.0
SKEW_MAX_MS: Final = 60_000
"""How far the clocks of two clients may be apart; each is set right by the instances', as far as it is behind."""

LIFETIME_MS: Final = BUCKET_MS - SKEW_MAX_MS
"""How long a key holds from its first use, at least."""

assert 2 * BUCKET_MS + 1000 * TIMEOUT_MAX_S + SKEW_MAX_MS <= SESSION_TTL_MS, "a session is forgotten before its key"

_NAME_BYTES: Final = 24
"""Of a session's name behind its birth: that no two keys share one."""


class Found(NamedTuple):
    """What the log has at a key: the fingerprint of the command, and its outcome."""

    fingerprint: bytes
    outcome: list[Any]


async def once(
    client: Client,
    proxy: Proxy,
    command: str,
    arguments: tuple[list[Any], Mapping[str, Any]],
    *,
    key: bytes,
    fingerprint: bytes,
) -> Any:
    """Run a command under a key, or get what it gave before; within the proxy's timeout.

    key: unique for the caller, the entity and the key as the caller knows it. Raises `KeyReused`, and as the command does.
    """
    handler = proxy.hosted.kind.handlers.get(command)
    if handler is None or not handler.is_command:
        raise BadRequest(f"{proxy.hosted.kind.name} has no command {command!r}")
    if proxy.timeout > TIMEOUT_MAX_S:
        raise BadRequest(f"timeout is {proxy.timeout} s; with a key at most {TIMEOUT_MAX_S} s")
    attempt = _Attempt(client, proxy, handler, blake2b(key, digest_size=_NAME_BYTES).digest())
    found = await attempt.find_or_run([fingerprint, list(arguments[0]), dict(arguments[1])])
    if found.fingerprint != fingerprint:
        raise KeyReused(
            f"the key was used for another command, or other arguments, of {proxy.key!r} in the last {LIFETIME_MS // 1000} s"
        )
    return result_of(found.outcome, proxy.hosted.kind, handler)


class _Attempt:
    """One attempt of one caller."""

    def __init__(self, client: Client, proxy: Proxy, handler: HandlerType, name: bytes) -> None:
        self.client = client
        self.proxy = proxy
        self.handler = handler
        self.name = name
        self.ends_at = asyncio.get_running_loop().time() + proxy.timeout

    async def find_or_run(self, arguments: list[Any]) -> Found:
        """What is in the log under the key; if nothing is, what the command gives."""
        bucket = self.client.log_ms() // BUCKET_MS
        found = await self._call(bucket - 1, seal_handler(self.handler), [])
        runs = keyed_handler(self.handler)
        for number in (bucket, bucket + 1):
            if found is None:
                found = await self._call(number, runs, arguments)
        if found is None:
            raise OutcomeUnknown(f"{self.handler.name} of {self.proxy.key!r} was overtaken by a later attempt")
        return found

    async def _call(self, bucket: int, handler: HandlerType, args: list[Any]) -> Found | None:
        """The command at number 1 of a bucket's session; None: it is sealed."""
        now = asyncio.get_running_loop().time()
        left = self.ends_at - now
        if left <= 0:
            raise DeadlineExceeded(f"{self.handler.name} of {self.proxy.key!r}: no time is left; it had no effect")
        session = Session(session_name(bucket * BUCKET_MS, self.name), now)
        hosted, key = self.proxy.hosted, self.proxy.key
        proxy = Proxy(self.client, hosted, key, left, None)
        try:
            fingerprint, value = await self.client.call(proxy, handler, tuple(args), {}, session)
        except Sealed:
            return None
        except Kept as kept:
            return Found(kept.fingerprint, unpack(kept.outcome))
        return Found(fingerprint, [outcomes.OK, value])
