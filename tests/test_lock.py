"""The locks: they pin what pyproject.toml asks for, and the image runs a part of what was tested."""

import re
import tomllib
from typing import Any, Final

from packaging.requirements import Requirement

from tests.support import REPOSITORY

_PROJECT: Final[dict[str, Any]] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def _pins(lock: str) -> dict[str, str]:
    """What the lock pins, name to version; every pin has a hash."""
    text = (REPOSITORY / lock).read_text()
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+).*\\\n    --hash=sha256:", text, re.MULTILINE))
    assert len(pins) == len(re.findall(r"^[a-z]", text, re.MULTILINE)) > 0
    return pins


def _unmet(wanted: list[str], pins: dict[str, str]) -> list[str]:
    requirements = [Requirement(text) for text in wanted]
    return [str(r) for r in requirements if r.name not in pins or pins[r.name] not in r.specifier]


def test_an_unmet_requirement_is_seen() -> None:
    assert _unmet(["a>=1", "b>=2", "c"], {"a": "1.5", "b": "1.5"}) == ["b>=2", "c"]


def test_the_lock_pins_what_the_project_asks_for() -> None:
    groups = _PROJECT["dependency-groups"]
    wanted = [*_PROJECT["project"]["dependencies"], *groups["build"], *(r for r in groups["dev"] if isinstance(r, str))]
    assert _unmet(wanted, _pins("requirements.lock")) == []


def test_the_image_runs_a_part_of_what_was_tested() -> None:
    runtime = _pins("requirements-runtime.lock")
    assert _unmet(_PROJECT["project"]["dependencies"], runtime) == []
    assert runtime.items() < _pins("requirements.lock").items()
