"""What is declared: a tree that cannot be run is refused where it is declared, with what was expected and what was found."""

from __future__ import annotations

from typing import Any

import pytest

from rekindle import App, Entity, Service, Supervisor
from rekindle.actors.owner import SNAPSHOT_EVERY
from rekindle.supervisors import DeclarationError
from rekindle.supervisors.hosting import hosted_service, load
from rekindle.supervisors.tree import RESERVED, SHARDS_MAX
from tests.support.inprocess import Added, Tally

WHOLE: dict[str, Any] = {"name": "tallies", "entity": Tally, "shards": 4, "instances": 2}


class OtherTally(Entity):
    """Another entity."""

    def apply(self, event: Added) -> None:
        """Nothing."""


def service(name: str, entity: type[Entity] = Tally) -> Service:
    return Service(name, entity, shards=1, instances=1)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"name": ""}, "a service's name has ASCII letters, digits, - and _; got ''"),
        ({"name": "a b"}, "a service's name has ASCII letters, digits, - and _; got 'a b'"),
        ({"name": "a.b"}, "a service's name has ASCII letters, digits, - and _; got 'a.b'"),
        ({"name": "größe"}, "a service's name has ASCII letters, digits, - and _; got 'größe'"),
        ({"name": "--"}, "a service's name has ASCII letters, digits, - and _; got '--'"),
        ({"shards": 0}, "service 'tallies': shards must be 1 to 10000, got 0"),
        ({"shards": SHARDS_MAX + 1}, "service 'tallies': shards must be 1 to 10000, got 10001"),
        ({"instances": 0}, "service 'tallies': instances must be at least 1, got 0"),
        ({"snapshot_every": 0}, "service 'tallies': snapshot_every must be at least 1, got 0"),
        ({"hang_s": 0.0}, "service 'tallies': hang_s must be more than 0, got 0.0"),
        ({"hang_s": float("nan")}, "service 'tallies': hang_s must be more than 0, got nan"),
        *(({"name": name}, f"a service cannot be called '{name}'") for name in sorted(RESERVED)),
    ],
)
def test_a_service_that_cannot_run_is_refused(changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(DeclarationError) as refusal:
        Service(**{**WHOLE, **changed})
    assert problem in str(refusal.value)


def test_a_service_is_hosted_as_declared() -> None:
    hosted = Service(**WHOLE, snapshot_every=7).hosted("app")
    assert (hosted.name, hosted.shards, hosted.snapshot_every, hosted.kind) == ("tallies", 4, 7, Tally.describe())
    assert str(hosted.partition(3)) == "app.tallies/3"
    assert Service(**WHOLE).hosted("app").snapshot_every == SNAPSHOT_EVERY


def test_services_come_in_start_order_however_deep_they_are() -> None:
    inner = Supervisor("inner", children=[service("b"), Supervisor("innermost", children=[service("c")])])
    tree = Supervisor("outer", children=[service("a"), inner, service("d")])
    assert [found.name for found in tree.services()] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        (Supervisor("empty"), "expected one or more services with different names, got []"),
        (
            Supervisor("twice", children=[service("a"), Supervisor("in", children=[service("a", OtherTally)])]),
            "expected one or more services with different names, got ['a', 'a']",
        ),
        (
            Supervisor("same", children=[service("a"), service("b")]),
            "expected one or more entities with different names, got ['Tally', 'Tally']",
        ),
    ],
)
def test_an_application_that_cannot_run_is_refused(tree: Supervisor, problem: str) -> None:
    with pytest.raises(DeclarationError) as refusal:
        App("shop", tree=tree)
    assert f"app 'shop': {problem}" in str(refusal.value)


@pytest.mark.parametrize("target", ["", "module", ":app", "module:", "no.such.module:app", f"{__name__}:nothing"])
def test_an_application_that_cannot_be_imported_is_refused(target: str) -> None:
    with pytest.raises(DeclarationError, match=r"expected an application as module:name|cannot import "):
        load(target)


def test_a_service_that_the_application_does_not_have_is_refused_with_those_that_it_has() -> None:
    app = App("shop", tree=Supervisor("shop", children=[service("a"), service("b", OtherTally)]))
    assert hosted_service(app, "b").kind is OtherTally.describe()
    with pytest.raises(DeclarationError, match=r"application 'shop' has no service 'c'; it has \['a', 'b'\]"):
        hosted_service(app, "c")
