"""Sums and ranges over activations, gathered in one pass without keeping the activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear

from gemquant.core.protocols import ActivationRange, Statistics
from gemquant.numerics import native
from gemquant.numerics.precision import accumulator

COLUMNS_AT_ONCE = 512
PANEL = 64  # columns; WIDTH in numerics/native/source/gram.c


class StatisticsGatherer:
    """Accumulates statistics of one linear's inputs.

    width: number of input channels. Sums across windows use the widest type; the Gram
    matrix is a sum of float32 products, of which only the upper half is computed; products of
    bfloat16 inputs are exact in float32, and some processors have an instruction for them.
    every: store every n-th input for the sample; 0 for none.
    """

    def __init__(self, width: int, *, gram: bool, device: torch.device, every: int = 0) -> None:
        self._tokens = 0
        self._every = every
        self._sample: list[Tensor] = []
        self._sum_squares = torch.zeros(width, dtype=accumulator(device), device=device)
        self._sum_abs = torch.zeros(width, dtype=accumulator(device), device=device)
        self._max_abs = torch.zeros(width, dtype=torch.float32, device=device)
        self._gram = torch.zeros(width, width, device=device) if gram else None

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> None:
        """Add inputs (…, width)."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        flat = rows.float()
        magnitude = flat.abs()
        if self._every:
            # A copy: a part of a tensor would hold all of it.
            self._sample.append(flat[-self._tokens % self._every :: self._every].clone())
        self._tokens += flat.shape[0]
        self._sum_abs += magnitude.sum(0, dtype=torch.float32)
        self._sum_squares += (flat * flat).sum(0, dtype=torch.float32)
        self._max_abs = torch.maximum(self._max_abs, magnitude.amax(0))
        if self._gram is None:
            return
        if rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and has_bfloat16_products():
            add_gram(self._gram, rows)
        else:
            for start in range(0, flat.shape[1], COLUMNS_AT_ONCE):
                panel = self._gram[start : start + COLUMNS_AT_ONCE, start:]
                panel.addmm_(flat[:, start : start + COLUMNS_AT_ONCE].T, flat[:, start:])

    def result(self) -> Statistics:
        """Return the statistics of everything seen."""
        if self._gram is not None:
            for start in range(0, self._gram.shape[0], COLUMNS_AT_ONCE):
                stop = start + COLUMNS_AT_ONCE
                self._gram[stop:, start:stop] = self._gram[start:stop, stop:].T
                corner = self._gram[start:stop, start:stop]
                # A product's two halves may differ in their last bits.
                corner.copy_(corner.triu() + corner.triu(1).T)
        return Statistics(
            tokens=self._tokens,
            sum_squares=self._sum_squares,
            mean_abs=(self._sum_abs / max(self._tokens, 1)).float(),
            max_abs=self._max_abs,
            gram=self._gram,
            sample=torch.cat(self._sample) if self._sample else None,
        )


class RelativeGatherer(StatisticsGatherer):
    """Accumulates inputs divided by the size of what a linear makes of them, head by head.

    Where a norm divides each head's output by its root mean square, an error counts relative to it:
    tokens with small values, such as the first of a text, on which many heads rest, count as much
    as those with large ones. weight: (out, width). head_dim: outputs that are normed together.
    """

    def __init__(self, weight: Tensor, head_dim: int, eps: float) -> None:
        super().__init__(weight.shape[1], gram=True, device=weight.device)
        self._weight, self._head_dim, self._eps = weight, head_dim, eps

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> None:
        """Add inputs (…, width), in the weight's type."""
        heads = linear(inputs, self._weight).float().unflatten(-1, (-1, self._head_dim))
        weight = (heads.square().mean(-1) + self._eps).reciprocal().mean(-1, keepdim=True)
        super().__call__(inputs * weight.sqrt().to(inputs.dtype))


def pooled(several: Sequence[Statistics]) -> Statistics:
    """Statistics of all inputs of several linears of one width."""
    tokens = sum(each.tokens for each in several)
    grams = [each.gram for each in several if each.gram is not None]
    samples = [each.sample for each in several if each.sample is not None]
    weighted = torch.stack([each.mean_abs * each.tokens for each in several])
    return Statistics(
        tokens=tokens,
        sum_squares=torch.stack([each.sum_squares for each in several]).sum(0),
        mean_abs=weighted.sum(0) / max(tokens, 1),
        max_abs=torch.stack([each.max_abs for each in several]).amax(0),
        gram=sum(grams[1:], grams[0]) if grams else None,
        sample=torch.cat(samples) if samples else None,
    )


@dataclass
class ActivationRanges:
    """The largest magnitude of every decoder layer's activations and where it occurred.

    layers: by layer index. What a module computes inside itself, such as attention scores, is not
    seen.
    """

    layers: dict[int, ActivationRange] = field(default_factory=dict)

    def observer(self, index: int, prefix: str) -> ActivationObserver:
        """An observer for ``Skeleton.observing`` at one layer."""
        return ActivationObserver(self, index, prefix)

    def worst(self) -> tuple[float, str]:
        """The largest magnitude of all layers and where it occurred."""
        return max(((r.largest, r.where) for r in self.layers.values()), default=(0.0, ""))


@dataclass
class ActivationObserver:
    """Sees the outputs of every module of one layer; call ``close`` after the last window.

    seen: by the module's short name; the layer's own output under the empty one.
    """

    ranges: ActivationRanges
    index: int
    prefix: str
    seen: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, module: str, output: Tensor) -> None:
        """Note the magnitude of an output, without waiting for the device."""
        low, high = torch.aminmax(output)
        largest = torch.maximum(-low, high)
        previous = self.seen.get(module)
        self.seen[module] = largest if previous is None else torch.maximum(previous, largest)

    def close(self) -> ActivationRange:
        """Record this layer's range."""
        largest, where = max(
            (float(value), (self.prefix + module).rstrip("."))
            for module, value in self.seen.items()
        )
        residual = float(self.seen.get("", torch.tensor(0.0)))
        self.ranges.layers[self.index] = ActivationRange(residual, largest, where)
        return self.ranges.layers[self.index]


# ---------------------------------------------------------------- the kernel of source/gram.c


@cache
def has_bfloat16_products() -> bool:
    """Whether this processor multiplies pairs of bfloat16 numbers, and the kernel was built."""
    kernels = native.library()
    return kernels is not None and bool(kernels.gq_has_bfloat16_products())


def add_gram(gram: Tensor, inputs: Tensor) -> None:
    """Add Σ x xᵀ to the upper half of ``gram``; values below its diagonal panels are undefined.

    gram: (columns, columns) float32, contiguous. inputs: (tokens, columns) bfloat16, on the CPU.
    """
    inputs = inputs.contiguous()
    tokens, columns = inputs.shape
    panels, pairs, threads = -(-columns // PANEL), -(-tokens // 2), torch.get_num_threads()
    packed = torch.empty(panels * pairs * PANEL, dtype=torch.int32)

    def pack(first: int, last: int) -> None:
        native.call("gq_gram_pack", inputs, tokens, columns, first, last, packed)

    def add(first: int, last: int) -> None:
        native.call("gq_gram_add", packed, pairs, columns, first, last, gram)

    native.over_rows(pack, panels, threads=threads)
    native.over_rows(add, panels * (panels + 1) // 2, threads=threads)
