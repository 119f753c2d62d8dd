from __future__ import annotations

import math

import numpy as np
import pytest

from gemquant.errors import NotComparableError
from gemquant.measure.tasks.paired import Samples, drop


def samples(values: list[float] | list[tuple[float, float]]) -> Samples:
    return {("task", number, "prompt"): value for number, value in enumerate(values)}


def test_a_drop_in_accuracy_is_original_less_artifact() -> None:
    before, after = [1.0] * 6 + [0.0] * 4, [1.0] * 4 + [0.0] * 6
    found = drop(0.6, 0.4, (samples(before), samples(after)), higher_is_better=True, seed=0)
    assert found.value == pytest.approx(0.2)
    assert found.samples == 10
    assert found.low is not None
    assert found.high is not None
    # Two of ten changed, both for the worse: the interval holds no gain.
    assert 0.0 <= found.low <= 0.2 <= found.high <= 0.6


def test_pairing_makes_the_interval_narrower_than_either_score_is_known() -> None:
    generator = np.random.default_rng(0)
    before = (generator.random(1000) < 0.5).astype(float)
    after = before.copy()
    after[:20] = 0.0
    found = drop(
        float(before.mean()),
        float(after.mean()),
        (samples(list(before)), samples(list(after))),
        higher_is_better=True,
        seed=0,
    )
    assert found.low is not None
    assert found.high is not None
    alone = 2 * 1.96 * math.sqrt(0.5 * 0.5 / 1000)
    assert found.high - found.low < alone / 4


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator, covered = np.random.default_rng(1), 0
    for seed in range(100):
        before = (generator.random(200) < 0.6).astype(float)
        after = np.where(generator.random(200) < 0.1, 0.0, before)  # 0.6 · 0.1 is lost
        found = drop(
            float(before.mean()),
            float(after.mean()),
            (samples(list(before)), samples(list(after))),
            higher_is_better=True,
            seed=seed,
        )
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.06 <= found.high
    assert 88 <= covered <= 99


def test_the_same_answers_lose_nothing_at_all() -> None:
    values = samples([1.0, 0.0, 1.0])
    found = drop(2 / 3, 2 / 3, (values, values), higher_is_better=True, seed=0)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_a_perplexity_is_paired_by_its_sums_and_less_is_better() -> None:
    before = [(-10.0, 4.0), (-30.0, 10.0), (-8.0, 4.0)]
    after = [(-11.0, 4.0), (-33.0, 10.0), (-9.0, 4.0)]
    found = drop(
        math.exp(48 / 18),
        math.exp(53 / 18),
        (samples(before), samples(after)),
        higher_is_better=False,
        seed=0,
    )
    assert found.value == pytest.approx(math.exp(53 / 18) - math.exp(48 / 18))
    assert found.low is not None
    assert 0 < found.low < found.value


@pytest.mark.parametrize(
    ("values", "figure", "told"),
    [
        ([1.0, 0.0], 0.7, "the metric is not a mean over its samples"),
        ([1.0], 1.0, "a single sample has none"),
    ],
)
def test_without_an_interval_the_reason_is_given(
    values: list[float], figure: float, told: str
) -> None:
    given = samples(values)
    found = drop(figure, figure, (given, given), higher_is_better=True, seed=0)
    assert (found.low, found.high, found.no_interval) == (None, None, told)


def test_a_metric_without_samples_has_a_value_alone() -> None:
    found = drop(0.5, 0.4, None, higher_is_better=True, seed=0)
    assert found.value == pytest.approx(0.1)
    assert found.no_interval == "the metric is not a sum over samples"


def test_other_prompts_are_not_compared() -> None:
    other = {("task", 0, "another prompt"): 1.0}
    with pytest.raises(NotComparableError, match="answered different questions"):
        drop(1.0, 1.0, (samples([1.0]), other), higher_is_better=True, seed=0)
