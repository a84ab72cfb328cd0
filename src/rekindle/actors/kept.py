"""The instance's side of commands under a key (`rekindle.actors.keyed`): handlers that every entity has besides its own.

For each command there is one whose outcome carries a fingerprint, and one, the same for all, that seals. No method of a
class can have their names, and whoever lists an entity's handlers does not see them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, Final

from rekindle.actors import outcomes
from rekindle.actors.entity import Entity, EntityType, HandlerType, Rejected, WrongArguments, checker

PREFIX: Final = "keyed:"


class Sealed(Rejected):
    """Nothing was run here, and nothing ever will be."""


class Kept(Rejected):
    """How a command under a key ended, if not with a value."""

    fingerprint: bytes
    outcome: bytes


def keyed_handlers(kind: EntityType) -> dict[str, HandlerType]:
    """All of them for one entity, by what they are called on the wire."""
    commands = [handler for handler in kind.handlers.values() if handler.is_command]
    keyed = [keyed_handler(handler) for handler in commands]
    return {handler.short: handler for handler in (*keyed, *map(seal_handler, commands[:1]))}


@cache
def keyed_handler(handler: HandlerType) -> HandlerType:
    """A command whose outcome carries the fingerprint that it comes with: (fingerprint, args, kwargs)."""

    def run(entity: Entity, fingerprint: bytes, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
        own, named = handler.arguments_of(args, kwargs)
        try:
            return [fingerprint, handler.function(entity, *own, **named)]
        except Exception as error:
            raise _kept(fingerprint, error) from error

    async def run_async(entity: Entity, fingerprint: bytes, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
        own, named = handler.arguments_of(args, kwargs)
        try:
            return [fingerprint, await handler.function(entity, *own, **named)]
        except Exception as error:
            raise _kept(fingerprint, error) from error

    def arguments(fingerprint: bytes, args: list[Any], kwargs: dict[str, Any]) -> Any:
        return (fingerprint, args, kwargs), {}

    return replace(
        handler,
        short=PREFIX + handler.short,
        function=run_async if handler.is_async else run,
        arguments=checker(arguments),
        returns=None,
    )


def _kept(fingerprint: bytes, error: Exception) -> Exception:
    """What is raised in place of the error: wrong arguments leave no outcome, so they need no fingerprint."""
    return error if isinstance(error, WrongArguments) else Kept(fingerprint=fingerprint, outcome=outcomes.raised(error))


@cache
def seal_handler(handler: HandlerType) -> HandlerType:
    """A command without effect, whose outcome is that it has none."""

    def seal(_: Entity) -> None:
        raise Sealed

    def arguments() -> Any:
        return (), {}

    return replace(handler, short=PREFIX, function=seal, is_async=False, arguments=checker(arguments), returns=None)
