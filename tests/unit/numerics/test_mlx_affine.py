from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gemquant.numerics.affine import AffineRounding, dequantize, quantize_affine
from gemquant.numerics.mlx_affine import (
    biases_of,
    quantize_anchored,
    zero_points_of,
)

BF16 = torch.bfloat16


def heavy_tailed(rows: int = 256, columns: int = 256) -> Tensor:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return (0.02 * values * (1 + values.square())).to(BF16).float()


def test_the_end_farther_from_zero_is_exact() -> None:
    weight = torch.tensor([[-3.0, 0.0, 1.0, 1.5]])
    codes, scales, biases = quantize_anchored(weight, bits=2, group_size=4, scale_dtype=BF16)
    assert (scales.tolist(), biases.tolist()) == ([[1.5]], [[-3.0]])
    assert codes.tolist() == [[0, 2, 3, 3]]


def test_the_scale_is_negative_where_the_upper_end_is_farther() -> None:
    weight = torch.tensor([[3.0, 0.0, -1.5, 1.5]])
    codes, scales, biases = quantize_anchored(weight, bits=2, group_size=4, scale_dtype=BF16)
    assert (scales.tolist(), biases.tolist()) == ([[-1.5]], [[3.0]])
    assert codes.tolist() == [[0, 2, 3, 1]]


def test_a_group_of_zeros_stays_zero() -> None:
    codes, scales, biases = quantize_anchored(
        torch.zeros(1, 32), bits=4, group_size=32, scale_dtype=BF16
    )
    assert torch.equal(
        dequantize(codes, scales, zero_points_of(scales, biases)), torch.zeros(1, 32)
    )


@given(
    st.floats(2.0**-20, 100, width=32),
    st.floats(-100, 100, width=32),
    st.booleans(),
)
def test_a_bias_survives_as_a_zero_point(scale: float, bias: float, negative: bool) -> None:
    scales = torch.tensor([-scale if negative else scale]).to(BF16)
    biases = torch.tensor([bias]).to(BF16)
    assert torch.equal(biases_of(scales, zero_points_of(scales, biases)), biases)


def squared_error(weight: Tensor, decoded: Tensor) -> float:
    return float((weight - decoded).square().mean())


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_codes_chosen_by_the_rounded_bias_cost_as_good_as_nothing(bits: int) -> None:
    weight = heavy_tailed()
    errors = [
        squared_error(
            weight,
            dequantize(
                *quantize_affine(
                    weight,
                    rounding=AffineRounding(bits, False, BF16, biased=biased),
                    group_size=64,
                )
            ),
        )
        for biased in (False, True)
    ]
    assert errors[1] < 1.005 * errors[0]


def test_rounding_the_bias_after_the_codes_were_chosen_costs_much_at_8_bits() -> None:
    weight = heavy_tailed()
    codes, scales, zeros = quantize_affine(
        weight, rounding=AffineRounding(8, False, BF16), group_size=64
    )
    exact = squared_error(weight, dequantize(codes, scales, zeros))
    stored = zero_points_of(scales, biases_of(scales.to(BF16), zeros))
    assert squared_error(weight, dequantize(codes, scales, stored)) > 1.4 * exact


def test_a_bias_can_be_stored_exactly() -> None:
    rounding = AffineRounding(4, False, BF16, biased=True)
    low, high = torch.tensor([-0.731, -0.02]), torch.tensor([0.2, 0.915])
    scales, zeros = rounding.parameters(low, high)
    biases = biases_of(scales.to(BF16), zeros)
    assert torch.equal(zero_points_of(scales, biases), zeros)
