"""Services, supervisors and the controller that keeps them running.

Reading order: `tree` (what users declare), `control` (what is decided), `ward` (what is seen), `controller` (what is
done), `cluster` (by whom: `ray_cluster`, `processes`), `hosting` (what runs in a process). For operators: `report` (what
they see), `console` (who answers), `operators` (who asks), `prediction` (what would happen).
"""

from rekindle.supervisors.candidate import Candidate
from rekindle.supervisors.cluster import Cluster, Node, Spawned, SpawnFailed
from rekindle.supervisors.console import Console
from rekindle.supervisors.control import Control, control_log
from rekindle.supervisors.controller import Controller
from rekindle.supervisors.decisions import NotLeading
from rekindle.supervisors.discovery import decided, leader, seeds
from rekindle.supervisors.hosting import ControllerThread, InstanceThread, Launch, load, opened
from rekindle.supervisors.incidents import Incident, Kind
from rekindle.supervisors.operators import Operator
from rekindle.supervisors.plans import Own, Perform, Phase, Plan, Start, Step, Stop
from rekindle.supervisors.policies import CoordinatedRestart, Policy, PromoteStandby, Replace, Reshuffle
from rekindle.supervisors.processes import ProcessCluster
from rekindle.supervisors.restarts import History, Verdict, on_exit, start_levels
from rekindle.supervisors.tree import (
    ONE_FOR_ALL,
    ONE_FOR_ONE,
    PERMANENT,
    REST_FOR_ONE,
    TEMPORARY,
    TRANSIENT,
    Backoff,
    DeclarationError,
    Restart,
    Service,
    Strategy,
    Supervisor,
    check_tree,
)
from rekindle.supervisors.world import World

__all__ = [
    "ONE_FOR_ALL",
    "ONE_FOR_ONE",
    "PERMANENT",
    "REST_FOR_ONE",
    "TEMPORARY",
    "TRANSIENT",
    "Backoff",
    "Candidate",
    "Cluster",
    "Console",
    "Control",
    "Controller",
    "ControllerThread",
    "CoordinatedRestart",
    "DeclarationError",
    "History",
    "Incident",
    "InstanceThread",
    "Kind",
    "Launch",
    "Node",
    "NotLeading",
    "Operator",
    "Own",
    "Perform",
    "Phase",
    "Plan",
    "Policy",
    "ProcessCluster",
    "PromoteStandby",
    "Replace",
    "Reshuffle",
    "Restart",
    "Service",
    "SpawnFailed",
    "Spawned",
    "Start",
    "Step",
    "Stop",
    "Strategy",
    "Supervisor",
    "Verdict",
    "World",
    "check_tree",
    "control_log",
    "decided",
    "leader",
    "load",
    "on_exit",
    "opened",
    "seeds",
    "start_levels",
]
