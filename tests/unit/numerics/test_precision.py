from __future__ import annotations

import pytest
import torch

from gemquant.numerics import precision
from gemquant.numerics.precision import fast_products


def test_products_in_the_context_are_exact_to_float32() -> None:
    left, right = torch.randn(300, 700), torch.randn(700, 200)
    expected = left.double() @ right.double()
    with fast_products():
        found = left @ right
    assert (found.double() - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_setting_is_put_back_after_a_failure() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(KeyError), fast_products():
        raise KeyError
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_a_processor_that_would_round_keeps_the_exact_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "_is_exact", lambda: False)
    before = torch.backends.mkldnn.matmul.fp32_precision
    with fast_products():
        assert torch.backends.mkldnn.matmul.fp32_precision == before
