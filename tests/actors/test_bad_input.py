"""Calls and frames that are wrong: each gets an error of its own class that says what was expected, and nobody else notices.

Goal: whatever a client sends, it has no effect, is answered clearly, and does no harm to the shard, its log or other
callers. Method: one instance and one client over the real wire; what no client of ours would send, is sent by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import pytest
from pydantic import Field

from rekindle import BadRequest, CommandFailed, Entity, Event, Rejected, command, query
from rekindle.actors import TokenRefused
from rekindle.actors.frames import CALL, CLIENT, GOODBYE, HELLO, PROTOCOL, frame
from rekindle.actors.instance import KEY_BYTES_MAX, SESSION_BYTES_MAX
from rekindle.actors.link import ANSWER_BYTES_MAX
from rekindle.actors.peer import CALLS_BYTES_MAX
from rekindle.events import RECORD_BYTES_MAX, pack
from tests.support.inprocess import GatedLog, Stage, Tally, hosted_of, in_loop, key_in, running
from tests.support.loops import eventually


class Noted(Event):
    text: str
    extra: Any = None


class TooLong(Rejected):
    text: str
    extra: Any = None


class Notebook(Entity):
    """Takes what it is given."""

    size: int = 0

    def apply(self, event: Noted) -> None:
        self.size += len(event.text)

    @command
    def note(self, text: str) -> int:
        self.emit(Noted(text=text))
        return self.size

    @command
    def check(self, text: str, most: Annotated[int, Field(ge=0)], at: datetime | None = None) -> str:
        if len(text) > most:
            raise TooLong(text=text, extra=at)
        return text

    @command
    def keep(self, text: str, extra: Any) -> None:
        self.emit(Noted(text=text, extra=extra))

    @command
    def give(self, what: str) -> Any:
        self.emit(Noted(text=what))
        return _UNENCODABLE[what]

    @command
    def refuse(self, what: str) -> None:
        self.emit(Noted(text=what))
        raise TooLong(text=what, extra=_UNENCODABLE[what])

    @command
    def emit_unencodable(self, what: str) -> None:
        self.emit(Noted(text=what, extra=_UNENCODABLE[what]))

    @query
    def length(self) -> int:
        return self.size

    @query
    def pages(self, count: int) -> str:
        return "x" * count


_UNENCODABLE = {
    "an object": object(),
    "a large integer": 1 << 64,
    "a complex number": 1j,
    "half a surrogate pair": "\ud800",
}


async def assert_untouched(stage: Stage, key: str) -> None:
    """Nothing was written for the key, and its shard goes on."""
    notebook = stage.client.get(Notebook, key)
    assert await notebook.length() == 0
    assert await notebook.note("x") == 1


# Calls through the client


@in_loop
async def test_arguments_that_do_not_fit_a_frame_fail_alone() -> None:
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        notebook = stage.client.get(Notebook, key_in(0))
        large, small = notebook.note("x" * CALLS_BYTES_MAX), notebook.note("x")
        with pytest.raises(
            BadRequest, match=rf"Notebook\.note: the call takes 8\d+ bytes encoded, {CALLS_BYTES_MAX} are allowed"
        ):
            await large
        assert await small == 1


@in_loop
async def test_a_record_that_the_topic_does_not_take_is_one_commands_failure() -> None:
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        notebook = stage.client.get(Notebook, key_in(0))
        large, small = notebook.note("x" * RECORD_BYTES_MAX), notebook.note("x")
        with pytest.raises(
            CommandFailed,
            match=rf"RecordTooLarge: the record of Notebook\.note takes 1000\d+ bytes encoded.* at most {RECORD_BYTES_MAX}",
        ):
            await large
        assert await small == 1
        assert await notebook.length() == 1


@in_loop
async def test_the_limit_of_a_record_is_the_logs_to_the_byte() -> None:
    """The log counts keys too. Whatever the size: the command counts, or it fails as too large, and the owner stays."""
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        outcomes: set[str] = set()
        notebook = stage.client.get(Notebook, key_in(0, prefix="k" * 100))
        for size in range(RECORD_BYTES_MAX - 400, RECORD_BYTES_MAX, 20):
            try:
                await notebook.note("x" * size)
                outcomes.add("taken")
            except CommandFailed as error:
                outcomes.add("too large" if "RecordTooLarge" in str(error) else str(error))
        assert outcomes == {"taken", "too large"}
        assert stage.controller.lost == []


@in_loop
async def test_a_reply_that_no_record_can_keep_undoes_its_command() -> None:
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        notebook = stage.client.get(Notebook, key_in(0))
        with pytest.raises(CommandFailed, match=r"RecordTooLarge: the record of Notebook\.check"):
            await notebook.check("x" * RECORD_BYTES_MAX, RECORD_BYTES_MAX)
        await assert_untouched(stage, key_in(0))


@in_loop
async def test_an_answer_that_is_too_large_for_its_caller_fails_alone() -> None:
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        notebook = stage.client.get(Notebook, key_in(0))
        assert await notebook.pages(ANSWER_BYTES_MAX // 2) == "x" * (ANSWER_BYTES_MAX // 2)
        large, small = notebook.pages(ANSWER_BYTES_MAX), notebook.length()
        with pytest.raises(
            CommandFailed, match=f"RecordTooLarge: the answer takes 4194\\d+ bytes encoded.* {ANSWER_BYTES_MAX} bytes"
        ):
            await large
        assert await small == 0


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("", "1 to 1024 characters, this one has 0"),
        ("x" * (KEY_BYTES_MAX + 1), "1 to 1024 characters, this one has 1025"),
        ("\ud800", "is no text"),
        (5, "a key is a str, got the int 5"),
        (None, "a key is a str, got the NoneType None"),
    ],
)
@in_loop
async def test_what_is_no_key_is_refused_where_it_is_named(key: Any, problem: str) -> None:
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        with pytest.raises(BadRequest, match=problem):
            stage.client.get(Notebook, key)


@in_loop
async def test_the_longest_key_is_served_like_any_other() -> None:
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        key = "\N{GRINNING FACE}" * KEY_BYTES_MAX
        assert await stage.client.get(Notebook, key).note("x") == 1


@in_loop
async def test_many_commands_at_once_to_long_keys_fit_their_batches() -> None:
    """A batch is cut by what the log counts, keys included: else the log refuses it for good, and with it all that wait."""
    async with running(hosted_of(Notebook, shards=1), GatedLog()) as stage:
        calls = [stage.client.get(Notebook, f"{number:04d}" + "k" * 1_000).note("x") for number in range(1_500)]
        for call in calls:
            assert await call == 1
        assert not stage.heard("refused an append")


@pytest.mark.parametrize("seconds", [0.0, -1.0, 121.0, float("nan")])
@in_loop
async def test_a_timeout_is_positive_and_bounded(seconds: float) -> None:
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        with pytest.raises(BadRequest, match=r"expected more than 0 and at most 120\.0"):
            stage.client.get(Notebook, "a", timeout=seconds)


@in_loop
async def test_an_entity_that_is_no_service_is_refused_with_those_that_are() -> None:
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        with pytest.raises(BadRequest, match=r"Tally is no service of 'app'; it has \['Notebook'\]"):
            stage.client.get(Tally, "a")


@in_loop
async def test_a_handler_that_is_not_there_is_refused_with_those_that_are() -> None:
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        with pytest.raises(AttributeError, match=r"Notebook has no command or query 'nota'; it has \['check', "):
            getattr(stage.client.get(Notebook, "a"), "nota")  # noqa: B009 - no type checker takes it as an attribute


@pytest.mark.parametrize(
    ("arguments", "named", "problem"),
    [
        ((), {}, "text: Missing required argument.*most: Missing required argument"),
        (("a",), {}, "most: Missing required argument"),
        (("a", 1, None, 4), {}, "3: Unexpected positional argument .got 4"),
        (("a", 1), {"least": 4}, "least: Unexpected keyword argument"),
        (("a", 1), {"text": "b"}, "text: Got multiple values for argument"),
        (("a", "many"), {}, "1: Input should be a valid integer.* .got 'many'"),
        (("a", -1), {}, "1: Input should be greater than or equal to 0 .got -1"),
        ((b"\xff", 1), {}, "0: Input should be a valid string"),
        (("a", 1), {"at": "tomorrow"}, "at: Input should be a valid datetime"),
    ],
)
@pytest.mark.parametrize("max_staleness", [None, 60.0])
@in_loop
async def test_wrong_arguments_are_refused_one_by_one(
    arguments: Sequence[Any], named: dict[str, Any], problem: str, max_staleness: float | None
) -> None:
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        notebook: Any = stage.client.get(Notebook, key_in(0), max_staleness=max_staleness)
        with pytest.raises(BadRequest, match=rf"^Notebook\.check: .*{problem}"):
            await notebook.check(*arguments, **named)
        with pytest.raises(BadRequest, match=r"^Notebook\.pages: 0: Input should be a valid integer"):
            await notebook.pages("few")
        await assert_untouched(stage, key_in(0))


@in_loop
async def test_arguments_come_in_the_types_that_the_handler_declares() -> None:
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        at = datetime.fromisoformat("2026-02-03T04:05:06.789+01:00")
        with pytest.raises(TooLong) as refusal:
            await stage.client.get(Notebook, "a").check("abc", most=2, at=at)
        assert (refusal.value.text, datetime.fromisoformat(refusal.value.extra)) == ("abc", at)


@pytest.mark.parametrize("what", sorted(_UNENCODABLE))
@in_loop
async def test_an_argument_that_cannot_travel_fails_alone(what: str) -> None:
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        notebook = stage.client.get(Notebook, key_in(0))
        bad, good = notebook.keep("a", extra=_UNENCODABLE[what]), notebook.note("x")
        with pytest.raises(BadRequest, match=r"Notebook\.keep: cannot encode"):
            await bad
        assert await good == 1


@pytest.mark.parametrize("what", sorted(_UNENCODABLE))
@pytest.mark.parametrize("handler", ["give", "refuse", "emit_unencodable"])
@in_loop
async def test_what_cannot_be_kept_undoes_its_command(handler: str, what: str) -> None:
    """An event, a reply or a refusal of a type that no record carries."""
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        with pytest.raises(CommandFailed, match=rf"Notebook\.{handler} failed.* Unencodable: cannot encode"):
            await getattr(stage.client.get(Notebook, key_in(0)), handler)(what)
        await assert_untouched(stage, key_in(0))


# Calls by hand


@in_loop
async def test_calls_that_can_never_work_are_answered_one_by_one() -> None:
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        caller, key = await stage.caller(), key_in(1)
        with pytest.raises(BadRequest, match=r"Notebook has no 'nota'; it has \['check'"):
            await caller.ask(1, 1, key, "nota", "x")
        with pytest.raises(BadRequest, match="is a command, it came with number 0"):
            await caller.ask(2, 0, key, "note", "x")
        with pytest.raises(BadRequest, match="is a query, it came with number 1"):
            await caller.ask(3, 1, key, "length")
        with pytest.raises(BadRequest, match=f"'{key}' is in shard 1 of 2, it was sent to shard 0"):
            await caller.ask(4, 1, key, "note", "x", shard=0)
        with pytest.raises(BadRequest, match="a key of 1025 characters, 1024 are allowed"):
            await caller.ask(5, 1, "k" * 1_025, "note", "x")
        await assert_untouched(stage, key)


@in_loop
async def test_a_shard_that_nobody_owns_here_is_not_answered_for() -> None:
    async with running(hosted_of(Notebook), GatedLog(), shards=[0]) as stage:
        caller = await stage.caller()
        await caller.send(1, 1, key_in(1), "note", "x")
        assert (await caller.answer(1))[1:] == [None, -1]


MISSHAPEN: dict[str, Any] = {
    "no list of groups": 5,
    "a group that is no list": [5],
    "a group with a field too few": [[0, b"s", 1, []]],
    "a call with a field too few": [[0, b"s", 1, False, [[1, 1, "a", "note", ["x"], {}]]]],
    "a session that is text": [[0, "session", 1, False, [[1, 1, "a", "note", ["x"], {}, None]]]],
    "a session that is too long": [
        [0, b"s" * (SESSION_BYTES_MAX + 1), 1, False, [[1, 1, "a", "note", ["x"], {}, None]]]
    ],
    "a command without a session": [[0, b"", 1, False, [[1, 1, "a", "note", ["x"], {}, None]]]],
    "a low mark of nothing": [[0, b"s", None, False, [[1, 1, "a", "note", ["x"], {}, None]]]],
    "a low mark below zero": [[0, b"s", -1, False, [[1, 1, "a", "note", ["x"], {}, None]]]],
    "half a number": [[0, b"s", 1, False, [[1, 1.5, "a", "note", ["x"], {}, None]]]],
    "a number below zero": [[0, b"s", 1, False, [[1, -1, "a", "note", ["x"], {}, None]]]],
    "a call by name": [[0, b"s", 1, False, [["one", 1, "a", "note", ["x"], {}, None]]]],
    "a key that is a number": [[0, b"s", 1, False, [[1, 1, 5, "note", ["x"], {}, None]]]],
    "a handler that is a list": [[0, b"s", 1, False, [[1, 1, "a", ["note"], ["x"], {}, None]]]],
    "a shard that is a list": [[[0], b"s", 1, False, [[1, 1, "a", "note", ["x"], {}, None]]]],
    "a staleness of text": [[0, b"s", 1, False, [[1, 0, "a", "length", [], {}, "much"]]]],
}


@pytest.mark.parametrize("groups", MISSHAPEN.values(), ids=MISSHAPEN.keys())
@in_loop
async def test_a_misshapen_call_closes_its_connection_with_a_reason_and_no_other(groups: Any) -> None:
    """Nothing of it may get into the log: there, a wrong type would stop every reader, for ever."""
    async with running(hosted_of(Notebook, shards=1), GatedLog()) as stage:
        stranger, other = await stage.caller(), await stage.caller()
        await stranger.connection.send(frame(CALL, groups))
        reason = await stranger.wait_gone()
        assert reason.startswith(("frame kind 4 is misshapen", "expected a "))
        await eventually(lambda: stage.heard(f"a connection was closed: {reason}"))
        assert await other.ask(1, 1, "a", "note", "x") == 1
        assert await stage.client.get(Notebook, "a").length() == 1
    async with running(hosted_of(Notebook, shards=1), stage.log) as stage:
        assert await stage.client.get(Notebook, "a").length() == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (pack({(1, 2): 3}), "has no kind"),
        (pack("hello"), "has no kind"),
        (pack([]), "has no kind"),
        (pack(["CALL", []]), "has no kind"),
        (frame(99), "frame kind 99 with 0 fields is not for an instance"),
        (frame(CALL), "frame kind 4 with 0 fields is not for an instance"),
    ],
)
@in_loop
async def test_what_is_no_frame_closes_its_connection_with_a_reason(data: bytes, reason: str) -> None:
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        stranger = await stage.caller()
        await stranger.connection.send(data)
        assert reason in await stranger.wait_gone()
        await assert_untouched(stage, key_in(0))


GREETINGS: list[tuple[tuple[Any, ...], str]] = [
    ((HELLO, PROTOCOL + 1, "secret", CLIENT), "protocol 2 is not spoken here, 1 is"),
    ((HELLO, PROTOCOL, None, CLIENT), "token refused: another token is asked for here"),
    ((HELLO, PROTOCOL, "guess", CLIENT), "token refused: another token is asked for here"),
    ((HELLO, PROTOCOL, 7, CLIENT), "token refused: another token is asked for here"),
    ((HELLO, PROTOCOL), "expected HELLO, protocol, token, role; got kind 1 with 1 fields"),
    ((CALL, []), "expected HELLO, protocol, token, role; got kind 4 with 1 fields"),
]


@pytest.mark.parametrize(("hello", "reason"), GREETINGS)
@in_loop
async def test_who_does_not_greet_as_expected_is_told_why(hello: Sequence[Any], reason: str) -> None:
    async with running(hosted_of(Notebook), GatedLog(), token="secret") as stage:
        stranger = await stage.connect()
        kind, said = await stranger.greet(*hello)
        assert kind == GOODBYE
        assert reason in said
        await stranger.listen()
        assert stranger.gone is not None
        await assert_untouched(stage, key_in(0))


@in_loop
async def test_who_greets_with_garbage_is_told_why() -> None:
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        stranger = await stage.connect()
        await stranger.connection.send(b"GET / HTTP/1.1")
        await stranger.listen()
        assert "not msgpack" in await stranger.wait_gone()


@in_loop
async def test_who_never_greets_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rekindle.actors.instance.GREET_MAX_S", 0.05)
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        stranger = await stage.connect()
        await stranger.listen()
        assert stranger.gone is not None


@in_loop
async def test_a_client_with_another_token_fails_at_once() -> None:
    async with (
        running(hosted_of(Notebook), GatedLog(), token="secret") as stage,
        stage.another_client(token="guess") as client,
    ):
        with pytest.raises(
            TokenRefused, match=r"127\.0\.0\.1:\d+ says: token refused: another token is asked for here"
        ):
            await client.get(Notebook, "a").length()


@in_loop
async def test_only_controllers_give_orders() -> None:
    """The frames of a controller, from a client, close the client's connection; the shards stay where they are."""
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        stranger = await stage.caller()
        await stage.controller.release(0, over=stranger.connection)
        assert "is not for an instance" in await stranger.wait_gone()
        await assert_untouched(stage, key_in(0))


@in_loop
async def test_a_controller_of_the_past_is_refused_and_that_is_said() -> None:
    async with running(hosted_of(Notebook), GatedLog()) as stage:
        await stage.controller.release(0, term=0)
        await stage.controller.assign(1)
        await stage.controller.wait_serving(1)
        assert stage.heard("a controller of term 0 was refused, 1 leads")
        await assert_untouched(stage, key_in(0))
