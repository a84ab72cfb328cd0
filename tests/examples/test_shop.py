"""The shop: what fails restarts together with everything that needs it, in the order of the needs, while callers wait.

Method: callers of all three services, none of whom may fail; an instance of the one in the middle is killed. The order is
read twice: from the plan's steps in the control log, and from what the cluster was told to start and to kill.
"""

from __future__ import annotations

import signal
from itertools import pairwise
from pathlib import Path

import pytest

from examples.shop.app import Cart, Price, Product, main
from rekindle.supervisors import Control
from rekindle.supervisors.plans import Place, Start, State, Step, Stop
from tests.examples.stage import CALL_MAX_S, Stage, calling, is_healed, plans_of, stage
from tests.support.loops import run


class Callers:
    """One of each service; everything that they are answered follows from what they did."""

    def __init__(self, shop: Stage) -> None:
        self.product = shop.client.get(Product, "lamp", timeout=CALL_MAX_S)
        self.price = shop.client.get(Price, "lamp", timeout=CALL_MAX_S)
        self.cart = shop.client.get(Cart, "anna", timeout=CALL_MAX_S)
        self.changes = self.items = 0

    async def show(self) -> None:
        """Look into the catalog."""
        assert await self.product.show() == "a lamp"

    async def reprice(self) -> None:
        """Change the price."""
        self.changes += 1
        assert await self.price.set(self.changes) == self.changes

    async def buy(self) -> None:
        """Buy one."""
        self.items += 1
        assert await self.cart.buy("lamp", 100) == self.items


def running(control: Control, service: str) -> list[str]:
    """The instances of a service."""
    return sorted(name for name, known in control.instances.items() if known.service == service)


def test_a_service_restarts_with_what_needs_it_and_callers_wait(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def kill() -> None:
        async with stage("examples.shop.app:app", tmp_path) as shop:
            control = await shop.decided()
            before = {name: running(control, name) for name in ("catalog", "pricing", "checkout")}
            callers = Callers(shop)
            await callers.product.list_as("a lamp")
            async with calling([callers.show, callers.reprice, callers.buy]):
                shop.machines.story.clear()
                assert shop.machines.signal(before["pricing"][0], signal.SIGKILL)
                control = await shop.until(is_healed)
            after = {name: running(control, name) for name in before}
            await main(shop.log)
        assert f"anna has bought {callers.items + 1}: a lamp for 4900 cents" in capsys.readouterr().out

        assert after["catalog"] == before["catalog"]
        assert [len(after[name]) for name in before] == [1, 2, 1]
        assert set(after["pricing"] + after["checkout"]).isdisjoint(before["pricing"] + before["checkout"])
        _check_plan(control, before, after)
        _check_story(shop.machines.story, before, after)

    run(kill())


def _check_plan(control: Control, before: dict[str, list[str]], after: dict[str, list[str]]) -> None:
    (plan,) = plans_of(control, "coordinated_restart")
    assert plan.services == ["checkout", "pricing"]
    assert [phase.name for phase in plan.phases] == [
        *("quiesce checkout", "stop checkout", "quiesce pricing", "stop pricing"),
        *("start pricing", "serve pricing", "start checkout", "serve checkout"),
    ]
    done = [step for _, _, step in plan.steps()]
    assert {step.state for step in done} == {State.DONE}
    for phase, following in pairwise(plan.phases):
        assert max(step.since_ms for step in phase.steps) <= min(step.since_ms for step in following.steps)
    assert [_what(step) for step in done if not isinstance(step.action, Start)] == [
        *("own", f"stop {before['checkout'][0]}", "own", f"stop {before['pricing'][1]}"),
        *("place pricing", "place checkout"),
    ]
    assert {step.result for step in done if isinstance(step.action, Start)} == {*after["pricing"], *after["checkout"]}


def _what(step: Step) -> str:
    match step.action:
        case Stop(incarnation=incarnation):
            return f"stop {incarnation}"
        case Place(service=service):
            return f"place {service}"
        case other:
            return other.do


def _check_story(story: list[tuple[str, str]], before: dict[str, list[str]], after: dict[str, list[str]]) -> None:
    """Never did one run that needs what was not there."""
    (old,), (new,) = before["checkout"], after["checkout"]
    stopped = story.index((old, "killed"))
    began = story.index((new, "starting"))
    assert stopped < story.index((before["pricing"][1], "killed"))
    for name in after["pricing"]:
        assert stopped < story.index((name, "starting")) < story.index((name, "running")) < began
