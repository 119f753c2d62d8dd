from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gemquant.numerics.grid import OFF_GRID, ON_GRID, PROVES_NOTHING, find_grid, stored_type
from gemquant.numerics.native import build
from tests.helpers.native_levels import LEVELS, at_level

pytestmark = pytest.mark.usefixtures("either_way")

TYPES = (torch.bfloat16, torch.float16, torch.float32)


def grid(convention: str, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes (64, 8, 32) and scales (64, 8, 1): the extreme code is −8 or 7, or any is."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(64, 8, 32, generator=generator) * 0.02
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scales = extreme / -8 if convention == "-8" else extreme.abs() / 7
    if convention == "learned":
        scales = scales * (0.7 + 0.5 * torch.rand(scales.shape, generator=generator))
    scales = scales.to(scale_dtype).float()
    least = -7 if convention == "7" else -8
    return (groups / scales).round().clamp(least, 7), scales


@pytest.mark.parametrize("stored", TYPES)
@pytest.mark.parametrize("scale_dtype", TYPES)
@pytest.mark.parametrize("convention", ["-8", "7", "learned"])
def test_codes_of_a_grid_are_found(
    convention: str, scale_dtype: torch.dtype, stored: torch.dtype
) -> None:
    codes, scales = grid(convention, scale_dtype)
    weight = (codes * scales).flatten(1).to(stored)
    found = find_grid(weight, stored_type(weight))
    assert (found.kinds == ON_GRID).all()
    sign = torch.sign(found.scales[..., None]) * torch.sign(scales)
    assert torch.equal(found.codes.unflatten(1, (-1, 32)) * sign, codes)
    assert ((found.scales[..., None] / scales).abs() - 1).abs().max() < 2**-8


@pytest.mark.parametrize("stored", TYPES)
def test_random_weights_lie_on_no_grid(stored: torch.dtype) -> None:
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(1)) * 0.02
    assert (find_grid(weight.to(stored), stored).kinds == OFF_GRID).all()


def test_zeros_and_two_magnitudes_prove_nothing() -> None:
    weight = torch.zeros(3, 32)
    weight[1, :5] = torch.tensor([0.5, -0.5, 0.5, 0.5, -0.5])
    weight[2, :5] = torch.tensor([0.5, -0.25, 0.25, 0.5, -0.5])
    assert find_grid(weight, torch.bfloat16).kinds.flatten().tolist() == [PROVES_NOTHING] * 3


def test_codes_of_eight_with_both_signs_are_seventeen_levels() -> None:
    weight = torch.arange(32.0)[None] % 17 - 8
    assert find_grid(weight, torch.float32).kinds.item() == OFF_GRID
    weight[weight == 8] = 7
    assert find_grid(weight, torch.float32).scales.item() == 1
    found = find_grid(-weight, torch.float32)
    assert (found.kinds.item(), found.scales.item(), found.codes.min().item()) == (2, -1, -8)


def test_a_weight_off_by_one_gap_is_off_the_grid() -> None:
    weight = (torch.arange(32.0)[None] % 16 - 8).to(torch.bfloat16)
    weight[0, 3] = -5.0625  # -5 and the next are 2**-5 apart
    assert find_grid(weight, torch.bfloat16).kinds.item() == OFF_GRID


@pytest.mark.parametrize("scale_dtype", TYPES)
@pytest.mark.parametrize("convention", ["-8", "7", "learned"])
def test_a_scale_of_the_stored_type_gives_the_stored_weights(
    convention: str, scale_dtype: torch.dtype
) -> None:
    codes, scales = grid(convention, scale_dtype)
    weight = (codes * scales).flatten(1).to(torch.bfloat16)
    found = find_grid(weight, torch.bfloat16)
    carried, stored, error = found.stored(scale_dtype)
    decoded = carried.unflatten(1, (-1, 32)) * stored[..., None]
    assert error.max() == 0
    assert torch.equal(decoded.flatten(1).to(torch.bfloat16), weight)


def test_a_scale_that_bfloat16_lacks_is_the_nearest() -> None:
    codes, scales = grid("7", torch.float32)
    found = find_grid((codes * scales).flatten(1), torch.float32)
    _, stored, error = found.stored(torch.bfloat16)
    assert torch.equal(stored, found.scales.to(torch.bfloat16).float())
    assert 0 < error.max() < 2**-8


@pytest.mark.parametrize("code", [-8, 1, 3, 5, 7])
def test_a_lone_weight_has_the_scale_of_its_type(code: int) -> None:
    scale = torch.tensor(0.0123).to(torch.bfloat16).float()
    weight = torch.zeros(1, 32)
    weight[0, 9] = code * scale
    codes, stored, error = find_grid(weight, torch.float32).stored(torch.bfloat16)
    assert torch.equal(codes * stored, weight)
    assert error.item() == 0


def test_a_group_as_wide_as_several_needs_one_scale() -> None:
    codes, scales = grid("-8", torch.bfloat16)
    weight = (codes * scales).flatten(1)
    assert (find_grid(weight, torch.float32, group_size=128).kinds == OFF_GRID).all()
    one = (codes * scales[:, :1]).flatten(1)
    assert (find_grid(one, torch.float32, group_size=128).kinds == ON_GRID).all()


def test_a_cast_to_a_wider_type_is_seen_through() -> None:
    codes, scales = grid("7", torch.float32)
    weight = (codes * scales).flatten(1)
    types = [stored_type(weight.to(each).float()) for each in TYPES]
    assert types == [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("level", list(build.levels()))
@pytest.mark.parametrize("stored", TYPES)
def test_every_processor_level_finds_the_same(level: str, stored: torch.dtype) -> None:
    codes, scales = grid("learned", torch.float32)
    weight = (codes * scales).flatten(1)
    weight[::3] = torch.randn(22, 256, generator=torch.Generator().manual_seed(2))
    weight[1, :64] *= 1e-7  # float16's smallest numbers
    weight = weight.to(stored)
    with at_level(level):
        found = find_grid(weight, stored)
    with at_level(LEVELS[-1]):
        expected = find_grid(weight, stored)
    for name in ("codes", "scales", "low", "high", "kinds"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
