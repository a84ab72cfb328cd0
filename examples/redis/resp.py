"""As much of Redis' protocol (RESP) as is needed here."""

from __future__ import annotations

import asyncio
from typing import Final, Self

ANSWER_MAX_S: Final = 1.0
"""A server that takes longer is not waited for: it may be frozen."""


class RedisError(Exception):
    """The server has refused a command, in its own words."""


class Connection:
    """One connection to a server, for one call at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, address: str) -> Self:
        """Connect. Raises `OSError`."""
        host, _, port = address.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    def close(self) -> None:
        """Hang up."""
        self._writer.close()

    async def call(self, *words: str) -> str | int | None:
        """A command and its answer. Raises `RedisError`; `OSError` or `EOFError` if the server is gone."""
        encoded = [word.encode() for word in words]
        self._writer.write(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in encoded))
        async with asyncio.timeout(ANSWER_MAX_S):
            return await self._answer()

    async def _answer(self) -> str | int | None:
        line = await self._reader.readuntil(b"\r\n")
        kind, text = line[:1], line[1:-2].decode()
        match kind:
            case b"+":
                return text
            case b":":
                return int(text)
            case b"$":
                return None if text == "-1" else (await self._reader.readexactly(int(text) + 2))[:-2].decode()
            case _:
                raise RedisError(text)


async def ask(address: str, *words: str) -> str | int | None:
    """One call to a server that there is no connection to. Raises as `Connection.call`."""
    async with asyncio.timeout(ANSWER_MAX_S):
        connection = await Connection.open(address)
    try:
        return await connection.call(*words)
    finally:
        connection.close()
