"""What is declared: a tree that cannot be run is refused where it is declared, with what was expected and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rekindle import PERMANENT, REST_FOR_ONE, App, Backoff, Entity, Service, Strategy, Supervisor
from rekindle.actors.owner import SNAPSHOT_EVERY
from rekindle.supervisors import DeclarationError, check_tree
from rekindle.supervisors.hosting import hosted_service, load
from rekindle.supervisors.tree import PAUSES_MAX, RESERVED, RESTARTS_MAX, SHARDS_MAX, dependencies
from tests.support.inprocess import Added, Tally

WHOLE: dict[str, Any] = {"name": "tallies", "entity": Tally, "shards": 4, "instances": 2}


class OtherTally(Entity):
    """Another entity."""

    def apply(self, event: Added) -> None:
        """Nothing."""


def service(name: str, entity: type[Entity] = Tally, needs: Sequence[str] = ()) -> Service:
    return Service(name, entity, shards=1, instances=1, needs=needs)


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
        ({"standbys": -1}, "service 'tallies': standbys must be at least 0, got -1"),
        ({"needs": "stock"}, "service 'tallies': needs must be a list of services' names, got 'stock'"),
        ({"needs": [1]}, "service 'tallies': needs must be a list of services' names, got [1]"),
        ({"needs": ("a", "a")}, "service 'tallies': needs must be different names, got ['a', 'a']"),
        (
            {"restart": "permanent"},
            "service 'tallies': restart must be PERMANENT or TRANSIENT or TEMPORARY, got 'permanent'",
        ),
        ({"min_active": -1}, "service 'tallies': min_active must be 0 to 2, its instances, got -1"),
        ({"min_active": 3}, "service 'tallies': min_active must be 0 to 2, its instances, got 3"),
        ({"on_failure": "retry"}, "service 'tallies': on_failure must be a list of policies, got 'retry'"),
        *(({"name": name}, f"a service cannot be called '{name}'") for name in sorted(RESERVED)),
    ],
)
def test_a_service_that_cannot_run_is_refused(changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(DeclarationError) as refusal:
        Service(**{**WHOLE, **changed})
    assert problem in str(refusal.value)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"name": "a.b"}, "a supervisor's name has ASCII letters, digits, - and _; got 'a.b'"),
        (
            {"strategy": "one_for_all"},
            "supervisor 'top': strategy must be ONE_FOR_ONE or ONE_FOR_ALL or REST_FOR_ONE, got 'one_for_all'",
        ),
        ({"children": ["a"]}, "supervisor 'top': children must be a list of services and supervisors, got ['a']"),
        ({"children": service("a")}, "supervisor 'top': children must be a list of services and supervisors, got S"),
        ({"max_restarts": -1}, "supervisor 'top': max_restarts must be 0 to 1000, got -1"),
        ({"max_restarts": RESTARTS_MAX + 1}, "supervisor 'top': max_restarts must be 0 to 1000, got 1001"),
        ({"within": 0.0}, "supervisor 'top': within must be a number of seconds above 0, got 0.0"),
        ({"within": float("inf")}, "supervisor 'top': within must be a number of seconds above 0, got inf"),
        ({"backoff": 1.0}, "supervisor 'top': backoff must be a Backoff, got 1.0"),
    ],
)
def test_a_supervisor_that_cannot_supervise_is_refused(changed: dict[str, Any], problem: str) -> None:
    whole: dict[str, Any] = {"name": "top"}
    with pytest.raises(DeclarationError) as refusal:
        Supervisor(**{**whole, **changed})
    assert problem in str(refusal.value)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"first_s": 0.0}, "first_s must be more than 0, got 0.0"),
        ({"factor": 0.9}, "factor must be at least 1, got 0.9"),
        ({"max_s": 0.5}, "max_s must be at least first_s, 1.0, got 0.5"),
        ({"max_s": float("nan")}, "max_s must be at least first_s, 1.0, got nan"),
        ({"jitter": 1.0}, "jitter must be at least 0 and less than 1, got 1.0"),
        ({"jitter": -0.1}, "jitter must be at least 0 and less than 1, got -0.1"),
        ({"reset_after_s": 72.0}, "longest pause, which would count as health otherwise: 72.0 s, got 72.0"),
        (
            {"factor": 1.0},
            "must reach max_s, 60.0, within 64 restarts; with first_s 1.0 and factor 1.0 it comes to 1.0",
        ),
        (
            {"factor": 1.01},
            "must reach max_s, 60.0, within 64 restarts; with first_s 1.0 and factor 1.01 it comes to 1.8",
        ),
    ],
)
def test_a_backoff_that_would_not_back_off_is_refused(changed: dict[str, float], problem: str) -> None:
    with pytest.raises(DeclarationError) as refusal:
        Backoff(**changed)
    assert problem in str(refusal.value)


@pytest.mark.parametrize(
    ("backoff", "pauses_s"),
    [
        (Backoff(), [0, 1, 2, 4, 8, 16, 32, 60]),
        (Backoff(first_s=5.0, factor=1.0, max_s=5.0), [0, 5]),
        (Backoff(first_s=1e-300, factor=1e300), [0, 1e-300, 1, 60]),
    ],
)
def test_pauses_grow_until_they_have_reached_the_longest(backoff: Backoff, pauses_s: list[float]) -> None:
    assert backoff.pauses_s == pauses_s
    assert len(backoff.pauses_s) <= PAUSES_MAX


def test_what_is_not_declared_is_as_otp_has_it_but_for_the_numbers() -> None:
    top = Supervisor("top")
    assert (top.strategy, top.max_restarts, top.within, top.backoff) == (Strategy.ONE_FOR_ONE, 3, 60.0, Backoff())
    assert (service("a").restart, service("a").standbys, service("a").min_active) == (PERMANENT, 0, 1)


def test_a_service_is_hosted_as_declared() -> None:
    hosted = Service(**WHOLE, snapshot_every=7).hosted("app")
    assert (hosted.name, hosted.shards, hosted.snapshot_every, hosted.kind) == ("tallies", 4, 7, Tally.describe())
    assert str(hosted.partition(3)) == "app.tallies/3"
    assert Service(**WHOLE).hosted("app").snapshot_every == SNAPSHOT_EVERY


def test_services_come_in_start_order_however_deep_they_are() -> None:
    inner = Supervisor("inner", children=[service("b"), Supervisor("innermost", children=[service("c")])])
    tree = Supervisor("outer", children=[service("a"), inner, service("d")])
    assert [found.name for found in tree.services()] == ["a", "b", "c", "d"]
    assert [found.name for found in tree.supervisors()] == ["outer", "inner", "innermost"]


@pytest.mark.parametrize(
    ("children", "problem"),
    [
        ([service("a"), Supervisor("in", children=[Supervisor("a")])], "different names; more than once: ['a']"),
        ([Supervisor("top"), Supervisor("in"), Supervisor("in")], "different names; more than once: ['top', 'in']"),
        (
            [service("a", needs=["x", "b", "y"]), service("b")],
            "service 'a' needs ['x', 'y']; the services of the tree are ['a', 'b']",
        ),
        (
            [Supervisor("in", children=[service("a")]), service("b", needs=["in"])],
            "service 'b' needs ['in']; the services of the tree are ['a', 'b']",
        ),
        ([service("a", needs=["a"])], "so none can start first: a needs a ("),
        (
            [
                service("a", needs=["b"]),
                Supervisor("in", children=[service("b", needs=["c"])]),
                service("c", needs=["b"]),
            ],
            "so none can start first: b needs c needs b (",
        ),
        (
            [Supervisor("in", REST_FOR_ONE, [service("a", needs=["b"]), service("b")])],
            "so none can start first: a needs b needs a (below a rest_for_one supervisor every child needs",
        ),
    ],
)
def test_names_and_needs_that_do_not_fit_together_are_refused(
    children: Sequence[Service | Supervisor], problem: str
) -> None:
    with pytest.raises(DeclarationError) as refusal:
        check_tree(Supervisor("top", children=children))
    assert problem in str(refusal.value)


def test_an_application_refuses_them_too() -> None:
    with pytest.raises(DeclarationError, match="service 'a' needs"):
        App("shop", tree=Supervisor("top", children=[service("a", needs=["b"])]))


def test_below_rest_for_one_the_order_is_a_need() -> None:
    inner = Supervisor("in", children=[service("b", needs=["d"]), service("c")])
    tree = Supervisor("top", REST_FOR_ONE, [service("a"), inner, Supervisor("empty"), service("e")])
    whole = Supervisor("all", children=[tree, service("d")])
    assert dependencies(whole) == {"a": [], "b": ["d", "a"], "c": ["a"], "e": ["b", "c"], "d": []}


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
