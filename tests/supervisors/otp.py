"""Supervisors as OTP runs them: objects that live and die, and know nothing but their own children.

Goal: a second opinion on `rekindle.supervisors.restarts`, written the other way round. Random trees and exits come with
it: `tell` lets the exits happen in a running tree, and at each step compares what happened with what was decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from rekindle import PERMANENT, TEMPORARY, TRANSIENT, Backoff, Restart, Service, Strategy, Supervisor
from rekindle.supervisors import DeclarationError, History, Verdict, check_tree, on_exit, start_levels
from rekindle.supervisors.tree import Child
from tests.support.inprocess import Tally


def service(name: str, restart: Restart = PERMANENT, needs: Sequence[str] = ()) -> Service:
    """A service of three instances."""
    return Service(name, Tally, shards=1, instances=3, restart=restart, needs=needs)


class Supervising:
    """A supervisor as OTP runs one: it starts all of its children, and its history lives as long as it does."""

    def __init__(self, declared: Supervisor, running: Running) -> None:
        self.declared = declared
        self.running = running
        self.restarts: list[int] = []
        self.children: dict[str, Supervising | None] = {}
        for child in declared.children:
            self.start(child)

    def start(self, child: Child) -> None:
        if isinstance(child, Supervisor):
            self.children[child.name] = Supervising(child, self.running)
        else:
            self.children[child.name] = None
            self.running.started.append(child.name)
            self.running.alive.add(child.name)

    def terminate(self, child: Child) -> None:
        below = self.children.get(child.name)
        if below is not None:
            for other in reversed(below.declared.children):
                below.terminate(other)
        elif child.name in self.running.alive:
            self.running.alive.remove(child.name)
            self.running.stopped.append(child.name)

    def on_exit(self, name: str, abnormal: bool, now_ms: int) -> bool:
        """Somebody below has exited. Whether this one lives on."""
        for child in self.declared.children:
            below = self.children.get(child.name)
            if child.name == name and isinstance(child, Service):
                is_restarted = child.restart is PERMANENT or (child.restart is TRANSIENT and abnormal)
                return not is_restarted or self.restart(child, now_ms)
            if below is not None and name in {s.name for s in below.declared.services()}:
                return below.on_exit(name, abnormal, now_ms) or self.restart(child, now_ms)
        raise AssertionError(f"{name} is not below {self.declared.name}")

    def histories(self) -> Iterator[tuple[str, list[int]]]:
        yield self.declared.name, list(self.restarts)
        for below in self.children.values():
            if below is not None:
                yield from below.histories()

    def restart(self, exited: Child, now_ms: int) -> bool:
        self.restarts.append(now_ms)
        recent = [at for at in self.restarts if at >= now_ms - 1000 * self.declared.within]
        if len(recent) > self.declared.max_restarts:
            self.running.gave_up.append(self.declared.name)
            for child in reversed(self.declared.children):
                self.terminate(child)
            return False
        children, place = list(self.declared.children), list(self.declared.children).index(exited)
        group = {"one_for_one": [exited], "one_for_all": children, "rest_for_one": children[place:]}
        chosen = group[self.declared.strategy.value]
        for child in reversed(chosen):
            self.terminate(child)
        for child in chosen:
            if isinstance(child, Supervisor) or child.restart is not TEMPORARY:
                self.start(child)
        self.running.by = self.declared.name
        return True


class Running:
    """A running tree: what is alive, and what the last exit led to."""

    def __init__(self, tree: Supervisor) -> None:
        self.alive: set[str] = set()
        self.forget()
        self.root = Supervising(tree, self)

    def forget(self) -> None:
        self.by: str | None = None
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.gave_up: list[str] = []
        self.others = set[str]()

    def exit(self, name: str, abnormal: bool, now_ms: int) -> None:
        self.forget()
        self.alive.remove(name)
        self.others = set(self.alive)
        self.root.on_exit(name, abnormal, now_ms)

    def history(self) -> dict[str, list[int]]:
        """All restarts of the supervisors that live, however old."""
        return dict(self.root.histories())


@dataclass(frozen=True)
class Exit:
    """which: a number that stands for one of the services that are alive. after_ms: since the exit before."""

    which: int
    abnormal: bool
    after_ms: int


exits = st.lists(
    st.builds(
        Exit,
        which=st.integers(0, 99),
        abnormal=st.sampled_from([True, True, True, False]),
        after_ms=st.sampled_from([0, 1, 999, 1_000, 1_001, 10_000, 60_000]) | st.integers(0, 100_000),
    ),
    min_size=10,
    max_size=25,
)
BACKOFFS = [Backoff(), Backoff(0.5, 4.0, 2.0, 0.5, 4.0), Backoff(5.0, 1.0, 5.0, 0.0, 90.0)]
shapes: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(Restart), lambda below: st.lists(below, max_size=4), max_leaves=10
)


@st.composite
def trees(draw: st.DrawFn) -> Supervisor:
    """Any tree that can run: its services are called s0, s1, ..., its supervisors v0, v1, ..."""
    count = {"s": 0, "v": 0}

    def name(letter: str) -> str:
        count[letter] += 1
        return f"{letter}{count[letter] - 1}"

    def build(shape: Restart | list[Any]) -> Child:
        if isinstance(shape, Restart):
            return service(name("s"), shape)
        return Supervisor(
            name("v"),
            draw(st.sampled_from(Strategy)),
            [build(below) for below in shape],
            draw(st.sampled_from([0, 1, 2, 3, 3, 5])),
            draw(st.sampled_from([1.0, 60.0, 100.0])),
            draw(st.sampled_from(BACKOFFS)),
        )

    tree = build([PERMANENT, *draw(st.lists(shapes, max_size=4))])
    assert isinstance(tree, Supervisor)
    numbers = st.integers(0, count["s"] - 1)
    pairs = draw(st.lists(st.tuples(numbers, numbers), max_size=6, unique=True))
    for needing, needed in pairs:
        if needing != needed and is_sound(changed := with_need(tree, f"s{needing}", f"s{needed}")):
            tree = changed
    return tree


def with_need(tree: Supervisor, needing: str, needed: str) -> Supervisor:
    def changed(child: Child) -> Child:
        if isinstance(child, Supervisor):
            return with_need(child, needing, needed)
        return replace(child, needs=[*child.needs, needed]) if child.name == needing else child

    return replace(tree, children=[changed(child) for child in tree.children])


def is_sound(tree: Supervisor) -> bool:
    try:
        check_tree(tree)
    except DeclarationError:
        return False
    return True


@dataclass(frozen=True)
class Told:
    """An exit, what was remembered of those before it and what was not, and the verdict."""

    child: str
    abnormal: bool
    now_ms: int
    remembered: dict[str, list[int]]
    complete: dict[str, list[int]]
    verdict: Verdict

    def again(self, tree: Supervisor, history: History) -> Verdict:
        """The verdict on the same exit with this history."""
        return on_exit(tree, history, self.child, abnormal=self.abnormal, now_ms=self.now_ms)


def tell(tree: Supervisor, exits: Iterable[Exit]) -> Iterator[Told]:
    """One exit after the other. When nothing is left that can exit, all is started again by hand."""
    running, history, now_ms = Running(tree), dict[str, list[int]](), 0
    for one in exits:
        if not running.alive:
            running, history = Running(tree), {}
        now_ms += one.after_ms
        child = sorted(running.alive)[one.which % len(running.alive)]
        verdict = on_exit(tree, history, child, abnormal=one.abnormal, now_ms=now_ms)
        told = Told(child, one.abnormal, now_ms, history, running.history(), verdict)
        running.exit(child, one.abnormal, now_ms)
        agree(tree, told, running)
        yield told
        history = verdict.history


def agree(tree: Supervisor, told: Told, running: Running) -> None:
    """What was decided is what happened in the running tree. The service that exited may be stopped: it has others."""
    verdict = told.verdict
    assert (verdict.by, verdict.gave_up) == (running.by, running.gave_up)
    assert verdict.is_final == (running.gave_up[-1:] == [tree.name])
    assert set(verdict.start) == set(running.started)
    assert set(verdict.stop) & running.others == set(running.stopped)
    if len(start_levels(tree)) == 1:
        assert verdict.start == running.started
