"""The control log as tables: what was decided about services, instances, shards, incidents and plans, for anybody's SQL.

    App("shop", ..., projections=[OPERATIONS])      and then    rekindle projection run rekindle --app shop:app

    SELECT kind, outcome, closed_ms - opened_ms AS took_ms FROM rk_incident ORDER BY opened_ms DESC

These are decisions, all of them, as long as the log is there: the control plane itself keeps only the last ones. What is seen
and not decided (who is slow right now, how far a standby is behind) is asked of the running application: `rekindle status`.

Times are the log's, in milliseconds since 1970 (UTC). Lists and steps' actions are JSON. One application for each database.
"""

from __future__ import annotations

import json
from typing import Any, Final

from sqlalchemy import JSON, BigInteger, Index, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rekindle.projections.declaring import At, Projection
from rekindle.projections.rows import Rows
from rekindle.supervisors.control import Control
from rekindle.supervisors.decided import (
    Assigned,
    Cordoned,
    Counted,
    Declared,
    Followed,
    Forced,
    Gone,
    Leads,
    Noticed,
    Observed,
    Performed,
    Proposed,
    Refused,
    Said,
    Scaled,
    Started,
    Stepped,
    Stood,
)
from rekindle.supervisors.plans import Standing, State


class Base(DeclarativeBase):
    """Of these tables."""


class LeadRow(Base):
    """A controller that led. term: the offset of the record that says so."""

    __tablename__ = "rk_lead"
    term: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str] = mapped_column(Text, default="")
    console: Mapped[str] = mapped_column(Text, default="")
    led_ms: Mapped[int] = mapped_column(BigInteger, default=0)


class NodeRow(Base):
    """A node that something ran on, or was said of. cordoned: why nothing new goes on it."""

    __tablename__ = "rk_node"
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    cordoned: Mapped[str | None] = mapped_column(Text)
    started: Mapped[int] = mapped_column(default=0)
    died: Mapped[int] = mapped_column(default=0)


class ServiceRow(Base):
    """A service. wanted: instances that it is to have; held_ms: none is started before."""

    __tablename__ = "rk_service"
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    shards: Mapped[int] = mapped_column(default=0)
    declared: Mapped[int] = mapped_column(default=0)
    wanted: Mapped[int] = mapped_column(default=0)
    held_ms: Mapped[int | None] = mapped_column(BigInteger)


class SupervisorRow(Base):
    """A supervisor that has restarted something: when, within its window."""

    __tablename__ = "rk_supervisor"
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    restarts_ms: Mapped[Any] = mapped_column(JSON, default=list)


class InstanceRow(Base):
    """An instance that was started. gone_ms: when it was seen dead, or stopped (planned)."""

    __tablename__ = "rk_instance"
    incarnation: Mapped[str] = mapped_column(Text, primary_key=True)
    service: Mapped[str] = mapped_column(Text, default="")
    node: Mapped[str] = mapped_column(Text, default="")
    address: Mapped[str] = mapped_column(Text, default="")
    plan: Mapped[int | None]
    started_ms: Mapped[int] = mapped_column(BigInteger, default=0)
    gone_ms: Mapped[int | None] = mapped_column(BigInteger)
    gone_why: Mapped[str] = mapped_column(Text, default="")
    planned: Mapped[bool] = mapped_column(default=False)


class ShardRow(Base):
    """A shard. owner, standbys: as they were assigned last; who of them lives, `rk_instance` says. next_offset, sequence: how
    far it was verified."""

    __tablename__ = "rk_shard"
    service: Mapped[str] = mapped_column(Text, primary_key=True)
    shard: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, default=0)
    owner: Mapped[str | None] = mapped_column(Text)
    standbys: Mapped[Any] = mapped_column(JSON, default=list)
    moved_ms: Mapped[int | None] = mapped_column(BigInteger)
    moves: Mapped[int] = mapped_column(default=0)
    refused: Mapped[str | None] = mapped_column(Text)
    next_offset: Mapped[int | None] = mapped_column(BigInteger)
    sequence: Mapped[int | None] = mapped_column(BigInteger)


class IncidentRow(Base):
    """An incident as it is known now. evidence: the first pieces of it."""

    __tablename__ = "rk_incident"
    __table_args__ = (Index("rk_incident_by_time", "opened_ms"),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(Text, default="")
    opened_ms: Mapped[int] = mapped_column(BigInteger, default=0)
    changed_ms: Mapped[int] = mapped_column(BigInteger, default=0)
    closed_ms: Mapped[int | None] = mapped_column(BigInteger)
    outcome: Mapped[str | None] = mapped_column(Text)
    count: Mapped[int] = mapped_column(default=0)
    services: Mapped[Any] = mapped_column(JSON, default=list)
    instances: Mapped[Any] = mapped_column(JSON, default=list)
    nodes: Mapped[Any] = mapped_column(JSON, default=list)
    zones: Mapped[Any] = mapped_column(JSON, default=list)
    marks: Mapped[Any] = mapped_column(JSON, default=dict)
    evidence: Mapped[Any] = mapped_column(JSON, default=list)


class PlanRow(Base):
    """A plan as it stands. incident: what it is for; None: nothing has failed."""

    __tablename__ = "rk_plan"
    __table_args__ = (Index("rk_plan_by_incident", "incident"),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    policy: Mapped[str] = mapped_column(Text, default="")
    cause: Mapped[str] = mapped_column(Text, default="")
    incident: Mapped[int | None]
    services: Mapped[Any] = mapped_column(JSON, default=list)
    standing: Mapped[str] = mapped_column(Text, default="")
    why: Mapped[str] = mapped_column(Text, default="")
    made_ms: Mapped[int] = mapped_column(BigInteger, default=0)
    ended_ms: Mapped[int | None] = mapped_column(BigInteger)


class StepRow(Base):
    """A step of a plan. began_ms: when it ran first; since_ms: when it came into its state."""

    __tablename__ = "rk_step"
    plan: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    phase: Mapped[str] = mapped_column(Text, default="")
    action: Mapped[Any] = mapped_column(JSON, default=dict)
    state: Mapped[str] = mapped_column(Text, default="")
    attempt: Mapped[int] = mapped_column(default=0)
    why: Mapped[str] = mapped_column(Text, default="")
    forced: Mapped[bool] = mapped_column(default=False)
    result: Mapped[Any] = mapped_column(JSON, default=None, nullable=True)
    began_ms: Mapped[int | None] = mapped_column(BigInteger)
    since_ms: Mapped[int | None] = mapped_column(BigInteger)


class SayingRow(Base):
    """What an operator said, why, and who it was."""

    __tablename__ = "rk_saying"
    log_offset: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    at_ms: Mapped[int] = mapped_column(BigInteger, default=0)
    who: Mapped[str] = mapped_column(Text, default="")
    verb: Mapped[str] = mapped_column(Text, default="")
    target: Mapped[str] = mapped_column(Text, default="")
    reason: Mapped[str] = mapped_column(Text, default="")


class Operations(Projection):
    """The control log's own read model."""

    name = "rekindle"
    tables = (
        LeadRow,
        NodeRow,
        ServiceRow,
        SupervisorRow,
        InstanceRow,
        ShardRow,
        IncidentRow,
        PlanRow,
        StepRow,
        SayingRow,
    )
    of = (Control,)

    # --- the cluster ---

    def on_leads(self, event: Leads, rows: Rows, at: At) -> None:
        rows.put(LeadRow(term=at.offset, name=event.name, console=event.console, led_ms=event.at_ms))

    def on_declared(self, event: Declared, rows: Rows, _: At) -> None:
        service = rows.at(ServiceRow, event.service)
        service.shards, service.declared, service.wanted = event.shards, event.instances, event.instances
        for shard in range(event.shards):
            rows.at(ShardRow, event.service, shard)

    def on_scaled(self, event: Scaled, rows: Rows, _: At) -> None:
        rows.at(ServiceRow, event.service).wanted = event.instances

    def on_started(self, event: Started, rows: Rows, _: At) -> None:
        running = event.running
        instance = rows.at(InstanceRow, event.incarnation)
        instance.service, instance.node, instance.address = running.service, running.node, running.address
        instance.started_ms, instance.plan = running.started_ms, event.plan or None
        rows.at(NodeRow, running.node).started += 1

    def on_gone(self, event: Gone, rows: Rows, at: At) -> None:
        instance = rows.get(InstanceRow, event.incarnation)
        if instance is None or instance.gone_ms is not None:  # said again, or never started
            return
        instance.gone_ms, instance.gone_why = event.at_ms or at.time_ms, event.reason
        instance.planned = event.planned
        if not event.planned:
            rows.at(NodeRow, instance.node).died += 1

    def on_cordoned(self, event: Cordoned, rows: Rows, _: At) -> None:
        rows.at(NodeRow, event.node).cordoned = event.reason

    def on_counted(self, event: Counted, rows: Rows, _: At) -> None:
        for name, times in event.restarts.items():
            rows.at(SupervisorRow, name).restarts_ms = times
        for service, held_ms in event.held.items():
            rows.at(ServiceRow, service).held_ms = held_ms

    # --- shards ---

    def on_assigned(self, event: Assigned, rows: Rows, at: At) -> None:
        for number, assignment, owner in event.moves:
            shard = rows.at(ShardRow, event.service, number)
            shard.number, shard.owner = assignment, owner
            shard.standbys = [name for name in shard.standbys if name != owner]
            shard.moved_ms, shard.moves = at.time_ms, shard.moves + 1

    def on_followed(self, event: Followed, rows: Rows, _: At) -> None:
        for number, names in event.moves:
            shard = rows.at(ShardRow, event.service, number)
            shard.standbys = [name for name in names if name != shard.owner]

    def on_observed(self, event: Observed, rows: Rows, _: At) -> None:
        for number, position in event.positions:
            shard = rows.at(ShardRow, event.service, number)
            shard.next_offset, shard.sequence = position.offset, position.sequence

    def on_refused(self, event: Refused, rows: Rows, _: At) -> None:
        rows.at(ShardRow, event.service, event.shard).refused = event.reason

    # --- the story ---

    def on_noticed(self, event: Noticed, rows: Rows, _: At) -> None:
        known = event.incident
        row = rows.at(IncidentRow, known.id)
        row.kind, row.count, row.outcome = known.kind.value, known.count, known.outcome
        row.opened_ms, row.changed_ms, row.closed_ms = known.opened_ms, known.changed_ms, known.closed_ms
        row.services, row.instances, row.nodes, row.zones = known.services, known.instances, known.nodes, known.zones
        row.marks, row.evidence = known.marks, [evidence.model_dump(mode="json") for evidence in known.evidence]

    def on_proposed(self, event: Proposed, rows: Rows, _: At) -> None:
        plan = event.plan
        row = rows.at(PlanRow, plan.id)
        row.policy, row.cause, row.incident, row.services = plan.policy, plan.cause, plan.incident, plan.services
        row.standing, row.why, row.made_ms, row.ended_ms = plan.standing.value, plan.why, plan.made_ms, plan.ended_ms
        for number, phase, step in plan.steps():
            rows.put(
                StepRow(
                    plan=plan.id,
                    step=number,
                    phase=phase.name,
                    action=step.action.model_dump(mode="json"),
                    state=step.state.value,
                )
            )

    def on_stepped(self, event: Stepped, rows: Rows, _: At) -> None:
        for number, state, attempt, why in event.changes:
            step = rows.at(StepRow, event.plan, number)
            if state is State.RUNNING and step.began_ms is None:
                step.began_ms = event.at_ms
            if state.value != step.state:
                step.since_ms = event.at_ms
            step.state, step.attempt, step.why = state.value, attempt, why

    def on_stood(self, event: Stood, rows: Rows, _: At) -> None:
        plan = rows.at(PlanRow, event.plan)
        plan.standing, plan.why = event.standing.value, event.why
        plan.ended_ms = None if event.standing in (Standing.RUNNING, Standing.PAUSED) else event.at_ms

    def on_performed(self, event: Performed, rows: Rows, _: At) -> None:
        rows.at(StepRow, event.plan, event.step).result = json.loads(json.dumps(event.result, default=str))

    def on_forced(self, event: Forced, rows: Rows, _: At) -> None:
        rows.at(StepRow, event.plan, event.step).forced = True

    def on_said(self, event: Said, rows: Rows, at: At) -> None:
        said = event.saying
        rows.put(
            SayingRow(
                log_offset=at.offset,
                number=at.index,
                at_ms=said.at_ms,
                who=said.who,
                verb=said.verb,
                target=said.target,
                reason=said.reason,
            )
        )


OPERATIONS: Final = Operations()
"""For `App(projections=[OPERATIONS])`."""
