"""`rekindle projection`: run a read model, see how all of them are, build one anew.

Each of them opens the application's log and database itself; nobody else needs to run.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Final, Self, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from rekindle.app import App, reading
from rekindle.events import EventLog
from rekindle.operating import PIPE_COLUMNS, AppOption, LogOption, Output, OutputOption
from rekindle.supervisors import load, opened

if TYPE_CHECKING:  # SQLAlchemy takes half a second to import: the other commands do not wait for it
    from rekindle.projections import Bound, Database, Done, ProjectionReport

LINE_EVERY_S: Final = 2.0
"""Between two lines of progress, where there is no terminal."""

projections = typer.Typer(no_args_is_help=True, help="Read models: run one, see how they are, build one anew.")

NameArgument = Annotated[str, typer.Argument(help="the projection's name")]
DatabaseOption = Annotated[
    str | None,
    typer.Option("--database", help="another database than the application's own: postgresql://... or a path"),
]


@asynccontextmanager
async def _opened(target: str, log: str | None, database: str | None) -> AsyncGenerator[tuple[App, EventLog, Database]]:
    app = cast(App, load(target))
    async with (
        opened(log or app.log, app.snapshots, app.name) as (event_log, _),
        reading(database or app.database) as models,
    ):
        yield app, event_log, models


@projections.command()
def run(name: NameArgument, app: AppOption, log: LogOption = None, database: DatabaseOption = None) -> None:
    """Keep a read model up with the log, until Ctrl-C or SIGTERM."""
    asyncio.run(_run(name, app, log, database))


async def _run(name: str, target: str, log: str | None, database: str | None) -> None:
    from rekindle.projections import Projector

    async with _opened(target, log, database) as (app, event_log, models):
        projector = Projector(app.projection(name), event_log, models, say=_say)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, projector.stop)
        _say(f"projection {name!r} runs on {models}")
        await projector.run()
        _say(f"projection {name!r} ended, {projector.events} events later")


@projections.command(name="list")
def show(
    app: AppOption, log: LogOption = None, database: DatabaseOption = None, output: OutputOption = Output.TEXT
) -> None:
    """How the read models are: state, lag, rate, error."""
    found = asyncio.run(_reports(app, log, database))
    if output is Output.JSON:
        typer.echo(json.dumps([report.model_dump() for report in found], indent=2))
    else:
        console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False)
        console.print(_table(found) if found else "No projection has run here yet.")


async def _reports(target: str, log: str | None, database: str | None) -> list[ProjectionReport]:
    app = cast(App, load(target))
    async with app.views(log=log, database=database) as views:
        return await views.report()


def _table(found: list[ProjectionReport]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("projection", "version", "state", "behind", "seconds", "events/s", "events", "parked", "error"):
        table.add_column(column, justify="left" if column in ("projection", "state", "error") else "right")
    for report in found:
        state = f"{report.state}, silent" if report.silent else report.state
        lag = (f"{report.lag_events:,}", f"{report.lag_seconds:.1f}", f"{report.rate:,.0f}", f"{report.events:,}")
        table.add_row(report.name, str(report.version), state, *lag, str(report.parked), report.error)
    return table


@projections.command()
def rebuild(name: NameArgument, app: AppOption, log: LogOption = None, database: DatabaseOption = None) -> None:
    """Build a read model anew, beside the one that serves, and put it in its place at once."""
    asyncio.run(_rebuild(name, app, log, database))


async def _rebuild(name: str, target: str, log: str | None, database: str | None) -> None:
    from rekindle.projections import Rebuilder

    async with _opened(target, log, database) as (app, event_log, models):
        bound: Bound = app.projection(name)
        with _Telling(name) as telling:
            rebuilder = Rebuilder(bound, event_log, models, say=_say, on_progress=telling.tell)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, rebuilder.stop)
            await rebuilder.run()
        if not rebuilder.swapped:
            _say(f"projection {name!r} was not rebuilt: the old tables serve on")
            raise typer.Exit(1)
        typer.echo(f"projection {name!r} is rebuilt, of {rebuilder.events} events")


class _Telling:
    """Progress: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._told_at = 0.0
        self._bar: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            columns: list[Any] = [
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            ]
            bar = Progress(*columns, console=Console(stderr=True))
            bar.start()
            self._bar = bar, bar.add_task(f"rebuilding {self._name}", total=None)
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    def tell(self, done: Done) -> None:
        """Show how far it is."""
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, completed=done.slots, total=done.of)
        elif (now := time.monotonic()) - self._told_at >= LINE_EVERY_S or done.slots == done.of:
            self._told_at = now
            left = "" if done.left_s is None else f", {done.left_s:.0f} s left"
            share = 100 * done.slots // done.of if done.of else 100
            _say(f"rebuilding {self._name}: {done.slots:,} of {done.of:,} records, {share} %{left}")


def _say(line: str) -> None:
    typer.echo(line, err=True)
