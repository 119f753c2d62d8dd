"""8-bit codes of weights and activations, against integers counted by hand and by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gemquant.numerics import int8
from gemquant.numerics.int8 import Int8Activations, Int8Weight, code_products, linear


def test_a_weights_row_is_divided_by_its_maximum_over_127() -> None:
    weight = Int8Weight.rounded(torch.tensor([[1.27, -0.634, 0.005], [-254.0, 1.0, 3.0]]), -1)
    assert weight.codes.tolist() == [[127, -63, 0], [-127, 0, 2]]
    torch.testing.assert_close(weight.scales, torch.tensor([[0.01], [2.0]]))


def test_groups_have_scales_of_their_own() -> None:
    weight = Int8Weight.rounded(torch.tensor([[127.0, 1.0, 1.27, 0.01]]), 2)
    assert weight.codes.tolist() == [[127, 1, 127, 1]]
    torch.testing.assert_close(weight.scales, torch.tensor([[1.0, 0.01]]))
    torch.testing.assert_close(weight.dequantize(), torch.tensor([[127.0, 1.0, 1.27, 0.01]]))


def test_a_token_has_a_scale_of_its_own_and_a_window_one_for_all_its_tokens() -> None:
    windows = torch.tensor([[[127.0, 3.0], [1.27, 0.5]], [[12.7, 0.3], [0.2, 0.04]]])
    assert Int8Activations.rounded(windows, "token").codes.tolist() == [
        [[127, 3], [127, 50]],
        [[127, 3], [127, 25]],
    ]
    assert Int8Activations.rounded(windows, "tensor").codes.tolist() == [
        [[127, 3], [1, 0]],
        [[127, 3], [2, 0]],
    ]


@pytest.mark.parametrize("granularity", ["token", "tensor"])
def test_zeros_stay_zeros(granularity: int8.Granularity) -> None:
    rounded = Int8Activations.rounded(torch.zeros(1, 2, 3), granularity)
    assert not rounded.dequantize().any()
    assert not Int8Weight.rounded(torch.zeros(2, 4), 2).dequantize().any()


def test_products_of_the_largest_codes_are_exact() -> None:
    left = np.full((3, 2048), 127, dtype=np.int8)
    right = np.tile(np.array([[127], [-127]], dtype=np.int8), (1, 2048))
    expected = left.astype(np.int64) @ right.T.astype(np.int64)
    found = code_products(torch.from_numpy(left), torch.from_numpy(right))
    assert found.tolist() == expected.astype(np.float32).tolist()


@pytest.mark.parametrize("group_size", [-1, 32])
@pytest.mark.parametrize("integers", [True, False])
def test_a_linear_is_the_product_of_what_the_codes_stand_for(
    group_size: int, integers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "has_integer_products", lambda: integers and _is_exact)
    generator = torch.Generator().manual_seed(0)
    inputs = Int8Activations.rounded(torch.randn(2, 5, 128, generator=generator), "token")
    weight = Int8Weight.rounded(torch.randn(7, 128, generator=generator), group_size)
    expected = inputs.dequantize().double() @ weight.dequantize().double().T
    torch.testing.assert_close(linear(inputs, weight).double(), expected, rtol=1e-6, atol=1e-6)


_is_exact = int8.has_integer_products()
