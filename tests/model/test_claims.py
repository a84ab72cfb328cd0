"""The rules hold in the model, and the model can see: every rule that is left out is missed.

Goal: whoever changes a rule changes it in `tests/model/claims.py` first, and learns here what it breaks.
Method: the same seeds in every run, so that a failure is the same for everyone; many more with
`python -m tests.model.explore 30000`.
"""

import pytest

from tests.model.claims import MUTANTS, Kind, World
from tests.model.explore import explore, judge

SEEDS = 500


def test_the_rules_hold() -> None:
    found = explore(range(SEEDS))
    assert found.violations == 0, found.first
    for kind in Kind:
        assert found.answers[kind] > SEEDS, f"too few answers to mean anything: {found.answers}"


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_rule_left_out_is_missed(mutant: str) -> None:
    assert explore(range(10 * SEEDS), mutant, until=1).violations == 1


def test_a_refusal_without_a_trace_counts_in_the_end() -> None:
    """Why every outcome of a command is a commit: its caller was told that it has no effect and never will have."""
    verdicts = (judge(World(seed, "refusal without a trace").run()) for seed in range(SEEDS))
    assert any(verdict and verdict.startswith("refused and yet counted") for verdict in verdicts)


def test_a_forgotten_session_that_comes_back_doubles_a_command() -> None:
    """Why a session that is too old when its commit lands is not remembered again: its replies are gone."""
    verdicts = (judge(World(seed, "forgotten session comes back").run()) for seed in range(SEEDS))
    assert any(verdict and verdict.startswith("doubled") for verdict in verdicts)


def test_a_seed_is_a_run() -> None:
    assert World(7).run().log == World(7).run().log
