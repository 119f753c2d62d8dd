"""Resampling of windows, against writing the resampled tokens out with numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gemquant.numerics import bootstrap
from gemquant.numerics.bootstrap import Estimate, WindowBootstrap, expanded_tail

WINDOWS, TOKENS = 6, 101
LEVELS = (0.5, 0.99, 0.999)


@pytest.fixture
def values() -> torch.Tensor:
    """Skewed values, windows that differ, and many that are equal."""
    generator = torch.Generator().manual_seed(1)
    level = torch.linspace(0.5, 2, WINDOWS)[:, None]
    skewed = level * torch.rand(WINDOWS, TOKENS, generator=generator).pow(6)
    return torch.where(skewed < 0.01, 0.0, skewed)


def written_out(values: torch.Tensor, draws: torch.Tensor) -> list[np.ndarray]:
    """All tokens of every resample."""
    return [
        np.concatenate(
            [values[n].double().numpy() for n in range(WINDOWS) for _ in range(int(row[n]))]
        )
        for row in draws
    ]


def interval(figures: list[float]) -> list[float]:
    tail = expanded_tail(WINDOWS)
    return np.quantile(figures, [tail, 1 - tail]).tolist()


def test_every_resample_draws_as_many_windows_as_there_are() -> None:
    drawn = WindowBootstrap.seeded(WINDOWS, 0).draws
    assert drawn.shape == (2000, WINDOWS)
    assert (drawn.sum(1) == WINDOWS).all()
    # Windows are drawn independently: each number of times as binomially expected.
    assert float((drawn == 0).double().mean()) == pytest.approx((5 / 6) ** 6, abs=0.01)


def test_a_mean_and_its_interval_are_those_of_the_tokens_written_out(values: torch.Tensor) -> None:
    made = WindowBootstrap.seeded(WINDOWS, 3)
    found = made.mean(values)
    low, high = interval([tokens.mean() for tokens in written_out(values, made.draws)])
    assert found == Estimate(
        *(pytest.approx(each) for each in (float(values.double().mean()), low, high))
    )


def test_what_is_made_of_a_mean_is_made_of_every_resampled_mean(values: torch.Tensor) -> None:
    made = WindowBootstrap.seeded(WINDOWS, 3)
    found = made.mean(values, torch.exp)
    low, high = interval([np.exp(tokens.mean()) for tokens in written_out(values, made.draws)])
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize("at_once", [1 << 22, 500])
def test_quantiles_and_their_intervals_are_those_of_the_tokens_written_out(
    values: torch.Tensor, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(bootstrap, "_ELEMENTS_AT_ONCE", at_once)
    made = WindowBootstrap.seeded(WINDOWS, 3)
    written = written_out(values, made.draws)
    for level, found in zip(LEVELS, made.quantiles(values, LEVELS), strict=True):
        low, high = interval([np.quantile(tokens, level) for tokens in written])
        assert found.value == pytest.approx(np.quantile(values.double().numpy(), level), rel=1e-12)
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_one_window_has_no_interval(values: torch.Tensor) -> None:
    alone = WindowBootstrap.seeded(1, 0)
    mean = float(values[:1].double().mean())
    assert alone.mean(values[:1]) == Estimate(pytest.approx(mean))
    (median,) = alone.quantiles(values[:1], [0.5])
    assert (median.low, median.high) == (None, None)


def test_the_same_seed_gives_the_same_interval_and_another_another(values: torch.Tensor) -> None:
    first, again, other = (WindowBootstrap.seeded(WINDOWS, seed).mean(values) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("windows", [4, 8, 16])
def test_the_interval_of_few_normal_windows_holds_their_mean_as_often_as_it_says(
    windows: int,
) -> None:
    generator = torch.Generator().manual_seed(windows)
    samples = torch.randn(400, windows, 1, dtype=torch.float64, generator=generator)
    made = WindowBootstrap.seeded(windows, 0)
    held = [found.low <= 0 <= found.high for found in map(made.mean, samples)]
    # 88 % of intervals from four windows: their range cannot hold more than 1 - 2 / 2^4.
    assert np.mean(held) > {4: 0.85, 8: 0.92, 16: 0.92}[windows]
