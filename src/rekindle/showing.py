"""How the command line shows reports to people: pure functions from the shapes in `supervisors.report` to Rich's renderables.

Nothing here is a contract: programs ask for `--output json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from rekindle.supervisors.report import (
    Explanation,
    Forecast,
    IncidentReport,
    PhaseReport,
    PlanReport,
    Receipt,
    Report,
    Story,
    TreeReport,
)

_COLOURS: Final = {
    "served": "green",
    "whole": "green",
    "up": "green",
    "open": "green",
    "done": "green",
    "running": "cyan",
    "starting": "cyan",
    "short": "yellow",
    "paused": "yellow",
    "blocked": "yellow",
    "cordoned": "yellow",
    "unserved": "red",
    "down": "red",
    "failed": "red",
    "gone": "red",
    "not answering": "red",
}

_TIME: Final = re.compile(r"\b[12]\d{12}\b")
"""Milliseconds since the epoch, in the words of a plan."""


def status(report: Report) -> RenderableType:
    """Services, nodes, instances; what is wrong, and what is done about it."""
    services = _table("service", "state", "instances", "shards served", "kept down", "standbys", "plan")
    for s in report.services:
        standbys = f"{s.caught_up} of {s.standbys}" if s.standbys else "-"
        up, served = f"{s.up} of {s.wanted}", f"{s.served} of {s.shards}"
        _row(services, s.name, s.state, up, served, s.kept_down or "-", standbys, s.plan or "-")
    nodes = _table("node", "zone", "state", "instances", "why")
    for node in report.nodes:
        _row(nodes, node.name, node.zone or "-", node.state, node.instances, node.why)
    instances = _table("instance", "service", "node", "state", "owns", "follows", "for")
    for i in report.instances:
        since = took(report.at_ms - i.started_ms) if i.started_ms else "-"
        _row(instances, i.name, i.service, i.node, i.state, i.shards, i.follows, since)
    open_ones = [incident for incident in report.incidents if incident.closed_ms is None]
    frozen = ["Too much died lately: what can wait, waits."] if report.frozen else []
    return Group(
        Text(f"{report.app}, led by {report.leader} (term {report.term})", style="bold"),
        *map(Text, frozen),
        services,
        nodes,
        instances,
        _incidents(open_ones, report.at_ms) if open_ones else Text("No incident is open."),
        *(Text(f"Plan {plan.id} ({plan.policy}) is {plan.standing}: {plan.cause}") for plan in report.plans),
    )


def tree(report: Report) -> RenderableType:
    """The supervision tree."""
    assert report.tree is not None, "a report without the tree that was asked for"
    return _branch(report.tree, None)


def _branch(part: TreeReport, above: Tree | None) -> Tree:
    label = Text.assemble((part.name, "bold"), f"  {part.rule}  ", _coloured(part.state))
    if part.restarts:
        label.append(f"  {part.restarts} of {part.max_restarts} restarts within {part.within_s:g} s", style="yellow")
    grown = Tree(label) if above is None else above.add(label)
    for child in part.children:
        _branch(child, grown)
    return grown


def incidents(report: Report) -> RenderableType:
    """All incidents that are kept."""
    return _incidents(report.incidents, report.at_ms) if report.incidents else Text("There was no incident.")


def _incidents(reports: Iterable[IncidentReport], now_ms: int) -> Table:
    table = _table("incident", "kind", "began", "took", "services", "nodes", "outcome", "plans")
    for i in reports:
        took_ms = (i.closed_ms or now_ms) - i.opened_ms
        numbers = ", ".join(map(str, i.plans)) or "-"
        services, nodes = ", ".join(i.services) or "-", ", ".join(i.nodes) or "-"
        _row(table, i.id, i.kind, clock(i.opened_ms), took(took_ms), services, nodes, i.outcome or "open", numbers)
    return table


def story(told: Story) -> RenderableType:
    """An incident from its beginning: how far it got when, and what happened."""
    moments = _table("moment", "at", "took")
    for moment in told.timeline:
        _row(moments, moment.name, clock(moment.at_ms), took(moment.took_ms))
    lines = _table("at", "what happened")
    for line in told.lines:
        _row(lines, clock(line.at_ms), line.text)
    incident = told.incident
    head = f"Incident {incident.id}, {incident.kind}: {incident.outcome or 'open'}; {took(told.took_ms)} up to here"
    active = [plan for plan in told.plans if plan.ended_ms is None]
    return Group(Text(head, style="bold"), moments, lines, *map(plan, active))


def plans(report: Report) -> RenderableType:
    """The plans that are active."""
    return Group(*map(plan, report.plans)) if report.plans else Text("No plan is active.")


def plan(report: PlanReport) -> RenderableType:
    """A plan with its phases and steps."""
    about = f" for incident {report.incident}" if report.incident else ""
    head = Text.assemble((f"Plan {report.id} ({report.policy}){about} is ", "bold"), _coloured(report.standing))
    return Group(head.append(f": {report.cause}{f' ({report.why})' if report.why else ''}"), _steps(report))


def _steps(report: PlanReport) -> RenderableType:
    steps = _table("step", "phase", "state", "attempt", "what", "why")
    for phase in report.phases:
        for step in phase.steps:
            state = f"{step.state}, forced" if step.forced else step.state
            _row(steps, step.number, _phase(phase), state, step.attempt, step.what, step.why)
    return Padding(steps, (0, 0, 0, 2), expand=False)


def _phase(phase: PhaseReport) -> str:
    return f"{phase.name} ({phase.ordering}{', after ' + ', '.join(phase.after) if phase.after else ''})"


def forecast(told: Forecast) -> RenderableType:
    """A dry run."""
    figures = _table("shards moved", "predicted recovery", "everything done", "lowest availability")
    recovery = "never by these plans" if told.recovery_s is None else took(round(told.recovery_s * 1000))
    _row(figures, told.shards_moved, recovery, took(round(told.over_s * 1000)), f"{told.lowest_availability:.1%}")
    head = f"If {told.asked} happened now ({told.kind}; nothing was touched):"
    return Group(
        Text(head, style="bold"),
        *(
            part
            for plan in told.plans
            for part in (Text(f"Plan {plan.id} ({plan.policy}): {plan.cause}"), _steps(plan))
        ),
        *([] if told.plans else [Text("No policy has a plan for it.")]),
        figures,
        *_listed("It would not go on by itself:", told.blocked),
        *_listed("Policies that failed:", told.notes),
    )


def explanation(told: Explanation) -> RenderableType:
    """Why something is in its state."""
    return Group(
        Text.assemble((f"{told.sort} {told.target}: ", "bold"), _coloured(told.state)),
        *_listed("Because", told.because),
        *_listed("Rules that fired", told.rules),
        *_listed("Verbs that would change it", told.verbs),
    )


def receipt(told: Receipt) -> RenderableType:
    """A verb that is written down."""
    follow = f"; `rekindle incident {told.answer}` tells how it goes" if told.answer is not None else ""
    return Text(f"{told.verb} {told.target}: written down for {told.who}, {told.reason}{follow}")


# --- the parts ------------------------------------------------------------------------------------------------------


def _listed(head: str, lines: Sequence[str]) -> list[RenderableType]:
    return [Text(head), *(Padding(_coloured(line), (0, 0, 0, 2), expand=False) for line in lines)] if lines else []


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _row(table: Table, *cells: Any) -> None:
    table.add_row(*(_coloured(str(cell)) for cell in cells))


def _coloured(text: str) -> Text:
    """As a text of its own: what users call things is never Rich's markup. Times of the log become readable ones."""
    text = _TIME.sub(lambda found: clock(int(found[0])), text)
    return Text(text, style=_COLOURS.get(text.partition(":")[0], ""))


def took(ms: int) -> str:
    """A duration."""
    if ms < 1_000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    minutes, seconds = divmod(ms // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def clock(ms: int) -> str:
    """A time of the log, by the clock on this machine's wall."""
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone().isoformat(sep=" ", timespec="milliseconds")[:23]
