"""What handlers may do wrong, and what they may count on.

Goal: whatever a handler raises or leaves behind, it takes effect whole or not at all, live and on replay alike, and the
next command of the entity runs. Method: every claim about state is made twice, before and after a takeover by replay.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import pytest

from rekindle import BadRequest, CommandFailed, Entity, Event, OutcomeUnknown, Rejected, command, query
from rekindle.actors.entities import SINCE_MIN
from rekindle.events import Deleted
from tests.support.inprocess import Clock, GatedLog, hosted_of, in_loop, key_in, running
from tests.support.loops import eventually


class Put(Event):
    items: list[str]


class Cleared(Event):
    pass


class Unheard(Event):
    """No `apply` declares it."""


class BasketFull(Rejected):
    items: list[str]
    most: int


class Unprintable(Exception):
    def __str__(self) -> str:
        raise LookupError("no words")


class Basket(Entity):
    """Items in the order in which they came."""

    items: list[str] = []
    puts: int = 0
    at_ms: int = 0

    def apply(self, event: Put | Cleared) -> None:
        match event:
            case Put(items=items):
                self.items += items
                self.puts += 1
            case Cleared():
                self.items = []
        if "boomerang" in self.items:
            self.emit(Cleared())

    @command
    def put(self, *items: str) -> list[str]:
        self.emit(Put(items=list(items)))
        return self.items

    @command
    def put_and_raise(self, error: str, *items: str) -> None:
        for item in items:
            self.emit(Put(items=[item]))
        _raise(error)

    @command
    def put_and_go_on_using_it(self, items: list[str]) -> list[str]:
        event = Put(items=items)
        self.emit(event)
        items.append("afterwards, to the list")
        event.items.append("afterwards, to the event")
        return self.items

    @command
    def put_at_most(self, most: int, *items: str) -> int:
        for item in items:
            if len(self.items) == most:
                raise BasketFull(items=self.items, most=most)
            self.emit(Put(items=[item]))
        return len(self.items)

    @command
    def throw_away(self) -> None:
        self.delete()

    @command
    def replace(self, *items: str) -> list[str]:
        self.delete()
        self.emit(Put(items=list(items)))
        return self.items

    @command
    def throw_away_and_raise(self) -> None:
        self.delete()
        raise RuntimeError("not really")

    @command
    def emit_undeclared(self) -> None:
        self.emit(Put(items=["x"]))
        self.emit(Unheard())  # pyright: ignore[reportArgumentType]

    @command
    def when(self) -> int:
        self.emit(Cleared())
        return self.now_ms

    @query
    def look(self) -> tuple[list[str], int]:
        return self.items, self.puts

    @query
    def put_in_passing(self) -> None:
        self.emit(Put(items=["x"]))

    @query
    def delete_in_passing(self) -> None:
        self.delete()

    @query
    def fail(self, error: str) -> None:
        _raise(error)


_ERRORS: dict[str, BaseException] = {
    "RuntimeError": RuntimeError("no"),
    "RecursionError": RecursionError("too deep"),
    "MemoryError": MemoryError(),
    "StopIteration": StopIteration(),
    "SystemExit": SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "CancelledError": asyncio.CancelledError(),
    "GeneratorExit": GeneratorExit(),
    "Unprintable": Unprintable(),
    "surrogates": RuntimeError("\ud800"),
    "BadRequest": BadRequest("the handler's own"),
}


def _raise(error: str) -> None:
    if error == "SystemExit":
        sys.exit(3)
    raise _ERRORS[error]


BASKET = hosted_of(Basket)
KEY = key_in(0)


@pytest.mark.parametrize("error", _ERRORS)
@in_loop
async def test_whatever_a_command_raises_its_events_never_were(error: str) -> None:
    async with running(BASKET, log := GatedLog()) as stage:
        basket = stage.client.get(Basket, KEY)
        assert await basket.put("a", "b") == ["a", "b"]
        with pytest.raises(
            CommandFailed, match=rf"^Basket\.put_and_raise failed, its events were undone: {_named(error)}"
        ):
            await basket.put_and_raise(error, "c", "d")
        assert await basket.look() == (["a", "b"], 1)
        assert await basket.put("e") == ["a", "b", "e"]
    async with running(BASKET, log) as stage:
        assert await stage.client.get(Basket, KEY).look() == (["a", "b", "e"], 2)


@pytest.mark.parametrize("max_staleness", [None, 60.0])
@pytest.mark.parametrize("error", _ERRORS)
@in_loop
async def test_whatever_a_query_raises_is_its_callers_error(error: str, max_staleness: float | None) -> None:
    async with running(BASKET, GatedLog()) as stage:
        basket = stage.client.get(Basket, KEY, max_staleness=max_staleness)
        with pytest.raises(CommandFailed, match=_named(error)):
            await basket.fail(error)
        assert await basket.put("a") == ["a"]


def _named(error: str) -> str:
    return type(_ERRORS[error]).__name__


@in_loop
async def test_undoing_goes_back_over_any_number_of_commands() -> None:
    """The state is put together again from what was encoded last and the events since: at every distance from it."""
    async with running(BASKET, GatedLog()) as stage:
        basket = stage.client.get(Basket, KEY)
        expected: list[str] = []
        for number in range(100):
            with pytest.raises(CommandFailed):
                await basket.put_and_raise("RuntimeError", "x")
            expected.append(str(number))
            assert await basket.put(str(number)) == expected


@in_loop
async def test_a_refusal_undoes_its_command_and_tells_what_it_saw() -> None:
    async with running(BASKET, log := GatedLog()) as stage:
        basket = stage.client.get(Basket, KEY)
        assert await basket.put_at_most(2, "a") == 1
        with pytest.raises(BasketFull) as refusal:
            await basket.put_at_most(2, "b", "c")
        assert (refusal.value.items, refusal.value.most) == (["a", "b"], 2)
        assert await basket.look() == (["a"], 1)
    async with running(BASKET, log) as stage:
        assert await stage.client.get(Basket, KEY).look() == (["a"], 1)


@in_loop
async def test_the_log_keeps_what_was_emitted_whatever_is_done_to_it_afterwards() -> None:
    async with running(BASKET, log := GatedLog()) as stage:
        await stage.client.get(Basket, KEY).put_and_go_on_using_it(["a"])
    async with running(BASKET, log) as stage:
        assert await stage.client.get(Basket, KEY).look() == (["a"], 1)


@in_loop
async def test_a_deleted_entity_is_found_as_new() -> None:
    async with running(BASKET, log := GatedLog()) as stage:
        basket = stage.client.get(Basket, KEY)
        await basket.put("a")
        await basket.throw_away()
        assert await basket.look() == ([], 0)
        assert await basket.put("b") == ["b"]
    async with running(BASKET, log) as stage:
        basket = stage.client.get(Basket, KEY)
        assert await basket.look() == (["b"], 1)
        assert await basket.replace("c") == ["c"]
        with pytest.raises(CommandFailed, match="not really"):
            await basket.throw_away_and_raise()
        assert await basket.look() == (["c"], 1)
    async with running(BASKET, log) as stage:
        assert await stage.client.get(Basket, KEY).look() == (["c"], 1)
        await stage.client.get(Basket, KEY).throw_away()
        assert len(stage.owner().shard.entities) == 0
    async with running(BASKET, log) as stage:
        assert len(stage.owner().shard.entities) == 0


@pytest.mark.parametrize("handler", ["put_in_passing", "delete_in_passing"])
@in_loop
async def test_queries_emit_nothing(handler: str) -> None:
    async with running(BASKET, GatedLog()) as stage:
        with pytest.raises(CommandFailed, match=r"TypeError: Basket\.\w+ was called outside a command"):
            await getattr(stage.client.get(Basket, KEY), handler)()
        assert await stage.client.get(Basket, KEY).look() == ([], 0)


@in_loop
async def test_apply_emits_nothing() -> None:
    """Not even while a command runs: the replay of its event could not do the same."""
    async with running(BASKET, log := GatedLog()) as stage:
        basket = stage.client.get(Basket, KEY)
        with pytest.raises(
            CommandFailed, match=r"TypeError: Basket\.emit was called outside a command: queries and `apply`"
        ):
            await basket.put("boomerang")
        assert await basket.put("a") == ["a"]
    async with running(BASKET, log) as stage:
        assert await stage.client.get(Basket, KEY).look() == (["a"], 1)


@in_loop
async def test_only_declared_events_are_emitted() -> None:
    async with running(BASKET, GatedLog()) as stage:
        declared = sorted(["Put", "Cleared", Deleted.event_name])
        with pytest.raises(CommandFailed) as failure:
            await stage.client.get(Basket, KEY).emit_undeclared()
        assert f"Basket.apply does not declare Unheard; it declares {declared}" in str(failure.value)
        assert await stage.client.get(Basket, KEY).look() == ([], 0)


@in_loop
async def test_the_time_of_a_shard_never_falls() -> None:
    clock = Clock()
    async with running(BASKET, log := GatedLog(), clock=clock) as stage:
        first = await stage.client.get(Basket, KEY).when()
        clock.now_ms -= 60_000
        assert await stage.client.get(Basket, KEY).when() == first
    async with running(BASKET, log, clock=clock) as stage:
        assert await stage.client.get(Basket, KEY).when() == first
        clock.now_ms = first + 1
        assert await stage.client.get(Basket, KEY).when() == first + 1


# Async handlers


class Phoned(Event):
    number: str


class Phone(Entity):
    """Reaches outside: a call lasts until the test ends it, or makes it fail."""

    calls: list[str] = []

    def apply(self, event: Phoned) -> None:
        self.calls.append(event.number)

    @command
    async def phone(self, number: str) -> list[str]:
        self.emit(Phoned(number=f"{number}..."))
        await _line.connect(number)
        self.emit(Phoned(number=number))
        return self.calls

    @command
    async def phone_in_the_background(self, number: str) -> None:
        self.emit(Phoned(number=number))
        task = asyncio.create_task(_line.connect(number))
        await asyncio.sleep(0)
        task.cancel()
        await task

    @command
    async def give_up(self, error: str) -> None:
        self.emit(Phoned(number="nobody"))
        await asyncio.sleep(0)
        _raise(error)

    @command
    def note(self, number: str) -> list[str]:
        self.emit(Phoned(number=number))
        return self.calls

    @command
    def forget(self) -> None:
        self.delete()

    @command
    async def forget_after(self, number: str) -> None:
        await _line.connect(number)
        self.delete()

    @query
    def called(self) -> list[str]:
        return self.calls

    @query
    async def called_after(self, number: str) -> list[str]:
        await _line.connect(number)
        return self.calls


class Line:
    """The world outside."""

    def __init__(self) -> None:
        self.open: dict[str, asyncio.Future[None]] = {}
        self.begun: list[str] = []

    async def connect(self, number: str) -> None:
        self.begun.append(number)
        self.open[number] = asyncio.get_running_loop().create_future()
        try:
            await self.open[number]
        finally:
            del self.open[number]

    async def wait_for(self, *numbers: str) -> None:
        """Until these are being called, and no others."""
        await eventually(lambda: sorted(self.open) == sorted(numbers))

    def end(self, number: str, error: Exception | None = None) -> None:
        if error is None:
            self.open[number].set_result(None)
        else:
            self.open[number].set_exception(error)


PHONE = hosted_of(Phone)

_line = Line()


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    line = Line()
    monkeypatch.setattr(f"{__name__}._line", line)
    return line


@in_loop
async def test_an_async_handler_has_its_entity_for_itself(line: Line) -> None:
    """Commands of the same entity run behind it, in order; its queries see no state in between. Other entities run."""
    async with running(PHONE, log := GatedLog()) as stage:
        phone, other = stage.client.get(Phone, KEY), stage.client.get(Phone, key_in(0, prefix="other"))
        calls = [phone.phone("1"), phone.note("2"), phone.phone("3")]
        looks = [phone.called()]
        others = [other.note("a"), other.phone("b")]
        await line.wait_for("1", "b")
        looks.append(phone.called())
        assert await others[0] == ["a"]
        line.end("1")
        assert [await call for call in calls[:2]] == [["1...", "1"], ["1...", "1", "2"]]
        await line.wait_for("3", "b")
        looks.append(phone.called())
        line.end("3")
        whole = [["1...", "1"], ["1...", "1", "2"], ["1...", "1", "2", "3...", "3"]]
        assert await calls[2] == whole[2]
        assert all([await look in whole for look in looks])
        line.end("b")
        assert await others[1] == ["a", "b...", "b"]
    async with running(PHONE, log) as stage:
        assert await stage.client.get(Phone, KEY).called() == whole[2]


def note(phone: Phone) -> Awaitable[object]:
    return phone.note("1")


def forget(phone: Phone) -> Awaitable[object]:
    return phone.forget()


@pytest.mark.parametrize("before", [note, forget])
@in_loop
async def test_an_async_handler_starts_when_what_was_before_it_is_in_the_log(
    before: Callable[[Phone], Awaitable[object]], line: Line
) -> None:
    """It reaches outside, so it must not act on what may never have happened; also on the deletion of its entity."""
    async with running(PHONE, log := GatedLog()) as stage:
        phone = stage.client.get(Phone, KEY)
        await phone.note("0")
        log.gate.clear()
        calls = [before(phone), phone.phone("2")]
        await eventually(lambda: log.held == 1)
        local = stage.client.get(Phone, key_in(0, prefix="other"), max_staleness=60)
        assert await local.called() == []  # so the instance has got as far as the calls that came before this one
        assert line.begun == []
        log.gate.set()
        await calls[0]
        await line.wait_for("2")
        line.end("2")
        await calls[1]


@in_loop
async def test_what_waits_behind_a_deletion_finds_the_entity_as_new(line: Line) -> None:
    """Also when it has to be put together again, from what there was of it before: nothing."""
    async with running(PHONE, log := GatedLog()) as stage:
        phone = stage.client.get(Phone, KEY)
        for number in range(SINCE_MIN + 1):
            await phone.note(str(number))
        forgotten = phone.forget_after("1")
        await line.wait_for("1")
        failing, note = phone.give_up("RuntimeError"), phone.note("2")
        line.end("1")
        await forgotten
        with pytest.raises(CommandFailed):
            await failing
        assert await note == ["2"]
    async with running(PHONE, log) as stage:
        assert await stage.client.get(Phone, KEY).called() == ["2"]


@in_loop
async def test_an_async_query_sees_one_state_from_its_beginning_to_its_end(line: Line) -> None:
    async with running(PHONE, GatedLog()) as stage:
        phone = stage.client.get(Phone, KEY)
        assert await phone.note("1") == ["1"]
        look = phone.called_after("2")
        await line.wait_for("2")
        note = phone.note("3")
        line.end("2")
        assert await look == ["1"]
        assert await note == ["1", "3"]


@in_loop
async def test_an_async_handler_that_takes_too_long_fails_and_lets_the_others_run(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rekindle.actors.shard.ASYNC_HANDLER_MAX_S", 0.05)
    async with running(PHONE, GatedLog()) as stage:
        phone = stage.client.get(Phone, KEY)
        stuck, behind = phone.phone("1"), phone.called()
        with pytest.raises(CommandFailed, match=r"TimeoutError: it took more than 0\.05 s"):
            await stuck
        assert await behind == []
        assert not line.open


@in_loop
async def test_a_timeout_of_the_handlers_own_is_told_as_it_is(line: Line) -> None:
    async with running(PHONE, GatedLog()) as stage:
        call = stage.client.get(Phone, KEY).phone("1")
        await line.wait_for("1")
        line.end("1", TimeoutError("nobody picks up"))
        with pytest.raises(CommandFailed, match="TimeoutError: nobody picks up"):
            await call
        assert await stage.client.get(Phone, KEY).called() == []


@pytest.mark.parametrize("error", sorted(_ERRORS.keys() - {"GeneratorExit"}))
@in_loop
async def test_whatever_an_async_handler_raises_its_events_never_were(error: str) -> None:
    async with running(PHONE, log := GatedLog()) as stage:
        phone = stage.client.get(Phone, KEY)
        named = "RuntimeError" if error == "StopIteration" else _named(error)
        with pytest.raises(CommandFailed, match=named):
            await phone.give_up(error)
        assert await phone.note("1") == ["1"]
    async with running(PHONE, log) as stage:
        assert await stage.client.get(Phone, KEY).called() == ["1"]


@in_loop
async def test_a_handler_that_waits_for_what_was_cancelled_fails_alone(line: Line) -> None:
    async with running(PHONE, GatedLog()) as stage:
        phone = stage.client.get(Phone, KEY)
        with pytest.raises(CommandFailed, match="CancelledError"):
            await phone.phone_in_the_background("1")
        assert await phone.called() == []


@in_loop
async def test_an_instance_can_stop_in_the_middle_of_an_async_handler(line: Line) -> None:
    async with running(PHONE, log := GatedLog()) as stage:
        call = stage.client.get(Phone, KEY).phone("1")
        await line.wait_for("1")
    with pytest.raises(OutcomeUnknown, match="may have been run: the client was closed"):
        await call
    assert not line.open
    async with running(PHONE, log) as stage:
        assert await stage.client.get(Phone, KEY).called() == []
