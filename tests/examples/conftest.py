"""What the tests of all examples have in common."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has other things to do may keep a pulse waiting; nobody is to be taken for dead for that."""
    monkeypatch.setattr("rekindle.supervisors.ward.SUSPECT_S", 50.0)
