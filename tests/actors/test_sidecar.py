"""What a service runs beside its shards: its life is the instance's, and whatever it does wrong is an answer.

Goal: an instance listens only beside a sidecar that runs, and ends with it; a policy's operations are done in order, each
is answered once, and a controller that leads no more has nothing done. Method: a sidecar that does what the test wants,
and that a test can hold in the middle of an operation.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from rekindle.actors import Hosted, Sidecar
from rekindle.actors import sidecar as sidecar_module
from rekindle.actors.frames import CONTROLLER, HELLO, PROTOCOL, TELL, frame
from rekindle.actors.link import ANSWER_BYTES_MAX
from tests.support.inprocess import TERM, GatedLog, Tally, hosted_of, in_loop, running
from tests.support.loops import eventually


class Server:
    """A `Sidecar`. log: what happened to it. gate: while it is closed, `hold` goes on for ever."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.log: list[str] = []
        self.died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.gate = asyncio.Event()
        self.fails: set[str] = set()

    async def start(self) -> None:
        """See `Sidecar`."""
        self._do("start")

    async def stop(self) -> None:
        """See `Sidecar`."""
        self._do("stop")

    async def wait(self) -> str:
        """See `Sidecar`."""
        return await self.died

    async def perform(self, operation: str, args: dict[str, Any]) -> Any:
        """See `Sidecar`."""
        self._do(operation)
        match operation:
            case "add":
                return sum(args["numbers"])
            case "hold":
                await self.gate.wait()
            case "exit":
                raise SystemExit(1)
            case "cancel":
                raise asyncio.CancelledError("by itself")
            case "object":
                return object()
            case "much":
                return "x" * ANSWER_BYTES_MAX
            case _:
                raise LookupError(f"nobody knows {operation!r}")
        return None

    def _do(self, what: str) -> None:
        self.log.append(what)
        if what in self.fails:
            raise OSError(f"{what} has failed")


class Servers:
    """Makes them, and keeps them for the test."""

    def __init__(self, *fails: str) -> None:
        self.made: list[Server] = []
        self.fails = set(fails)

    def __call__(self, incarnation: str) -> Sidecar:
        server = Server(incarnation)
        server.fails = self.fails
        self.made.append(server)
        return server

    def hosted(self) -> Hosted:
        """A service with such a sidecar."""
        return replace(hosted_of(Tally), sidecar=self)


# Life


@in_loop
async def test_it_lives_as_long_as_its_instance() -> None:
    servers = Servers()
    async with running(servers.hosted(), GatedLog()) as stage:
        (server,) = servers.made
        assert (server.name, server.log) == (stage.instance.incarnation, ["start"])
    assert server.log == ["start", "stop"]


@in_loop
async def test_an_instance_whose_sidecar_does_not_start_does_not_come_up() -> None:
    servers = Servers("start")
    with pytest.raises(OSError, match="start has failed"):
        async with running(servers.hosted(), GatedLog()):
            pytest.fail("it came up")
    assert servers.made[0].log == ["start", "stop"]


@in_loop
async def test_an_instance_ends_when_its_sidecar_has_died() -> None:
    servers = Servers()
    async with running(servers.hosted(), GatedLog()) as stage:
        servers.made[0].died.set_result("killed by signal 9")
        await stage.instance.stopped.wait()
        assert stage.heard("its sidecar has died, it ends: killed by signal 9")


@in_loop
async def test_an_instance_whose_sidecar_cannot_be_watched_ends() -> None:
    servers = Servers()
    async with running(servers.hosted(), GatedLog()) as stage:
        servers.made[0].died.set_exception(ChildProcessError("no such child"))
        await stage.instance.stopped.wait()
        assert stage.heard("its own watch failed: ChildProcessError('no such child')")


@in_loop
async def test_a_sidecar_that_does_not_stop_keeps_nobody() -> None:
    async with running(Servers("stop").hosted(), GatedLog()) as stage:
        pass
    assert stage.heard("the sidecar did not stop: OSError('stop has failed')")


# Operations


@in_loop
async def test_what_it_gives_is_the_answer_and_so_is_what_it_raises() -> None:
    async with running(Servers().hosted(), GatedLog()) as stage:
        controller = stage.controller
        await controller.tell("plan 7, step 2", "add", numbers=[1, 2])
        assert await controller.wait_told("plan 7, step 2") == [True, 3]
        answers = {
            "unheard-of": ["LookupError", "nobody knows 'unheard-of'"],
            "exit": ["SystemExit", "1"],
            "cancel": ["CancelledError", "by itself"],
            "object": ["Unencodable", "cannot encode tuple: a object cannot be kept in the log"],
            "add": ["KeyError", "'numbers'"],
        }
        for operation, answer in answers.items():
            await controller.tell(operation, operation)
            assert await controller.wait_told(operation) == answer
        await controller.tell(1, "much")
        assert (await controller.wait_told(1))[0] == "RecordTooLarge"


@in_loop
async def test_a_service_without_a_sidecar_says_so() -> None:
    async with running(hosted_of(Tally), GatedLog()) as stage:
        await stage.controller.tell(1, "add", numbers=[])
        assert await stage.controller.wait_told(1) == ["BadRequest", "this service has no sidecar"]


@in_loop
async def test_operations_are_done_one_at_a_time_and_each_once() -> None:
    servers = Servers()
    async with running(servers.hosted(), GatedLog()) as stage:
        (server,) = servers.made
        for _ in range(2):
            await stage.controller.tell(1, "hold")
            await stage.controller.tell(2, "add", numbers=[2])
        await stage.controller.tell(3, "add", numbers=[3])
        await eventually(lambda: "hold" in server.log)
        assert stage.controller.told == {}
        server.gate.set()
        for id, value in ((1, None), (2, 2), (3, 3)):
            assert await stage.controller.wait_told(id) == [True, value]
        assert server.log == ["start", "hold", "add", "add"]


@in_loop
async def test_an_operation_that_takes_too_long_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar_module, "PERFORM_MAX_S", 0.01)
    async with running(Servers().hosted(), GatedLog()) as stage:
        await stage.controller.tell(1, "hold")
        assert await stage.controller.wait_told(1) == ["TimeoutError", "'hold' took more than 0.01 s"]


@in_loop
async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar_module, "WAITING_MAX", 1)
    async with running(Servers().hosted(), GatedLog()) as stage:
        await stage.controller.tell(1, "hold")
        await stage.controller.tell(2, "add", numbers=[])
        assert (await stage.controller.wait_told(2))[0] == "Overloaded"


@in_loop
async def test_a_controller_that_leads_no_more_has_nothing_done() -> None:
    servers = Servers()
    async with running(servers.hosted(), GatedLog()) as stage:
        (server,) = servers.made
        await stage.controller.tell(1, "hold")
        await eventually(lambda: "hold" in server.log)
        await stage.controller.tell(2, "add", numbers=[])  # its turn comes when another one leads
        await stage.controller.tell(3, "add", term=TERM + 1, numbers=[])
        await stage.controller.tell(4, "add", numbers=[])
        await eventually(lambda: stage.instance.control_term == TERM + 1)
        server.gate.set()
        refused = ["OrderRefused", f"a controller of term {TERM} is refused, {TERM + 1} leads"]
        for id, answer in ((1, [True, None]), (2, refused), (3, [True, 0]), (4, refused)):
            assert await stage.controller.wait_told(id) == answer
        assert server.log == ["start", "hold", "add"]


@pytest.mark.parametrize("fields", [(None, "add", {}), ([1], "add", {}), (1, 2, {}), (1, "add", []), (1, "add")])
@in_loop
async def test_what_is_no_operation_closes_the_connection(fields: tuple[Any, ...]) -> None:
    async with running(Servers().hosted(), GatedLog()) as stage:
        caller = await stage.connect()
        await caller.greet(HELLO, PROTOCOL, None, CONTROLLER)
        await caller.connection.send(frame(TELL, TERM, *fields))
        await caller.listen()
        assert caller.goodbye is not None
        assert f"frame kind {TELL} " in caller.goodbye or "expected an id" in caller.goodbye


@in_loop
async def test_only_a_controller_is_listened_to() -> None:
    servers = Servers()
    async with running(servers.hosted(), GatedLog()) as stage:
        caller = await stage.caller()
        await caller.connection.send(frame(TELL, TERM, 1, "add", {"numbers": []}))
        assert "is not for an instance" in await caller.wait_gone()
        assert servers.made[0].log == ["start"]
