"""The command line, against a running application: what operators see, what they say, and the exit codes.

Goal: everything at 3 AM can be done with it, by people and by programs; `--output json` and the exit codes are a contract.
Method: one application on real processes for the whole module, with a controller that stands by; commands run as `rekindle`
does, in this process, and where a process of its own is the point, in one. Each test leaves everything whole.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import pytest
from jsonschema import validate
from pydantic import BaseModel

from rekindle.actors import BadRequest, ConnectFailed, DeadlineExceeded, OutcomeUnknown, TokenRefused
from rekindle.cli import FAILED, NOT_REACHABLE, REFUSED, UNKNOWN, USAGE, exit_code_of, main
from rekindle.events import LogTruncated, LogUnavailable, RekindleError, TopicMissing
from rekindle.operating import HEAD
from rekindle.supervisors import DeclarationError
from rekindle.supervisors.control import Control, NotNow
from rekindle.supervisors.plans import Plan, Standing, Start, State
from rekindle.supervisors.report import Explanation, Forecast, PlanReport, Receipt, Report, Story
from tests.support import REPOSITORY
from tests.support.operated import SECOND_RESTART_S, Operated, operated, target_of

RUN_MAX_S: Final = 60.0
NAME: Final = "cli-shop"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Generator[Operated]:
    with operated(NAME, tmp_path_factory.mktemp("shop")) as shop:
        yield shop


@pytest.fixture
def shop(running: Operated) -> Iterator[Operated]:
    """The application, whole, also afterwards."""
    running.wait_whole()
    yield running
    running.let_start()
    running.wait_whole()


@dataclass(frozen=True)
class Answer:
    """What a command gave."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Its JSON."""
        assert self.code == 0, self.err
        return json.loads(self.out)


def rekindle(*arguments: object) -> Answer:
    """Run a command as the shell does."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return Answer(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def on(shop: Operated, *arguments: object) -> Answer:
    """A command for this application."""
    return rekindle(*arguments, "--app", shop.target, "--log", shop.log)


def ask(shop: Operated, *arguments: object) -> Any:
    """A question for programs."""
    return on(shop, *arguments, "--output", "json").data


def say(shop: Operated, *arguments: object) -> Any:
    """A verb."""
    return ask(shop, *arguments, "--who", "ann", "--reason", "I said so")


def active(control: Control, service: str) -> Plan | None:
    """The plan that speaks for a service."""
    return next((plan for plan in control.active_plans() if service in plan.services), None)


def start_of(plan: Plan, state: State) -> int | None:
    """The step of a plan that starts an instance and is in this state."""
    found = [number for number, _, step in plan.steps() if isinstance(step.action, Start) and step.state is state]
    return found[0] if found else None


def starting(control: Control) -> int | None:
    """The step that starts an instance of `stock` just now."""
    plan = active(control, "stock")
    return None if plan is None else start_of(plan, State.RUNNING)


def title(value: object) -> str:
    """What a case is called: by its command."""
    return " ".join(map(str, cast("list[object]", value))) if isinstance(value, list) else ""


# What operators see


def test_the_status_of_an_application_that_is_well(shop: Operated) -> None:
    report = Report.model_validate(ask(shop, "status"))
    assert [(service.name, service.state) for service in report.services] == [("stock", "served"), ("ledger", "served")]
    assert {instance.state for instance in report.instances} == {"up"}
    assert [node.name for node in report.nodes] == ["a", "b", "c"]
    text = on(shop, "status")
    assert text.code == 0
    assert re.search(r"^stock +served +2 of 2 +1 of 1 ", text.out, re.MULTILINE), text.out
    assert "No incident is open." in text.out


def test_the_tree(shop: Operated) -> None:
    tree = ask(shop, "tree")["tree"]
    assert [child["name"] for child in tree["children"]] == ["stock-supervisor", "ledger-supervisor"]
    lines = on(shop, "tree").out.splitlines()
    assert lines[0].split()[:2] == [f"{NAME}-root", "one_for_one"]
    assert "ledger  permanent  served: 1 of 1 instances up, 1 of 1 shards served" in lines[-1]


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        (["status"], {*HEAD, "services", "nodes", "instances", "incidents", "plans"}),
        (["tree"], {*HEAD, "tree"}),
        (["incidents"], {*HEAD, "incidents"}),
        (["plan"], {*HEAD, "plans"}),
        (["plan", 1], set(PlanReport.model_fields)),
        (["plan", "--incident", "node-dead:a"], set(Forecast.model_fields)),
        (["explain", "stock"], set(Explanation.model_fields)),
        (["scale", "stock", 2, "--reason", "as it is"], set(Receipt.model_fields)),
    ],
    ids=title,
)
def test_the_json_of_each_command(shop: Operated, command: list[object], fields: set[str]) -> None:
    data = ask(shop, *command)
    assert data.keys() == fields
    shapes: list[type[BaseModel]] = [Report, PlanReport, Forecast, Explanation, Receipt]
    shape = next(shape for shape in shapes if data.keys() <= shape.model_fields.keys())
    schema = shape.model_json_schema(mode="serialization")
    validate(data, {**schema, "required": sorted(data)})


def test_a_dead_instance_is_an_incident_with_its_story(shop: Operated) -> None:
    dead = shop.kill("stock")
    shop.wait_whole()
    found = next(i for i in ask(shop, "incidents")["incidents"] if dead in i["instances"])
    assert (found["kind"], found["services"]) == ("instance-crash", ["stock"])
    assert found["outcome"].startswith("healed in ")
    story = Story.model_validate(ask(shop, "incident", found["id"]))
    derived = {"seen", "decided", "assigned", "serving", "closed"}
    names = [moment.name for moment in story.timeline if moment.name in derived]
    assert names == ["seen", "decided", "assigned", "serving", "closed"]
    assert sum(moment.took_ms for moment in story.timeline) == story.took_ms > 0
    assert story.plans[0].id == found["plans"][0] == PlanReport.model_validate(ask(shop, "plan", found["plans"][0])).id
    text = on(shop, "incident", found["id"]).out
    assert f"{dead} on " in text
    assert re.search(r"^serving +2\d{3}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} +\d", text, re.MULTILINE), text
    explained = ask(shop, "explain", dead)
    assert (explained["sort"], explained["state"]) == ("instance", "dead")
    assert dead in on(shop, "explain", found["id"]).out


def test_a_dry_run_touches_nothing(shop: Operated) -> None:
    before = [plan.id for plan in shop.control.plans.values()], shop.control.numbered, list(shop.control.sayings)
    node = next(running.node for running in shop.control.instances.values() if running.service == "ledger")
    told = Forecast.model_validate(ask(shop, "plan", "--incident", f"node-dead:{node}"))
    assert (told.kind, told.nodes) == ("node-dead", [node])
    assert told.plans[0].policy == "reshuffle"
    assert told.recovery_s is not None
    assert told.recovery_s > 1.0  # nothing of the ledger is left, so an instance has to be started first
    text = on(shop, "plan", "--incident", f"node-dead:{node}").out
    assert "nothing was touched" in text
    assert re.search(r"^shards moved +predicted recovery +everything done +lowest availability", text, re.MULTILINE)
    after = [plan.id for plan in shop.control.plans.values()], shop.control.numbered, list(shop.control.sayings)
    assert after == before


# What operators say


def test_scale_up_and_down(shop: Operated) -> None:
    receipt = say(shop, "scale", "stock", 3)
    assert receipt == {"verb": "scale", "target": "stock", "who": "ann", "reason": "I said so", "answer": None}
    shop.wait_whole()
    assert ask(shop, "status")["services"][0]["up"] == 3
    assert "ann said so: I said so" in on(shop, "explain", "stock").out
    say(shop, "scale", "stock", 2)
    shop.wait_whole()
    assert ask(shop, "status")["services"][0]["up"] == 2
    said = [(saying.who, saying.verb, saying.target, saying.reason) for saying in shop.control.sayings[-2:]]
    assert said == [("ann", "scale", f"stock to {count}", "I said so") for count in (3, 2)]


def test_drain_a_node_and_back(shop: Operated) -> None:
    node = next(running.node for running in shop.control.instances.values() if running.service == "ledger")
    number = say(shop, "drain", node)["answer"]
    shop.wait(lambda control: not control.incidents[number].is_open)
    story = Story.model_validate(ask(shop, "incident", number))
    assert story.incident.kind == "planned-drain"
    assert (story.incident.outcome or "").startswith("drained in ")
    assert any(line.text == f"ann says drain {node}: I said so" for line in story.lines)
    status = Report.model_validate(ask(shop, "status"))
    assert [n.state for n in status.nodes if n.name == node] == ["cordoned"]
    assert node not in {instance.node for instance in status.instances}
    assert f"rekindle undrain {node} --reason WHY" in on(shop, "explain", node).out
    say(shop, "undrain", node)
    assert {n["state"] for n in ask(shop, "status")["nodes"]} == {"open"}


def test_a_plan_is_paused_and_resumed(shop: Operated) -> None:
    shop.hold_starts()
    say(shop, "scale", "stock", 3)
    shop.wait(starting)
    plan = active(shop.control, "stock")
    assert plan is not None
    say(shop, "pause", plan.id)
    assert ask(shop, "plan", plan.id)["standing"] == "paused"
    assert f"rekindle resume {plan.id} --reason WHY" in ask(shop, "explain", plan.id)["verbs"]
    shop.let_start()
    shop.wait(lambda control: sum(running.service == "stock" for running in control.instances.values()) == 3)
    assert (
        ask(shop, "plan", plan.id)["phases"][0]["steps"][0]["state"] == "running"
    )  # a paused plan takes note of nothing
    say(shop, "resume", plan.id)
    shop.wait(lambda control: control.plans[plan.id].standing is Standing.DONE)
    say(shop, "scale", "stock", 2)


def test_a_step_is_retried_and_skipped(shop: Operated) -> None:
    shop.hold_starts()
    say(shop, "scale", "stock", 3)
    shop.wait(starting)
    plan, step = active(shop.control, "stock"), starting(shop.control)
    assert plan is not None
    say(shop, "retry", plan.id, step)
    say(shop, "skip", plan.id, step)
    told = PlanReport.model_validate(ask(shop, "plan", plan.id))
    assert (told.standing, told.phases[0].steps[0].state) == ("done", "skipped")
    assert told.phases[0].steps[0].why == "ann: I said so"
    say(shop, "scale", "stock", 2)


def test_a_step_that_waits_is_explained_and_forced(shop: Operated) -> None:
    def blocked(control: Control) -> int | None:
        plan = active(control, "ledger")
        return None if plan is None else start_of(plan, State.BLOCKED)

    while not blocked(shop.control):  # the first restart in a row is immediate, the second one waits
        shop.kill("ledger")
        shop.wait(lambda control: blocked(control) or not control.open_incidents())
    plan, step = active(shop.control, "ledger"), blocked(shop.control)
    assert plan is not None
    told = Explanation.model_validate(ask(shop, "explain", "ledger"))
    assert told.state.startswith("down")
    assert any("restarts are held back for another" in line for line in told.because)
    verb = f"rekindle force {plan.id} {step} --reason WHY"
    assert verb in told.verbs
    assert f"`force` step {step}" in on(shop, "plan").out
    assert say(shop, *verb.split()[1:4])["answer"] is None
    shop.wait(lambda control: control.plans[plan.id].standing is Standing.DONE)
    forced = next(s for phase in ask(shop, "plan", plan.id)["phases"] for s in phase["steps"] if s["number"] == step)
    assert (forced["state"], forced["forced"]) == ("done", True)
    assert (
        shop.control.held["ledger"] > shop.control.now_ms + SECOND_RESTART_S * 100
    )  # it was not the time that has come


def test_a_shard_that_is_kept_down_is_allowed(shop: Operated) -> None:
    leading = shop.leading()
    assert leading is not None
    shop.loop.run(leading.decisions.decide("refuse", "ledger", 0, "it is being looked at"))
    assert "kept down" in ask(shop, "explain", "ledger/0")["state"]
    assert say(shop, "allow", "ledger/0")["target"] == "ledger/0"
    assert shop.control.services["ledger"][0].refused is None


def test_the_next_leader_knows_what_was_said(shop: Operated) -> None:
    before = ask(shop, "status")["leader"]
    say(shop, "scale", "stock", 2)
    count = len(shop.control.sayings)
    shop.loop.run(shop.kill_leader())
    status = ask(shop, "status")
    assert status["leader"] != before
    say(shop, "scale", "stock", 2)
    assert len(shop.control.sayings) == count + 1
    shop.loop.run(shop.add_process())


# Exit codes, usage, completion


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["scale", "till", 2, "--reason", "why"], REFUSED, "Unknown: what='service', name='till'"),
        (["pause", 9999, "--reason", "why"], REFUSED, "NoSuchPlan"),
        (["drain", "moon", "--reason", "why"], REFUSED, "known=['a', 'b', 'c']"),
        (["explain", "moon"], REFUSED, "Unknown: what='target'"),
        (["incident", 9999], REFUSED, "Unknown: what='incident'"),
        (["plan", "--incident", "rain:a"], REFUSED, "NotSupposable"),
        (["scale", "stock", 2], USAGE, "Missing option"),
        (["scale", "stock", "two", "--reason", "why"], USAGE, "Invalid value"),
        (["plan", 1, "--incident", "node-dead:a"], USAGE, "but not both"),
        (["allow", "ledger", "--reason", "why"], USAGE, "SERVICE/SHARD"),
        (["status", "--output", "xml"], USAGE, "Invalid value"),
        (["status", "--within", "0"], USAGE, "Invalid value"),
    ],
    ids=title,
)
def test_what_cannot_be_done_has_its_exit_code(shop: Operated, arguments: list[object], code: int, text: str) -> None:
    count = len(shop.control.sayings)
    answer = on(shop, *arguments)
    assert (answer.code, answer.out) == (code, ""), answer.err
    assert text in answer.err
    assert len(shop.control.sayings) == count


def test_an_application_that_cannot_be_imported_or_was_never_up(tmp_path: Path) -> None:
    assert rekindle("status").code == USAGE
    assert rekindle("status", "--app", "no.such.module:app").code == USAGE
    never = rekindle("status", "--app", target_of(NAME), "--log", tmp_path / "log.sqlite", "--within", 0.2)
    assert never.code == NOT_REACHABLE, never


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DeclarationError("x"), USAGE),
        (LogUnavailable("x"), NOT_REACHABLE),
        (TopicMissing("x"), NOT_REACHABLE),
        (ConnectFailed("x"), NOT_REACHABLE),
        (DeadlineExceeded("x"), NOT_REACHABLE),
        (NotNow(verb="x", target="y", why="z"), REFUSED),
        (BadRequest("x"), REFUSED),
        (TokenRefused("x"), REFUSED),
        (OutcomeUnknown("x"), UNKNOWN),
        (LogTruncated("x", 1, 0), FAILED),
        (type("RayAway", (RekindleError,), {})("x"), NOT_REACHABLE),
        (RekindleError("x"), FAILED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_an_exit_code_says(error: RekindleError, code: int) -> None:
    assert exit_code_of(error) == code


def test_the_help_names_every_exit_code() -> None:
    answer = rekindle("--help")
    assert answer.code == 0
    assert re.findall(r"^ (\d)  \w", answer.out, re.MULTILINE) == ["0", "1", "2", "3", "4", "5"]


def run(*command: str, **variables: str) -> str:
    """What a process of its own prints."""
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_MAX_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_shell_completes_commands_and_services() -> None:
    module = ("-m", "rekindle.cli")
    bash = {"_REKINDLE_COMPLETE": "complete_bash"}
    assert run(*module, **bash, COMP_WORDS="rekindle inc", COMP_CWORD="1").split() == ["incidents", "incident"]
    app = {"REKINDLE_APP": target_of(NAME)}
    assert run(*module, **bash, **app, COMP_WORDS="rekindle scale s", COMP_CWORD="2").split() == ["stock"]
    zsh = {"_REKINDLE_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "rekindle plan --incident zone"}
    assert "zone-down" in run(*module, **zsh)


def test_operators_need_no_ray(shop: Operated) -> None:
    script = (
        "import sys\n"
        "from rekindle.cli import main\n"
        "try:\n"
        "    main(['status', '--output', 'json', *sys.argv[1:]])\n"
        "finally:\n"
        "    assert 'ray' not in sys.modules, 'Ray was imported'\n"
    )
    printed = run("-c", script, "--log", shop.log, REKINDLE_APP=shop.target)
    assert json.loads(printed)["app"] == NAME
