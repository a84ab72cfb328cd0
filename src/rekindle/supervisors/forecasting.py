"""A dry run: suppose a failure, ask the policies, rehearse their plans, ask again, until nothing remains to be done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from rekindle.supervisors.control import KEY, Control
from rekindle.supervisors.incidents import Evidence, Incident
from rekindle.supervisors.planning import Planning
from rekindle.supervisors.plans import Plan
from rekindle.supervisors.policies import delayed
from rekindle.supervisors.prediction import Prediction, parsed, predict_all, suppose
from rekindle.supervisors.report import Forecast
from rekindle.supervisors.reporting import plan_report
from rekindle.supervisors.world import World

ROUNDS_MAX: Final = 64
"""How often policies are asked again. A drain moves a few shards in each round."""


async def forecast(
    asked: str, world: World, planning: Planning, offload: Callable[[Callable[[], bytes]], Awaitable[bytes]]
) -> Forecast:
    """What would be done if this happened now, and what it would cost; `asked` is like `node-dead:a`.

    Raises `NotSupposable`, `Unknown`.
    """
    incident, after, delay_ms = suppose(world, *parsed(asked))
    untried = Control.describe().new(KEY)
    assert isinstance(untried, Control), f"the control log's entity is a {type(untried).__name__}"
    notes: list[Evidence] = []
    plans: list[Plan] = []
    costs: list[Prediction] = []
    for _ in range(ROUNDS_MAX):
        found = await planning.answers(incident, untried, after, set(), notes.append)
        if not found:
            break
        if any(plan.is_own for plan in found):  # as in `Control.propose`: it decides in place of the supervisors
            incident = incident.model_copy(update={"restart": [], "restart_ms": {}})
        found = [delayed(plan, world.now_ms + delay_ms) if delay_ms else plan for plan in found]
        costs.append(await _predicted(found, after, offload))
        after = costs[-1].world
        plans += found
        if costs[-1].blocked:
            break
    return Forecast(
        asked=asked,
        kind=incident.kind,
        services=incident.services,
        instances=incident.instances,
        nodes=incident.nodes,
        plans=[plan_report(plan.model_copy(update={"id": number})) for number, plan in enumerate(plans, 1)],
        shards_moved=sum(cost.shards_moved for cost in costs),
        recovery_s=_recovery_s(costs, after, incident),
        over_s=round(sum(cost.over_s for cost in costs), 3),
        lowest_availability=min((cost.lowest_availability for cost in costs), default=_availability(after, incident)),
        blocked=[text for cost in costs for text in cost.blocked],
        notes=list(dict.fromkeys(note.text for note in notes)),
    )


async def _predicted(
    plans: list[Plan], world: World, offload: Callable[[Callable[[], bytes]], Awaitable[bytes]]
) -> Prediction:
    """Off the loop: a rehearsal of ten thousand shards takes seconds, and whoever leads has other things to do."""
    answer: list[Prediction] = []

    def ask() -> bytes:
        answer.append(predict_all(plans, world))
        return b""

    await offload(ask)
    return answer[0]


def _recovery_s(costs: list[Prediction], world: World, incident: Incident) -> float | None:
    """Seconds until the last round in which something was not served has served it."""
    recovery_s = 0.0 if _availability(world, incident) == 1.0 or costs else None
    before_s = 0.0
    for cost in costs:
        if cost.recovery_s is None:
            recovery_s = None
        elif cost.recovery_s > 0:
            recovery_s = round(before_s + cost.recovery_s, 3)
        before_s += cost.over_s
    return recovery_s


def _availability(world: World, incident: Incident) -> float:
    """The share of the incident's services' shards that is served."""
    shards = [shard for name in incident.services for shard in world.services[name].shards]
    return sum(shard.served for shard in shards) / len(shards) if shards else 1.0
