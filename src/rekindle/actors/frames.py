"""What processes say to each other: every frame is one msgpack list, its first item the kind.

HELLO    protocol, token, role              the first frame of whoever connects
WELCOME  protocol, app, service, incarnation, now_ms, [table]         or  GOODBYE text
CALL     [[shard, session, low, suspect, [[call, number, key, handler, args, kwargs, staleness], ...]], ...]
ANSWER   [[call, outcome], ...]             outcomes: rekindle.actors.outcomes
TABLE    [control term, version], {service: [[address, assignment] | None, ...]}, {service: {shard: why it is kept down}}
ASK      (nothing)                          answered by TABLE
ASSIGN   control term, [[shard, number, [term, offset, sequence], suspect, [[session, number], ...]], ...]
RELEASE  control term, [[shard, number], ...]
FOLLOW   control term, [[shard, [term, offset, sequence]], ...]     all that it is to follow: others end, missing ones begin
SERVING  shard, number, [term, offset, sequence], [ms from ASSIGN to its claim, ms from ASSIGN to the end of its replay]
LOST     shard, number, reason, error class | None, [term, offset, sequence], assignment seen
POSITIONS  [[shard, number, [term, offset, sequence]], ...], {shard: calls that came while it was not served here}
FOLLOWED   [[shard, [term, offset, sequence], caught up], ...]     at once when one has caught up; all of them with POSITIONS
UNFOLLOWED shard, reason, error class      a follower ended by itself; the next FOLLOW that names the shard begins it again
TELL     control term, id, operation, args          the sidecar's operation; id names it among all of all controllers
TOLD     id, [true, value] | [error class, text]
PULSE    incarnation, loop lag in ms, [session, number, text, held ms] | None, resident bytes
BEGAN    session, number, text              a suspect call, or (no session) a suspect shard's replay
ENDED    session, number
"""

from __future__ import annotations

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

CLIENT: Final = "client"
CONTROLLER: Final = "controller"


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
