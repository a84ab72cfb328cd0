"""Read models over HTTP: the rows that projectors have made, as they were asked for.

Goal: a page is what the same question gives in plain Python over all rows; what cannot be asked is refused by name; and a reader
who asks for rows that are as new as an entity's answers gets them, or hears that they are not there yet. Method: a log that is
written record by record, real projectors on a SQLite file, and a real gateway beside them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest

from rekindle import App, Service, Supervisor
from rekindle.projections import Projector, Views
from rekindle.supervisors import opened
from rekindle.up import create_topics
from tests.support.gateways import Gateway, served
from tests.support.viewed import (
    HOSTED,
    SHARDS,
    History,
    Received,
    Reserved,
    Stock,
    database_at,
    orders,
    stock,
)

ROWS: Final = 30
TABLE: Final = "/v1/views/stock/stock"


def app_at(folder: Path) -> App:
    """The shop of `tests.support.viewed`, here."""
    return App(
        "viewed",
        log=str(folder / "log.sqlite"),
        database=str(folder / "views.sqlite"),
        tree=Supervisor("viewed", children=[Service("stock", Stock, shards=SHARDS, instances=1)]),
        projections=[stock, orders],
    )


@asynccontextmanager
async def writing(app: App) -> AsyncGenerator[tuple[History, Views]]:
    """Whoever writes the log, and who knows how far the read models are."""
    async with opened(app.log, "", app.name) as (log, _), database_at(app.database) as database:
        yield History(log), Views(log, database, [HOSTED])


async def fold(app: App, views: Views) -> None:
    """Have the projectors read everything that is there."""
    for declared in app.projections.values():
        projector = Projector(declared, views.event_log, views.database)
        running = asyncio.create_task(projector.run())
        for number in range(ROWS):
            await views.wait_for(declared.declared, await views.position_of(Stock, f"sku-{number:02}"))
        projector.stop()
        await running


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> App:
    """With some rows."""
    app = app_at(tmp_path_factory.mktemp("viewed"))

    async def fill() -> None:
        await create_topics(app, app.log)
        async with writing(app) as (history, views):
            for number in range(ROWS):
                key = f"sku-{number:02}"
                await history.commit(key, Received(qty=number % 7))
                for order in range(number % 3):
                    await history.commit(key, Reserved(order=f"{key}-{order}", qty=1))
            await fold(app, views)

    asyncio.run(fill())
    return app


@pytest.fixture(scope="module")
def gateway(app: App) -> Generator[Gateway]:
    with served(app, app.log) as gateway:
        yield gateway


ALL: Final[list[dict[str, Any]]] = [
    {"sku": f"sku-{number:02}", "on_hand": number % 7 - number % 3, "orders": number % 3} for number in range(ROWS)
]


def page(http: httpx2.Client, **asked: Any) -> dict[str, Any]:
    answer = http.get(TABLE, params=asked)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_rows_are_in_the_order_of_their_keys(http: httpx2.Client) -> None:
    found = page(http)
    assert (found["rows"], found["more"], found["state"]) == (ALL, False, "ended")


def test_rows_are_filtered_and_sorted(http: httpx2.Client) -> None:
    found = page(http, **{"on_hand.min": 1, "on_hand.max": 3, "sort": "-orders,on_hand"})["rows"]
    wanted = [row for row in ALL if 1 <= row["on_hand"] <= 3]
    assert found == sorted(wanted, key=lambda row: (-row["orders"], row["on_hand"], row["sku"]))
    assert found != wanted
    assert page(http, sku="sku-07")["rows"] == [ALL[7]]
    assert page(http, sku="sku-77")["rows"] == []


@pytest.mark.parametrize("limit", [1, 7, 29, 30, 31])
def test_pages_put_together_are_the_whole(http: httpx2.Client, limit: int) -> None:
    rows: list[Any] = []
    while True:
        found = page(http, sort="orders", limit=limit, offset=len(rows))
        rows += found["rows"]
        if not found["more"]:
            break
        assert len(found["rows"]) == limit
    assert rows == sorted(ALL, key=lambda row: (row["orders"], row["sku"]))


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"sort": "price"}, "price"),
        ({"price": 1}, "price"),
        ({"on_hand": "many"}, "on_hand"),
        ({"limit": 1_001}, "limit"),
        ({"offset": 100_001}, "offset"),
        ({"fresh": "sku-07"}, "fresh"),
        ({"fresh": "moon/sku-07"}, "moon"),
        ({"sort": ",".join(["sku"] * 9)}, "9"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(http: httpx2.Client, asked: dict[str, Any], word: str) -> None:
    answer = http.get(TABLE, params=asked)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert word in answer.text


def test_there_is_no_other_table(http: httpx2.Client) -> None:
    assert http.get("/v1/views/stock/rk_projection").status_code == 404
    assert http.get("/v1/views/orders/stock").status_code == 404
    assert http.get("/v1/views/orders/orders").json()["rows"]


def test_every_projection_tells_how_it_is(http: httpx2.Client) -> None:
    found = http.get("/v1/views").json()
    assert [(view["name"], view["version"], len(view["shards"])) for view in found] == [
        ("orders", 1, SHARDS),
        ("stock", 1, SHARDS),
    ]


def test_rows_are_described(http: httpx2.Client) -> None:
    document = http.get("/openapi.json").json()
    described = document["paths"][TABLE]["get"]
    asked = {parameter["name"] for parameter in described["parameters"]}
    assert asked >= {"sku", "on_hand.min", "on_hand.max", "sort", "limit", "offset", "fresh"}
    answer = described["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    row = document["components"]["schemas"][answer]["properties"]["rows"]["items"]["$ref"].rpartition("/")[2]
    assert document["components"]["schemas"][row]["required"] == ["sku", "on_hand", "orders"]


def test_rows_are_as_new_as_an_entitys_answers_or_are_not_told(tmp_path: Path) -> None:
    app = app_at(tmp_path)

    async def write(*quantities: int, read: bool) -> None:
        async with writing(app) as (history, views):
            shard = (await views.position_of(Stock, "sku-00")).shard
            await history.claim(shard, assignment=sum(quantities))
            for qty in quantities:
                await history.commit("sku-00", Received(qty=qty))
            if read:
                await fold(app, views)

    asyncio.run(create_topics(app, app.log))
    with served(app, app.log) as gateway, gateway.client() as http:
        assert http.get(TABLE).status_code == 503
        asyncio.run(write(5, read=True))
        fresh = {"fresh": "stock/sku-00"}
        assert page(http, **fresh)["rows"] == [{"sku": "sku-00", "on_hand": 5, "orders": 0}]
        asyncio.run(write(7, read=False))
        late = http.get(TABLE, params=fresh, headers={"Rekindle-Timeout": "0.2"})
        assert (late.status_code, late.json()["type"]) == (503, "/problems/view-is-behind")
        assert late.headers["retry-after"]
        assert page(http)["rows"][0]["on_hand"] == 5
