"""The README is true: its example runs as it stands, on real Ray, and prints what the README says it prints."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
UP_MAX_S = 120
RUN_MAX_S = 60

pytestmark = pytest.mark.ray


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [text for found, text in fences if found == language]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Path]:
    """A folder with the README's program in it, and the program running on a Ray node of its own."""
    (tmp_path / "shop.py").write_text(blocks("python")[0])
    command = [sys.executable, "-m", "rekindle.cli", "up", "shop:app", "--local", "1", "--wait", str(UP_MAX_S)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment) as up:
        try:
            lines = _until(up, "Ctrl-C ends them")
            assert any("shop is up: stock (32 shards, 3 instances)" in line for line in lines), lines
            yield tmp_path
        finally:
            up.send_signal(signal.SIGINT)
            up.wait(RUN_MAX_S)


def _until(child: subprocess.Popen[str], text: str) -> list[str]:
    assert child.stdout is not None, "the child was made without a pipe"
    lines: list[str] = []
    for line in child.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"it ended with {child.wait()} before it said {text!r}: {lines}")


def run(folder: Path, *arguments: str) -> str:
    """What a Python program prints in that folder."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=RUN_MAX_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_prints_what_the_readme_says(shop: Path) -> None:
    printed = blocks("")[0]
    assert "left" in printed, f"the README's output block is not where it was: {printed!r}"
    assert run(shop, "shop.py") == printed
    found = json.loads(run(shop, "-m", "rekindle.cli", "state", "Stock", "sku-42", "--app", "shop:app"))
    assert (found["version"], found["state"]) == (2, {"on_hand": 3, "held": {"o-1": 2}})


def test_both_commands_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z]+)", README))
    assert named, "the README names no make target"
    assert named <= targets, f"the README names {named - targets}, which the Makefile does not have"


def test_what_its_other_blocks_import_is_there() -> None:
    imports = [line for block in blocks("python")[1:] for line in block.splitlines() if line.startswith("from ")]
    assert imports
    for line in imports:
        module, names = line.removeprefix("from ").split(" import ")
        assert set(names.split(", ")) <= vars(importlib.import_module(module)).keys(), line
