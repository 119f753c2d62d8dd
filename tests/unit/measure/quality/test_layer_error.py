from __future__ import annotations

import pytest
import torch

from gemquant.measure.quality import figures as module
from gemquant.measure.quality.figures import LayerError, layer_error


def test_an_error_can_be_checked_by_hand() -> None:
    opening = [1e6, 0.0]
    original = torch.tensor([[opening, [3.0, 4.0], [0.0, 2.0]]])
    other = torch.tensor([[[0.0, 1e6], [3.0, 4.0], [2.0, 0.0]]])
    found = layer_error(original, other)
    # Of what follows the first token: |difference|² = 0 + 8, |original|² = 25 + 4.
    assert found.relative == pytest.approx((8 / 29) ** 0.5)
    assert found.cosine == pytest.approx((1 + 0) / 2)
    assert found.finite


def test_equal_states_have_no_error_at_all() -> None:
    states = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    states[1, 2] = 0
    assert layer_error(states, states.clone()) == LayerError(0.0, 1.0, finite=True)


@pytest.mark.parametrize("at_once", [1, 14, 1024])
def test_many_windows_are_taken_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    original, other = torch.randn(2, 5, 7, 8, generator=generator)
    found = layer_error(original, other)
    left, right = original[:, 1:].double(), other[:, 1:].double()
    assert found.relative == pytest.approx(float((right - left).norm() / left.norm()), rel=1e-6)
    cosine = torch.cosine_similarity(left, right, dim=-1).mean()
    assert found.cosine == pytest.approx(float(cosine), rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_seen(value: float) -> None:
    original = torch.ones(2, 4, 3)
    other = original.clone()
    other[1, 3, 2] = value
    assert not layer_error(original, other).finite
