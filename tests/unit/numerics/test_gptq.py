"""Compensation against GPTQ as its paper states it: inverse Hessian, Cholesky form, float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gemquant.numerics import gptq as gptq_module
from gemquant.numerics.affine import AffineRounding, dequantize, quantize_affine
from gemquant.numerics.gptq import GptqConfig, damped_cholesky, quantize_gptq

pytestmark = pytest.mark.usefixtures("either_way")

W4 = AffineRounding(4, symmetric=False, scale_dtype=torch.bfloat16)
W3_SYMMETRIC = AffineRounding(3, symmetric=True, scale_dtype=torch.float16)
W8_SYMMETRIC = AffineRounding(8, symmetric=True, scale_dtype=torch.float16)
DAMPING = 0.01


def problem(rows: int, channels: int, *, tokens: int = 600) -> tuple[Tensor, Tensor]:
    """A weight, and the Gram matrix of strongly correlated inputs, some of them loud."""
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn(rows, channels, generator=generator)
    mixing = torch.randn(4, channels, generator=generator)
    common = torch.randn(tokens, 4, generator=generator) @ mixing
    x = torch.randn(tokens, channels, generator=generator) + common
    x[:, ::9] *= 5
    return weight, x.T @ x


def compensated(
    weight: Tensor,
    gram: Tensor,
    *,
    scale: Tensor | None = None,
    rounding: AffineRounding = W4,
    group_size: int = -1,
    clip: bool = False,
    cd_passes: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    config = GptqConfig(rounding, group_size, clip, cd_passes)
    ones = torch.ones(weight.shape[1])
    return quantize_gptq(
        weight,
        ones if scale is None else scale,
        gram=gram,
        cholesky=damped_cholesky(gram),
        config=config,
    )


def layer_loss(weight: Tensor, result: tuple[Tensor, Tensor, Tensor], gram: Tensor) -> float:
    """tr(E·H·Eᵀ), float64."""
    error = (dequantize(*result) - weight).double()
    return float((error @ gram.double() * error).sum())


def damped(gram: Tensor) -> Tensor:
    mean = gram.double().diagonal().mean()
    return gram.double() + DAMPING * mean * torch.eye(len(gram), dtype=torch.float64)


def gptq(weight: Tensor, gram: Tensor, scales: Tensor, zeros: Tensor, largest: int) -> Tensor:
    """Codes by Frantar et al., 2022, algorithm 1 with blocks of one column.

    Hinv = Cholesky(H⁻¹)ᵀ; for each j: q = quant(W[:, j]); e = (W[:, j] − q) / Hinv[j, j];
    W[:, j:] −= e · Hinv[j, j:]. scales, zeros: (out, groups), given.
    """
    work, columns = weight.double().clone(), weight.shape[1]
    upper = torch.linalg.cholesky(torch.linalg.inv(damped(gram)), upper=True)
    codes = torch.empty_like(work)
    width = columns // scales.shape[1]
    for j in range(columns):
        scale, zero = scales[:, j // width].double(), zeros[:, j // width].double()
        codes[:, j] = (torch.round(work[:, j] / scale) + zero).clamp(0, largest)
        error = (work[:, j] - scale * (codes[:, j] - zero)) / upper[j, j]
        work[:, j:] -= torch.outer(error, upper[j, j:])
    return codes.to(torch.uint8)


@pytest.mark.parametrize("rounding", [W4, W3_SYMMETRIC], ids=["w4", "w3-symmetric"])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_codes_are_those_of_gptq(rounding: AffineRounding, group_size: int) -> None:
    weight, gram = problem(24, 256)
    codes, scales, zeros = compensated(weight, gram, rounding=rounding, group_size=group_size)
    expected = gptq(weight, gram, scales, zeros, rounding.largest_code)
    # A tie that float32 breaks the other way changes the rest of its row, and nothing else.
    same_rows = (codes == expected).all(1).sum().item()
    assert same_rows >= 22
    assert (codes == expected).double().mean() > 0.99


@pytest.mark.parametrize(("columns", "group_size"), [(192, 48), (300, 100), (384, 192), (160, 32)])
def test_blocks_end_where_groups_do(columns: int, group_size: int) -> None:
    weight, gram = problem(24, columns)
    codes, scales, zeros = compensated(weight, gram, group_size=group_size)
    expected = gptq(weight, gram, scales, zeros, W4.largest_code)
    assert (codes == expected).double().mean() > 0.99


@pytest.mark.parametrize("group_size", [256, 512])
def test_groups_wider_than_a_block_are_those_of_gptq(group_size: int) -> None:
    weight, gram = problem(12, 1024, tokens=2000)
    found = compensated(weight, gram, rounding=W8_SYMMETRIC, group_size=group_size)
    codes, scales, zeros = found
    assert scales.shape == (12, 1024 // group_size)
    expected = gptq(weight, gram, scales, zeros, 255)
    assert (codes == expected).double().mean() > 0.97
    plain = quantize_affine(weight, rounding=W8_SYMMETRIC, group_size=group_size)
    assert layer_loss(weight, found, gram) < 0.5 * layer_loss(weight, plain, gram)


def test_a_later_wide_group_covers_what_the_errors_before_it_leave() -> None:
    weight, gram = problem(6, 512, tokens=2000)
    codes, scales, zeros = compensated(weight, gram, group_size=256)
    first = gptq_targets(weight, gram, codes[:, :256], scales[:, :1], zeros[:, :1])
    expected, _ = W4.parameters(first.amin(1).float(), first.amax(1).float())
    torch.testing.assert_close(scales[:, 1], expected, rtol=0.01, atol=0)


def gptq_targets(
    weight: Tensor, gram: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor
) -> Tensor:
    """What GPTQ leaves of the columns after those that have codes: (out, rest) float64."""
    known = codes.shape[1]
    errors = (dequantize(codes, scales, zeros) - weight[:, :known]).double()
    hessian = damped(gram)
    # The best free columns for given errors: −E · H[known, rest] · H[rest, rest]⁻¹.
    rest = hessian[known:, known:]
    return weight[:, known:].double() - errors @ hessian[:known, known:] @ torch.linalg.inv(rest)


def test_the_first_group_covers_exactly_its_weights() -> None:
    weight, gram = problem(8, 64)
    _, scales, zeros = compensated(weight, gram, group_size=32)
    _, plain_scales, plain_zeros = quantize_affine(weight, rounding=W4, group_size=32)
    assert torch.equal(scales[:, 0], plain_scales[:, 0])
    assert torch.equal(zeros[:, 0], plain_zeros[:, 0])


def test_a_channel_range_is_that_of_the_weights_themselves() -> None:
    weight, gram = problem(8, 300)
    _, scales, zeros = compensated(weight, gram)
    _, plain_scales, plain_zeros = quantize_affine(weight, rounding=W4, group_size=-1)
    assert torch.equal(scales, plain_scales)
    assert torch.equal(zeros, plain_zeros)


def test_inputs_that_say_nothing_of_each_other_leave_plain_rounding() -> None:
    weight, _ = problem(8, 64)
    gram = torch.diag(torch.linspace(1, 9, 64))
    found = compensated(weight, gram, group_size=32)
    expected = quantize_affine(weight, rounding=W4, group_size=32)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_the_layer_loses_less_than_by_plain_rounding(group_size: int) -> None:
    weight, gram = problem(32, 256)
    plain = quantize_affine(weight, rounding=W4, group_size=group_size)
    ours = compensated(weight, gram, group_size=group_size)
    assert layer_loss(weight, ours, gram) < 0.7 * layer_loss(weight, plain, gram)


@pytest.mark.parametrize("columns", [130, 384])
def test_rows_longer_than_a_block_need_not_be_a_multiple_of_it(columns: int) -> None:
    weight, gram = problem(6, columns)
    codes, scales, zeros = compensated(weight, gram)
    assert (codes.shape, scales.shape, zeros.shape) == ((6, columns), (6, 1), (6, 1))
    expected = gptq(weight, gram, scales, zeros, W4.largest_code)
    assert (codes == expected).double().mean() > 0.99


@pytest.mark.parametrize("cd_passes", [0, 2])
@pytest.mark.parametrize("group_size", [32, -1])
def test_scaling_weights_or_inputs_comes_to_the_same(group_size: int, cd_passes: int) -> None:
    weight, gram = problem(16, 128)
    # Powers of two, so that both ways compute the same numbers up to their exponents.
    scale = 2.0 ** (torch.arange(128) % 5 - 2)
    config = GptqConfig(W4, group_size, cd_passes=cd_passes)
    factor = damped_cholesky(gram)
    folded = quantize_gptq(weight, scale, gram=gram, cholesky=factor, config=config)
    outright = quantize_gptq(
        weight * scale,
        torch.ones(128),
        gram=gram / torch.outer(scale, scale),
        cholesky=factor.scaled(scale),
        config=config,
    )
    assert (folded[0] == outright[0]).double().mean() > 0.995
    torch.testing.assert_close(folded[1], outright[1], rtol=0.1, atol=0)


def test_rows_do_not_depend_on_how_many_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = problem(50, 128)
    whole = compensated(weight, gram, group_size=32, cd_passes=1)
    monkeypatch.setattr(gptq_module, "ROWS_AT_ONCE", 16)
    split = compensated(weight, gram, group_size=32, cd_passes=1)
    # Products of other shapes may round differently, so a tie here and there may break.
    assert (whole[0] == split[0]).double().mean() > 0.995
    assert layer_loss(weight, split, gram) == pytest.approx(
        layer_loss(weight, whole, gram), rel=0.02
    )


@pytest.mark.parametrize("group_size", [32, -1])
def test_every_pass_of_refinement_lowers_the_loss(group_size: int) -> None:
    weight, gram = problem(16, 192 if group_size == -1 else 128)
    losses = [
        layer_loss(
            weight, compensated(weight, gram, group_size=group_size, cd_passes=n), damped(gram)
        )
        for n in range(4)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[2] < 0.97 * losses[0]


@pytest.mark.parametrize("columns", [32, 160])
def test_after_refinement_no_single_code_can_be_bettered(columns: int) -> None:
    weight, gram = problem(3, columns)
    priced = damped(gram)
    codes, scales, zeros = compensated(weight, gram, group_size=32, cd_passes=20)
    settled = layer_loss(weight, (codes, scales, zeros), priced)
    for row in range(3):
        for column in range(columns):
            for step in (-1, 1):
                moved = codes.to(torch.int16)
                moved[row, column] += step
                if 0 <= moved[row, column] <= 15:
                    loss = layer_loss(weight, (moved.to(torch.uint8), scales, zeros), priced)
                    assert loss >= settled * (1 - 1e-6)


def test_inputs_that_were_never_seen_are_rounded_as_they_are() -> None:
    weight, gram = problem(8, 64)
    gram[5], gram[:, 5] = 0, 0
    codes, scales, zeros = compensated(weight, gram, group_size=64, cd_passes=2)
    error = (dequantize(codes, scales, zeros) - weight)[:, 5].abs()
    assert (error <= 0.51 * scales[:, 0]).all()


def test_fewer_tokens_than_channels_still_lose_less_on_new_ones() -> None:
    weight, gram = problem(32, 128, tokens=60)
    _, unseen = problem(32, 128, tokens=601)
    plain = quantize_affine(weight, rounding=W4, group_size=32)
    ours = compensated(weight, gram, group_size=32)
    assert layer_loss(weight, ours, unseen) < layer_loss(weight, plain, unseen)
