from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gemquant.numerics.affine import AffineRounding, dequantize, quantize_affine
from gemquant.numerics.awq import COARSE_RATIOS, FINE_RATIO_STEP, quantize_clipped, search_range

pytestmark = pytest.mark.usefixtures("either_way")

ROUNDINGS = [
    AffineRounding(4, symmetric=False, scale_dtype=torch.bfloat16),
    AffineRounding(3, symmetric=True, scale_dtype=torch.float16),
]


def heavy_tails(rows: int, columns: int) -> Tensor:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    return values * (1 + values.square())


def gram_of(channels: int) -> Tensor:
    x = torch.randn(3 * channels, channels, generator=torch.Generator().manual_seed(channels))
    x = x @ (torch.eye(channels) + 0.3 * torch.ones(channels, channels))
    return x.T @ x


def loss(group: Tensor, scale: Tensor, zero: Tensor, metric: Tensor, largest: int) -> Tensor:
    """Δ·metric·Δᵀ of each row, float64."""
    steps = torch.round(group / scale[:, None]) + zero[:, None]
    error = (steps.clamp(0, largest) - zero[:, None]).double() * scale[:, None] - group
    full = metric.double() if metric.ndim == 2 else metric.double().diag()
    return torch.einsum("ri,ij,rj->r", error, full, error)


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("diagonal", [True, False])
def test_the_range_is_the_best_of_the_coarse_grid_and_its_neighbours(
    rounding: AffineRounding, diagonal: bool
) -> None:
    group, gram = heavy_tails(20, 32), gram_of(32)
    metric = gram.diagonal() if diagonal else gram
    scales, zeros = search_range(group, rounding=rounding, metric=metric)
    found = loss(group, scales, zeros, metric, rounding.largest_code)
    ratios = torch.tensor([1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45])
    losses = torch.stack(
        [
            loss(group, *_covering(rounding, group, ratio), metric, rounding.largest_code)
            for ratio in ratios
        ]
    )
    coarse = losses[::2].argmin(0) * 2
    reached = torch.stack([coarse - 1, coarse, coarse + 1]).clamp(0, 11)
    torch.testing.assert_close(found, losses.gather(0, reached).amin(0), rtol=1e-5, atol=0)
    assert (COARSE_RATIOS, FINE_RATIO_STEP) == ((1.0, 0.9, 0.8, 0.7, 0.6, 0.5), 0.05)
    assert (losses.argmin(0) > 0).any(), "nothing was clipped: the test shows nothing"


def _covering(rounding: AffineRounding, group: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    return rounding.parameters(group.amin(1) * ratio, group.amax(1) * ratio)


def test_clipping_a_planted_outlier_pays() -> None:
    group = torch.linspace(-1, 1, 32)[None].clone()
    group[0, 5] = 2.0
    metric = torch.ones(32)
    metric[5] = 1e-3  # an outlier whose input is nearly silent
    rounding = ROUNDINGS[0]
    scales, _ = search_range(group, rounding=rounding, metric=metric)
    covering, _ = rounding.parameters(group.amin(1), group.amax(1))
    assert scales.item() < 0.92 * covering.item()


@pytest.mark.parametrize("group_size", [16, 32, -1])
def test_clipped_rounding_loses_no_more_in_any_row_and_group(group_size: int) -> None:
    weight, gram, rounding = heavy_tails(24, 64), gram_of(64), ROUNDINGS[0]
    ones = torch.ones(64)
    clipped = quantize_clipped(weight, ones, gram=gram, rounding=rounding, group_size=group_size)
    plain = quantize_affine(weight, rounding=rounding, group_size=group_size)
    width = 64 if group_size == -1 else group_size
    for start in range(0, 64, width):
        columns = slice(start, start + width)
        losses = []
        for result in (clipped, plain):
            error = (dequantize(*result) - weight)[:, columns].double()
            losses.append((error @ gram[columns, columns].double() * error).sum(1))
        assert (losses[0] <= losses[1] * (1 + 1e-5)).all()


def test_without_candidates_clipping_is_rounding_to_nearest() -> None:
    weight, scale = heavy_tails(8, 64), torch.linspace(0.5, 2, 64)
    found = quantize_clipped(
        weight, scale, gram=gram_of(64), rounding=ROUNDINGS[0], group_size=32, clip=False
    )
    expected = quantize_affine(weight * scale, rounding=ROUNDINGS[0], group_size=32)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_scaled_weight_is_clipped_as_if_the_inputs_had_been_scaled() -> None:
    weight, gram, scale = heavy_tails(8, 64), gram_of(64), 2.0 ** torch.arange(-3, 5).repeat(8)
    found = quantize_clipped(weight, scale, gram=gram, rounding=ROUNDINGS[0], group_size=32)
    expected = quantize_clipped(
        weight * scale,
        torch.ones(64),
        gram=gram / torch.outer(scale, scale),
        rounding=ROUNDINGS[0],
        group_size=32,
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
