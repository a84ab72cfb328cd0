"""The policy: what is to be done when the primary has died, and when there is none yet. Pure, as every policy.

    the primary is gone  ->  detach all that are left  ->  promote the most advanced  ->  let the others follow it

Why this loses no write that `WAIT 1` has acknowledged: such a write was on a replica before it was acknowledged. Once all
replicas are detached, nothing can be acknowledged any more, also not by a primary that was only frozen and wakes up; so the
offsets that the replicas answer are final, and the most advanced one has every such write. The others go on from there.

What has been done already is a fact that the control log keeps (`ServiceView.told`): the policy is asked again when its plan
is over, looks at the facts and plans what remains. The last promotion also is where clients learn who the primary is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from rekindle.supervisors.incidents import Incident
from rekindle.supervisors.parts import plan_of, recover
from rekindle.supervisors.plans import ByHand, Perform, Phase, Plan, Step
from rekindle.supervisors.world import InstanceView, ServiceView, Told, World

SERVICE: Final = "redis"
STEP_MAX_S: Final = 30.0


@dataclass(frozen=True)
class Failover:
    """Of the service `redis`: the way from a dead primary to a new one."""

    name: str = "failover"

    def plan(self, incident: Incident, world: World) -> Plan | None:
        """See `Policy`. The death of a replica is left to the next policy, as it is for any service."""
        service, cause = world.services[SERVICE], f"{incident.kind}: the primary is gone"
        primary = primary_of(service.told)
        if SERVICE not in incident.services or (primary is not None and primary.incarnation in world.instances):
            return None
        if left := _attached(world, service):
            return plan_of(self.name, cause, [SERVICE], [_detach(left)])
        others = recover(world, service)  # beside the election, which may have to wait for an operator
        return plan_of(self.name, cause, [SERVICE], [*others, *_elect(world, service)])


def one_primary(world: World, name: str) -> Plan | None:
    """The upkeep: a first primary when there was none, and every instance that was started since follows it."""
    service = world.services[name]
    primary = primary_of(service.told)
    if primary is not None and primary.incarnation in world.instances:
        strangers = [i for i in world.up(name) if i.name != primary.incarnation and not _follows(i, primary, service)]
        phases = [_follow(strangers, primary.result["address"])]
    elif left := _attached(world, service):
        phases = [_detach(left)]
    else:
        phases = _elect(world, service)
    return plan_of("one_primary", f"{name}: one primary, and all others follow it", [name], phases)


# --- the facts ----------------------------------------------------------------------------------------------------------


def primary_of(told: Sequence[Told]) -> Told | None:
    """The last promotion, whether or not who was promoted lives; None: there was none."""
    return next((one for one in reversed(told) if one.operation == "promote"), None)


def _histories(primary: Told, told: Sequence[Told]) -> set[str]:
    """What the data of a primary is called. It may have begun another history when its first replica came."""
    since, whom = told[told.index(primary) :], _whom(primary.result["address"])
    return {one.result["history"] for one in since if one is primary or (one.operation, one.args) == ("follow", whom)}


def _last(instance: InstanceView, service: ServiceView) -> Told | None:
    """What the instance was told last, which is what it is now."""
    return next((one for one in reversed(service.told) if one.incarnation == instance.name), None)


def _follows(instance: InstanceView, primary: Told, service: ServiceView) -> bool:
    last = _last(instance, service)
    return last is not None and last.operation == "follow" and last.args == _whom(primary.result["address"])


def _attached(world: World, service: ServiceView) -> list[InstanceView]:
    """Those that are not known to be detached."""
    facts = [(instance, _last(instance, service)) for instance in world.up(service.name)]
    return [instance for instance, last in facts if last is None or last.operation != "detach"]


# --- the steps ----------------------------------------------------------------------------------------------------------


def _detach(instances: Sequence[InstanceView]) -> Phase:
    return Phase(name="detach", steps=[_step(instance, "detach") for instance in instances])


def _follow(instances: Sequence[InstanceView], address: str) -> Phase:
    return Phase(name="follow", steps=[_step(instance, "follow", _whom(address)) for instance in instances])


def _elect(world: World, service: ServiceView) -> list[Phase]:
    """Promote the most advanced of those that have the dead primary's data; all of them are detached.

    One that has none of it (it was just started) does not count. If more than the primary is missing, a write may have been
    on nobody but the missing ones; whether that is to be lost is not for a policy to say.
    """
    dead = primary_of(service.told)
    known = {i.name: last.result for i in world.up(service.name) if (last := _last(i, service)) is not None}
    if not known:
        return []
    heirs = [name for name, result in known.items() if dead and result["history"] in _histories(dead, service.told)]
    best = max(heirs or known, key=lambda name: (known[name]["offset"], name))
    step = _step(world.instances[best], "promote")
    if dead is not None and len(heirs) < (needed := service.wanted - 1):
        why = f"{len(heirs)} of {needed} replicas of {dead.incarnation} are left: what only a missing one has is lost"
        step.guards = [ByHand(why=why)]
    others = [instance for name, instance in sorted(world.instances.items()) if name in known and name != best]
    return [Phase(name="promote", steps=[step], after=[]), _follow(others, known[best]["address"])]


def _step(instance: InstanceView, operation: str, args: dict[str, Any] | None = None) -> Step:
    action = Perform(incarnation=instance.name, operation=operation, args=args or {})
    return Step(action=action, deadline_s=STEP_MAX_S)


def _whom(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"host": host, "port": int(port)}
