from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemquant.numerics.awq import fold_into_norm

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
GAINS = [1657.0, 713.0, 31.0, 1.0, 0.25, 0.01, 0.004, -0.5]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.03, 0.5, 1.0, 1.7, 40.0])
def test_the_stored_gain_times_the_scale_is_the_old_gain(dtype: torch.dtype, scale: float) -> None:
    weight = torch.tensor(GAINS) - 1
    weight = weight.to(torch.bfloat16).float()  # as a checkpoint stores it
    norm, effective = fold_into_norm(weight, torch.full_like(weight, scale), dtype=dtype)
    product = (1 + norm.double()) * effective.double()
    torch.testing.assert_close(product, 1 + weight.double(), rtol=2e-7, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_is_exact_in_its_stored_type(dtype: torch.dtype) -> None:
    weight = torch.tensor(GAINS) - 1
    norm, _ = fold_into_norm(weight, torch.full_like(weight, 3.3), dtype=dtype)
    assert torch.equal(norm.to(dtype).float(), norm)


def test_a_scale_that_the_type_can_hold_is_taken_as_it_is() -> None:
    norm, effective = fold_into_norm(
        torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.5]), dtype=torch.bfloat16
    )
    assert norm.tolist() == [1.0, 3.0]
    assert effective.tolist() == [2.0, 0.5]


def test_the_scale_follows_the_norm_where_rounding_moved_it() -> None:
    # 2 / 1.9 − 1 = 0.052632 is 0.052734 in bfloat16; 2 / 1.052734 = 1.89981.
    norm, effective = fold_into_norm(torch.tensor([1.0]), torch.tensor([1.9]), dtype=torch.bfloat16)
    assert norm.item() == 0.052734375
    assert effective.item() == pytest.approx(2 / 1.052734375, rel=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_channel_without_gain_is_left_alone(dtype: torch.dtype) -> None:
    norm, effective = fold_into_norm(torch.tensor([-1.0]), torch.tensor([8.0]), dtype=dtype)
    assert (norm.item(), effective.item()) == (-1.0, 1.0)


def test_a_gain_that_would_round_to_zero_is_left_alone() -> None:
    # 0.00390625 / 8 is nothing beside −1 in bfloat16.
    weight = torch.tensor([-0.99609375])
    norm, effective = fold_into_norm(weight, torch.tensor([8.0]), dtype=torch.bfloat16)
    assert (norm.item(), effective.item()) == (-0.99609375, 1.0)


def test_a_gain_that_would_overflow_is_left_alone() -> None:
    norm, effective = fold_into_norm(
        torch.tensor([1656.0]), torch.tensor([2.0**-10]), dtype=torch.float16
    )
    assert (norm.item(), effective.item()) == (1656.0, 1.0)


@settings(max_examples=100, deadline=None)
@given(
    gain=st.floats(-2000, 2000, width=32),
    scale=st.floats(2.0**-10, 2.0**10, width=32),
    dtype=st.sampled_from(DTYPES),
)
def test_every_scale_is_finite_and_positive(gain: float, scale: float, dtype: torch.dtype) -> None:
    norm, effective = fold_into_norm(torch.tensor([gain - 1]), torch.tensor([scale]), dtype=dtype)
    assert torch.isfinite(norm).all()
    assert torch.isfinite(effective).all()
    assert (effective > 0).all()
