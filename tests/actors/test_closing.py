"""A client that is closed while calls are on their way.

Goal: an error that promises "no effect" keeps that promise, also the one that a closed client gives. Method: the log is
held at its gate, so that a command was sent and run and cannot be answered; then the client is closed.
"""

from __future__ import annotations

import pytest

from rekindle import OutcomeUnknown, Overloaded
from tests.support.inprocess import GatedLog, Tally, hosted_of, in_loop, key_in, running
from tests.support.loops import eventually

KEY = key_in(0)


@in_loop
async def test_a_closed_client_does_not_know_what_becomes_of_a_command_that_it_sent() -> None:
    async with running(hosted_of(Tally), log := GatedLog()) as stage:
        assert await stage.client.get(Tally, KEY).read() == 0
        async with stage.another_client() as leaving:
            log.gate.clear()
            command, query = leaving.get(Tally, KEY).add(5), leaving.get(Tally, KEY).read()
            await eventually(lambda: log.held)
        with pytest.raises(OutcomeUnknown, match="may have been run: the client was closed"):
            await command
        with pytest.raises(Overloaded, match="the client was closed"):
            await query
        log.gate.set()
        assert await stage.client.get(Tally, KEY).read() == 5


@in_loop
async def test_a_closed_client_knows_that_a_command_that_it_did_not_send_has_no_effect() -> None:
    async with running(hosted_of(Tally), GatedLog()) as stage:
        async with stage.another_client() as leaving:
            command = leaving.get(Tally, KEY).add(5)
        with pytest.raises(Overloaded, match="the client was closed"):
            await command
        assert await stage.client.get(Tally, KEY).read() == 0
