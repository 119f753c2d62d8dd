"""What the gate promises of its errors, on windows of real artifacts, as ci/bench/gate does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.gate_draws import Pool, Rise, rates, read_pool

BUDGET = 0.02
DRAWS = 100


@pytest.fixture(scope="module")
def pool() -> Pool:
    return read_pool(Path(__file__).parents[4] / "ci" / "bench" / "gate_windows.json")


def test_a_loss_as_large_as_its_budget_is_caught(pool: Pool) -> None:
    found = rates(pool, Rise(BUDGET, "scaled"), budget=BUDGET, windows=8, draws=DRAWS, seed=1)
    assert found.caught >= 0.95 * DRAWS


def test_equal_artifacts_are_not_called_a_regression(pool: Pool) -> None:
    found = rates(pool, Rise(0.0, "centred"), budget=BUDGET, windows=8, draws=DRAWS, seed=2)
    assert found.red <= 0.01 * DRAWS


def test_equal_artifacts_whose_windows_differ_little_pass(pool: Pool) -> None:
    little = Rise(0.0, "centred", share=0.01)
    found = rates(pool, little, budget=BUDGET, windows=8, draws=DRAWS, seed=3)
    assert found.caught == 0
