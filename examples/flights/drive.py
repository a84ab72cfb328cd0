"""The load of the demo: every flight of the file as commands, each aircraft's in order, many aircraft at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from examples.flights.aircraft import Aircraft
from examples.flights.commands import Command, by_aircraft
from examples.flights.send import send
from rekindle import CallError, Client, Rejected

LANES: Final = 256
"""Commands on their way at once; an aircraft has one lane for good, so its commands stay in order."""

TIMEOUT_S: Final = 30.0


@dataclass
class Tally:
    """What the callers saw. `wrong`: an answer that is not the aircraft's next number."""

    sent: int = 0
    acknowledged: int = 0
    rejected: int = 0
    unknown: int = 0
    wrong: int = 0
    problems: list[str] = field(default_factory=list[str])

    def note(self, problem: str) -> None:
        """Keep the first few problems in words."""
        if len(self.problems) < 5:
            self.problems.append(problem)


async def drive(client: Client, commands: Sequence[Command], tally: Tally, on_ack: Callable[[], None]) -> None:
    """Send everything; back when every command has its answer or its error."""
    lanes: list[list[Command]] = [[] for _ in range(LANES)]
    lane_of = {tailnum: number % LANES for number, tailnum in enumerate(by_aircraft(commands))}
    for command in commands:
        lanes[lane_of[command.tailnum]].append(command)
    async with asyncio.TaskGroup() as group:
        for lane in lanes:
            group.create_task(_drive_lane(client, lane, tally, on_ack))


async def _drive_lane(client: Client, commands: Iterable[Command], tally: Tally, on_ack: Callable[[], None]) -> None:
    flown: dict[str, int] = {}
    for command in commands:
        aircraft = client.get(Aircraft, command.tailnum, timeout=TIMEOUT_S)
        tally.sent += 1
        try:
            number = await send(aircraft, command)
        except Rejected as error:
            tally.rejected += 1
            tally.note(f"{command} was rejected: {error!r}")
            continue
        except CallError as error:
            tally.unknown += 1
            tally.note(f"{command} has no outcome: {error!r}")
            continue
        tally.acknowledged += 1
        flown[command.tailnum] = flown.get(command.tailnum, 0) + 1
        if number != flown[command.tailnum]:
            tally.wrong += 1
            tally.note(f"{command} was answered {number}, it is command {flown[command.tailnum]} of its aircraft")
        on_ack()


async def summaries(client: Client, tailnums: Iterable[str]) -> dict[str, dict[str, object]]:
    """What every aircraft remembers."""

    async def summary(tailnum: str) -> tuple[str, dict[str, object]]:
        return tailnum, (await client.get(Aircraft, tailnum, timeout=TIMEOUT_S).summary()).model_dump()

    found: dict[str, dict[str, object]] = {}
    names = list(tailnums)
    for start in range(0, len(names), LANES):
        found.update(await asyncio.gather(*map(summary, names[start : start + LANES])))
    return found
