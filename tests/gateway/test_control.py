"""The control plane over HTTP, and who may use it.

Goal: what operators see and say is what the command line has, each verb is done once, and nobody changes or sees what is not
theirs. Method: a running application; gateways with tokens, and with tenants, on the same log.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

import httpx2
import pytest
from pydantic import BaseModel

from rekindle.gateway import Caller, one_tenant
from rekindle.gateway.control import HEAD, STATUS, VERBS
from rekindle.supervisors.plans import State
from rekindle.supervisors.report import Explanation, Forecast, PlanReport, Receipt, Report, Story
from tests.support.gateways import served
from tests.support.operated import Operated

TOKEN: Final = "a-token-for-tests"
READ_TOKEN: Final = "another-token-for-tests"


def say(http: httpx2.Client, verb: str, **arguments: Any) -> httpx2.Response:
    return http.post(f"/v1/control/{verb}", json={"who": "ann", "reason": "I said so", **arguments})


@pytest.mark.parametrize(
    ("path", "fields", "shape"),
    [
        ("/v1/status", {*HEAD, *STATUS}, Report),
        ("/v1/tree", {*HEAD, "tree"}, Report),
        ("/v1/incidents", {*HEAD, "incidents"}, Report),
        ("/v1/plans", {*HEAD, "plans"}, Report),
        ("/v1/plans/1", set(PlanReport.model_fields), PlanReport),
        ("/v1/plans/forecast?incident=node-dead:a", set(Forecast.model_fields), Forecast),
        ("/v1/explain/stock", set(Explanation.model_fields), Explanation),
        ("/v1/explain/stock/0", set(Explanation.model_fields), Explanation),
    ],
)
def test_what_operators_see(
    shop: Operated, http: httpx2.Client, path: str, fields: set[str], shape: type[BaseModel]
) -> None:
    shop.heal()
    answer = http.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == fields
    shape.model_validate(answer.json())


def test_an_incident_has_its_story(shop: Operated, http: httpx2.Client) -> None:
    shop.heal()
    dead = shop.kill("stock")
    shop.heal()
    found = next(i for i in http.get("/v1/incidents").json()["incidents"] if dead in i["instances"])
    story = Story.model_validate(http.get(f"/v1/incidents/{found['id']}").json())
    assert story.incident.kind == "instance-crash"


@pytest.mark.parametrize(
    ("path", "status", "name"),
    [
        ("/v1/incidents/9999", 404, "unknown"),
        ("/v1/plans/9999", 404, "unknown"),
        ("/v1/explain/moon", 404, "unknown"),
        ("/v1/incidents/-1", 422, "wrong-arguments"),
        ("/v1/incidents/one", 422, "wrong-arguments"),
        ("/v1/plans/forecast", 422, "wrong-arguments"),
        ("/v1/plans/forecast?incident=rain:a", 409, "not-supposable"),
    ],
)
def test_what_there_is_not(http: httpx2.Client, path: str, status: int, name: str) -> None:
    answer = http.get(path)
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{name}")


def test_verbs_are_said_and_kept(shop: Operated, http: httpx2.Client) -> None:
    shop.heal()
    receipt = say(http, "scale", service="stock", instances=3).json()
    assert receipt == {"verb": "scale", "target": "stock", "who": "ann", "reason": "I said so", "answer": None}
    shop.heal()
    assert http.get("/v1/status").json()["services"][0]["up"] == 3
    say(http, "scale", service="stock", instances=2)
    shop.heal()
    said = [
        (saying.who, saying.verb, saying.target, saying.reason)
        for saying in shop.control.sayings
        if saying.who == "ann"
    ]
    assert said[-2:] == [("ann", "scale", f"stock to {count}", "I said so") for count in (3, 2)]


def test_a_node_is_drained_and_undrained(shop: Operated, http: httpx2.Client) -> None:
    shop.heal()
    number = say(http, "drain", node="c").json()["answer"]
    shop.wait(lambda control: number is None or not control.incidents[number].is_open)
    nodes = http.get("/v1/status").json()["nodes"]
    assert [node["state"] for node in nodes] == ["open", "open", "cordoned"]
    Receipt.model_validate(say(http, "undrain", node="c").json())
    assert {node["state"] for node in http.get("/v1/status").json()["nodes"]} == {"open"}
    shop.heal()


def test_a_plan_is_paused_resumed_and_its_step_skipped(
    shop: Operated, http: httpx2.Client, request: pytest.FixtureRequest
) -> None:
    shop.heal()
    shop.hold_starts()
    request.addfinalizer(shop.let_start)
    say(http, "scale", service="stock", instances=3)
    shop.wait(lambda control: [s for p in control.active_plans() for _, _, s in p.steps() if s.state is State.RUNNING])
    plan = shop.control.active_plans()[0]
    step = next(number for number, _, step in plan.steps() if step.state is State.RUNNING)
    for verb, target in (("pause", "plan {0}"), ("resume", "plan {0}")):
        assert say(http, verb, plan=plan.id).json()["target"] == target.format(plan.id)
    for verb in ("retry", "skip"):
        assert say(http, verb, plan=plan.id, step=step).json()["target"] == f"plan {plan.id}, step {step}"
    assert http.get(f"/v1/plans/{plan.id}").json()["standing"] == "done"
    assert say(http, "force", plan=plan.id, step=step).json()["type"] == "/problems/no-such-plan"
    shop.let_start()
    say(http, "scale", service="stock", instances=2)
    shop.heal()


def test_a_shard_that_is_kept_down_is_allowed(shop: Operated, http: httpx2.Client) -> None:
    shop.heal()
    leading = shop.leading()
    assert leading is not None
    shop.loop.run(leading.decisions.decide("refuse", "ledger", 0, "it is being looked at"))
    assert "kept down" in http.get("/v1/explain/ledger/0").json()["state"]
    assert say(http, "allow", service="ledger", shard=0).json()["target"] == "ledger/0"
    assert shop.control.services["ledger"][0].refused is None
    shop.heal()


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_wants_a_name_and_a_reason(shop: Operated, http: httpx2.Client, verb: str) -> None:
    count = len(shop.control.sayings)
    whole = {"service": "stock", "instances": 2, "node": "c", "plan": 1, "step": 1, "shard": 0}
    own = {field: whole[field] for field in VERBS[verb].body.model_fields if field in whole}
    for said in (
        {},
        {"who": "ann"},
        {"reason": "why"},
        {"who": "", "reason": "why"},
        {"who": "a" * 1001, "reason": "w"},
    ):
        answer = http.post(f"/v1/control/{verb}", json={**own, **said})
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/wrong-arguments")
    assert len(shop.control.sayings) == count


# Tokens and tenants


def test_changing_something_takes_the_token(shop: Operated) -> None:
    receive, scale = "/v1/services/stock/entities/token/commands/receive", "/v1/control/scale"
    with served(shop.app, shop.log, token=TOKEN) as gateway:
        with gateway.client() as http:
            assert http.post(receive, json={"qty": 1}).status_code == 200
        with gateway.client("wrong") as http:
            for path in (receive, scale, "/v1/control/skip"):
                answer = http.post(path, json={"qty": 1})
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
                assert TOKEN not in answer.text
            assert http.get("/v1/status").status_code == 401  # whoever says a token has to have a right one
        gateway.token = None
        with gateway.client() as http:
            for path in (receive, scale):
                assert http.post(path, json={"qty": 1}).json()["type"] == "/problems/unauthorized"
            for header in ("Basic abc", f"Bearer  {TOKEN} x", "Bearer", TOKEN):
                answer = http.post(receive, json={"qty": 1}, headers={"Authorization": header})
                assert answer.status_code == 401, header
            assert http.get("/v1/status").status_code == 200
            assert http.get("/healthz").status_code == 200


def test_every_route_that_changes_something_takes_the_token(shop: Operated) -> None:
    """By the document: no route is forgotten."""
    with served(shop.app, shop.log, token=TOKEN, read_token=READ_TOKEN) as gateway:
        gateway.token = None
        with gateway.client() as http:
            paths = gateway.app.openapi()["paths"]
            for path, operations in paths.items():
                for method in operations:
                    answer = http.request(method, path.replace("{key}", "a").replace("{number}", "1"), json={})
                    expected = 200 if path in ("/healthz", "/readyz") else 401
                    assert answer.status_code == expected, (method, path)
        with gateway.client(READ_TOKEN) as http:
            assert http.get("/v1/status").status_code == 200
            answer = http.post("/v1/services/stock/entities/token/commands/receive", json={"qty": 1})
            assert (answer.status_code, answer.json()["type"]) == (403, "/problems/forbidden")


def tenants(credential: str | None) -> Caller | None:
    found = {
        "red": Caller("red", "red/", operates=False),
        "blue": Caller("blue", "blue/", operates=False),
        "root": Caller("root"),
    }
    return found.get(credential or "")


def test_a_tenant_has_its_own_entities_and_no_others(shop: Operated) -> None:
    key = secrets.token_hex(6)
    base = "/v1/services/stock/entities"
    with (
        served(shop.app, shop.log, tenancy=tenants) as gateway,
        gateway.client("red") as red,
        gateway.client("blue") as blue,
    ):
        headers = {"Idempotency-Key": "k"}
        mine = f"{base}/red%2F{key}"
        assert red.post(f"{mine}/commands/receive", json={"qty": 5}, headers=headers).json() == 5
        for path in ("queries/available", "history", "state"):
            assert red.get(f"{mine}/{path}").status_code == 200
            answer = blue.get(f"{mine}/{path}")
            assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found"), path
        assert blue.post(f"{mine}/commands/receive", json={"qty": 5}, headers=headers).status_code == 404
        assert blue.post(f"{base}/blue%2F{key}/commands/receive", json={"qty": 5}, headers=headers).json() == 5
        assert red.get(f"{mine}/queries/available").json() == 5
        for path in ("/v1/status", "/v1/incidents", "/v1/stream", "/metrics", "/v1/explain/stock"):
            assert red.get(path).status_code == 403, path
        assert say(red, "scale", service="stock", instances=9).status_code == 403
        assert red.get("/v1/status", headers={"Authorization": "Bearer green"}).status_code == 401


@pytest.mark.parametrize(
    ("token", "read_token", "credential", "reads", "writes"),
    [
        (None, None, None, True, True),
        (TOKEN, None, None, True, False),
        (TOKEN, None, TOKEN, True, True),
        (TOKEN, None, "x", False, False),
        (TOKEN, None, "", False, False),
        (TOKEN, READ_TOKEN, None, False, False),
        (TOKEN, READ_TOKEN, READ_TOKEN, True, False),
        (TOKEN, READ_TOKEN, TOKEN, True, True),
        (TOKEN, READ_TOKEN, "ü", False, False),
    ],
)
def test_who_may(token: str | None, read_token: str | None, credential: str | None, reads: bool, writes: bool) -> None:
    caller = one_tenant(token, read_token)(credential)
    assert (caller is not None, caller is not None and caller.writes) == (reads, writes)
