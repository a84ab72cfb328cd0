"""What operators get to see, as data: the contract of `--output json`, of the console's answers, and of dashboards.

    Report       app, at_ms, leader, term, frozen         always; every other field only if that part was asked for
      tree         TreeReport: supervisors and services, as declared, each with how it stands
      services     ServiceReport: wanted and up, shards served, standbys that have caught up
      instances    InstanceReport          nodes     NodeReport          shards    ShardReport
      incidents    IncidentReport, the newest first
      plans        PlanReport of those that are active, with phases, steps, and why a step does not go on
      sayings      what operators said, the newest first
    Story        one incident: its report, its timeline with durations, its evidence, its plans, what happened in order
    Forecast     a dry run: the incident as it would be, the plans, and what they are predicted to cost
    Explanation  why something is in its state: causes, rules that fired, verbs that would change it
    Receipt      what an operator has said, and what came of it

Times are milliseconds since the epoch (`..._ms`), durations are milliseconds (`took_ms`) or seconds (`..._s`). A number
names an incident or a plan, never both. Fields are added, never renamed: programs read them.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from pydantic import BaseModel

from rekindle.supervisors.decided import Saying
from rekindle.supervisors.incidents import Evidence, Kind
from rekindle.supervisors.plans import Ordering, Standing, State

PARTS: Final = ("tree", "services", "instances", "nodes", "shards", "incidents", "plans", "sayings")
"""What can be asked for of a `Report`, each by the name of its field."""


NodeState: TypeAlias = Literal["open", "cordoned", "gone"]
InstanceState: TypeAlias = Literal["up", "starting", "not answering"]
ShardState: TypeAlias = Literal["served", "replaying", "nobody's", "held", "kept down"]
"""held: it was given up a moment ago, or its replay has killed too many instances; nobody gets it for now."""

ServiceState: TypeAlias = Literal["served", "short", "unserved", "down"]
"""served: every shard is. short: every shard is, by too few instances or standbys. unserved: some are not. down: none is."""


class NodeReport(BaseModel):
    """A machine. why: the reason of its cordon."""

    name: str
    host: str
    zone: str
    state: NodeState
    why: str = ""
    instances: int = 0


class InstanceReport(BaseModel):
    """An instance that is not known to be dead. shards, follows: how many it owns, and follows as a standby."""

    name: str
    service: str
    node: str
    zone: str
    state: InstanceState
    started_ms: int
    shards: int
    follows: int


class StandbyReport(BaseModel):
    """An instance that follows a shard. behind: commits that it has not read yet; None: it has not caught up."""

    instance: str
    behind: int | None


class ShardReport(BaseModel):
    """A shard. number: of its latest assignment. waiting: calls that came for it since it is not served."""

    service: str
    shard: int
    state: ShardState
    owner: str | None
    number: int
    why: str = ""
    waiting: int = 0
    standbys: list[StandbyReport] = []


class ServiceReport(BaseModel):
    """A service. up: instances that can be given shards. standbys: of all its shards, as declared; caught_up: of these.
    plan: the active one that speaks for it."""

    name: str
    state: ServiceState
    wanted: int
    up: int
    shards: int
    served: int
    kept_down: int
    standbys: int
    caught_up: int
    needs: list[str]
    plan: int | None


class TreeReport(BaseModel):
    """A supervisor with its children, or a service. restarts: within its window of `within_s`, of `max_restarts`."""

    name: str
    sort: Literal["supervisor", "service"]
    rule: str
    state: str
    restarts: int = 0
    max_restarts: int = 0
    within_s: float = 0.0
    children: list[TreeReport] = []


class StepReport(BaseModel):
    """A step. what: what it wants to be true. began_ms: when it ran first; since_ms: when it came into its state; 0: never."""

    number: int
    what: str
    state: State
    attempt: int
    began_ms: int
    since_ms: int
    why: str
    forced: bool


class PhaseReport(BaseModel):
    """Steps that belong together. after: the phases that must be over before."""

    name: str
    ordering: Ordering
    after: list[str]
    steps: list[StepReport]


class PlanReport(BaseModel):
    """A plan. policy: where it comes from. incident: the one that it is about, or None: it is upkeep."""

    id: int
    policy: str
    cause: str
    incident: int | None
    services: list[str]
    standing: Standing
    why: str
    made_ms: int
    ended_ms: int | None
    phases: list[PhaseReport]


class IncidentReport(BaseModel):
    """An incident. evidence: how many pieces. outcome: how it ended; None while it is open. plans: their numbers."""

    id: int
    kind: Kind
    opened_ms: int
    changed_ms: int
    closed_ms: int | None
    outcome: str | None
    services: list[str]
    instances: list[str]
    nodes: list[str]
    zones: list[str]
    evidence: int
    plans: list[int]


class Moment(BaseModel):
    """When an incident got so far. took_ms: since the moment before it."""

    name: str
    at_ms: int
    took_ms: int


class Line(BaseModel):
    """Something that happened."""

    at_ms: int
    text: str


class Story(BaseModel):
    """One incident from its beginning. took_ms: from the first to the last moment of its timeline."""

    incident: IncidentReport
    timeline: list[Moment]
    took_ms: int
    evidence: list[Evidence]
    plans: list[PlanReport]
    lines: list[Line]


class Report(BaseModel):
    """Everything at one moment, or the parts of it that were asked for.

    leader: the controller that answered. term: of its claim. frozen: too much died lately, what can wait waits.
    """

    app: str
    at_ms: int
    leader: str
    term: int
    frozen: bool
    tree: TreeReport | None = None
    services: list[ServiceReport] = []
    instances: list[InstanceReport] = []
    nodes: list[NodeReport] = []
    shards: list[ShardReport] = []
    incidents: list[IncidentReport] = []
    plans: list[PlanReport] = []
    sayings: list[Saying] = []


class Forecast(BaseModel):
    """What would be done about an incident, and what it is predicted to cost. Nothing was touched.

    recovery_s: until every shard that may be served is; None: these plans do not get there. over_s: until the plans are
    over, instances replaced and all. lowest_availability: the smallest share of the services' shards that is served on
    the way. blocked: steps that would wait for an operator, or for ever. notes: what went wrong with policies.
    """

    asked: str
    kind: Kind
    services: list[str]
    instances: list[str]
    nodes: list[str]
    plans: list[PlanReport]
    shards_moved: int
    recovery_s: float | None
    over_s: float
    lowest_availability: float
    blocked: list[str]
    notes: list[str]


class Explanation(BaseModel):
    """Why something is in its state. rules: the policies and bounds that fired. verbs: commands that would change it."""

    target: str
    sort: Literal["supervisor", "service", "shard", "instance", "node", "plan", "incident"]
    state: str
    because: list[str]
    rules: list[str]
    verbs: list[str]


class Receipt(BaseModel):
    """A verb that is written down. answer: the number of the incident that it opened, if it did."""

    verb: str
    target: str
    who: str
    reason: str
    answer: int | None
