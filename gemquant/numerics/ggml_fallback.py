"""Rows of weights to ggml's blocks in numpy: the bytes of the C kernels, for machines without them.

Blocks lie side by side, (elements, blocks) float32, so that a number here is a lane there; every
operation is the one of ``native/source``, which explains the algorithms, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

WEIGHTS_AT_ONCE = 1 << 17
"""What stays in a core's cache."""

F = np.float32
MAGIC = F(12582912)  # 1.5 · 2^23: a sum with it has no fraction
ZERO_BLOCK = F(1e-15)
TABLE = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
PLACES = np.searchsorted((TABLE[1:] + TABLE[:-1]) / 2, np.r_[:256, -256:0] / 2, side="right")
"""By halves, the negative ones from the end: what is half-way between two values is one of them."""


def quantize(name: str, weight: Array, importance: Array | None) -> Array:
    """Quantize rows (rows, columns) to a type; importance: (columns,). Returns their bytes."""
    encode = ENCODERS[name]
    step = max(1, WEIGHTS_AT_ONCE // weight.shape[1])
    parts = []
    with np.errstate(all="ignore"):
        for start in range(0, len(weight), step):
            x = weight[start : start + step]
            w = None if importance is None else np.broadcast_to(importance, x.shape)
            parts.append(np.concatenate(encode(x, w), axis=1, dtype=np.uint8).reshape(len(x), -1))
    return np.concatenate(parts)


# ---------------------------------------------------------------- numbers


def _columns(rows: Array, length: int) -> Array:
    """Runs of ``length`` numbers side by side."""
    return np.ascontiguousarray(rows.reshape(-1, length).T)


def _rows(columns: Array, length: int) -> Array:
    return columns.T.reshape(-1, length)


def _sum(values: Array, start: float = 0.0) -> Array:
    """One element after the other; starting with -0 changes no first element."""
    total: Array = values[0] + F(start)
    for row in values[1:]:
        total += row
    return total


def _farthest(values: Array) -> tuple[Array, Array]:
    """The first element of the greatest magnitude, and that magnitude."""
    farthest, size = np.zeros_like(values[0]), np.zeros_like(values[0])
    for row in values:
        more = np.abs(row) > size
        farthest, size = np.where(more, row, farthest), np.where(more, np.abs(row), size)
    return farthest, size


def _ends(values: Array) -> tuple[Array, Array]:
    low = high = values[0]
    for row in values[1:]:
        low, high = np.where(row < low, row, low), np.where(row > high, row, high)
    return low, high


def _inverse(value: Array) -> Array:
    return np.where(value != 0, 1 / value, F(0))


def _nearest(value: Array, least: int | None = None, most: int | None = None) -> Array:
    """ggml's nearest_int, out of its range too, then limited."""
    code = ((value + MAGIC).view(np.int32) & 0x7FFFFF) - 0x400000
    return code if least is None else np.clip(code, least, most)


def _truncated(value: Array) -> Array:
    """As x86 converts: what is no int32 becomes the least one."""
    return np.where(np.abs(value) < F(2**31), value, F(-(2**31))).astype(np.int32)


def _half(value: Array) -> Array:
    """Bits in half precision; a NaN is the quiet one of its sign."""
    half, nan = value.astype(np.float16), np.copysign(np.float16(np.nan), value)
    return np.where(np.isnan(value), nan, half).astype(np.float16).view(np.uint16)


def _value(half: Array) -> Array:
    return half.view(np.float16).astype(np.float32)


def _bytes(*halves: Array) -> Array:
    return np.stack(halves, axis=1).view(np.uint8)


def _pack(codes: Array, parts: int, length: int, bits: int) -> Array:
    """In each ``parts`` runs of ``length`` codes, run n goes to the bits from n · ``bits`` on."""
    runs = codes.astype(np.uint8).reshape(len(codes), -1, parts, length) & ((1 << bits) - 1)
    shifted = runs << (np.arange(parts, dtype=np.uint8) * np.uint8(bits))[:, None]
    packed: Array = np.bitwise_or.reduce(shifted, axis=2)
    return packed.reshape(len(codes), -1)


# ---------------------------------------------------------------- scale and minimum (k_fit.h)


class _Grid(NamedTuple):
    """``struct grid`` but for its top."""

    first: float
    step: float
    steps: int
    absolute: bool = False
    limits_first: bool = False


WEIGHTED = _Grid(-0.9, 0.05, 36, limits_first=True)


def _fit(x: Array, w: Array, top: int, grid: _Grid) -> tuple[Array, Array, Array, Array]:
    """Scale, minimum and sum of weights of every block, and its codes: ``fit_vectors``."""

    def error(codes: Array, scale: Array, low: Array) -> Array:
        difference = scale * codes + low - x
        return _sum(w * (np.abs(difference) if grid.absolute else difference * difference))

    low, high = _ends(x)
    sum_w, sum_x = _sum(w, -0.0), _sum(w * x, -0.0)
    low = np.where(low > 0, F(0), low)
    flat = high == low
    code_scale = F(top) / (high - low)
    scale = 1 / code_scale
    best_codes = _nearest(code_scale * (x - low), 0, top).astype(np.float32)
    best = error(best_codes, scale, low)
    for n in range(grid.steps + 1):
        tried = F(grid.first) + F(grid.step) * F(n) + F(top)
        value = tried / (high - low) * (x - low)
        if grid.limits_first:
            codes = np.fmin(np.fmax(value, F(0)), F(top)) + MAGIC - MAGIC
        else:
            codes = _nearest(value, 0, top).astype(np.float32)
        weighted = w * codes
        sum_l, l2, xl = _sum(weighted), _sum(weighted * codes), _sum(weighted * x)
        determinant = sum_w * l2 - sum_l * sum_l
        new_low = (l2 * sum_x - sum_l * xl) / determinant
        above = new_low > 0
        new_scale = np.where(above, xl / l2, (sum_w * xl - sum_x * sum_l) / determinant)
        new_low = np.where(above, F(0), new_low)
        errors = error(codes, new_scale, new_low)
        better = (determinant > 0) & (errors < best) & ~flat
        pairs = [(best, errors), (scale, new_scale), (low, new_low), (best_codes, codes)]
        for kept, new in pairs:
            np.copyto(kept, new, where=better)
    return np.where(flat, F(0), scale), -low, sum_w + F(0), best_codes


def _largest_to_top(values: Array, top: int, limit: int) -> tuple[Array, Array]:
    """``largest_to_top``: the factor and integers of each column, which wrap around."""
    largest = np.zeros_like(values[0])
    for row in values:
        largest = np.where(row > largest, row, largest)
    inverse = np.where(largest > 0, F(top) / largest, F(0))
    return _half(largest / F(top)), np.minimum(_nearest(inverse * values).astype(np.uint8), limit)


def _least_squares(values: Array, w: Array, top: int) -> tuple[Array, Array]:
    """``least_squares``."""
    largest = np.zeros_like(values[0])
    for row in values:
        largest = np.where(largest > row, largest, row)

    def error(factor: Array, codes: Array) -> Array:
        difference = values - factor * codes.astype(np.float32)
        return _sum(w * difference * difference)

    inverse = F(top) / largest
    best = error(1 / inverse, _nearest(inverse * values).astype(np.uint8))
    for step in (-4, -3, -2, -1, 1, 2, 3, 4):
        tried = (F(0.1) * F(step) + F(top)) / largest
        errors = error(1 / tried, np.minimum(_nearest(tried * values), top))
        better = errors < best
        best, inverse = np.where(better, errors, best), np.where(better, tried, inverse)
    chosen = np.minimum(_nearest(inverse * values), top)
    factor, codes = _descend(values, w, chosen, -(1 << 31), top, mask=255)
    nothing = largest < ZERO_BLOCK
    return _half(np.where(nothing, F(0), factor)), np.where(nothing, 0, codes).astype(np.uint8)


def _descend(
    x: Array, w: Array, codes: Array, least: int, most: int, *, mask: int
) -> tuple[Array, Array]:
    """Five times each code to its best value given the others; returns the scale too.

    mask: bits of a code that are stored; 255 also stands for ``make_qp_quants``'s condition.
    """
    wx, number = w * x, codes.astype(np.float32)
    lx, l2 = _sum(wx * number), _sum(w * number * number)
    codes = codes & mask
    for _ in range(5):
        changed = False
        for i, code in enumerate(codes):
            old = code.astype(np.float32)
            rest_lx, rest_l2 = lx - wx[i] * old, l2 - w[i] * old * old
            new = np.clip(_nearest(x[i] * rest_l2 / rest_lx), least, most)
            number = new.astype(np.float32)
            new_lx, new_l2 = rest_lx + wx[i] * number, rest_l2 + w[i] * number * number
            better = (rest_lx > 0) & ((rest_l2 if mask == 255 else new_l2) > 0) & (new != code)
            better &= new_lx * new_lx * l2 > lx * lx * new_l2
            for kept, found in ((code, new & mask), (lx, new_lx), (l2, new_l2)):
                np.copyto(kept, found, where=better)
            changed |= bool(better.any())
        if not changed:
            break
    return np.where(l2 > 0, lx / l2, F(0)), codes


@dataclass(frozen=True)
class _KType:
    """``struct k_type``; limits of the integers, 255 for none."""

    width: int
    top: int
    plain: _Grid
    variance_scale: int
    scale_top: int
    limit: int
    limit_weighted: int

    def __call__(self, x: Array, w: Array | None) -> list[Array]:
        """``k_rows``."""
        width, top = self.width, self.top
        tiles = _columns(x, width)
        if w is not None:
            weights = _weighted(x, w, width, 256, self.variance_scale, 256)
        elif self.plain.absolute:
            weights = np.abs(tiles)
        else:
            weights = np.sqrt(_sum(tiles * tiles) / F(width)) + np.abs(tiles)
        grid = self.plain if w is None else WEIGHTED
        scale, minimum, sums, fitted = _fit(tiles, weights, top, grid)
        scale, minimum, sums = (_columns(each, 256 // width) for each in (scale, minimum, sums))
        if w is None:
            d, scales = _largest_to_top(scale, self.scale_top, self.limit)
            d_minimum, minima = _largest_to_top(minimum, self.scale_top, self.limit)
        else:
            d, scales = _least_squares(scale, sums, self.scale_top)
            d_minimum, minima = _least_squares(minimum, sums, self.scale_top)
            scales, minima = (np.minimum(each, self.limit_weighted) for each in (scales, minima))
        packed, scales, minima = (_pairs if width == 16 else _sixes)(scales, minima)
        factor = (_value(d) * scales.astype(np.float32)).T.ravel()
        low = (_value(d_minimum) * minima.astype(np.float32)).T.ravel()
        final = _nearest((tiles + low) / factor, 0, top)
        codes = _rows(np.where(factor == 0, fitted, final).astype(np.uint8), 256)
        halves = _bytes(d, d_minimum)
        if top == 3:
            return [packed, _pack(codes, 4, 32, 2), halves]
        high = [_pack(codes >> 4, 8, 32, 1)] if top == 31 else []
        return [halves, packed, *high, _pack(codes, 2, 32, 4)]


def _pairs(scale: Array, minimum: Array) -> tuple[Array, Array, Array]:
    """Fours of scales and minima, and what a reader finds: ``write_scales`` of q2_k.c."""
    packed = scale | minimum << 4
    return packed.T, packed & 15, packed >> 4


def _sixes(scale: Array, minimum: Array) -> tuple[Array, Array, Array]:
    """``write_sixes``."""
    mixed = (scale[4:] & 15) | (minimum[4:] & 15) << 4
    scale, minimum = (each[:4] | each[4:] >> 4 << 6 for each in (scale, minimum))
    return (
        np.concatenate([scale, minimum, mixed]).T,
        np.concatenate([scale & 63, (mixed & 15) | scale >> 6 << 4]),
        np.concatenate([minimum & 63, mixed >> 4 | minimum >> 6 << 4]),
    )


def _weighted(x: Array, w: Array, width: int, span: int, factor: float, divisor: float) -> Array:
    """Importance · √(variance + x²), in blocks; variance = factor · Σ x² / divisor over a span."""
    squares = np.add.accumulate(np.square(x.reshape(-1, span)), axis=1)[:, -1]
    variance = np.repeat(F(factor) * squares / F(divisor), span // width)
    weights: Array = _columns(w, width) * np.sqrt(variance + np.square(_columns(x, width)))
    return weights


# ---------------------------------------------------------------- one scale (scale_search.h)


def _limited(value: Array, levels: int) -> Array:
    return _nearest(value, -levels, levels - 1).astype(np.float32)


def _search(x: Array, w: Array | None, levels: int) -> tuple[Array, Array]:
    """``search_scale``: the scale of every block, and the codes from 0 on that it ended with."""
    farthest, size = _farthest(x)
    w = x * x if w is None else w
    wx = w * x
    scale = best = inverse = np.zeros_like(farthest)
    for step in (0, *range(-9, 0), *range(1, 10)):
        tried = -(F(levels) + F(0.1) * F(step)) / farthest
        code = _limited(tried * x, levels)
        lx, l2 = _sum(wx * code), _sum(w * code * code)
        if step == 0:
            scale, inverse = np.where(l2 == 0, F(0), lx / l2), tried
            best = scale * lx
            continue
        better = (l2 > 0) & (lx * lx > best * l2)
        new = lx / l2
        scale, inverse = np.where(better, new, scale), np.where(better, tried, inverse)
        best = np.where(better, new * lx, best)
    zero = size < ZERO_BLOCK
    codes = np.where(zero, 0, _nearest(x * inverse, -levels, levels - 1) + levels)
    return np.where(zero, F(0), scale), codes


def _refine(x: Array) -> tuple[Array, Array]:
    """``refine_scales``: the same for Q3_K without importances."""
    farthest, size = _farthest(x)
    scale, codes = _descend(x, x * x, _nearest(F(-4) / farthest * x, -4, 3), -4, 3, mask=-1)
    zero = size < ZERO_BLOCK
    return np.where(zero, F(0), scale), np.where(zero, 0, codes + 4)


def _final(x: Array, d: Array, scales: Array, levels: int, fitted: Array) -> Array:
    """Codes by the scales as stored, those of the search where these are zero; super-blocks."""
    scale = (d * scales.astype(np.float32)).T.ravel()
    final = _nearest(x / scale, -levels, levels - 1) + levels
    return _rows(np.where(scale == 0, fitted, final).astype(np.uint8), 256)


def _q3_k(x: Array, w: Array | None) -> list[Array]:
    tiles = _columns(x, 16)
    if w is None:
        scale, fitted = _refine(tiles)
        scale = _columns(scale, 16)
        farthest, _ = _farthest(scale)
        inverse = F(-32) / farthest
        wrapped = _nearest(inverse * scale).astype(np.int8)
        scales = np.where(farthest == 0, 0, np.clip(wrapped, -32, 31).astype(np.int32) + 32)
        d = np.where(farthest == 0, np.uint16(0), _half(1 / inverse))
    else:
        weights = _weighted(x, w, 16, 256, 2, 256)
        scale, fitted = _search(tiles, weights, 4)
        factor, scales = _search(_columns(scale, 16), _columns(_sum(weights), 16), 32)
        d = _half(factor)
    codes = _final(tiles, _value(d), scales - 32, 4, fitted)
    high, low = _pack(codes >> 2, 8, 32, 1), _pack(codes, 4, 32, 2)
    return [high, low, _pack(scales.T, 2, 8, 4), _pack(scales.T >> 4, 4, 4, 2), _bytes(d)]


def _q6_k(x: Array, w: Array | None) -> list[Array]:
    tiles = _columns(x, 16)
    scale, fitted = _search(tiles, None if w is None else _columns(w, 16), 32)
    scale = _columns(scale, 16)
    farthest, size = _farthest(scale)
    inverse = F(-128) / farthest
    d = _half(1 / inverse)
    scales = np.minimum(_nearest(inverse * scale), 127).astype(np.int8)
    codes = _final(tiles, _value(d), scales, 32, fitted)
    low, high = _pack(codes, 2, 64, 4), _pack(codes >> 4, 4, 32, 2)
    parts = (low, high, scales.T.view(np.uint8), _bytes(d))
    return [np.where((size < ZERO_BLOCK)[:, None], np.uint8(0), part) for part in parts]


# ---------------------------------------------------------------- blocks of 32


def _codes_of_32(codes: Array, top: int) -> list[Array]:
    """``pack_fours`` and ``pack_fives``."""
    rows = codes.astype(np.int32).T
    fifths = np.packbits((rows >> 4 & 1).astype(np.uint8), axis=1, bitorder="little")
    return [*([fifths] if top == 31 else []), _pack(rows, 2, 16, 4)]


def _symmetric(levels: int, x: Array, w: Array | None) -> list[Array]:
    """Q4_0 and Q5_0."""
    tiles = _columns(x, 32)
    if w is None:
        scale = _farthest(tiles)[0] / F(-levels)
        raised = _truncated(tiles * _inverse(scale) + F(levels + 0.5))
        codes = np.minimum(raised, 2 * levels - 1)
    else:
        scale, codes = _search(tiles, _weighted(x, w, 32, x.shape[1], 1, x.shape[1]), levels)
    return [_bytes(_half(scale)), *_codes_of_32(codes, 2 * levels - 1)]


def _with_minimum(top: int, x: Array, w: Array | None) -> list[Array]:
    """Q4_1 and Q5_1; ggml has no limit for the latter."""
    tiles = _columns(x, 32)
    if w is None:
        low, high = _ends(tiles)
        scale = (high - low) / F(top)
        codes = _truncated((tiles - low) * _inverse(scale) + F(0.5))
        codes = np.minimum(codes, top) if top == 15 else codes
    else:
        weights = _weighted(x, w, 32, x.shape[1], 1, x.shape[1])
        scale, minimum, _, codes = _fit(tiles, weights, top, WEIGHTED)
        low = -minimum
    return [_bytes(_half(scale), _half(low)), *_codes_of_32(codes, top)]


def _q8_0(x: Array, w: Array | None) -> list[Array]:  # noqa: ARG001
    tiles = _columns(x, 32)
    scale = np.abs(tiles).max(axis=0) / F(127)
    value = tiles * _inverse(scale)
    codes = _truncated(value + np.copysign(F(0.49999997), value))
    return [_bytes(_half(scale)), codes.T.astype(np.uint8)]


# ---------------------------------------------------------------- values of a table (iq4.c)


def _place(value: Array) -> Array:
    """Of the nearest value in the table; the last for NaN."""
    halves = np.fmax(np.fmin(value + value, F(255)), F(-256))
    places: Array = PLACES[np.floor(halves).astype(np.int16)]
    return places


def _table_scale(x: Array, w: Array) -> Array:
    """``search_table_scale``."""
    farthest, size = _farthest(x)
    scale = best = np.zeros_like(farthest)
    for step in (None, *range(-7, 8)):
        tried = 1 / (-farthest / TABLE[0]) if step is None else (F(step) + TABLE[0]) / farthest
        value = TABLE[_place(tried * x)]
        weighted = w * value
        qx, q2 = _sum(weighted * x), _sum(weighted * value)
        better = q2 > 0 if step is None else (q2 > 0) & (qx * qx > best * q2)
        scale = np.where(better, qx / q2, scale)
        best = scale * qx if step is None else np.where(better, scale * qx, best)
    return np.where(size < ZERO_BLOCK, F(0), scale)


def _iq4(span: int, x: Array, w: Array | None) -> list[Array]:
    tiles = _columns(x, 32)
    weights = tiles * tiles if w is None else _weighted(x, w, 32, span, 2 / span, 1)
    scale = _table_scale(tiles, weights)
    if span == 32:
        return [_bytes(_half(scale)), *_codes_of_32(_place(tiles * _inverse(scale)), 15)]
    scale = _columns(scale, 8)
    d = -_farthest(scale)[0] / F(32)
    scales = _nearest(_inverse(d) * scale, -32, 31)
    inverse = _inverse(d * scales.astype(np.float32)).T.ravel()
    codes = _codes_of_32(_place(tiles * inverse), 15)[0].reshape(-1, 128)
    raised = scales.T + 32
    return [_bytes(_half(d)), _pack(raised >> 4, 4, 1, 2), _pack(raised, 2, 1, 4), codes]


ENCODERS: dict[str, Callable[[Array, Array | None], list[Array]]] = {
    "Q4_0": partial(_symmetric, 8),
    "Q4_1": partial(_with_minimum, 15),
    "Q5_0": partial(_symmetric, 16),
    "Q5_1": partial(_with_minimum, 31),
    "Q8_0": _q8_0,
    "Q2_K": _KType(16, 3, _Grid(-0.5, 0.1, 15, absolute=True), 1, 15, 255, 255),
    "Q3_K": _q3_k,
    "Q4_K": _KType(32, 15, _Grid(-1.0, 0.1, 20), 2, 63, 63, 255),
    "Q5_K": _KType(32, 31, _Grid(-0.5, 0.1, 15), 2, 63, 63, 63),
    "Q6_K": _q6_k,
    "IQ4_NL": partial(_iq4, 32),
    "IQ4_XS": partial(_iq4, 256),
}
"""The bytes of blocks (rows, columns), as parts to put side by side."""
