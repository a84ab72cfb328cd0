"""One run of the whole system in one simulated world, from one seed: the same seed, the same run, byte for byte.

    start  ->  clients ask, things go wrong  ->  quiet: everything heals  ->  everybody is asked once more  ->  the judge

Real are the controller, instances, owners, shards, clients, the snapshot store; simulated are the log, the wire, the
cluster, the clocks. A run has failed if the judge finds fault with it, if something dies of a bug, or if the quiet
world does not come back to serving within `HEAL_MAX_S`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Final
from zlib import crc32

from rekindle.actors import Host, Instance, Replica
from rekindle.chaos.judge import End, History, Seen, judge
from rekindle.chaos.ledger import Ledger
from rekindle.chaos.loop import Deadlock, Process, new_loop
from rekindle.chaos.plan import FAULTS_S, Plan, draw_plan
from rekindle.chaos.reading import Reading, read
from rekindle.chaos.simcluster import SimCluster
from rekindle.chaos.simhost import KeptLog, host_of
from rekindle.chaos.simwire import Net
from rekindle.chaos.weather import SERVICE, Verb, Weather, resumed
from rekindle.chaos.workload import KEYS, Workload
from rekindle.events import RekindleError, session_name, shard_of
from rekindle.events.stores import LogStore
from rekindle.supervisors import Backoff, Candidate, Control, Controller, Service, Supervisor, control_log

APP: Final = "simulated"
SHARDS: Final = 4
INSTANCES: Final = 3
SNAPSHOT_EVERY: Final = 20

NODES: Final = 4
CANDIDATES: Final = 2
CLIENTS: Final = 3
START_MAX_S: Final = 30.0
HEAL_MAX_S: Final = 60.0
OPERATOR_S: Final = 45.0
"""What is not served so long after everything has healed is looked at by somebody: longer than any pause of a controller
before it tries again."""

OPERATED_MAX: Final = 5
LATE_S: Final = 4.0
"""What was on its way when it became quiet has arrived after this time."""

FALSE_ALARMS: Final = ("bug:", "InternalError", "LogTruncated", "LogDamaged", "NewerRecord", "TopicMissing")
"""Nothing in this world damages the log: whoever says so is wrong, and keeps a shard down for it."""

NEW_CONTROLLER_S: Final = 1.0
ACKNOWLEDGED_MIN: Final = 200
FAULTS_MIN: Final = 5


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a run. faults: what the judge found; empty for a clean one.

    took: how often each fault took effect; struck: how many did, without those that are only late. operated: how
    often an operator was needed in the end.
    """

    seed: int
    faults: tuple[str, ...]
    acknowledged: int
    ends: dict[End, int]
    took: Counter[str]
    struck: int
    operated: int
    seconds: float
    lines: tuple[str, ...]
    digest: int

    @property
    def counts(self) -> bool:
        """Whether enough has happened for the run to mean anything."""
        return self.acknowledged >= ACKNOWLEDGED_MIN and self.struck >= FAULTS_MIN


def simulate(seed: int) -> Report:
    """One run."""
    world = World(seed)
    try:
        return world.run()
    finally:
        world.loop.close()


class World:
    """Everything there is in one run."""

    def __init__(self, seed: int, plan: Plan | None = None) -> None:
        self.seed = seed
        self.loop = new_loop()
        self.plan = plan or draw_plan(self.random("plan"))
        self.service = Service(
            SERVICE, Ledger, SHARDS, INSTANCES, SNAPSHOT_EVERY, self.plan.retention, standbys=self.plan.standbys
        )
        self.root = Supervisor(APP, children=[self.service], backoff=Backoff(max_s=10.0))
        self.hosted = self.service.hosted(APP)
        self.net = Net(self.loop, self.random("net"))
        self.log = KeptLog(self.random("log"))
        self.cluster = SimCluster(self.loop, self.net, self.random("cluster"), self._launch)
        self.weather = Weather(self, self.plan, self.random("weather"))
        self.history = History()
        self.controllers: list[Process] = []
        self.clients: list[Process] = []
        self.faults: list[str] = []
        self.operated = 0
        self.leading: dict[str, Controller] = {}
        self._said = 0
        self.lines: list[str] = []
        self._chance = self.random("world")
        self._names = 0

    def random(self, what: str) -> Random:
        """A stream of chance of its own, so that what one part draws moves no other."""
        return Random(f"{self.seed}/{what}")

    def note(self, mark: str, text: str) -> None:
        """A line of the trace. Marks: `!` a fault, `>` asked, `<` answered, `-` said, `=` a phase."""
        self.lines.append(f"{self.loop.time():10.4f} {mark} {text}")

    def processes(self) -> list[Process]:
        """Everything that is alive."""
        return [*self.cluster.processes, *self.clients]

    # --- the run -----------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Run it to its end, and judge it."""
        try:
            self.loop.run_until_complete(self._live())
        except Deadlock as error:
            self.faults.append(str(error))
        self.faults += [f"bug: {failure}" for failure in self.loop.failures]
        self.faults += [f"who ran it was to die: {op}" for op in self.history.ops if op.kind == "die" and op.seen]
        readings = [
            read((e.offset, e.value) for e in self.log.everything(self.hosted.partition(s))) for s in range(SHARDS)
        ]
        self.faults += judge(self.history, readings)
        return self._report(readings)

    async def _live(self) -> None:
        await self._prepare()
        self.weather.begin()
        self.note("=", f"begin: {self.plan}")
        asking = [self._start_client(number) for number in range(1, CLIENTS + 1)]
        await asyncio.sleep(FAULTS_S)
        await self.weather.make_up(FAULTS_MIN)
        self.note("=", "quiet")
        self.weather.end()
        await self._operate()
        await self._until(lambda: self.acknowledged >= ACKNOWLEDGED_MIN, "too few commands are acknowledged")
        self.note("=", "end")
        for workload in asking:
            workload.asking = False
        await asyncio.sleep(LATE_S)
        await self._operate()
        await self._audit()

    async def _prepare(self) -> None:
        for topic in (self.hosted.topic(), control_log(APP).topic()):
            await self.log.create(topic)
        await LogStore(self.log, APP, create=True).open()
        for _ in range(NODES):
            self.weather.add_node()
        self.start_controllers()

    async def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        until = self.loop.time() + HEAL_MAX_S
        while not condition():
            if self.loop.time() > until:
                self.faults.append(f"{otherwise}, {HEAL_MAX_S} s after everything has healed")
                return
            self.operate(resumed)  # what somebody has paused, and nobody led when it was to go on
            await asyncio.sleep(0.1)

    @property
    def acknowledged(self) -> int:
        """How many commands were answered with an outcome."""
        return sum(op.tag is not None and op.seen is not None for op in self.history.ops)

    # --- who lives in it ---------------------------------------------------------------------------------------

    def host(self, process: Process) -> Host:
        """What a process has; its clock is wrong by something of its own."""
        skew_ms = self._chance.randint(-self.plan.skew_ms, self.plan.skew_ms)
        random = self.random(process.name)
        return host_of(process, self.net, self.log, APP, random, skew_ms, lambda line: self._say(process, line))

    def _say(self, process: Process, line: str) -> None:
        self.note("-", f"{process.name}: {line}")
        if any(alarm in line for alarm in FALSE_ALARMS):
            self.faults.append(f"{process.name}: {line}")

    async def _launch(self, service: str, incarnation: str, process: Process) -> tuple[str, str]:
        return await Instance(self.hosted, incarnation, self.host(process)).start(f"{process.host}:0")

    def start_controllers(self) -> None:
        """Whoever is to decide."""
        for _ in range(CANDIDATES):
            self._start_controller()

    def _start_controller(self) -> None:
        """Somebody is to lead, and somebody to stand by: for each of the two that dies there will be another."""
        self._names += 1
        process = self.cluster.process(f"controller-{self._names}", self._chance.choice(sorted(self.cluster.up)))
        self.controllers.append(process)
        process.at_death.append(partial(self._replace_controller, process))
        process.start(self._lead(process))

    def _replace_controller(self, process: Process) -> None:
        self.controllers.remove(process)
        self.loop.call_later(NEW_CONTROLLER_S * (0.1 + self._chance.random()), self._start_controller)

    async def _lead(self, process: Process) -> None:
        reason = "a bug"
        try:
            candidate = Candidate(
                APP, self.root, self.cluster, self.host(process), process.name, on_leading=self._on_leading
            )
            reason = await candidate.run(f"{process.host}:0")
        except RekindleError as error:
            reason = repr(error)
        finally:
            self.note("-", f"{process.name} ended: {reason}")
            process.kill()

    def _on_leading(self, controller: Controller) -> None:
        self.leading[controller.name] = controller  # or tries to: of two that begin at once one has to stand by again

    def operate(self, verbs: Callable[[Control], list[Verb]]) -> bool:
        """Somebody says something to who leads; whether anybody does. What is said may be refused, or get lost with them."""
        known = [(process, self.leading.get(process.name)) for process in self.controllers if process.runs]
        found = [(process, controller) for process, controller in known if controller is not None and controller.leads]
        if not found:
            return False
        process, controller = found[0]
        said = verbs(controller.decisions.control)
        for verb, args in said:
            self._said += 1
            process.start(self._say_to(controller, self._said, verb, args))
        return bool(said)

    async def _say_to(self, controller: Controller, number: int, verb: str, args: list[Any]) -> None:
        session = session_name(controller.decisions.now_ms(), b"operator")
        try:
            await controller.decisions.operate(session, number, number, verb, ["somebody", "why not", *args])
        except RekindleError as refusal:
            self.note("-", f"{verb} {args}: {refusal}")
        controller.changed.set()

    def _client(self, name: str) -> Workload:
        process = Process(self.loop, name, name)
        self.clients.append(process)
        return Workload(
            process, self.host(process), APP, self.hosted, self.history, self.random(f"{name} asks"), self.note
        )

    def _start_client(self, number: int) -> Workload:
        workload = self._client(f"client-{number}")
        workload.process.start(workload.run())
        return workload

    # --- the end -----------------------------------------------------------------------------------------------

    async def _audit(self) -> None:
        """Everybody is asked once more, and a reader of snapshots and log must see the same."""
        seen = await self._client("the auditor").look_at_all(HEAL_MAX_S)
        missing = [key for key, what in seen.items() if what is None]
        if missing:
            self.faults.append(f"{missing} are not served {HEAL_MAX_S} s after everything has healed")
        else:
            await self._audit_replicas(seen)

    async def _operate(self) -> None:
        """What is kept down (two instances died during a shard's replay) stays so until an operator has had a look."""
        while None in (await self._client("the operator").look_at_all(OPERATOR_S)).values():
            if self.operated == OPERATED_MAX:
                return
            self.operated += 1
            self.note("=", "the operator allows what is kept down")
            await self._until(lambda: self.operate(self.weather.tidy_up), "nobody leads")
            await asyncio.sleep(LATE_S)

    async def _audit_replicas(self, seen: dict[str, Seen | None]) -> None:
        store = LogStore(self.log, APP)
        for shard in range(SHARDS):
            replica = Replica(self.hosted, shard, self.log, store, lambda line: self.note("-", f"replica: {line}"))
            await replica.load()
            await replica.read()
            for key in [key for key in KEYS if shard_of(key, SHARDS) == shard]:
                _, state = replica.state(key) or (0, {"count": 0, "digest": 0})
                if (state["count"], state["digest"]) != seen[key]:
                    self.faults.append(f"a replica of {key!r} has {state}, its owner said {seen[key]}")

    def _report(self, readings: list[Reading]) -> Report:
        digest = crc32("\n".join(self.lines).encode(), self.net.digest)
        return Report(
            self.seed,
            tuple(self.faults),
            self.acknowledged,
            {end: self.history.count(end) for end in End},
            self.weather.took + self.log.took + self.net.took,
            self.weather.count,
            self.operated,
            self.loop.time(),
            tuple(self.lines),
            crc32(repr(readings).encode(), digest),
        )
