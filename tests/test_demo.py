"""The demo, as a user runs it, and that it would not pass if anything were wrong.

Goal: `make demo` ends with exit code 0 and with the figures of a run in which a node was killed and nothing was lost;
and whatever is missing, doubled, wrong or was not tried at all makes it end with 1.

Method: one run of the real thing as a subprocess, on the embedded log. The rest asks the demo's own verdict about runs
that were damaged in one place each: exit code 1 is what `passed` says no to.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from examples.flights.__main__ import MONTH, Kill, Run, figures, passed
from examples.flights.commands import Depart, Stream, read_stream
from examples.flights.compare import Report
from examples.flights.drive import Tally
from tests.support import REPOSITORY

RUN_MAX_S: Final = 400.0

AIRCRAFT: Final = Report("aircraft", compared=1, events=2, lost=0, doubled=0, differing=0, differences=())
FLIGHTS: Final = replace(AIRCRAFT, subject="flights")
STREAM: Final = Stream(
    (Depart("N1", "f1", "UA", "EWR", 0), Depart("N1", "f2", "UA", "EWR", 0)), rows=3, without_tailnum=1
)


def clean_run() -> Run:
    return Run(Tally(sent=2, acknowledged=2), [AIRCRAFT, FLIGHTS], retried=1, seconds=0.5)


def clean_kill() -> Kill:
    return Kill("127.0.0.2", at_command=1, served_after_ms=250.0)


@pytest.mark.ray
def test_the_demo_proves_that_nothing_was_lost(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "examples.flights", "--json", str(file)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=RUN_MAX_S, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(file.read_text())
    stream = read_stream(MONTH)
    assert found["passed"] is True
    assert found["commands_sent"] == found["acknowledged"] == len(stream.commands)
    assert found["rows_without_tailnum"] == stream.without_tailnum
    wrong = ("rejected", "outcome_unknown", "wrong_answers", "lost", "doubled")
    assert {name: found[name] for name in wrong} == dict.fromkeys(wrong, 0)
    assert found["kill"]["served_after_ms"] > 0
    assert 0 < found["kill"]["at_command"] < len(stream.commands)
    assert [(report["subject"], report["passed"]) for report in found["reports"]] == [
        ("aircraft", True),
        ("flights", True),
    ]
    assert "Nothing was lost, nothing counted twice." in done.stdout


def test_a_clean_run_passes() -> None:
    assert passed(clean_run(), STREAM, clean_kill())
    assert passed(clean_run(), STREAM, None)


@pytest.mark.parametrize("report", [AIRCRAFT, FLIGHTS], ids=["aircraft", "flights"])
@pytest.mark.parametrize("damage", [{"lost": 1}, {"doubled": 1}, {"differing": 1}, {"compared": 0}], ids=str)
def test_a_damaged_state_or_log_does_not_pass(report: Report, damage: dict[str, Any]) -> None:
    damaged = replace(report, **damage)
    run = replace(clean_run(), reports=[damaged if good is report else good for good in (AIRCRAFT, FLIGHTS)])
    assert not passed(run, STREAM, clean_kill())
    shown = figures(run, STREAM, clean_kill())
    assert (shown["lost"], shown["doubled"]) == (damage.get("lost", 0), damage.get("doubled", 0))
    assert [good["passed"] for good in shown["reports"]] == [report is not AIRCRAFT, report is not FLIGHTS]


@pytest.mark.parametrize(
    "tally",
    [
        Tally(sent=2, acknowledged=1, rejected=1),
        Tally(sent=2, acknowledged=1, unknown=1),
        Tally(sent=2, acknowledged=2, wrong=1),
        Tally(sent=1, acknowledged=1),
        Tally(),
    ],
    ids=["rejected", "unknown", "wrong", "not all sent", "nothing sent"],
)
def test_answers_that_are_not_as_they_should_be_do_not_pass(tally: Tally) -> None:
    assert not passed(replace(clean_run(), tally=tally), STREAM, clean_kill())


def test_what_was_not_tried_does_not_pass() -> None:
    assert not passed(clean_run(), STREAM, Kill())
    assert not passed(replace(clean_run(), reports=[AIRCRAFT]), STREAM, clean_kill())
