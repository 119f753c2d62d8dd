"""The data types of bitsandbytes: NF4 and FP4 in blocks, 8-bit scales of scales, LLM.int8 rows.

A block of consecutive weights shares its largest magnitude; each weight becomes the nearest of 16
values, or of 256 for the scales. Codes and scales equal those of bitsandbytes 0.50 on a CPU.

Sources: QLoRA, Dettmers et al., 2023, https://arxiv.org/abs/2305.14314 (NF4, double quantization);
Dettmers et al., 2021, https://arxiv.org/abs/2110.02861 (the dynamic data type); LLM.int8(),
Dettmers et al., 2022, https://arxiv.org/abs/2208.07339, section 2.1 (rows).
"""

from __future__ import annotations

import ctypes
import math
from functools import cache

import torch
from torch import Tensor

from gemquant.numerics import native

ELEMENTS_AT_ONCE = 1 << 16
"""Weights compared at a time: they stay in the cache for all 15 comparisons."""

SMALLEST_SCALE = 1e-38
"""Blocks whose largest magnitude is below this are divided by it."""

NESTED_BLOCK = 256
"""Scales that share one outer scale."""

KERNEL_WIDTH = 64
"""A block is a multiple of this for the kernel; RUN in ``source/codebook.c``."""

BLOCKS_PER_RUN = 256
LARGEST_INT8 = 127
ROWS_AT_ONCE = 256

_IN_ORDER = torch.arange(256, dtype=torch.uint8)  # ranks among the values are the codes

_GRID = 32767.5  # half of 2**16 − 1: the dynamic type is looked up on a grid of 16 bits

CODEBOOKS: dict[str, tuple[float, ...]] = {
    # Quantiles of a normal distribution with equal mass between them, and an exact zero.
    "nf4": (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
    # A sign bit, then 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4.
    "fp4": tuple(sign * x / 12 for sign in (1, -1) for x in (0, 0.0625, 8, 12, 4, 6, 2, 3)),
}


def codebook(codes: str) -> Tensor:
    """Return the 16 values of ``nf4`` or ``fp4`` by code, float32."""
    return torch.tensor(CODEBOOKS[codes], dtype=torch.float32)


def quantize_blockwise(weight: Tensor, *, codes: str, block_size: int) -> tuple[Tensor, Tensor]:
    """Give every weight the nearest value of a codebook, relative to its block's largest.

    weight: of any shape with an even number of elements; blocks run through it row by row, and the
    last may be shorter. A weight halfway between two values takes the lower one.
    Returns packed codes (elements / 2) uint8, the earlier one in the high half, and the blocks'
    scales (blocks,) float32.
    """
    flat = weight.reshape(-1).float()
    whole = flat.numel() // block_size * block_size
    packed = torch.empty(flat.numel() // 2, dtype=torch.uint8, device=flat.device)
    scales = torch.empty(math.ceil(flat.numel() / block_size), device=flat.device)
    if block_size % KERNEL_WIDTH == 0 and native.is_usable(flat):
        flat = flat.contiguous()
        thresholds, names = _thresholds(codes)
        edges, pairs = (ctypes.c_float * 15)(*thresholds), _IN_ORDER if names is None else names

        def run(first: int, last: int) -> None:
            inputs = (flat, block_size, edges, pairs, SMALLEST_SCALE)
            native.call("gq_codebook", *inputs, first, last, packed, scales)

        at_least, threads = BLOCKS_PER_RUN, torch.get_num_threads()
        native.over_rows(run, whole // block_size, threads=threads, at_least=at_least)
    else:
        _quantize_blocks(flat[:whole], packed, scales, codes=codes, block_size=block_size)
    if whole < flat.numel():
        # The short block is divided, and its scale raised: as the reference does it.
        largest = flat[whole:].abs().amax().clamp(min=SMALLEST_SCALE)
        scales[-1] = largest
        packed[whole // 2 :] = _packed_codes(flat[whole:] / largest, codes)
    return packed, scales


def _quantize_blocks(
    flat: Tensor, packed: Tensor, scales: Tensor, *, codes: str, block_size: int
) -> None:
    """Whole blocks in plain torch, some at a time."""
    at_once = max(1, ELEMENTS_AT_ONCE // block_size) * block_size
    for start in range(0, flat.numel(), at_once):
        stop = min(start + at_once, flat.numel())
        blocks = flat[start:stop].view(-1, block_size)
        largest = blocks.abs().amax(1)
        scales[start // block_size : stop // block_size] = largest
        inverse = largest.clamp(min=SMALLEST_SCALE).reciprocal_()
        packed[start // 2 : stop // 2] = _packed_codes(blocks * inverse[:, None], codes)


def _packed_codes(scaled: Tensor, codes: str) -> Tensor:
    """Count the thresholds below each value; pack two counts into a byte; name them as codes."""
    thresholds, names = _thresholds(codes)
    counts = torch.zeros(scaled.shape, dtype=torch.uint8, device=scaled.device)
    above = torch.empty(scaled.shape, dtype=torch.bool, device=scaled.device)
    for threshold in thresholds:
        torch.gt(scaled, threshold, out=above)
        counts += above.view(torch.uint8)
    pairs = counts.view(-1, 2)
    packed = (pairs[:, 0] << 4) | pairs[:, 1]
    if names is not None:
        packed = names.to(packed.device)[packed.int()]
    return packed


@cache
def _thresholds(codes: str) -> tuple[tuple[float, ...], Tensor | None]:
    """Midpoints between neighbouring values, and pairs of ranks → pairs of codes, uint8 (256).

    The pairs are None where values rise with their codes.
    """
    values = codebook(codes)
    order = torch.argsort(values, stable=True)
    middle = (values[order[:-1]] + values[order[1:]]) / 2
    ranked = order.to(torch.uint8)
    rising = bool((order == torch.arange(16)).all())
    pairs = ((ranked[:, None] << 4) | ranked[None, :]).flatten()
    return tuple(middle.tolist()), None if rising else pairs


def dequantize_blockwise(
    packed: Tensor, scales: Tensor, *, codes: str, block_size: int, skip: int = 0
) -> Tensor:
    """Return value · scale for each code, (elements,) float32.

    skip: elements of the first scale's block that come before the first code.
    """
    values = codebook(codes).to(packed.device)
    high_and_low = torch.stack([values[(packed >> 4).int()], values[(packed & 15).int()]], -1)
    elements = high_and_low.flatten()
    spread = scales.repeat_interleave(block_size)[skip : skip + elements.numel()]
    return elements.mul_(spread)


# ---------------------------------------------------------------- scales of scales


@cache
def dynamic_codebook() -> Tensor:
    """The 256 values of the signed dynamic data type, ascending, float32.

    Seven powers of ten; the higher the power, the finer the fraction beneath it.
    """
    values = [0.0, 1.0]
    for power in range(7):
        edges = torch.linspace(0.1, 1, 2**power + 1, dtype=torch.float32)
        middle = (edges[:-1] + edges[1:]) / 2.0
        values += (10.0 ** (power - 6) * middle).tolist()
        values += (-(10.0 ** (power - 6)) * middle).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32)


@cache
def _dynamic_codes() -> Tensor:
    """Nearest code of every point on the grid of 2**16 points over [−1, 1], uint8."""
    values = dynamic_codebook()
    grid = torch.arange(2**16, dtype=torch.float32) / _GRID - 1
    return torch.bucketize(grid, (values[:-1] + values[1:]) / 2).to(torch.uint8)


def quantize_dynamic(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize to 8 bits of the dynamic type in blocks of 256, the last one shorter.

    values: (n,) float32. Returns codes (n,) uint8 and scales (n / 256, rounded up) float32.
    """
    count = values.numel()
    padded = torch.nn.functional.pad(values.float(), (0, -count % NESTED_BLOCK))
    blocks = padded.view(-1, NESTED_BLOCK)
    scales = blocks.abs().amax(1)
    # A zero over a scale of zero, or too small to be inverted, takes the first code.
    scaled = (blocks * scales.reciprocal()[:, None]).nan_to_num_(nan=-1.0)
    points = (scaled.clamp_(-1, 1) + 1).mul_(_GRID).add_(0.5).int().flatten()[:count]
    return _dynamic_codes().to(values.device)[points], scales


def dequantize_dynamic(codes: Tensor, scales: Tensor) -> Tensor:
    """Return value · scale for each code, (n,) float32."""
    values = dynamic_codebook().to(codes.device)[codes.int()]
    return values.mul_(scales.repeat_interleave(NESTED_BLOCK)[: codes.numel()])


# ---------------------------------------------------------------- LLM.int8: 8-bit rows


def quantize_rowwise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round every row to 255 steps over its range: w ≈ code · scale / 127.

    weight: (out, in); rounded to float16 first, as bitsandbytes takes it. A row of zeros has scale
    0 and codes 0.
    Returns codes (out, in) int8; scales (out,) float32, each row's largest magnitude.
    """
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(weight.shape[0], device=weight.device)
    for start in range(0, weight.shape[0], ROWS_AT_ONCE):
        rows = weight[start : start + ROWS_AT_ONCE].half().float()
        largest = rows.abs().amax(1)
        scales[start : start + ROWS_AT_ONCE] = largest
        steps = torch.where(largest > 0, LARGEST_INT8 / largest, 0.0)
        codes[start : start + ROWS_AT_ONCE] = rows.mul_(steps[:, None]).round_().to(torch.int8)
    return codes, scales


def dequantize_rowwise(codes: Tensor, scales: Tensor) -> Tensor:
    """Return code · scale / 127, (out, in) float32."""
    return codes.float().mul_(scales[:, None]).mul_(1 / LARGEST_INT8)
