"""What processes say to each other: every frame is one msgpack list, its first item the kind.

HELLO    protocol, token, role              the first frame of whoever connects
WELCOME  protocol, app, service, incarnation, now_ms, [table]         or  GOODBYE text: it is not taken
GOODBYE  text                               of an instance to its controllers: it ends, because its work is done
CALL     [[shard, session, low, suspect, [[call, number, key, handler, args, kwargs, staleness], ...]], ...]
ANSWER   [[call, outcome], ...]             outcomes: rekindle.actors.outcomes
TABLE    [control term, version], {service: [[address, assignment] | None, ...]}, {service: {shard: why it is kept down}}
ASK      (nothing)                          answered by TABLE
ASSIGN   control term, [[shard, number, [term, offset, sequence], suspect, [[session, number], ...]], ...]
RELEASE  control term, [[shard, number], ...]
FOLLOW   control term, [[shard, [term, offset, sequence]], ...]     all that it is to follow: others end, missing ones begin
SERVING  shard, number, [term, offset, sequence], [ms from ASSIGN to its claim, ms from ASSIGN to the end of its replay]
LOST     shard, number, reason, error class | None, [term, offset, sequence], assignment seen
POSITIONS  [[shard, number, [term, offset, sequence]], ...], {shard: calls that came while it was not served here},
           calls that came for what is served here and were too many
FOLLOWED   [[shard, [term, offset, sequence], caught up], ...]     at once when one has caught up; all of them with POSITIONS
UNFOLLOWED shard, reason, error class      a follower ended by itself; the next FOLLOW that names the shard begins it again
TELL     control term, id, operation, args          the sidecar's operation; id names it among all of all controllers
TOLD     id, [true, value] | [error class, text]
PULSE    incarnation, loop lag in ms, [session, number, text, held ms] | None, resident bytes
BEGAN    session, number, text              a suspect call, or (no session) a suspect shard's replay
ENDED    session, number
OPERATE  call, session, number, low, verb, args      an operator, to a controller; answered by ANSWER. number 0: only looks
"""

from __future__ import annotations

import hmac
from typing import Any, Final

from rekindle.actors.errors import WireError
from rekindle.events import pack, unpack

PROTOCOL: Final = 1

HELLO: Final = 1
WELCOME: Final = 2
GOODBYE: Final = 3
CALL: Final = 4
ANSWER: Final = 5
TABLE: Final = 6
ASK: Final = 7
ASSIGN: Final = 8
RELEASE: Final = 9
SERVING: Final = 10
LOST: Final = 11
POSITIONS: Final = 12
PULSE: Final = 13
BEGAN: Final = 14
ENDED: Final = 15
FOLLOW: Final = 16
FOLLOWED: Final = 17
UNFOLLOWED: Final = 18
TELL: Final = 19
TOLD: Final = 20
OPERATE: Final = 21

CLIENT: Final = "client"
CONTROLLER: Final = "controller"
OPERATOR: Final = "operator"


class BadFrame(WireError):
    """The other side sent something that is no frame of this protocol."""


def frame(kind: int, *fields: Any) -> bytes:
    """The bytes of a frame."""
    return pack((kind, *fields))


def parse(data: bytes) -> list[Any]:
    """The kind and the fields of a frame. Raises `BadFrame`."""
    try:
        fields = unpack(data)
    except (ValueError, TypeError) as error:
        raise BadFrame(f"a frame of {len(data)} bytes is not msgpack: {error}") from error
    if not (isinstance(fields, list) and fields and isinstance(fields[0], int)):
        raise BadFrame(f"a frame of {len(data)} bytes has no kind: {fields!r:.80}")
    return fields  # pyright: ignore[reportUnknownVariableType]


def why_refused(hello: list[Any], token: str | None) -> str | None:
    """Why whoever says this HELLO is not let in; None if it is."""
    if len(hello) != 4 or hello[0] != HELLO:
        return f"expected HELLO, protocol, token, role; got kind {hello[0]} with {len(hello) - 1} fields"
    if hello[1] != PROTOCOL:
        return f"protocol {hello[1]!r:.80} is not spoken here, {PROTOCOL} is"
    if token is not None and not hmac.compare_digest(str(hello[2] or "").encode(), token.encode()):
        return "token refused: another token is asked for here (REKINDLE_TOKEN)"
    return None
