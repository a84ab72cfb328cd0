"""What a supervisor does when one of its children exits: OTP's rules (`supervisor.erl`), as functions of data.

Nothing is started or stopped here, and no clock is read. The one thing to remember between two exits is the history:
which supervisor has restarted something, and when. It is data, so it survives the controller; but as in OTP it does not
survive the supervisor: one that is restarted begins with an empty history, and so do all below it.

A service is one child, however many instances it has: the exit of any instance is its exit. Restarted by a ONE_FOR_ONE
supervisor, it gets that instance back, while its others serve on; restarted as part of a group it is stopped and
started whole, because the group stands or falls together.

Two things OTP does not have: a restart may wait (`Backoff`), and services are started in the order of their needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import TypeAlias, assert_never

from rekindle.supervisors.tree import (
    Child,
    DeclarationError,
    Restart,
    Service,
    Strategy,
    Supervisor,
    dependencies,
    services_of,
    supervisors_of,
)

History: TypeAlias = Mapping[str, Sequence[int]]
"""By supervisor: when it has restarted something, in ms, the latest last."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done after an exit.

    by: the supervisor that restarts, or None if nothing is to be restarted. gave_up: the supervisors on the way to it
    that would have exceeded their restart intensity, the lowest first. stop: services to be stopped at once, with all
    of their instances, in this order; one that does not run is stopped already. start: services to be started
    afterwards, in this order, up to their declared instances, when `delay_ms` have passed. history: to be kept for
    the next exit, in place of the one that was given.
    """

    history: dict[str, list[int]]
    by: str | None = None
    gave_up: list[str] = field(default_factory=list[str])
    stop: list[str] = field(default_factory=list[str])
    start: list[str] = field(default_factory=list[str])
    delay_ms: int = 0

    @property
    def is_final(self) -> bool:
        """Whether even the root gave up: all is to be stopped until somebody has looked, and then begins anew."""
        return self.by is None and bool(self.gave_up)


def start_levels(root: Supervisor) -> list[list[str]]:
    """The services of a checked tree in levels: each is started when all of the level before are ready.

    A service is on the first level behind all that it needs; inside a level services come in the tree's order. They
    are stopped in exactly the reverse order.
    """
    needs = dependencies(root)
    position = {name: number for number, name in enumerate(needs)}
    sorter = TopologicalSorter(needs)
    sorter.prepare()
    levels: list[list[str]] = []
    while sorter.is_active():
        ready = sorter.get_ready()
        levels.append(sorted(ready, key=position.__getitem__))
        sorter.done(*ready)
    return levels


def on_exit(
    root: Supervisor, history: History, child: str, *, abnormal: bool, now_ms: int, chance: float = 0.5
) -> Verdict:
    """What OTP does when this child exits: a service, or a supervisor below the root that somebody has given up.

    The supervisor above it restarts by its strategy. If that would be more than its `max_restarts` within its
    `within`, it gives up, and the one above that restarts it in turn; supervisors are permanent children. chance: a
    number in [0, 1) that places the delay within its jitter. Raises `DeclarationError` for a child that is not there.
    """
    way = _way_up(root, child)
    if not way:
        raise DeclarationError(f"expected a child of the tree {root.name!r}, got {child!r}")
    recent = _all_recent(root, history, now_ms)
    if not _is_restarted(way[0][1], abnormal):
        return Verdict(recent)
    gave_up: list[str] = []
    for supervisor, exited in way:
        times = recent.get(supervisor.name, [])
        if _may_restart(supervisor, times, now_ms):
            stop, start = _stop_and_start(root, supervisor, exited)
            delay_ms = supervisor.backoff.delay_ms(len(_in_a_row(supervisor, times, now_ms)), chance)
            noted = _noted(recent, supervisor, exited, now_ms)
            return Verdict(noted, supervisor.name, gave_up, stop, start, delay_ms)
        gave_up.append(supervisor.name)
    return Verdict({}, None, gave_up, stop=_start_order(root)[::-1])


def _way_up(supervisor: Supervisor, name: str) -> list[tuple[Supervisor, Child]]:
    """The supervisors above a child, the lowest first, each with its own child on the way."""
    for child in supervisor.children:
        if child.name == name:
            return [(supervisor, child)]
        if isinstance(child, Supervisor) and (way := _way_up(child, name)):
            return [*way, (supervisor, child)]
    return []


def _is_restarted(child: Child, abnormal: bool) -> bool:
    if isinstance(child, Supervisor):
        return True
    match child.restart:
        case Restart.PERMANENT:
            return True
        case Restart.TRANSIENT:
            return abnormal
        case Restart.TEMPORARY:
            return False
        case _:
            assert_never(child.restart)


def _stop_and_start(root: Supervisor, supervisor: Supervisor, exited: Child) -> tuple[list[str], list[str]]:
    group = _group(supervisor, exited)
    whole = set[str]() if _is_one_instance(supervisor, exited) else _names(group)
    back = _names([child for child in group if _comes_back(child)])
    order = _start_order(root)
    return [name for name in order[::-1] if name in whole], [name for name in order if name in back]


def _group(supervisor: Supervisor, exited: Child) -> Sequence[Child]:
    """The children that its strategy restarts together."""
    match supervisor.strategy:
        case Strategy.ONE_FOR_ONE:
            return [exited]
        case Strategy.ONE_FOR_ALL:
            return supervisor.children
        case Strategy.REST_FOR_ONE:
            names = [child.name for child in supervisor.children]
            return supervisor.children[names.index(exited.name) :]
        case _:
            assert_never(supervisor.strategy)


def _is_one_instance(supervisor: Supervisor, exited: Child) -> bool:
    """Whether only the instance that exited is at stake."""
    return supervisor.strategy is Strategy.ONE_FOR_ONE and isinstance(exited, Service)


def _comes_back(child: Child) -> bool:
    """Whether it is started again after a stop. A supervisor is, and then starts its temporary children, too."""
    return isinstance(child, Supervisor) or child.restart is not Restart.TEMPORARY


def _names(children: Sequence[Child]) -> set[str]:
    return {service.name for child in children for service in services_of(child)}


def _start_order(root: Supervisor) -> list[str]:
    return [name for level in start_levels(root) for name in level]


# The history: times in ms, the latest last


def _all_recent(root: Supervisor, history: History, now_ms: int) -> dict[str, list[int]]:
    """The history as far as it can still matter to this tree."""
    every = {
        supervisor.name: _recent(supervisor, history.get(supervisor.name, ()), now_ms)
        for supervisor in root.supervisors()
    }
    return {name: times for name, times in every.items() if times}


def _noted(recent: dict[str, list[int]], supervisor: Supervisor, exited: Child, now_ms: int) -> dict[str, list[int]]:
    """The history with one more restart by this supervisor; the supervisors that it restarts begin anew."""
    anew = {below.name for child in _group(supervisor, exited) for below in supervisors_of(child)}
    times = [*recent.get(supervisor.name, []), now_ms][-_kept_max(supervisor) :]
    return {name: kept for name, kept in recent.items() if name not in anew} | {supervisor.name: times}


def _may_restart(supervisor: Supervisor, times: Sequence[int], now_ms: int) -> bool:
    """Whether one more restart stays within the intensity. As in OTP the window includes both of its ends."""
    return len(_in_window(supervisor, times, now_ms)) < supervisor.max_restarts


def _in_window(supervisor: Supervisor, times: Sequence[int], now_ms: int) -> Sequence[int]:
    return [at for at in times if now_ms - at <= 1000 * supervisor.within]


def _in_a_row(supervisor: Supervisor, times: Sequence[int], now_ms: int) -> Sequence[int]:
    """The restarts since all was well for the backoff's `reset_after_s`."""
    first, later = len(times), now_ms
    while first and later - times[first - 1] < 1000 * supervisor.backoff.reset_after_s:
        first -= 1
        later = times[first]
    return times[first:]


def _recent(supervisor: Supervisor, times: Sequence[int], now_ms: int) -> list[int]:
    """What can still matter: to the intensity or to the backoff. Older restarts are forgotten.

    A time after now counts as now: clocks differ between controllers, and a future restart would never grow old.
    """
    past = [min(at, now_ms) for at in times]
    longer = max(_in_window(supervisor, past, now_ms), _in_a_row(supervisor, past, now_ms), key=len)
    return list(longer[-_kept_max(supervisor) :])


def _kept_max(supervisor: Supervisor) -> int:
    """How many of the latest restarts decide everything: more of them change neither the intensity nor the pause."""
    return max(supervisor.max_restarts, len(supervisor.backoff.pauses_s) - 1)
