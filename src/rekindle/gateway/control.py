"""The control plane over HTTP: what operators see, and what they say, in the words of the command line.

Looks are the reports of `--output json`. Verbs go through the operator's own session, so each is done once, whoever leads;
who says it, and why, is required, and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final, NamedTuple

from fastapi import Body, FastAPI, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from rekindle.gateway.access import Operating, Viewer
from rekindle.gateway.documents import problems
from rekindle.supervisors import Operator
from rekindle.supervisors.console import TEXT_MAX
from rekindle.supervisors.prediction import SUPPOSABLE
from rekindle.supervisors.report import Explanation, Forecast, PlanReport, Receipt, Report, Story

HEAD: Final = ("app", "at_ms", "leader", "term", "frozen")
STATUS: Final = ("services", "nodes", "instances", "incidents", "plans")
NUMBER_MAX: Final = (1 << 31) - 1

Number = Annotated[int, Field(ge=0, le=NUMBER_MAX)]
Name = Annotated[str, Field(min_length=1, max_length=TEXT_MAX)]
NumberPath = Annotated[int, Path(ge=0, le=NUMBER_MAX)]
Asked = Annotated[
    str, Query(min_length=1, max_length=TEXT_MAX, description=f"what is supposed: one of {', '.join(SUPPOSABLE)}")
]
Target = Annotated[
    str,
    Path(
        min_length=1,
        max_length=TEXT_MAX,
        description="a service, SERVICE/SHARD, an instance, a node, a supervisor, or a number",
    ),
]


class Said(BaseModel):
    """What every verb says: who, and why."""

    model_config = ConfigDict(extra="forbid")

    who: Name = Field(description="your name; it is kept")
    reason: Name = Field(description="why; it is kept, with your name")


class OfService(Said):
    """How many instances a service is to have."""

    service: Name
    instances: Number


class OfNode(Said):
    """What is said to a node."""

    node: Name


class OfPlan(Said):
    """What is said to a plan."""

    plan: Number


class OfStep(OfPlan):
    """What is said to a step of a plan."""

    step: Number


class OfShard(Said):
    """What is said to a shard."""

    service: Name
    shard: Number


class Verb(NamedTuple):
    """A verb: what its request says, what the controller calls it, what it is said to (a format), and what it does."""

    body: type[Said]
    verb: str
    target: str
    does: str


VERBS: Final = {
    "scale": Verb(OfService, "scale", "{service}", "Give a service more instances, or fewer."),
    "drain": Verb(OfNode, "drain", "{node}", "Empty a node; its shards move while they are served."),
    "undrain": Verb(OfNode, "uncordon", "{node}", "Let a node be used again."),
    "pause": Verb(OfPlan, "pause", "plan {plan}", "Let no further step of a plan begin."),
    "resume": Verb(OfPlan, "resume", "plan {plan}", "Let a paused plan go on."),
    "retry": Verb(OfStep, "retry", "plan {plan}, step {step}", "Try a step again."),
    "skip": Verb(OfStep, "skip", "plan {plan}, step {step}", "Leave a step out."),
    "force": Verb(OfStep, "force", "plan {plan}, step {step}", "Let a step begin without its guards."),
    "allow": Verb(OfShard, "allow", "{service}/{shard}", "Let a shard that is kept down be served."),
}


def add_control(app: FastAPI, operator: Operator) -> None:
    """The routes of all looks and verbs."""
    _add_looks(app, operator)
    for name, verb in VERBS.items():
        _add_verb(app, operator, name, verb)


def _add_verb(app: FastAPI, operator: Operator, name: str, verb: Verb) -> None:
    async def say(body: Any, caller: Operating) -> Receipt:
        args = [value for field, value in body if field not in Said.model_fields]
        answer = await operator.say(verb.verb, body.who, body.reason, *args)
        return Receipt(
            verb=verb.verb, target=verb.target.format(**dict(body)), who=body.who, reason=body.reason, answer=answer
        )

    say.__annotations__["body"] = Annotated[verb.body, Body()]
    app.add_api_route(
        f"/v1/control/{name}",
        say,
        methods=["POST"],
        summary=name,
        description=f"{verb.does} It is done once, whoever leads.",
        operation_id=f"control-{name}",
        tags=["control"],
        responses=problems(400, 404, 409, 413, 422, 429, 503, 504),
    )


def _add_looks(app: FastAPI, operator: Operator) -> None:
    def part(path: str, name: str, summary: str, *parts: str) -> None:
        async def look(caller: Viewer) -> Report:
            return await operator.look(parts)

        included = {*HEAD, *parts}
        _add(app, path, name, summary, look, 429, 503, response_model_include=included)

    part("/v1/status", "status", "How the application is.", *STATUS)
    part("/v1/tree", "tree", "The supervision tree, each part with how it stands.", "tree")
    part("/v1/incidents", "incidents", "The incidents that are kept, the newest first.", "incidents")
    part("/v1/plans", "plans", "The active plans, and why a step does not go on.", "plans")

    async def incident(number: NumberPath, caller: Viewer) -> Story:
        return await operator.incident(number)

    async def forecast(incident: Asked, caller: Viewer) -> Forecast:
        return await operator.suppose(incident)

    async def plan(number: NumberPath, caller: Viewer) -> PlanReport:
        return await operator.plan(number)

    async def explain(target: Target, caller: Viewer) -> Explanation:
        return await operator.explain(target)

    answers = (404, 409, 422, 429, 503)
    _add(app, "/v1/incidents/{number}", "incident", "One incident: when it got how far, and why.", incident, *answers)
    _add(app, "/v1/plans/forecast", "forecast", "What would be done; nothing is touched.", forecast, *answers)
    _add(app, "/v1/plans/{number}", "plan", "A plan, also one that is over.", plan, *answers)
    _add(app, "/v1/explain/{target:path}", "explain", "Why something is in its state.", explain, *answers)


def _add(
    app: FastAPI,
    path: str,
    name: str,
    summary: str,
    endpoint: Callable[..., Coroutine[Any, Any, Any]],
    *statuses: int,
    **options: Any,
) -> None:
    app.add_api_route(
        path,
        endpoint,
        methods=["GET"],
        summary=summary,
        operation_id=name,
        tags=["control"],
        responses=problems(*statuses),
        **options,
    )
