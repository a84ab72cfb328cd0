"""The demo: a month of real flights, three Ray nodes, one of them killed in the middle, and the proof.

Exit code 0 if every aircraft's state and every flight in the log is as the batch says, 1 if anything differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.flights.aircraft import Aircraft, app
from examples.flights.audit import audit
from examples.flights.batch import Batch, read_batch
from examples.flights.commands import Stream, read_stream
from examples.flights.compare import Report, compare_aircraft, compare_flights
from examples.flights.drive import Tally, drive, summaries
from rekindle import Client, RekindleError
from rekindle.events import shard_of
from rekindle.supervisors import opened
from rekindle.supervisors.ray_cluster import LocalNodes, start_controller
from rekindle.up import create_topics, launch_of

MONTH: Final = Path(__file__).parent / "data" / "flights_2013_01.csv.xz"
TARGET: Final = "examples.flights.aircraft:app"
NODES: Final = 3
UP_MAX_S: Final = 60.0
KILL_AT: Final = 0.5
SERVED_MAX_S: Final = 30.0

console = Console(soft_wrap=True)


@dataclass
class Kill:
    """The node that was killed and what came of it. `served_after_ms`: until a query of every shard was answered."""

    node: str = ""
    at_command: int = 0
    served_after_ms: float = -1.0


@dataclass
class Run:
    """What a run gave."""

    tally: Tally
    reports: list[Report] = field(default_factory=list[Report])
    retried: int = 0
    seconds: float = 0.0


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument(
        "--log", help="kafka://host:port[?single_broker=true]; default: an embedded log in a temporary folder"
    )
    parser.add_argument(
        "--flights", type=Path, default=MONTH, help="another file, such as the whole year (see data/README.md)"
    )
    parser.add_argument("--no-kill", action="store_true", help="let all nodes live")
    return parser.parse_args(argv)


async def demo(log: str, stream: Stream, flights: Path, nodes: LocalNodes, kill: Kill | None) -> Run:
    """Bring the application up, send everything, kill a node on the way, compare."""
    await create_topics(app, log)
    nodes.connect(app.name)
    controller = start_controller(app.name, launch_of(TARGET, app, log))
    if not await asyncio.to_thread(controller.wait_up, UP_MAX_S):
        raise RekindleError("the application did not come up:\n" + "\n".join(controller.said()))
    console.print(f"{NODES} Ray nodes are up, {app.services[0].shards} shards are served")
    run = Run(Tally())
    async with app.connect(log=log) as client:
        began = time.monotonic()
        await _send_all(client, stream, run.tally, nodes, kill)
        run.seconds = time.monotonic() - began
        console.print("asking every aircraft what it remembers, and the log what is in it ...")
        batch = read_batch(flights)
        run.reports = [compare_aircraft(await summaries(client, batch.aircraft), batch), await _audit(log, batch)]
        run.retried = client.retried
    for line in controller.said():
        console.print(f"  [dim]controller: {line}[/dim]", highlight=False)
    controller.stop()
    return run


async def _audit(log: str, batch: Batch) -> Report:
    service = app.services[0]
    async with opened(log, app.snapshots, app.name) as (event_log, _):
        found = await audit(event_log, service.hosted(app.name).partition(0).topic, service.shards)
    console.print(f"  [dim]the log holds {len(found.applied):,} events that count and {found.void} void records[/dim]")
    return compare_flights(found.applied, batch)


async def _send_all(client: Client, stream: Stream, tally: Tally, nodes: LocalNodes, kill: Kill | None) -> None:
    total = len(stream.commands)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("commands", total=total)
        killing: list[asyncio.Task[None]] = []

        def on_ack() -> None:
            progress.advance(bar)
            if kill is not None and not killing and tally.acknowledged >= total * KILL_AT:
                killing.append(asyncio.get_running_loop().create_task(_kill(client, tally, nodes, kill)))

        await drive(client, stream.commands, tally, on_ack)
        for task in killing:
            await task


async def _kill(client: Client, tally: Tally, nodes: LocalNodes, kill: Kill) -> None:
    """SIGKILL a node and wait until a linearizable query of every shard is answered."""
    kill.node, kill.at_command = next(iter(nodes.workers)), tally.acknowledged
    began = time.monotonic()
    await asyncio.to_thread(nodes.kill, kill.node)
    console.print(
        f"[bold red]SIGKILL[/bold red] of node {kill.node} and all its processes, {kill.at_command:,} commands acknowledged so far"
    )
    keys = _a_key_of_every_shard(app.services[0].shards)
    async with asyncio.timeout(SERVED_MAX_S):
        await asyncio.gather(*(client.get(Aircraft, key, timeout=SERVED_MAX_S).summary() for key in keys))
    kill.served_after_ms = (time.monotonic() - began) * 1000
    console.print(
        f"[bold green]served[/bold green] every shard answers again, {kill.served_after_ms:.0f} ms after the kill"
    )


def _a_key_of_every_shard(shards: int) -> list[str]:
    found: dict[int, str] = {}
    number = 0
    while len(found) < shards:
        found.setdefault(shard_of(f"probe-{number}", shards), f"probe-{number}")
        number += 1
    return list(found.values())


def figures(run: Run, stream: Stream, kill: Kill | None) -> dict[str, Any]:
    """What the demo prints, as data."""
    tally, reports = run.tally, run.reports
    return {
        "commands_sent": tally.sent,
        "acknowledged": tally.acknowledged,
        "rejected": tally.rejected,
        "outcome_unknown": tally.unknown,
        "wrong_answers": tally.wrong,
        "retried": run.retried,
        "lost": max(report.lost for report in reports),
        "doubled": max(report.doubled for report in reports),
        "rows_without_tailnum": stream.without_tailnum,
        "seconds": round(run.seconds, 2),
        "commands_per_second": round(tally.acknowledged / run.seconds),
        "kill": None if kill is None else asdict(kill),
        "reports": [asdict(report) | {"passed": report.passed} for report in reports],
        "problems": tally.problems,
    }


def passed(run: Run, stream: Stream, kill: Kill | None) -> bool:
    """Whether everything is as it should be, and everything was tried."""
    tally = run.tally
    clean = tally.acknowledged == tally.sent == len(stream.commands) and tally.wrong == 0
    killed = kill is None or kill.served_after_ms > 0
    return clean and killed and len(run.reports) == 2 and all(report.passed for report in run.reports)


def show(data: dict[str, Any], reports: list[Report], ok: bool) -> None:
    """The table at the end, and the verdict."""
    table = Table(show_header=False)
    for name in (
        "commands_sent",
        "acknowledged",
        "rejected",
        "outcome_unknown",
        "retried",
        "lost",
        "doubled",
        "rows_without_tailnum",
        "commands_per_second",
    ):
        table.add_row(name.replace("_", " "), f"{data[name]:,}")
    if data["kill"] is not None:
        table.add_row("kill to all shards served again", f"{data['kill']['served_after_ms']:.0f} ms")
    console.print(table)
    for report in reports:
        console.print(str(report), highlight=False)
    for problem in data["problems"]:
        console.print(problem, highlight=False)
    console.print(
        "[bold green]Nothing was lost, nothing counted twice.[/bold green]"
        if ok
        else "[bold red]Something differs.[/bold red]"
    )


def main() -> int:
    """Run the demo; its exit code."""
    options = arguments()
    kill = None if options.no_kill else Kill()
    stream = read_stream(options.flights)
    folder = Path(tempfile.mkdtemp(prefix="rekindle-demo-"))
    log = options.log or str(folder / "log.sqlite")
    console.print(f"{len(stream.commands):,} commands of {options.flights.name} to one entity per aircraft, log {log}")
    nodes = LocalNodes(NODES)
    try:
        run = asyncio.run(demo(log, stream, options.flights, nodes, kill))
    except RekindleError as error:
        console.print(f"[bold red]{type(error).__name__}[/bold red]: {error}")
        return 1
    finally:
        nodes.close()
        shutil.rmtree(folder, ignore_errors=True)
    ok = passed(run, stream, kill)
    data = figures(run, stream, kill) | {"passed": ok}
    show(data, run.reports, ok)
    if options.json is not None:
        options.json.write_text(json.dumps(data, indent=2) + "\n")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
