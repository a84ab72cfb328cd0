"""What callers, and those who write entities, can get back. The base is `rekindle.events.RekindleError`.

RekindleError
├── EntityDefinitionError          a class cannot be an entity; says what was expected and what was found
├── CallError                      one call went wrong; `definite` says whether it can have had an effect
│   ├── Rejected                   a business refusal: subclass it, raise it in a handler (no effect)
│   ├── CommandFailed              the handler raised; its events were undone (no effect)
│   ├── BadRequest                 the call can never work: unknown command, wrong types (no effect)
│   ├── KeyReused                  the caller's key has been used for another command (no effect)
│   ├── Overloaded                 a bounded queue was full until the deadline (no effect)
│   ├── EntityQuarantined          the entity cannot be rebuilt from its events; others go on (no effect)
│   ├── ShardRefused               the shard cannot be served; says why (no effect)
│   ├── Stale                      a local query, older than its caller allows (no effect)
│   ├── DeadlineExceeded           no answer in time and never sent (no effect)
│   └── OutcomeUnknown             no answer in time, or the session was forgotten: it may have been run
├── OrderRefused                   a controller that leads no more gave it
└── WireError                      the connection between processes
    ├── ConnectFailed              nobody there, or not who was expected
    └── TokenRefused               the wire asks for another token
"""

from __future__ import annotations

from rekindle.events.errors import RekindleError


class EntityDefinitionError(RekindleError):
    """A class cannot be used as an entity. The author of the class has to change it."""


class CallError(RekindleError):
    """A call to an entity did not give its value. `definite`: it certainly had no effect and never will have."""

    definite = True


class CommandFailed(CallError):
    """The handler raised something else than `Rejected`. Its events were undone; the entity is as before."""


class BadRequest(CallError):
    """The call can never work as it is: unknown command, wrong arguments, too large. The caller has to change it."""


class KeyReused(CallError):
    """A command came under a key that another one, or the same with other arguments, was run under. It was not run."""


class Overloaded(CallError):
    """A bounded queue was full until the caller's deadline. Trying again later is safe."""


class EntityQuarantined(CallError):
    """The entity cannot be rebuilt: its `apply` raised on an event that is in the log. Its neighbours are served on."""


class ShardRefused(CallError):
    """The shard cannot be served (a newer record, a truncated log, a poison replay); the message says which and why."""


class Stale(CallError):
    """A local query would have been older than `max_staleness` allows."""


class DeadlineExceeded(CallError):
    """No instance took the call before the caller's deadline; it was never sent."""


class OutcomeUnknown(CallError):
    """The command may have been run or not, and will never be run again: no answer came before the deadline, or the
    session it belongs to was forgotten."""

    definite = False


class OrderRefused(RekindleError):
    """What a controller told an instance to do was not done: another controller, of a higher term, leads."""


class WireError(RekindleError):
    """Something about a connection between two processes."""


class ConnectFailed(WireError):
    """Nobody answers at this address, or somebody else than expected."""


class TokenRefused(WireError):
    """The other side asks for another token (`REKINDLE_TOKEN`)."""
