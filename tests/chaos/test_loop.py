"""Virtual time, and processes that can be stopped, slowed and killed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import suppress
from math import inf
from typing import Any, TypeVar

import pytest

from rekindle.chaos import Deadlock, Process, SimLoop, new_loop, outside
from tests.chaos.virtual import pass_time

T = TypeVar("T")


@pytest.fixture
def loop() -> Generator[SimLoop]:
    """A loop; whatever is left in it is ended."""
    made = new_loop()
    yield made
    made.close()
    assert made.failures == []


async def ticks(count: int, told: list[tuple[float, int]]) -> None:
    """Something that lives: tells the time each second."""
    for number in range(count):
        await pass_time(1)
        told.append((asyncio.get_running_loop().time(), number))


def run(loop: SimLoop, work: Coroutine[Any, Any, T]) -> T:
    """Run it in the world."""
    return loop.run_until_complete(work)


# --- time ----------------------------------------------------------------------------------------------------------


def test_time_jumps_to_what_is_next(loop: SimLoop) -> None:
    run(loop, pass_time(3_600))
    assert loop.time() == 3_600


def test_timers_of_one_instant_run_in_the_order_in_which_they_were_set(loop: SimLoop) -> None:
    order: list[int] = []
    for number in range(20):
        loop.call_at(5, order.append, number)
    run(loop, pass_time(5))
    assert order == list(range(20))


def test_a_cancelled_timer_moves_no_time(loop: SimLoop) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(100):
            await pass_time(1)
        await pass_time(1)

    run(loop, in_time())
    assert loop.time() == 2


def test_what_asyncio_offers_on_top_works(loop: SimLoop) -> None:
    async def everything() -> list[int]:
        queue: asyncio.Queue[int] = asyncio.Queue(1)
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(queue.put(number))
            taken = [await queue.get() for _ in range(3)]
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.Event().wait()
        got, _ = await asyncio.gather(queue.get(), queue.put(3))
        return [*taken, got]

    assert run(loop, everything()) == [0, 1, 2, 3]


def test_what_never_happens_is_a_deadlock_that_says_who_waits(loop: SimLoop) -> None:
    with pytest.raises(Deadlock, match=r"nothing is ready and no timer is set: 1 tasks wait: .*_awaited"):
        run(loop, _wait_for_ever())


async def _wait_for_ever() -> None:
    await asyncio.Event().wait()


def test_a_loop_without_time_is_one_too(loop: SimLoop) -> None:
    def spin() -> None:
        loop.call_soon(spin)

    spin()
    with pytest.raises(Deadlock, match="time does not move"):
        run(loop, pass_time(1))


def test_threads_and_sockets_are_refused(loop: SimLoop) -> None:
    with pytest.raises(Deadlock, match="a simulation has none"):
        run(loop, asyncio.to_thread(print))
    with pytest.raises(Deadlock, match="another thread"):
        loop.call_soon_threadsafe(print)
    with pytest.raises(NotImplementedError):
        run(loop, asyncio.open_connection("localhost", 80))


def test_tasks_in_a_set_are_in_the_same_order_in_every_run() -> None:
    def order() -> list[str]:
        loop = new_loop()
        tasks = {loop.create_task(asyncio.sleep(0), name=f"{number}") for number in range(50)}
        run(loop, pass_time(1))
        loop.close()
        return [task.get_name() for task in tasks]

    assert order() == order()


# --- processes -----------------------------------------------------------------------------------------------------


def test_a_stopped_process_goes_on_where_it_was(loop: SimLoop) -> None:
    told: list[tuple[float, int]] = []
    process = Process(loop, "p", "host")
    process.start(ticks(4, told))
    loop.call_at(1.5, process.set_pace, inf)
    loop.call_at(9.5, process.set_pace, 0)
    run(loop, pass_time(20))
    assert told == [(1, 0), (9.5, 1), (10.5, 2), (11.5, 3)]


def test_a_slow_process_takes_its_time_for_each_callback(loop: SimLoop) -> None:
    told: list[tuple[float, int]] = []
    process = Process(loop, "p", "host")
    process.set_pace(0.25)
    process.start(ticks(2, told))
    run(loop, pass_time(10))
    # Two callbacks for each second: the timer, and the task that it wakes.
    assert told == [(1.75, 0), (3.25, 1)]


def test_a_killed_process_does_nothing_more(loop: SimLoop) -> None:
    told: list[tuple[float, int]] = []
    deaths: list[float] = []
    process = Process(loop, "p", "host")
    process.at_death.append(lambda: deaths.append(loop.time()))
    process.start(ticks(4, told))
    loop.call_at(2.5, process.kill)
    loop.call_at(3.5, process.kill)
    run(loop, pass_time(10))
    assert told == [(1, 0), (2, 1)]
    assert deaths == [2.5]


def test_what_a_process_had_asked_the_world_for_happens_without_it(loop: SimLoop) -> None:
    done: list[float] = []

    async def errand() -> None:
        await pass_time(5)
        done.append(loop.time())

    process = Process(loop, "p", "host")
    process.start(outside(errand()))
    loop.call_at(1, process.kill)
    run(loop, pass_time(10))
    assert done == [5]


def test_others_are_not_held_up_by_one_that_is_stopped(loop: SimLoop) -> None:
    told: list[tuple[float, int]] = []
    stopped, other = Process(loop, "p", "host"), Process(loop, "q", "host")
    stopped.start(ticks(3, []))
    stopped.set_pace(inf)
    other.start(ticks(3, told))
    run(loop, pass_time(5))
    assert told == [(1, 0), (2, 1), (3, 2)]
