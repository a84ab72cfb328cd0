"""The control log's own tables say what the control plane has decided.

Goal: whatever happens, rows are what whoever leads has in mind; and they keep what the control plane forgets. Method: a simulated
application in which an instance dies, a node is drained and a service is scaled; its control log is read by a real projector into
a real database, and by the rules that the controller goes by.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
from sqlalchemy import select

from rekindle import App, Service, Supervisor
from rekindle.actors import Replica
from rekindle.events.simulated import SimulatedLog
from rekindle.projections import Database, Place, Projector, Views
from rekindle.projections.operations import (
    OPERATIONS,
    IncidentRow,
    InstanceRow,
    LeadRow,
    NodeRow,
    PlanRow,
    SayingRow,
    ServiceRow,
    ShardRow,
    StepRow,
)
from rekindle.projections.tables import table_of
from rekindle.supervisors import Control, Controller, control_log
from rekindle.supervisors.control import KEY
from tests.support.inprocess import in_loop
from tests.support.postgres import Postgres
from tests.support.service import Stock
from tests.support.simulated import APP, QuietWorld
from tests.support.viewed import database_at, sqlite_at

SHARDS: Final = 8
SERVICE: Final = Service("stock", Stock, shards=SHARDS, instances=3, standbys=1)
LOG: Final = control_log(APP)
READ_MAX_S: Final = 30.0


@pytest.fixture(params=["sqlite", "postgres"])
def address(request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> str:
    """A database for read models."""
    if request.param == "sqlite":
        return sqlite_at(tmp_path)
    server: Postgres = request.getfixturevalue("postgres")
    return server.database(unique)


def lived_through() -> list[tuple[bytes | None, bytes]]:
    """The control log of an application to which something has happened."""
    world = QuietWorld(SERVICE)

    async def story() -> None:
        await world.prepare()
        controller = world.lead()
        await controller.up.wait()
        control = controller.decisions.control
        await world.until("all is quiet", lambda: is_quiet(controller))
        victim = control.services["stock"][0].incarnation
        assert victim is not None
        world.process_of(victim).kill()
        await world.until("the death is noticed", lambda: control.incidents)
        await world.until("all is quiet again", lambda: is_quiet(controller))
        await say(controller, 1, "scale", "stock", 4)
        await world.until("there is one more", lambda: len(control.instances) == 4 and is_quiet(controller))
        node = next(iter(control.instances.values())).node
        await say(controller, 2, "drain", node, "")
        await world.until(
            "it is drained", lambda: all(r.node != node for r in control.instances.values()) and is_quiet(controller)
        )

    world.run(story())
    return [(entry.key, entry.value or b"") for entry in world.log.records(LOG.partition(0))]


def is_quiet(controller: Controller) -> bool:
    control = controller.decisions.control
    world = controller.world()
    return not control.active_plans() and not control.open_incidents() and not world.services["stock"].unserved()


async def say(controller: Controller, number: int, verb: str, *args: Any) -> None:
    """An operator's word."""
    await controller.decisions.decide(verb, "somebody", f"because of {number}", *args)
    controller.changed.set()


def rows_of(database: Database, model: type) -> list[dict[str, Any]]:
    table = table_of(model)
    with database.transaction(write=False) as connection:
        return [dict(row) for row in connection.execute(select(table)).mappings()]


async def decided_in(log: SimulatedLog) -> Control:
    """What whoever leads next has in mind."""
    replica = Replica(LOG, 0, log, None, print)
    await replica.load()
    await replica.read()
    control = replica.entity(KEY)
    assert isinstance(control, Control)
    return control


@in_loop
async def test_rows_are_what_was_decided(address: str) -> None:
    entries = await asyncio.to_thread(lived_through)
    log = SimulatedLog(Random(0))
    await log.create(LOG.topic())
    for entry in entries:
        await log.append(LOG.partition(0), [entry])
    control = await decided_in(log)
    app = App(APP, log="nowhere", tree=Supervisor("root", children=[SERVICE]), projections=[OPERATIONS])
    async with database_at(address) as database:
        projector = Projector(app.projection("rekindle"), log, database)
        running = asyncio.create_task(projector.run())
        await Views(log, database, [LOG]).wait_for(OPERATIONS, Place(LOG.name, 0, len(entries)), READ_MAX_S)
        projector.stop()
        await running

        instances = {row["incarnation"]: row for row in rows_of(database, InstanceRow)}
        assert {name for name, row in instances.items() if row["gone_ms"] is None} == set(control.instances)
        assert {row["planned"] for row in instances.values() if row["gone_ms"] is not None} == {False, True}
        for name, running_there in control.instances.items():
            assert (instances[name]["node"], instances[name]["address"]) == (running_there.node, running_there.address)

        shards = {row["shard"]: row for row in rows_of(database, ShardRow)}
        for number, owned in enumerate(control.services["stock"]):
            assert (shards[number]["number"], shards[number]["owner"]) == (owned.number, owned.incarnation)
            assert set(shards[number]["standbys"]) & set(control.instances) == set(owned.standbys)
        assert sum(row["moves"] for row in shards.values()) > SHARDS

        (service,) = rows_of(database, ServiceRow)
        assert (service["shards"], service["wanted"], service["declared"]) == (SHARDS, 4, 3)
        assert {row["name"] for row in rows_of(database, NodeRow) if row["cordoned"]} == set(control.cordoned)
        assert sum(row["died"] for row in rows_of(database, NodeRow)) == 1

        incidents = {row["id"]: row for row in rows_of(database, IncidentRow)}
        assert {row["kind"] for row in incidents.values()} == {"instance-crash", "planned-drain"}
        for number, incident in control.incidents.items():
            assert (incidents[number]["closed_ms"], incidents[number]["outcome"]) == (
                incident.closed_ms,
                incident.outcome,
            )
            assert len(incidents[number]["evidence"]) == len(incident.evidence)

        plans = {row["id"]: row for row in rows_of(database, PlanRow)}
        steps = {(row["plan"], row["step"]): row for row in rows_of(database, StepRow)}
        assert set(plans) >= set(control.plans)
        for number, plan in control.plans.items():
            assert (plans[number]["standing"], plans[number]["incident"]) == (plan.standing.value, plan.incident)
            for at, phase, step in plan.steps():
                row = steps[number, at]
                assert (row["phase"], row["state"], row["attempt"]) == (phase.name, step.state.value, step.attempt)
                assert row["action"]["do"] == step.action.do

        said = [(row["who"], row["verb"], row["target"]) for row in rows_of(database, SayingRow)]
        assert said == [(saying.who, saying.verb, saying.target) for saying in control.sayings]
        assert [row["name"] for row in rows_of(database, LeadRow)] == ["controller"]
