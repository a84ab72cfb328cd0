"""Evidence, and the incidents that it adds up to: correlated failures are one story, with one number.

    a closed socket, missed pulses, a hung handler ...  ->  Evidence  ->  the Incident it belongs to, which grows

Pure: `absorb` says what an incident becomes with one more piece of evidence; the controller writes it into its log.
Evidence is not truth: a kind is what it looks like now, and changes as evidence comes in; the number stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final

from pydantic import BaseModel

CORRELATE_MS: Final = 2_000
"""Evidence this close to an incident's last, with a node, zone or dependency in common, belongs to it."""

AT_ONCE_MS: Final = 500
"""Two instances that die this close to each other, and leave nothing running on their node, have died with it."""

EVIDENCE_MAX: Final = 64
"""Pieces that an incident keeps: the first ones tell how it began; those behind are only counted."""

MASS_MIN: Final = 3
MASS_SHARE: Final = 0.34
"""Lost nodes (at least `MASS_MIN`, and this share of all) make a mass failure (orchestration 8.2, `mass_freeze`)."""

FLAPS_MIN: Final = 3
FLAP_WINDOW_MS: Final = 600_000
"""A node that was taken for dead so often within this time flaps."""


OPEN_MAX: Final = 100
"""Open incidents; evidence that belongs to none of so many is added to the newest one of its sort."""

NAMES_MAX: Final = 10_000
"""Services, instances, nodes and zones, of each, that an incident keeps."""


class Signal(StrEnum):
    """What was noticed."""

    CLOSED = "connection closed"
    SILENT = "no pulse"
    HUNG = "hung"
    NODE_GONE = "node gone"
    SAID_DEAD = "the cluster says so"
    FENCED = "fenced"
    SLOW = "slow"
    POISON = "poison"
    LOG_AWAY = "log away"
    BUSY = "busy"
    ASKED = "asked for"
    ENDED = "ended by itself"
    POLICY_FAILED = "policy failed"


class Kind(StrEnum):
    """What it looks like."""

    INSTANCE_CRASH = "instance-crash"
    INSTANCE_HANG = "instance-hang"
    GRAY = "gray"
    POISON = "poison"
    NODE_SUSPECT = "node-suspect"
    NODE_DEAD = "node-dead"
    ZONE_DOWN = "zone-down"
    MASS_FAILURE = "mass-failure"
    FLAPPING = "flapping"
    LOG_UNAVAILABLE = "log-unavailable"
    OVERLOAD = "overload"
    PLANNED_DRAIN = "planned-drain"
    POLICY_FAILED = "policy-failed"


class Evidence(BaseModel):
    """One thing that was noticed, and what it was noticed of."""

    at_ms: int
    signal: Signal
    text: str
    service: str = ""
    incarnation: str = ""
    node: str = ""
    zone: str = ""
    shard: int | None = None


class Incident(BaseModel):
    """Failures that belong together. changed_ms: of the last evidence. outcome: how it ended; None while it is open.

    deaths: by node, when the last two instances died on it. gone: nodes that the cluster does not have any more. restart: services that are restarted over it, as their
    supervisors decided, in stop order; restart_ms: what of each of them was started before is to be restarted. marks: when
    what was reached for the first time, by name, for its timeline.
    """

    id: int
    kind: Kind
    opened_ms: int
    changed_ms: int
    evidence: list[Evidence]
    count: int = 1
    services: list[str] = []
    instances: list[str] = []
    nodes: list[str] = []
    zones: list[str] = []
    deaths: dict[str, list[int]] = {}
    gone: list[str] = []
    restart: list[str] = []
    restart_ms: dict[str, int] = {}
    marks: dict[str, int] = {}
    closed_ms: int | None = None
    outcome: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether it goes on."""
        return self.closed_ms is None

    @property
    def died_ms(self) -> int:
        """When an instance died last."""
        return max((times[-1] for times in self.deaths.values()), default=self.opened_ms)


class Ground(BaseModel):
    """What is needed to see a pattern: zone of each node, alive nodes, instances alive on each node, past deaths of nodes."""

    zones: dict[str, str]
    alive: list[str]
    running: dict[str, int] = {}
    flaps: dict[str, list[int]] = {}
    related: dict[str, list[str]] = {}
    """By service: those that it needs, or that need it."""


_OF_SIGNAL: Final[Mapping[Signal, Kind]] = {
    Signal.CLOSED: Kind.INSTANCE_CRASH,
    Signal.SAID_DEAD: Kind.INSTANCE_CRASH,
    Signal.ENDED: Kind.INSTANCE_CRASH,
    Signal.FENCED: Kind.INSTANCE_CRASH,
    Signal.SILENT: Kind.NODE_SUSPECT,
    Signal.HUNG: Kind.INSTANCE_HANG,
    Signal.NODE_GONE: Kind.NODE_DEAD,
    Signal.SLOW: Kind.GRAY,
    Signal.POISON: Kind.POISON,
    Signal.LOG_AWAY: Kind.LOG_UNAVAILABLE,
    Signal.BUSY: Kind.OVERLOAD,
    Signal.ASKED: Kind.PLANNED_DRAIN,
    Signal.POLICY_FAILED: Kind.POLICY_FAILED,
}

_APART: Final = frozenset({Signal.ASKED, Signal.POISON, Signal.SLOW, Signal.BUSY, Signal.POLICY_FAILED})
"""Never part of another incident: nobody's death explains them."""

_NO_DEATH: Final = _APART | {Signal.LOG_AWAY}

OF_NODES: Final = frozenset({Signal.SILENT, Signal.NODE_GONE})
"""What is said of a node, not of what runs on it."""


def home_of(evidence: Evidence, open_incidents: Iterable[Incident], ground: Ground) -> Incident | None:
    """The open incident that the evidence belongs to; the newest of several."""
    known = [incident for incident in open_incidents if incident.is_open]
    fitting = [incident for incident in known if _belongs(evidence, incident, ground)]
    if not fitting and len(known) >= OPEN_MAX:
        fitting = [incident for incident in known if _is_of_sort(evidence, incident)]
    return max(fitting, key=lambda incident: incident.id, default=None)


def _is_of_sort(evidence: Evidence, incident: Incident) -> bool:
    signal = incident.evidence[0].signal
    return evidence.signal is signal or _APART.isdisjoint({evidence.signal, signal})


def _belongs(evidence: Evidence, incident: Incident, ground: Ground) -> bool:
    signal = incident.evidence[0].signal
    if evidence.signal in _APART or signal in _APART:
        same = (evidence.service, evidence.incarnation, evidence.node, evidence.shard)
        return evidence.signal == signal and any(
            (e.service, e.incarnation, e.node, e.shard) == same for e in incident.evidence
        )
    if evidence.incarnation and evidence.incarnation in incident.instances:
        return True
    if evidence.signal is Signal.NODE_GONE and evidence.node in incident.nodes:  # a cluster may notice late
        return True
    if evidence.at_ms - incident.changed_ms > CORRELATE_MS:
        return False
    related = {evidence.service, *ground.related.get(evidence.service, ())} - {""}
    return (
        (evidence.node != "" and evidence.node in incident.nodes)
        or (evidence.zone != "" and evidence.zone in incident.zones)
        or not related.isdisjoint(incident.services)
    )


def begin(number: int, evidence: Evidence, ground: Ground) -> Incident:
    """A new incident of one piece of evidence."""
    empty = Incident(
        id=number,
        kind=_OF_SIGNAL[evidence.signal],
        opened_ms=evidence.at_ms,
        changed_ms=evidence.at_ms,
        evidence=[],
        count=0,
    )
    return grown(empty, evidence, ground)


def grown(incident: Incident, evidence: Evidence, ground: Ground) -> Incident:
    """The incident with one more piece of evidence."""
    bigger = incident.model_copy(
        update={
            "evidence": [*incident.evidence, evidence][:EVIDENCE_MAX],
            "count": incident.count + 1,
            "changed_ms": max(incident.changed_ms, evidence.at_ms),
            "services": _with(incident.services, evidence.service),
            "instances": _with(incident.instances, evidence.incarnation),
            "nodes": _with(incident.nodes, evidence.node),
            "zones": _with(incident.zones, evidence.zone),
            "deaths": _with_death(incident, evidence),
            "gone": _with(incident.gone, evidence.node if evidence.signal is Signal.NODE_GONE else ""),
        }
    )
    return bigger.model_copy(update={"kind": kind_of(bigger, ground)})


def _with(names: list[str], name: str) -> list[str]:
    return names if not name or name in names or len(names) >= NAMES_MAX else [*names, name]


def _with_death(incident: Incident, evidence: Evidence) -> dict[str, list[int]]:
    """Kept apart from the evidence, of which only the first pieces are kept: a zone is lost, however many died in it."""
    if evidence.signal in _NO_DEATH or not evidence.incarnation or evidence.incarnation in incident.instances:
        return incident.deaths
    return {**incident.deaths, evidence.node: [*incident.deaths.get(evidence.node, ()), evidence.at_ms][-2:]}


def kind_of(incident: Incident, ground: Ground) -> Kind:
    """What the incident looks like: the widest pattern that its evidence fits."""
    signals = {evidence.signal for evidence in incident.evidence}
    if len(signals) == 1 and signals <= _NO_DEATH:  # a death that comes with it weighs more
        return _OF_SIGNAL[incident.evidence[0].signal]
    lost = _lost_nodes(incident, ground)
    if is_mass(lost, ground):
        return Kind.MASS_FAILURE
    if any(_zone_is_lost(zone, lost, ground) for zone in incident.zones):
        return Kind.ZONE_DOWN
    if any(_flaps(incident, node, ground) for node in incident.nodes):
        return Kind.FLAPPING
    if lost:
        return Kind.NODE_DEAD
    return next((_OF_SIGNAL[s] for s in (Signal.HUNG, Signal.SILENT) if s in signals), Kind.INSTANCE_CRASH)


def _lost_nodes(incident: Incident, ground: Ground) -> list[str]:
    """Nodes of the incident that are gone: the cluster says so, or its instances died all at once."""
    return [
        node
        for node in incident.nodes
        if node in incident.gone
        or node not in ground.alive
        or (not ground.running.get(node) and _died_at_once(incident, node))
    ]


def _died_at_once(incident: Incident, node: str) -> bool:
    """Whether the last two deaths on a node were one."""
    last = incident.deaths.get(node, ())
    return len(last) == 2 and last[1] - last[0] <= AT_ONCE_MS


def _flaps(incident: Incident, node: str, ground: Ground) -> bool:
    """Whether the node was taken for dead now, and often enough before: this time is counted once, whenever it is noted."""
    known = recent(ground.flaps.get(node, ()), incident.opened_ms)
    before = [at for at in known if incident.opened_ms - at > CORRELATE_MS]
    now = any(e.node == node and e.signal in OF_NODES for e in incident.evidence)
    return now and len(before) + 1 >= FLAPS_MIN


def is_mass(lost: Sequence[str], ground: Ground) -> bool:
    """Whether so many nodes are lost at once that what can wait must wait."""
    total = len({*ground.alive, *lost})
    return len(lost) >= max(MASS_MIN, MASS_SHARE * total)


def _zone_is_lost(zone: str, lost: Sequence[str], ground: Ground) -> bool:
    members = {node for node, its_zone in ground.zones.items() if its_zone == zone}
    return len(members) > 1 and members <= {*lost, *(n for n in members if n not in ground.alive)}


def recent(times_ms: Iterable[int], now_ms: int) -> list[int]:
    """Those within the window in which a node's deaths are counted."""
    return [at for at in times_ms if now_ms - at < FLAP_WINDOW_MS]
