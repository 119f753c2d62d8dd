from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gemquant.core.results import Measurement, SliceResult
from gemquant.measure.quality.divergence import TokenScores
from gemquant.measure.quality.summary import mean_over_windows, summarise

WINDOWS, TOKENS = 6, 500


def scores(windows: int = WINDOWS, tokens: int = TOKENS) -> TokenScores:
    generator = torch.Generator().manual_seed(windows)
    shape = (windows * tokens,)
    level = torch.linspace(0.5, 2, windows).repeat_interleave(tokens)
    return TokenScores(
        nll_original=level * torch.rand(shape, generator=generator),
        nll_quantized=level * torch.rand(shape, generator=generator) + 0.1,
        divergence=torch.rand(shape, generator=generator).pow(4),
        agreement=(torch.rand(shape, generator=generator) < 0.9).float(),
        shared=torch.full(shape, 4.0),
    )


def test_a_slice_can_be_checked_by_hand() -> None:
    two = torch.tensor
    result = summarise(
        "english",
        TokenScores(
            nll_original=two([0.0, 2.0, 1.0, 3.0]),
            nll_quantized=two([1.0, 1.0, 3.0, 3.0]),
            divergence=two([0.0, 0.5, 0.5, 1.0]),
            agreement=two([1.0, 1.0, 0.0, 1.0]),
            shared=two([5.0, 5.0, 4.0, 5.0]),
        ),
        windows=2,
    )
    assert (result.slice, result.windows, result.tokens) == ("english", 2, 4)
    # Window means 1 and 2: standard deviation 1/√2, over √2.
    assert result.perplexity_original.value == pytest.approx(math.exp(1.5))
    assert result.perplexity_original.standard_error == pytest.approx(math.exp(1.5) * 0.5)
    assert result.perplexity_quantized.value == pytest.approx(math.exp(2.0))
    assert result.kl_mean == Measurement(0.5, 0.25)
    assert result.top1_agreement == Measurement(0.75, 0.25)


def by_window(values: torch.Tensor) -> np.ndarray:
    return values.double().numpy().reshape(WINDOWS, TOKENS)


def test_means_and_errors_are_those_of_numpy() -> None:
    given = scores()
    result = summarise("code", given, windows=WINDOWS)
    for measured, values in (
        (result.kl_mean, given.divergence),
        (result.top1_agreement, given.agreement),
    ):
        means = by_window(values).mean(1)
        assert measured.value == pytest.approx(means.mean(), rel=1e-12)
        assert measured.standard_error == pytest.approx(means.std(ddof=1) / math.sqrt(WINDOWS))
    nll = by_window(given.nll_quantized).mean(1)
    perplexity = math.exp(nll.mean())
    assert result.perplexity_quantized.value == pytest.approx(perplexity, rel=1e-12)
    assert result.perplexity_quantized.standard_error == pytest.approx(
        perplexity * nll.std(ddof=1) / math.sqrt(WINDOWS)
    )


def test_the_tail_is_a_percentile_of_all_tokens_with_a_jackknife_error() -> None:
    given = scores()
    values = by_window(given.divergence)
    left_out = [np.quantile(np.delete(values, n, axis=0), 0.999) for n in range(WINDOWS)]
    spread = np.square(np.array(left_out) - np.mean(left_out)).sum() * (WINDOWS - 1) / WINDOWS
    result: SliceResult = summarise("code", given, windows=WINDOWS)
    assert result.kl_p999.value == pytest.approx(np.quantile(values, 0.999), rel=1e-12)
    assert result.kl_p999.standard_error == pytest.approx(math.sqrt(spread), rel=1e-9)


def test_one_window_has_no_spread() -> None:
    result = summarise("chat", scores(1), windows=1)
    for name in (
        "perplexity_original",
        "perplexity_quantized",
        "kl_mean",
        "kl_p999",
        "top1_agreement",
    ):
        assert getattr(result, name).standard_error == 0.0


def test_a_mean_over_windows_is_that_of_its_values() -> None:
    values = torch.tensor([1.0, 3.0, 5.0, 7.0])
    assert mean_over_windows(values, windows=2) == Measurement(4.0, pytest.approx(2.0))
