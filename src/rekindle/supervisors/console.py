"""The console: where a controller's process answers operators, over the same wire as everything else.

An operator says HELLO as everybody does, then asks; each question is answered once, in the words of `outcomes`:

    look [parts]   incident N   plan N   suppose KIND:TARGET   explain TARGET             only look: number 0, no session
    scale  drain  uncordon  allow  pause  resume  retry  skip  force                      commands of `Control`

Invariants:
- Only a process that leads answers; any other says who does, as far as it knows, and has touched nothing.
- A verb is a command of the control log under its operator's own session and number: asked again, here or at the next
  leader, it is answered again and not done again.
- What only looks is answered from memory, also while the log is away. So a leader that was fenced and has not noticed yet,
  as after a freeze, may be seen for a moment; a verb said to it finds out.
- Only the verbs above reach `Control`; what else it can be told is the controller's own business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import BaseModel

from rekindle.actors import (
    BadRequest,
    CallError,
    Closed,
    CommandFailed,
    Connection,
    Host,
    Listening,
    Rejected,
    outcomes,
    require_token,
)
from rekindle.actors.frames import OPERATE, OPERATOR, PROTOCOL, WELCOME, BadFrame, frame, parse, why_refused
from rekindle.actors.instance import GREET_MAX_S, SESSION_BYTES_MAX
from rekindle.actors.link import Link
from rekindle.events import RekindleError, pack
from rekindle.supervisors.control import CONTROL
from rekindle.supervisors.decisions import NotLeading
from rekindle.supervisors.discovery import leader
from rekindle.supervisors.explaining import explain
from rekindle.supervisors.forecasting import forecast
from rekindle.supervisors.report import PARTS
from rekindle.supervisors.reporting import Head, plan_known, plan_report, report_of, story_of

if TYPE_CHECKING:
    from rekindle.supervisors.controller import Controller

CONNECTIONS_MAX: Final = 64
"""Operators and dashboards at a time; one more is told so and sent away."""

GREETING_MAX: Final = 64
"""Connections above those, which are heard out so that they can be told; one more is closed without a word."""

REQUESTS_MAX: Final = 16
"""Of one connection at a time; one more is answered `BUSY`."""

ANSWER_MAX_S: Final = 10.0
"""After this the caller is told to ask again: the log, or a policy, may be slow."""

LOOK_MAX_S: Final = 1.0
"""How long a process that does not lead looks for the one that does."""

TEXT_MAX: Final = 1_000
"""Characters of a name or a reason: they get into the log."""

VERBS: Final = frozenset({"scale", "drain", "uncordon", "allow", "pause", "resume", "retry", "skip", "force"})
LOOKS: Final = frozenset({"look", "incident", "plan", "suppose", "explain"})


class Question(NamedTuple):
    """What an OPERATE frame carries. number: 0 for what only looks."""

    call: int
    session: bytes
    number: int
    low: int
    verb: str
    args: list[Any]


class Console:
    """Answers operators of one application. controller: the last one that led in this process, if any did."""

    def __init__(self, host: Host, app: str) -> None:
        self.host = host
        self.app = app
        self.controller: Controller | None = None
        self.address = ""
        self._leader_at = leader(app, host.log, host.snapshots)
        self._reading = asyncio.Lock()
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: Listening | None = None

    async def start(self, bind: str, advertise: str | None = None) -> str:
        """Listen; the address for operators. Without a token only loopback addresses are taken: raises ValueError."""
        require_token(bind, self.host.token)
        self._listening = await self.host.wire.serve(bind, self._accept)
        self.address = f"{advertise or bind.rpartition(':')[0]}:{self._listening.address.rpartition(':')[2]}"
        return self.address

    async def close(self) -> None:
        """Stop listening; who is connected is cut off."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._listening is not None:
            await self._listening.close()

    # --- connections ------------------------------------------------------------------------------------------------

    async def _accept(self, connection: Connection) -> None:
        if len(self._links) >= CONNECTIONS_MAX + GREETING_MAX:
            await connection.close()
            return
        link = Link(connection)
        self._links.add(link)
        asked: set[asyncio.Task[None]] = set()
        try:
            if await self._greet(link):
                await link.run(lambda fields: self._on_frame(link, asked, fields))
        except BadFrame as error:
            self.host.say(f"console: a connection was closed: {error}")
        except (Closed, TimeoutError):
            pass
        finally:
            self._links.discard(link)

    async def _greet(self, link: Link) -> bool:
        async with asyncio.timeout(GREET_MAX_S):
            data = await link.connection.receive()
        try:
            fields = parse(data)
        except BadFrame as error:
            await link.refuse(str(error))
            raise
        refusal = why_refused(fields, self.host.token)
        if refusal is None and fields[3] != OPERATOR:
            refusal = f"operators are served here, not a {fields[3]!r:.80}"
        if refusal is None and len(self._links) > CONNECTIONS_MAX:
            refusal = f"{CONNECTIONS_MAX} operators are connected, more are not served"
        if refusal is not None:
            await link.refuse(refusal)
            return False
        name = "" if self.controller is None else self.controller.name
        await link.connection.send(frame(WELCOME, PROTOCOL, self.app, CONTROL, name, self._now_ms(), []))
        return True

    def _now_ms(self) -> int:
        """The log's time where it is known: operators' sessions are born by it."""
        try:
            return self._leading().decisions.now_ms()
        except NotLeading:
            return self.host.now_ms()

    def _on_frame(self, link: Link, asked: set[asyncio.Task[None]], fields: list[Any]) -> None:
        if fields[0] != OPERATE or len(fields) != 1 + len(Question._fields):
            raise BadFrame(f"frame kind {fields[0]} with {len(fields) - 1} fields is not for a console")
        question = Question(*fields[1:])
        _check(question)
        if len(asked) >= REQUESTS_MAX:
            link.reply(question.call, outcomes.busy(len(asked), REQUESTS_MAX))
            return
        task = asyncio.get_running_loop().create_task(self._answer(link, question))
        for tasks in (asked, self._tasks):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    # --- answers ----------------------------------------------------------------------------------------------------

    async def _answer(self, link: Link, question: Question) -> None:
        try:
            async with asyncio.timeout(ANSWER_MAX_S):
                value = await (self._do(question) if question.number else self._look(question.verb, question.args))
            payload = pack((outcomes.OK, value))
        except (NotLeading, TimeoutError):
            payload = outcomes.moved(await self._leader_elsewhere(), 0)
        except Exception as error:  # noqa: BLE001 - a question, or a user's policy, must not end the console
            payload = self._failure(question.verb, error)
        link.reply(question.call, payload)

    def _failure(self, verb: str, error: Exception) -> bytes:
        match error:
            case Rejected():
                return outcomes.rejected(error)
            case CallError(definite=False):
                return outcomes.forgotten(str(error))
            case CallError():
                return outcomes.refused(error)
            case RekindleError():
                return outcomes.refused(BadRequest(f"{verb}: {type(error).__name__}: {error}"))
            case _:
                self.host.say(f"bug: the console cannot answer {verb}: {error!r}")
                return outcomes.refused(CommandFailed(f"{verb}: our bug, please report it: {error!r}"))

    async def _leader_elsewhere(self) -> str | None:
        """Where the leader's console is, as the control log has it; None: that is not known, or it is this one."""
        with suppress(RekindleError, TimeoutError):
            async with asyncio.timeout(LOOK_MAX_S), self._reading:  # one at a time: a replica reads for one
                address = await self._leader_at()
            return address if address != self.address else None
        return None

    def _leading(self) -> Controller:
        """The controller of this process, if it leads and has declared what there is. Raises `NotLeading`."""
        controller = self.controller
        if controller is None or not controller.decisions.leads:
            raise NotLeading("this process does not lead")
        if not controller.services.keys() <= controller.decisions.control.services.keys():
            raise NotLeading(f"controller {controller.name} has just begun")
        return controller

    async def _do(self, question: Question) -> Any:
        """Have a verb written down; the rest follows from it, in the next round."""
        controller, (_, session, number, low, verb, args) = self._leading(), question
        if long := [len(arg) for arg in args if isinstance(arg, str) and len(arg) > TEXT_MAX]:
            raise BadRequest(f"{verb}: a text of {long[0]} characters, {TEXT_MAX} are allowed")
        if verb == "drain":
            args = [*args[:3], *_place_of(controller, args)]
        answer = await controller.decisions.operate(session, number, low, verb, args)
        controller.changed.set()
        return answer

    async def _look(self, verb: str, args: list[Any]) -> BaseModel:
        controller = self._leading()
        control, world = controller.decisions.control, controller.world()
        match verb, args:
            case "look", [*parts]:
                head = Head(self.app, controller.name, controller.decisions.term)
                return report_of(head, control, world, _texts(parts) or PARTS)
            case "incident", [int(number)]:
                return story_of(control, number)
            case "plan", [int(number)]:
                return plan_report(plan_known(control, number))
            case "suppose", [str(asked)]:
                return await forecast(asked, world, controller.planning, self.host.offload)
            case "explain", [str(target)]:
                return explain(control, world, target)
            case _:
                raise BadRequest(f"{verb} is not asked with {args!r:.80}")


def _texts(parts: Sequence[Any]) -> list[str]:
    if wrong := [part for part in parts if not isinstance(part, str)]:
        raise BadRequest(f"the parts of a report are names, not {wrong!r:.80}")
    return list(parts)


def _place_of(controller: Controller, args: list[Any]) -> list[Any]:
    """What `Control` is told of the node that is to be drained: its zone, and which nodes there are."""
    node = args[2] if len(args) > 2 else None
    zone = next((known.zone for known in controller.nodes if known.name == node), "")
    return [zone, sorted(known.name for known in controller.nodes)]


def _check(question: Question) -> None:
    """These get into the log, where a wrong type would stop every reader. Raises `BadFrame`."""
    call, session, number, low, verb, args = question
    types = [type(field) for field in question]
    if types != [int, bytes, int, int, str, list] or not 0 <= low <= number or len(session) > SESSION_BYTES_MAX:
        raise BadFrame(
            f"no question: {call!r:.80}, {session!r:.80}, {number!r:.80}, {low!r:.80}, {verb!r:.80}, {args!r:.80}"
        )
    if bool(session) != (number > 0):
        raise BadFrame(f"a session and a number belong together, got {session!r} and {number}")
    if verb not in (VERBS if number else LOOKS):
        raise BadFrame(f"{verb!r:.80} is not said here; verbs: {sorted(VERBS)}, questions: {sorted(LOOKS)}")
