"""The C kernels against the plain torch code, and every processor level against every other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gemquant.numerics import native
from gemquant.numerics.affine import AffineRounding
from gemquant.numerics.gptq import GptqConfig, damped_cholesky, quantize_gptq
from gemquant.numerics.native import build
from gemquant.numerics.native import columns as kernels
from tests.helpers.native_levels import LEVELS, at_level

pytestmark = pytest.mark.skipif(native.library() is None, reason=str(native.status().reason))

ROUNDINGS = {
    "zero-points": AffineRounding(4, symmetric=False, scale_dtype=torch.bfloat16),
    "symmetric": AffineRounding(3, symmetric=True, scale_dtype=torch.float16),
    "biased": AffineRounding(4, symmetric=False, scale_dtype=torch.bfloat16, biased=True),
}


def problem(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    inputs = torch.randn(3 * columns, columns, generator=generator)
    inputs += torch.randn(3 * columns, 4, generator=generator) @ torch.randn(
        4, columns, generator=generator
    )
    weight = torch.randn(rows, columns, generator=generator)
    return weight, inputs.T @ inputs, 0.5 + torch.rand(columns, generator=generator)


def compensated(rows: int, columns: int, rounding: AffineRounding) -> tuple[Tensor, ...]:
    weight, gram, scale = problem(rows, columns)
    config = GptqConfig(rounding, 32, clip=True, cd_passes=2)
    return quantize_gptq(weight, scale, gram=gram, cholesky=damped_cholesky(gram), config=config)


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("name", sorted(ROUNDINGS))
def test_codes_are_those_of_plain_torch(rows: int, name: str) -> None:
    codes, scales, zero_points = compensated(rows, 128, ROUNDINGS[name])
    with at_level(LEVELS[-1]):
        plain = compensated(rows, 128, ROUNDINGS[name])
    assert torch.equal(scales, plain[1])
    assert torch.equal(zero_points, plain[2])
    # Sums in another order: a value half way between two codes may go to the other.
    assert (codes != plain[0]).float().mean() < 0.001


@pytest.mark.parametrize("level", list(build.levels()))
def test_every_processor_level_gives_the_same_bits(level: str) -> None:
    expected = compensated(70, 128, ROUNDINGS["zero-points"])
    with at_level(level):
        found = compensated(70, 128, ROUNDINGS["zero-points"])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("level", list(build.levels()))
def test_what_has_no_integer_gets_code_zero(level: str) -> None:
    weight = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1.0, 0.0]])
    block = kernels.ColumnBlock(
        weight=weight,
        errors=torch.zeros(1, 5),
        codes=torch.full((1, 5), 9, dtype=torch.uint8),
        column_scales=torch.ones(1),
        scales=torch.tensor([1.0, 1.0, 1.0, 0.5, 0.0]),
        zero_points=torch.zeros(5),
        rounding=ROUNDINGS["zero-points"],
    )
    with at_level(level):
        kernels.round_columns(block, weight, torch.zeros(1, 1))
        assert block.codes.tolist() == [[0, 15, 0, 2, 0]]
        block.codes.fill_(9)
        block.errors.zero_()
        kernels.descend_columns(block, torch.zeros(1, 5), torch.zeros(1, 1), torch.ones(1))
    assert block.codes.tolist() == [[0, 15, 0, 2, 0]]


def test_bytes_do_not_depend_on_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = compensated(200, 128, ROUNDINGS["zero-points"])
        torch.set_num_threads(3)
        together = compensated(200, 128, ROUNDINGS["zero-points"])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
