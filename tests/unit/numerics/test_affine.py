from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemquant.numerics.affine import (
    AffineRounding,
    dequantize,
    group_width,
    quantize_affine,
)

W4 = AffineRounding(4, symmetric=False, scale_dtype=torch.bfloat16)
W4_SYMMETRIC = AffineRounding(4, symmetric=True, scale_dtype=torch.bfloat16)
W3 = AffineRounding(3, symmetric=False, scale_dtype=torch.float16)
W8 = AffineRounding(8, symmetric=False, scale_dtype=torch.bfloat16)
ROUNDINGS = [
    AffineRounding(bits, symmetric, dtype)
    for bits in (3, 4, 8)
    for symmetric in (False, True)
    for dtype in (torch.float16, torch.bfloat16, torch.float32)
]
roundings = st.sampled_from(ROUNDINGS)
rows = st.lists(
    st.lists(st.floats(-8, 8, width=32, allow_subnormal=False), min_size=8, max_size=8),
    min_size=1,
    max_size=3,
).map(torch.tensor)


def decoded(weight: Tensor, rounding: AffineRounding, group_size: int) -> Tensor:
    return dequantize(*quantize_affine(weight, rounding=rounding, group_size=group_size))


def test_a_range_that_divides_evenly_is_stored_without_error() -> None:
    weight = torch.tensor([[-1.0, -0.5, 0.0, 2.75]])
    codes, scales, zeros = quantize_affine(weight, rounding=W4, group_size=-1)
    assert codes.tolist() == [[0, 2, 4, 15]]
    assert (scales.tolist(), zeros.tolist()) == ([[0.25]], [[4.0]])
    assert torch.equal(dequantize(codes, scales, zeros), weight)


def test_each_group_has_its_own_scale_and_zero_point() -> None:
    weight = torch.tensor([[0.0, 15.0, -30.0, 0.0], [-15.0, 0.0, 7.5, 0.0]])
    codes, scales, zeros = quantize_affine(weight, rounding=W4, group_size=2)
    assert scales.tolist() == [[1.0, 2.0], [1.0, 0.5]]
    assert zeros.tolist() == [[0.0, 15.0], [15.0, 0.0]]
    assert codes.tolist() == [[0, 15, 0, 15], [0, 15, 15, 0]]


def test_symmetric_codes_are_centred_at_half_their_range() -> None:
    weight = torch.tensor([[-7.5, -1.0, 0.0, 3.0]])
    codes, scales, zeros = quantize_affine(weight, rounding=W4_SYMMETRIC, group_size=-1)
    assert (scales.item(), zeros.item()) == (1.0, 8.0)
    assert codes.tolist() == [[0, 7, 8, 11]]


@pytest.mark.parametrize(("bits", "zero"), [(3, 4.0), (4, 8.0), (8, 128.0)])
def test_the_symmetric_zero_point_never_depends_on_the_weights(bits: int, zero: float) -> None:
    rounding = AffineRounding(bits, symmetric=True, scale_dtype=torch.float32)
    _, zeros = rounding.parameters(torch.tensor([0.0, -3.0, 2.0]), torch.tensor([0.0, 1.0, 9.0]))
    assert zeros.tolist() == [zero] * 3


def test_codes_are_chosen_for_the_scale_as_it_is_stored() -> None:
    # 1.03 / 15 = 0.068667 is stored in bfloat16 as 0.068848.
    weight = torch.tensor([[0.0, 1.03, 0.447]])
    codes, scales, _ = quantize_affine(weight, rounding=W4, group_size=-1)
    assert scales.item() == 0.06884765625
    # 0.447 / 0.068667 = 6.51 would round up; 0.447 / 0.068848 = 6.49 rounds down.
    assert codes.tolist() == [[0, 15, 6]]


@pytest.mark.parametrize("rounding", [W4, W4_SYMMETRIC, W3, W8])
@pytest.mark.parametrize("value", [0.0, 1e-42, -1e-42])
def test_a_group_of_zeros_or_denormals_decodes_to_nearly_nothing(
    rounding: AffineRounding, value: float
) -> None:
    assert decoded(torch.full((1, 4), value), rounding, -1).abs().max() <= 1e-40


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=str)
@pytest.mark.parametrize("value", [0.75, -0.75])
def test_a_constant_group_keeps_its_value_to_half_a_step(
    rounding: AffineRounding, value: float
) -> None:
    weight = torch.full((1, 4), value)
    _, scales, _ = quantize_affine(weight, rounding=rounding, group_size=-1)
    # The extreme code may fall short by what rounding the scale took off: 255 · 2⁻⁹ of a step.
    assert (decoded(weight, rounding, -1) - weight).abs().max() <= scales.item() * 1.01


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("magnitude", [1e6, 3e38])
def test_weights_beyond_the_range_of_a_scale_still_decode_to_finite_numbers(
    magnitude: float, dtype: torch.dtype, symmetric: bool
) -> None:
    rounding = AffineRounding(4, symmetric, dtype)
    weight = torch.tensor([[-magnitude, 0.0, 1.0, magnitude]])
    _, scales, _ = quantize_affine(weight, rounding=rounding, group_size=-1)
    assert torch.isfinite(scales).all()
    assert torch.isfinite(decoded(weight, rounding, -1)).all()


def test_weights_too_small_for_a_normal_float16_scale_keep_their_proportions() -> None:
    rounding = AffineRounding(4, symmetric=False, scale_dtype=torch.float16)
    weight = torch.linspace(-1e-4, 1e-4, 16)[None]
    assert (decoded(weight, rounding, -1) - weight).abs().max() <= 1e-4 / 10


def test_minus_one_means_one_group_for_the_whole_row() -> None:
    assert (group_width(640, -1), group_width(640, 128)) == (640, 128)


@settings(max_examples=60, deadline=None)
@given(weight=rows, rounding=roundings, group_size=st.sampled_from([2, 4, -1]))
def test_no_weight_within_the_codes_range_moves_by_more_than_half_a_step(
    weight: Tensor, rounding: AffineRounding, group_size: int
) -> None:
    # Where a float16 scale is subnormal, rounding it may clip more.
    weight = torch.where(weight.abs() < 0.01, 0.0, weight)
    codes, scales, zeros = quantize_affine(weight, rounding=rounding, group_size=group_size)
    width = group_width(weight.shape[1], group_size)
    step = scales.double().repeat_interleave(width, 1)
    zero = zeros.double().repeat_interleave(width, 1)
    lowest, highest = step * (0 - zero), step * (rounding.largest_code - zero)
    wanted = weight.double().clamp(lowest, highest)
    found = dequantize(codes, scales, zeros).double()
    assert ((found - wanted).abs() <= step * 0.5 + 1e-6 * wanted.abs()).all()
    # What lies outside is at most one step and a half away: half for the zero point, and one for a
    # bfloat16 scale that is 2⁻⁸ too small, 255 times over.
    assert ((weight - wanted).abs() <= 1.5 * step).all()


@settings(max_examples=60, deadline=None)
@given(weight=rows, rounding=roundings)
def test_zero_is_always_stored_exactly(weight: Tensor, rounding: AffineRounding) -> None:
    weight[:, 3] = 0
    assert (decoded(weight, rounding, -1)[:, 3] == 0).all()


@settings(max_examples=60, deadline=None)
@given(weight=rows, rounding=roundings)
def test_scales_are_exact_in_their_stored_type(weight: Tensor, rounding: AffineRounding) -> None:
    _, scales, zeros = quantize_affine(weight, rounding=rounding, group_size=4)
    assert torch.equal(scales.to(rounding.scale_dtype).float(), scales)
    assert torch.equal(zeros.to(torch.uint8).float(), zeros)


@settings(max_examples=60, deadline=None)
@given(weight=rows, rounding=roundings, group_size=st.sampled_from([2, 4, -1]))
def test_the_error_is_what_quantizing_and_decoding_adds_in_units_of_the_scale(
    weight: Tensor, rounding: AffineRounding, group_size: int
) -> None:
    codes, scales, zeros = quantize_affine(weight, rounding=rounding, group_size=group_size)
    grouped = weight.unflatten(1, (scales.shape[1], -1))
    error = rounding.error(grouped, scales[..., None], zeros[..., None])
    steps = codes.unflatten(1, (scales.shape[1], -1)).double() - zeros[..., None]
    expected = steps - grouped.double() / scales[..., None].double()
    torch.testing.assert_close(error.double(), expected, rtol=0, atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(weight=rows, rounding=roundings)
def test_what_was_decoded_decodes_to_itself(weight: Tensor, rounding: AffineRounding) -> None:
    codes, scales, zeros = quantize_affine(weight, rounding=rounding, group_size=-1)
    found = dequantize(codes, scales, zeros)
    assert torch.equal(rounding.encode(found, scales, zeros).to(torch.uint8), codes)
