"""Results: one row per figure, one table to read, one file to compare with.

Every row says what "durable" means in it, because a rate without that is not a figure. A row with a bound says
whether it holds: the bound is on the ratio to the baseline if there is one, else on the value.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from bench import REPOSITORY

RESULTS = REPOSITORY / ".bench" / "results.json"
QUICK_RESULTS = RESULTS.with_name("quick.json")
PLAIN_COLUMNS = 200
"""How wide the table may be where there is no terminal to ask."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    """The same figure of the hand-written loop, from the same run."""
    ratio: float | None = None
    """value / baseline"""
    target: str | None = None
    holds: bool | None = None
    """Whether the target is met; None: there is none."""
    durable: str = field(kw_only=True)
    """What it means here that something is stored."""

    def __post_init__(self) -> None:
        assert (self.target is None) == (self.holds is None), f"{self.name!r}: a target holds or does not"


def judged(
    name: str,
    value: float,
    unit: str,
    *,
    durable: str,
    baseline: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Row:
    """A row with its ratio, and held against at most one bound."""
    assert at_least is None or at_most is None, f"{name!r}: one bound, not two"
    ratio = None if baseline is None else value / baseline
    measured, of = (value, unit) if ratio is None else (ratio, "x baseline")
    target, holds = None, None
    if at_least is not None:
        target, holds = f">= {at_least:g} {of}", measured >= at_least
    elif at_most is not None:
        target, holds = f"<= {at_most:g} {of}", measured <= at_most
    return Row(name, value, unit, baseline, ratio, target, holds, durable=durable)


def merge(before: Sequence[Row], new: Iterable[Row]) -> list[Row]:
    """`before`, with each row of a name that `new` has replaced in its place, and the others behind."""
    merged = {row.name: row for row in before}
    merged.update({row.name: row for row in new})
    return list(merged.values())


def read(path: Path = RESULTS) -> list[Row]:
    """The rows of earlier runs."""
    if not path.exists():
        return []
    return [Row(**row) for row in json.loads(path.read_text())]


def write(new: Iterable[Row], path: Path = RESULTS) -> None:
    """Merge rows into the file; a reader sees the old file or the new one."""
    rows = [asdict(row) for row in merge(read(path), new)]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(rows, indent=2, allow_nan=False) + "\n")
    draft.replace(path)


def show(rows: Iterable[Row], caption: str = "", console: Console | None = None) -> None:
    """Print the rows as a table."""
    console = console or Console()
    if not console.is_terminal:
        console.width = PLAIN_COLUMNS
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("baseline", justify="right", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("target", no_wrap=True)
    table.add_column("holds")
    table.add_column("durable")
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)


def _cells(row: Row) -> tuple[str, ...]:
    holds = {None: "", True: "[green]yes[/]", False: "[bold red]no[/]"}[row.holds]
    figures = (number(row.value), row.unit, number(row.baseline), number(row.ratio))
    return (row.name, *figures, row.target or "", holds, row.durable)


def number(value: float | None) -> str:
    """A figure at the precision it deserves: three digits, or all before the point."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
