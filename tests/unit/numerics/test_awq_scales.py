from __future__ import annotations

import math

import torch
from torch import Tensor

from gemquant.numerics.affine import AffineRounding, dequantize, quantize_affine
from gemquant.numerics.awq import (
    LARGEST,
    SMALLEST,
    ScaleProblem,
    sampling_stride,
    search_scale,
)

W4 = AffineRounding(4, symmetric=False, scale_dtype=torch.bfloat16)


def weights(rows: int, channels: int) -> Tensor:
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(rows))


def salient(channels: int, loud: int, factor: float) -> tuple[Tensor, Tensor]:
    """Mean |x| and Σx² of independent inputs, one of them louder."""
    mean = torch.ones(channels)
    mean[loud] = factor
    return mean, mean.square() * 100


def problem(weight: Tensor, mean: Tensor, squares: Tensor, **more: object) -> ScaleProblem:
    return ScaleProblem(
        rows=weight[:: sampling_stride(weight.shape[0])],
        salience=mean,
        sensitivity=squares,
        rounding=W4,
        group_size=32,
        **more,  # type: ignore[arg-type]
    )


def loss(weight: Tensor, scale: Tensor, gram: Tensor) -> float:
    """tr(E·H·Eᵀ) of rounding weight · scale, in the units of the weight, float64."""
    rounded = dequantize(*quantize_affine(weight * scale, rounding=W4, group_size=32))
    error = (rounded / scale - weight).double()
    return float((error @ gram.double() * error).sum())


def test_a_planted_salient_channel_gets_the_largest_scale() -> None:
    weight = weights(64, 64)
    mean, squares = salient(64, 17, 30.0)
    scale = search_scale(problem(weight, mean, squares))
    assert scale.argmax().item() == 17
    others = torch.cat([scale[:17], scale[18:]])
    assert scale[17] > 2 * others.max()


def test_a_planted_salient_channel_loses_less() -> None:
    weight = weights(64, 64)
    mean, squares = salient(64, 17, 30.0)
    gram = squares.diag()
    scale = search_scale(problem(weight, mean, gram))
    assert loss(weight, scale, gram) < 0.6 * loss(weight, torch.ones(64), gram)


def test_weights_that_round_without_error_keep_a_scale_of_one() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (16, 64), generator=generator).float()
    codes[:, ::32], codes[:, 1::32] = 0, 15
    mean, squares = salient(64, 3, 50.0)
    scale = search_scale(problem(codes - 8, mean, squares))
    assert torch.equal(scale, torch.ones(64))


def test_the_scale_found_is_never_worse_than_none_by_the_whole_loss() -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(300, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
        weight, gram = torch.randn(40, 64, generator=generator), x.T @ x
        scale = search_scale(problem(weight, x.abs().mean(0), gram))
        assert loss(weight, scale, gram) <= loss(weight, torch.ones(64), gram)


def test_scales_are_centred_on_one() -> None:
    mean, squares = salient(64, 5, 40.0)
    scale = search_scale(problem(weights(64, 64), mean, squares))
    assert math.isclose(float(scale.max() * scale.min()), 1.0, rel_tol=1e-5)


def test_a_silent_input_keeps_every_scale_within_a_float16_norms_range() -> None:
    mean, squares = salient(64, 5, 1e6)
    mean[9] = squares[9] = 0
    scale = search_scale(problem(weights(64, 64), mean, squares))
    assert torch.isfinite(scale).all()
    assert SMALLEST <= scale.min() <= scale.max() <= LARGEST


def test_heads_that_read_one_value_channel_share_its_scale() -> None:
    kv_heads, repeats, head_dim = 2, 4, 8
    mean, squares = salient(64, 3, 30.0)
    # Head 5 belongs to the second key-value head.
    mean[5 * head_dim + 6], squares[5 * head_dim + 6] = 20.0, 40000.0
    scale = search_scale(
        problem(weights(64, 64), mean, squares, shared=(kv_heads, repeats, head_dim))
    )
    by_head = scale.reshape(kv_heads, repeats, head_dim)
    assert torch.equal(by_head, by_head[:, :1].expand_as(by_head))
    assert by_head[0, 0].argmax().item() == 3
    assert by_head[1, 0].argmax().item() == 6
    assert not torch.equal(by_head[0, 0], by_head[1, 0])


def test_a_sample_of_rows_stands_for_a_tall_weight() -> None:
    weight = weights(4096, 32)
    mean, squares = salient(32, 7, 30.0)
    scale = search_scale(problem(weight, mean, squares))
    gram = squares.diag()
    assert loss(weight, scale, gram) < 0.6 * loss(weight, torch.ones(32), gram)
