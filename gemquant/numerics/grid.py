"""Weights that quantization-aware training left on a 4-bit grid: found, with codes and scales.

A group lies on a grid where every weight is scale · code, the codes from −8 to 7, rounded to the
type that the checkpoint stores. The largest magnitude is k steps, k from 1 to 8, so that there are
eight grids to test; a scale is right if each product with a code rounds to the weight that is
stored, which bounds it from both sides. Few steps come first: of several grids that explain a group
the coarsest is taken. A group of random bfloat16 weights passes with a probability far below
1e-20. All zeros, or one or two magnitudes, lie on some grid whatever made them: they prove nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gemquant.numerics import native

OFF_GRID, PROVES_NOTHING, ON_GRID = range(3)
STEPS = 8
MAGNITUDES = 3
"""Fewer different magnitudes prove nothing."""

# Half the gap between numbers from 1 to 2, half the least gap, the last bit as float32. float32
# stands for whatever was computed in it, so that it may be off by two gaps.
_HALF_GAPS = {
    torch.bfloat16: (2.0**-8, 0.0, 1 << 16),
    torch.float16: (2.0**-11, 2.0**-25, 1 << 13),
    torch.float32: (2.0**-22, 0.0, 0),
}


@dataclass(frozen=True)
class Grid:
    """What was found of a matrix in groups.

    codes: (rows, columns) int8, −8 to 7; zeros where a group is off the grid.
    scales: (rows, groups) float32 of least squares, negative where the extreme code −8 stands for a
        positive weight. low, high: magnitudes between which every scale gives the stored weights.
    kinds: (rows, groups) uint8: OFF_GRID, PROVES_NOTHING or ON_GRID.
    """

    codes: Tensor
    scales: Tensor
    low: Tensor
    high: Tensor
    kinds: Tensor

    def stored(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, the scales in the type that stores them, as float32, and how far each is off.

        A number of bfloat16 that gives the stored weights, since the scale may have been one; else
        of the type's two numbers around the scale the one that does, else the nearest. Where none
        does, and multiples of the codes have a scale that does, those.
        The error is relative, 0 where the weights are exact; infinite off the grid.
        """
        codes = self.codes.unflatten(1, (self.scales.shape[1], -1))
        # Bounds have some room for products that lie half-way between two numbers.
        room = torch.minimum((self.high - self.low) / 4, self.high * 2.0**-20)
        wanted = self.scales.abs().clamp(self.low + room, self.high - room)
        short, off = _nearest(wanted, self.low, self.high, torch.bfloat16)
        wanted = torch.where(off > 0, wanted, short)
        scales, error = _nearest(wanted, self.low, self.high, dtype)
        inexact = (error > 0) & (self.kinds != OFF_GRID)
        if bool(inexact.any()) and bool((few := inexact & (codes.abs().amax(-1) <= 4)).any()):
            codes = codes.clone()
            for times in range(STEPS, 1, -1):
                finer = codes[few] * times
                low, high = self.low[few] / times, self.high[few] / times
                nearest, off = _nearest(wanted[few] / times, low, high, dtype)
                fits = (off == 0) & (finer.amin(-1) >= -8) & (finer.amax(-1) <= 7)
                at = few.nonzero()[fits].unbind(1)
                codes[at], scales[at], error[at] = finer[fits], nearest[fits], 0.0
                few[at] = False
        error = torch.where(self.kinds == OFF_GRID, torch.inf, error)
        return codes.flatten(1), torch.copysign(scales, self.scales), error


def _nearest(
    wanted: Tensor, low: Tensor, high: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Magnitudes in a type, as float32, within bounds where one is; how far outside they are."""
    chosen = wanted.to(dtype).float()
    if dtype != torch.float32:
        towards = torch.sign(wanted - chosen).to(torch.int16)
        other = (wanted.to(dtype).view(torch.int16) + towards).view(dtype).float()
        within = (other >= low) & (other <= high) & ~((chosen >= low) & (chosen <= high))
        chosen = torch.where(within, other, chosen)
    beyond = torch.maximum(low - chosen, chosen - high).clamp(min=0)
    return chosen, torch.where(beyond > 0, beyond / chosen, beyond)


def stored_type(weight: Tensor) -> torch.dtype:
    """The narrowest type that holds all of these weights: a cast to a wider one moves no grid."""
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(weight.to(dtype).float(), weight.float()):
            return dtype
    return torch.float32


def find_grid(
    weight: Tensor, dtype: torch.dtype, *, group_size: int = 32, threads: int = 1
) -> Grid:
    """Test every group of a matrix (rows, columns) for a 4-bit grid.

    dtype: the type that the weights were rounded to. group_size: a multiple of 32, at most 256.
    """
    rows, columns = weight.shape
    weight = weight.detach().to("cpu", torch.float32).contiguous()
    shape = (rows, columns // group_size)
    codes = torch.empty(rows, columns, dtype=torch.int8)
    scales, low, high = (torch.empty(shape) for _ in range(3))
    kinds = torch.empty(shape, dtype=torch.uint8)
    grid = Grid(codes, scales, low, high, kinds)
    half, least, odd = _HALF_GAPS[dtype]
    if native.library() is None:
        _find(weight.view(-1, group_size), grid, half, least, odd)
        return grid

    def run(start: int, stop: int) -> None:
        parts = (part[start:stop] for part in (weight, codes, scales, low, high, kinds))
        groups = (stop - start) * shape[1]
        native.call("gq_find_grid", *parts, groups, group_size, half, least, odd)

    native.over_rows(run, rows, threads=threads)
    return grid


def _find(groups: Tensor, grid: Grid, half: float, least: float, odd: int) -> None:
    """As the kernel does; fills ``grid`` from (groups, size) float32."""
    largest = groups.abs().amax(1, keepdim=True)
    grid.codes.zero_(), grid.scales.zero_(), grid.low.zero_(), grid.high.zero_()
    kinds = (largest[:, 0] == 0).to(torch.uint8) * PROVES_NOTHING
    for steps in range(1, STEPS + 1):
        open_ = (kinds == OFF_GRID).nonzero().flatten()
        x = groups[open_]
        inverse = steps / largest[open_]
        ratio = x * inverse
        codes = torch.round(ratio)
        near = codes.abs() * (2.0625 * half) + 2 * least * inverse
        passing = ((ratio - codes).abs() <= near).all(1)
        open_, x, codes = open_[passing], x[passing], codes[passing]
        low, high = _bounds(x, codes, half, least, odd)
        upper, lower = (codes == 8).any(1), (codes == -8).any(1)
        found = (high >= low) & ~(upper & lower)
        open_, x, low, high = open_[found], x[found], low[found], high[found]
        codes = torch.where(upper[found, None], -codes[found], codes[found])
        products = (x.double() * codes.double()).sum(1)
        fitted = (products / codes.double().square().sum(1)).float()
        fitted = torch.copysign(fitted.abs().clamp(low, high), fitted)
        different = torch.stack([(codes.abs() == n).any(1) for n in range(1, STEPS + 1)]).sum(0)
        kinds[open_] = torch.where(different < MAGNITUDES, PROVES_NOTHING, ON_GRID).to(torch.uint8)
        grid.codes.view(groups.shape)[open_] = codes.to(torch.int8)
        for part, values in ((grid.scales, fitted), (grid.low, low), (grid.high, high)):
            part.view(-1)[open_] = values
    grid.kinds.view(-1)[:] = kinds


def _bounds(x: Tensor, codes: Tensor, half: float, least: float, odd: int) -> tuple[Tensor, Tensor]:
    """Magnitudes (groups,) between which every scale gives the weights; none: high < low."""
    weight, code = x.abs(), codes.abs()
    bits = weight.view(torch.int32)
    # A product half-way between two numbers goes to the even one.
    edge = torch.where(bits & odd != 0, 1 - 2.0**-12, 1 + 2.0**-12)
    unit = (bits & 0x7F800000).view(torch.float32) * half * edge
    # Below a power of two numbers lie twice as close.
    under = torch.where(bits & 0x007FFFFF == 0, unit * 0.5, unit).clamp(min=least)
    used = code > 0
    low = torch.where(used, (weight - under) / code, 0.0).amax(1).clamp(min=0)
    high = torch.where(used, (weight + unit.clamp(min=least)) / code, torch.inf).amin(1)
    return low, torch.where((~used & (weight > 0)).any(1), -1.0, high)
