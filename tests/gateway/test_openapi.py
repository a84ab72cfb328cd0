"""The OpenAPI document, and whether what is served is what it says.

Goal: a client made from the document works: shapes come from the handlers' signatures, every answer is documented. Method: the
important shapes are compared as they are; Schemathesis makes requests from the document, right and wrong ones, and holds the
answers of the real gateway against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import GenerationMode, checks

from tests.support.gateways import Gateway, served
from tests.support.operated import Operated

TOKEN: Final = "a-token-for-schemathesis"
HEADERS: Final = {"Authorization": f"Bearer {TOKEN}", "Rekindle-Timeout": "20"}
"""Of every request: the deadline, so that none is late; it is wrong in tests of its own."""

EXAMPLES: Final = 12
"""Of each operation. More find more, and take longer."""

CHECKS: Final[list[Any]] = [
    checks.not_a_server_error,  # pyright: ignore[reportUnknownMemberType]
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
COMMAND: Final = "/v1/services/stock/entities/{key}/commands/reserve"
PROBLEM: Final = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


@pytest.fixture
def document(http: httpx2.Client) -> dict[str, Any]:
    return dict(http.get("/openapi.json").json())


def test_every_handler_has_a_route(document: dict[str, Any]) -> None:
    entities = {
        path.removeprefix("/v1/services/"): sorted(operations)
        for path, operations in document["paths"].items()
        if path.startswith("/v1/services/")
    }
    assert entities == {
        "stock/entities/{key}/commands/receive": ["post"],
        "stock/entities/{key}/commands/reserve": ["post"],
        "stock/entities/{key}/queries/available": ["get"],
        "stock/entities/{key}/history": ["get"],
        "stock/entities/{key}/state": ["get"],
        "ledger/entities/{key}/commands/append": ["post"],
        "ledger/entities/{key}/queries/count": ["get"],
        "ledger/entities/{key}/history": ["get"],
        "ledger/entities/{key}/state": ["get"],
    }


def test_a_command_is_documented_by_its_signature(document: dict[str, Any]) -> None:
    operation = document["paths"][COMMAND]["post"]
    assert [(p["name"], p["in"], p["required"]) for p in operation["parameters"]] == [
        ("key", "path", True),
        ("Idempotency-Key", "header", False),
        ("Rekindle-Timeout", "header", False),
    ]
    assert operation["requestBody"]["required"]
    name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert document["components"]["schemas"][name] == {
        "additionalProperties": False,
        "properties": {"order": {"title": "Order", "type": "string"}, "qty": {"title": "Qty", "type": "integer"}},
        "required": ["order", "qty"],
        "title": "Stock.reserve",
        "type": "object",
    }
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]["type"] == "integer"
    assert operation["security"] == [{"HTTPBearer": []}]


def test_refusals_are_documented_with_their_fields(document: dict[str, Any]) -> None:
    refused = document["paths"][COMMAND]["post"]["responses"]["409"]
    assert "/problems/out-of-stock" in refused["description"]
    rejections = refused["content"]["application/problem+json"]["schema"]["x-rejections"]
    assert rejections["OutOfStock"]["properties"] == {"left": {"title": "Left", "type": "integer"}}
    receive = document["paths"][COMMAND.replace("reserve", "receive")]["post"]["responses"]["409"]
    assert receive["content"] == PROBLEM  # it refuses nothing


def test_every_error_is_a_problem(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if status >= "400":
                    assert list(answer["content"]) == ["application/problem+json"], (path, status)
            assert {"401", "403", "500"} <= operation["responses"].keys()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
def test_what_is_served_is_what_the_document_says(
    guarded: Gateway, document: dict[str, Any], mode: GenerationMode
) -> None:
    """Right requests are answered as documented, wrong ones refused, and none of them breaks anything."""
    tried = 0
    for operations in document["paths"].values():
        for described in operations.values():
            described.pop("security", None)  # every request has the token: none of them is wrong for lack of it
    schema: Any = schemathesis.openapi.from_dict(document)  # its own types are half open
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path == "/v1/stream" or operation.path.startswith("/v1/control/"):
            continue  # the one does not end; the other one's effects are for the tests of the control plane
        if mode is GenerationMode.NEGATIVE and not (operation.query or operation.body or operation.headers):
            continue  # nothing can be wrong
        _try(guarded, operation.as_strategy(generation_mode=mode))
        tried += 1
    assert tried >= 10


@pytest.fixture(scope="module")
def guarded(shop: Operated) -> Iterator[Gateway]:
    """A gateway that wants a token for everything, as the document says."""
    with served(shop.app, shop.log, token=TOKEN, read_token=f"{TOKEN} to read") as gateway:
        yield gateway


def _try(gateway: Gateway, cases: SearchStrategy[Any]) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    @given(case=cases)
    def conforms(case: Any) -> None:
        case.call_and_validate(
            base_url=f"http://{gateway.address}", checks=CHECKS, headers={"Authorization": f"Bearer {TOKEN}"}
        )

    conforms()
