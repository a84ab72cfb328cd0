"""What operators say to a running application: `status`, `tree`, `incidents`, `plan`, `explain`, and the verbs.

Each command is a question to the leader, over the wire; it is found through the application's log, and Ray is not needed.
A command is written as an async function of an `Operator`; `_command` adds the options that all of them share.
"""

from __future__ import annotations

import asyncio
import getpass
import inspect
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import StrEnum
from typing import Annotated, Any, Final, TypeVar, get_type_hints

import typer
from pydantic import BaseModel
from rich.console import Console, RenderableType

from rekindle import showing
from rekindle.actors import WebsocketWire
from rekindle.app import TOKEN_VARIABLE
from rekindle.supervisors import Operator, leader, load, opened
from rekindle.supervisors.operators import DEADLINE_S
from rekindle.supervisors.prediction import SUPPOSABLE
from rekindle.supervisors.report import Explanation, Forecast, PlanReport, Receipt, Report, Story

T = TypeVar("T", bound=BaseModel)

APP_VARIABLE: Final = "REKINDLE_APP"
PIPE_COLUMNS: Final = 200
"""How wide a table may be where there is no terminal: wide enough that no cell is broken for `grep`."""

HEAD: Final = frozenset({"app", "at_ms", "leader", "term", "frozen"})
"""Fields that every report has."""


class Output(StrEnum):
    """How a command answers."""

    TEXT = "text"
    JSON = "json"


def _services(context: typer.Context, incomplete: str) -> list[str]:
    """Completes the name of a service, where the application is known and can be imported."""
    with suppress(Exception):  # a shell that waits for TAB is no place for an error
        app = load(context.params.get("app") or os.environ[APP_VARIABLE])
        return [service.name for service in app.services if service.name.startswith(incomplete)]
    return []


def _supposable(incomplete: str) -> list[str]:
    return [kind for text in SUPPOSABLE if (kind := text.partition(":")[0] + ":").startswith(incomplete)]


AppOption = Annotated[str, typer.Option("--app", envvar=APP_VARIABLE, help="the application, as module:app")]
LogOption = Annotated[
    str | None, typer.Option("--log", help="another log than the application's own: kafka://host:port or a path")
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="for people, or for programs")]
WithinOption = Annotated[float, typer.Option("--within", min=0.1, help="seconds until an answer must be there")]

ServiceArgument = Annotated[str, typer.Argument(help="a service's name", autocompletion=_services)]
NodeArgument = Annotated[str, typer.Argument(help="a node, as `rekindle status` names it")]
PlanArgument = Annotated[int, typer.Argument(help="a plan's number")]
StepArgument = Annotated[int, typer.Argument(help="a step's number in its plan")]
ReasonOption = Annotated[str, typer.Option("--reason", help="why; it is kept, with your name")]
WhoOption = Annotated[str, typer.Option("--who", help="your name", show_default="the user of this machine")]

commands = typer.Typer()


# --- how a command is run -------------------------------------------------------------------------------------------


def _command(
    show: Callable[[Any], RenderableType], *parts: str
) -> Callable[[Callable[..., Awaitable[T]]], Callable[..., Awaitable[T]]]:
    """Make a question a command: with the shared options, answered in text by `show`, or as JSON. parts: of a report."""

    def decorate(question: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        def run(
            app: AppOption,
            log: LogOption = None,
            output: OutputOption = Output.TEXT,
            within: WithinOption = DEADLINE_S,
            **own: Any,
        ) -> None:
            answer = asyncio.run(_asked(app, log, within, lambda operator: question(operator, **own)))
            if output is Output.JSON:
                include = {*HEAD, *parts} if isinstance(answer, Report) else None
                typer.echo(answer.model_dump_json(indent=2, include=include))
            else:
                console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False)
                console.print(show(answer))

        _, *own_parameters = inspect.signature(question).parameters.values()
        *shared, _ = inspect.signature(run).parameters.values()
        hints = {**get_type_hints(question, include_extras=True), **get_type_hints(run, include_extras=True)}
        parameters = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
            for parameter in (*own_parameters, *shared)
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__doc__ = question.__doc__
        commands.command(question.__name__)(run)
        return question

    return decorate


async def _asked(app: str, log: str | None, within_s: float, question: Callable[[Operator], Awaitable[T]]) -> T:
    loaded = load(app)
    async with opened(log or loaded.log, loaded.snapshots, loaded.name) as (event_log, store):
        found = leader(loaded.name, event_log, store)
        token = os.environ.get(TOKEN_VARIABLE)
        async with Operator(loaded.name, found, WebsocketWire(), token, within_s) as operator:
            return await question(operator)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"uid {os.getuid()}"


async def _say(operator: Operator, verb: str, target: str, who: str, reason: str, *args: Any) -> Receipt:
    who = who or _user()
    answer = await operator.say(verb, who, reason, *args)
    return Receipt(verb=verb, target=target, who=who, reason=reason, answer=answer)


# --- questions ------------------------------------------------------------------------------------------------------


@_command(showing.status, "services", "nodes", "instances", "incidents", "plans")
async def status(operator: Operator) -> Report:
    """How the application is: services, nodes, instances, open incidents, active plans."""
    return await operator.look(["services", "nodes", "instances", "incidents", "plans"])


@_command(showing.tree, "tree")
async def tree(operator: Operator) -> Report:
    """The supervision tree: supervisors and services, each with how it stands."""
    return await operator.look(["tree"])


@_command(showing.incidents, "incidents")
async def incidents(operator: Operator) -> Report:
    """The incidents that are kept, the newest first."""
    return await operator.look(["incidents"])


@_command(showing.story)
async def incident(operator: Operator, number: Annotated[int, typer.Argument(help="an incident's number")]) -> Story:
    """One incident: when it got how far, with durations, and what happened in order."""
    return await operator.incident(number)


def _show_plan(answer: Report | PlanReport | Forecast) -> RenderableType:
    match answer:
        case Report():
            return showing.plans(answer)
        case PlanReport():
            return showing.plan(answer)
        case Forecast():
            return showing.forecast(answer)


@_command(_show_plan, "plans")
async def plan(
    operator: Operator,
    number: Annotated[int | None, typer.Argument(help="a plan's number; default: all that are active")] = None,
    incident: Annotated[
        str | None,
        typer.Option(
            help=f"dry run: what would be done if this happened; nothing is touched. One of {', '.join(SUPPOSABLE)}",
            autocompletion=_supposable,
        ),
    ] = None,
) -> Any:
    """The active plans with their steps, and why a step does not go on; one plan; or a dry run of a failure."""
    if number is not None and incident is not None:
        raise typer.BadParameter("a plan's number, or --incident, but not both")
    if incident is not None:
        return await operator.suppose(incident)
    return await (operator.look(["plans"]) if number is None else operator.plan(number))


@_command(showing.explanation)
async def explain(
    operator: Operator,
    target: Annotated[
        str, typer.Argument(help="a service, SERVICE/SHARD, an instance, a node, a supervisor, or a number")
    ],
) -> Explanation:
    """Why something is in its state, which rule fired, and which verb would change it."""
    return await operator.explain(target)


# --- verbs ----------------------------------------------------------------------------------------------------------


@_command(showing.receipt)
async def scale(
    operator: Operator,
    service: ServiceArgument,
    instances: Annotated[int, typer.Argument(help="how many it is to have")],
    reason: ReasonOption,
    who: WhoOption = "",
) -> Receipt:
    """Give a service more instances, or fewer; its shards follow."""
    return await _say(operator, "scale", service, who, reason, service, instances)


@_command(showing.receipt)
async def drain(operator: Operator, node: NodeArgument, reason: ReasonOption, who: WhoOption = "") -> Receipt:
    """Empty a node: nothing new is put on it, its instances get successors, shards move while they are served."""
    return await _say(operator, "drain", node, who, reason, node)


@_command(showing.receipt)
async def undrain(operator: Operator, node: NodeArgument, reason: ReasonOption, who: WhoOption = "") -> Receipt:
    """Let a node be used again."""
    return await _say(operator, "uncordon", node, who, reason, node)


@_command(showing.receipt)
async def pause(operator: Operator, plan: PlanArgument, reason: ReasonOption, who: WhoOption = "") -> Receipt:
    """Let no further step of a plan begin."""
    return await _say(operator, "pause", f"plan {plan}", who, reason, plan)


@_command(showing.receipt)
async def resume(operator: Operator, plan: PlanArgument, reason: ReasonOption, who: WhoOption = "") -> Receipt:
    """Let a paused plan go on."""
    return await _say(operator, "resume", f"plan {plan}", who, reason, plan)


@_command(showing.receipt)
async def retry(
    operator: Operator, plan: PlanArgument, step: StepArgument, reason: ReasonOption, who: WhoOption = ""
) -> Receipt:
    """Try a step again, with all its attempts."""
    return await _say(operator, "retry", f"plan {plan}, step {step}", who, reason, plan, step)


@_command(showing.receipt)
async def skip(
    operator: Operator, plan: PlanArgument, step: StepArgument, reason: ReasonOption, who: WhoOption = ""
) -> Receipt:
    """Leave a step out."""
    return await _say(operator, "skip", f"plan {plan}, step {step}", who, reason, plan, step)


@_command(showing.receipt)
async def force(
    operator: Operator, plan: PlanArgument, step: StepArgument, reason: ReasonOption, who: WhoOption = ""
) -> Receipt:
    """Let a step begin although its guards do not hold."""
    return await _say(operator, "force", f"plan {plan}, step {step}", who, reason, plan, step)


@_command(showing.receipt)
async def allow(
    operator: Operator,
    shard: Annotated[str, typer.Argument(help="a shard that is kept down", metavar="SERVICE/SHARD")],
    reason: ReasonOption,
    who: WhoOption = "",
) -> Receipt:
    """Let a shard that is kept down be served again."""
    service, slash, number = shard.rpartition("/")
    if not (slash and number.isdecimal()):
        raise typer.BadParameter(f"expected SERVICE/SHARD, got {shard!r}")
    return await _say(operator, "allow", shard, who, reason, service, int(number))
