"""AWQ, then GPTQ: scale salient channels, search each group's range, compensate rounding errors.

A layer goes through these steps, each input group (linears that read the same input) in turn:

1. ``_search``: find the scale of each input channel that loses least when weights are rounded;
2. ``fold_scale``: divide the preceding norm or linear by it, so that the function stays the same;
3. ``_round``: quantize weight · scale, by GPTQ with coordinate descent or to nearest, each group
   within the range of least loss.

All steps weigh errors by the Gram matrix of the linears' inputs, so that their cost does not depend
on the number of calibration tokens. The tensor maths is in ``numerics.awq`` and ``numerics.gptq``.

Sources: AWQ, Lin et al., 2023, https://arxiv.org/abs/2306.00978; GPTQ, Frantar et al., 2022,
https://arxiv.org/abs/2210.17323.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gemquant.core.options import option
from gemquant.core.protocols import AffineWeight, Block, Container, Statistics
from gemquant.core.weights import ReadWeights
from gemquant.errors import UnsupportedError
from gemquant.models.structure import (
    InputGroup,
    NormFold,
    RowFold,
)
from gemquant.quantizers.options import AffineOptions
from gemquant.quantizers.rtn import rounded, rounded_block

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from gemquant.numerics.affine import AffineRounding
    from gemquant.numerics.gptq import CholeskyFactor

logger = logging.getLogger(__name__)

FAR_APART = 16
"""From so many rows on, reading single ones takes less time than reading all."""


@dataclass(frozen=True)
class AWQ(AffineOptions):
    """AWQ (activation-aware weight quantization) with GPTQ error compensation.

    Sources: AWQ, Lin et al., 2023, https://arxiv.org/abs/2306.00978, section 3.2;
    GPTQ, Frantar et al., 2022, https://arxiv.org/abs/2210.17323.
    """

    name: ClassVar[str] = "awq"
    scale: bool = option(True, "AWQ: search activation-aware scales and fold them away.")
    clip: bool = option(True, "Search each group's range instead of covering all of it.")
    gptq: bool = option(
        True,
        "GPTQ: round each column to compensate the errors of those before it.",
        formerly="compensate",
    )
    cd_passes: int = option(
        1,
        "Passes of coordinate descent over all codes after GPTQ.",
        minimum=0,
        maximum=20,
        formerly="refinements",
    )

    @property
    def needs(self) -> frozenset[str]:
        """Gram matrices, unless every matrix is carried over from a 4-bit grid."""
        use = self.grid_use
        left = [n for n, share in use.surveyed.items() if self._wants(n, share)]
        if left and use.carried.keys() >= set(left):
            return frozenset()
        return frozenset({"moments", "gram"})

    def quantize(self, block: Block, container: Container) -> Mapping[str, Tensor | AffineWeight]:
        """Quantize a layer's linears, and the norms that scales fold into, by short name."""
        if block.index < 0 or not self.needs:
            # No activations multiply a table, so that nothing is salient.
            return rounded_block(self, block, container)
        if self.gptq and block.index == 0:
            _warn_of_few_tokens(block)
        rounding = _rounding(self, container)
        quantized: dict[str, Tensor | AffineWeight] = {}
        for group in scaled_groups(self, block, container):
            quantized |= group.norms
            for linear, weight in group.weights.items():
                name = f"{linear}.weight"
                if block.prefix + name in self.grid_use.carried:
                    full = block.prefix + name
                    quantized[name] = rounded(self, full, weight, self.scheme, container)
                else:
                    quantized[name] = _round(weight, group, self, rounding)
        return quantized


def _warn_of_few_tokens(block: Block) -> None:
    """Warn where GPTQ would fit the codes to the calibration tokens rather than to the model.

    On Gemma 3 270M, GPTQ with half as many tokens as the widest input has channels loses more than
    none; with four times as many, far less.
    """
    name, widest = max(
        block.statistics.items(), key=lambda item: item[1].max_abs.shape[0], default=("", None)
    )
    if widest is not None and 2 * widest.tokens <= widest.max_abs.shape[0]:
        logger.warning(
            "%s has %d input channels but only %d calibration tokens: give more with --samples, or "
            "use --no-gptq.",
            block.prefix + name,
            widest.max_abs.shape[0],
            widest.tokens,
        )


# ---------------------------------------------------------------- scales


@dataclass(frozen=True)
class ScaledGroup:
    """Linears that read one input, ready to be rounded as weight · scale.

    weights: linear → (out, in) float32, its rows already divided by the scales folded into them;
        each is read when it is looked up, so that experts need not be in memory together.
    scale: (in,), what the preceding norm or linear really divides by.
    norms: name → its weight after folding, as stored; empty where nothing folds into a norm.
    gram: (in, in) of the unscaled input; of values that are normed, of the input relative to their
        size. cholesky: its factor, where GPTQ needs it.
    """

    weights: Mapping[str, Tensor]
    scale: Tensor
    norms: Mapping[str, Tensor]
    gram: Tensor
    cholesky: CholeskyFactor | None


def scaled_groups(options: AWQ, block: Block, container: Container) -> Iterator[ScaledGroup]:
    """Find each group's scale and fold it; nothing but norms is rounded yet.

    The layer computes the same function with weight · scale in place of every weight.
    """
    import torch

    from gemquant.numerics.gptq import damped_cholesky

    divisors: dict[str, Tensor] = {}

    def folded(linear: str) -> Tensor:
        weight, divisor = block.weights[f"{linear}.weight"], divisors.get(linear)
        return weight if divisor is None else weight / divisor[:, None]

    # o folds into v, and down into up: a consumer's scale must be known before its producer is
    # rounded.
    for group in reversed(block.structure.groups):
        linears = [linear for linear in group.linears if _is_quantized(linear, options, block)]
        if not linears:
            continue
        statistics = block.statistics[group.reader]
        gram = statistics.gram
        if gram is None:
            raise UnsupportedError(
                f"{block.prefix}{linears[0]} has no Gram matrix: AWQ needs calibrated statistics."
            )
        cholesky = damped_cholesky(gram) if options.gptq else None
        scale = torch.ones_like(statistics.mean_abs)
        norms: dict[str, Tensor] = {}
        if options.scale and group.fold is not None and _is_foldable(group, options, block):
            sensitivity = gram if cholesky is None else cholesky.residual_variance
            scale = _search(group, statistics, sensitivity, options, block, container)
            if isinstance(group.fold, RowFold):
                divisors[group.fold.linear] = row_divisor(group.fold, scale)
            else:
                stored = container.float_dtype
                name, norm, scale = fold_scale(group.fold, scale, block.weights, dtype=stored)
                norms[name] = norm.to(stored)
        normed = group.normed[0] if group.normed is not None else ""
        if plain := [linear for linear in linears if linear != normed]:
            yield ScaledGroup(ReadWeights(plain, folded), scale, norms, gram, cholesky)
        if normed in linears and (own := block.statistics[normed].gram) is not None:
            cholesky = damped_cholesky(own) if options.gptq else None
            norms = {} if plain else norms
            yield ScaledGroup(ReadWeights([normed], folded), scale, norms, own, cholesky)


def _is_quantized(linear: str, options: AWQ, block: Block) -> bool:
    name = f"{linear}.weight"
    rows, columns = block.shape(name)
    return options.scheme_for(block.prefix + name, (rows, columns)) is not None


def _is_foldable(group: InputGroup, options: AWQ, block: Block) -> bool:
    """A layer left in floating point cannot take a scale without being rounded again.

    Nor can one on a 4-bit grid: the scale would move it off.
    """
    producers = (group.fold.linear,) if isinstance(group.fold, RowFold) else ()
    carried = options.grid_use.carried
    return all(
        _is_quantized(linear, options, block) and f"{block.prefix}{linear}.weight" not in carried
        for linear in (*group.linears, *producers)
    )


def _search(
    group: InputGroup,
    statistics: Statistics,
    sensitivity: Tensor,
    options: AWQ,
    block: Block,
    container: Container,
) -> Tensor:
    import torch

    from gemquant.numerics.awq import ScaleProblem, sampling_stride, search_scale

    names = [f"{linear}.weight" for linear in group.linears]
    stride = sampling_stride(sum(block.shape(name)[0] for name in names))
    return search_scale(
        ScaleProblem(
            rows=torch.cat([_every(stride, block, name) for name in names]),
            salience=statistics.mean_abs,
            sensitivity=sensitivity,
            rounding=_rounding(options, container),
            group_size=options.group_size,
            shared=shared_inputs(group.fold, statistics.mean_abs.shape[0]),
        )
    )


def _every(stride: int, block: Block, name: str) -> Tensor:
    """One row of so many; read alone where they lie far apart."""
    import torch

    if stride < FAR_APART:
        return block.weights[name][::stride].clone()
    rows = range(0, block.shape(name)[0], stride)
    return torch.cat([block.rows(name, row, row + 1) for row in rows])


# ---------------------------------------------------------------- folding


def shared_inputs(fold: NormFold | RowFold | None, channels: int) -> tuple[int, int, int] | None:
    """(kv_heads, repeats, head_dim) where one row feeds several inputs, which must share a scale.

    So it is in grouped-query attention: one value channel feeds several query heads.
    """
    if not isinstance(fold, RowFold) or fold.repeats == 1:
        return None
    return (channels // (fold.repeats * fold.head_dim), fold.repeats, fold.head_dim)


def fold_scale(
    fold: NormFold | RowFold, scale: Tensor, weights: Mapping[str, Tensor], *, dtype: dtype
) -> tuple[str, Tensor, Tensor]:
    """Divide the producer of a group's input by ``scale``, (in,).

    weights: by short name. dtype: the type that norms are stored in.
    Returns the name of the tensor that changes, its new value in float32, and the scale that its
    stored value implements: the group's linears must be multiplied by this one.
    """
    from gemquant.numerics.awq import fold_into_norm

    if isinstance(fold, NormFold):
        name = f"{fold.norm}.weight"
        return name, *fold_into_norm(weights[name], scale, dtype=dtype, offset=fold.offset)
    name = f"{fold.linear}.weight"
    return name, weights[name] / row_divisor(fold, scale)[:, None], scale


def row_divisor(fold: RowFold, scale: Tensor) -> Tensor:
    """What each row of the producing linear is divided by."""
    if fold.repeats == 1:
        return scale
    return scale.reshape(-1, fold.repeats, fold.head_dim)[:, 0].reshape(-1)


# ---------------------------------------------------------------- rounding


def _rounding(options: AWQ, container: Container) -> AffineRounding:
    from gemquant.numerics.affine import AffineRounding

    # The middle of a symmetric scheme's codes is a power of two: its bias needs no rounding.
    biased = container.biases and not options.symmetric
    return AffineRounding(options.bits, options.symmetric, container.scale_dtype, biased=biased)


def _round(
    weight: Tensor, group: ScaledGroup, options: AWQ, rounding: AffineRounding
) -> AffineWeight:
    import torch

    from gemquant.numerics.awq import quantize_clipped
    from gemquant.numerics.gptq import GptqConfig, quantize_gptq

    if group.cholesky is None:
        codes, scales, zero_points = quantize_clipped(
            weight,
            group.scale,
            gram=group.gram,
            rounding=rounding,
            group_size=options.group_size,
            clip=options.clip,
        )
    else:
        codes, scales, zero_points = quantize_gptq(
            weight,
            group.scale,
            gram=group.gram,
            cholesky=group.cholesky,
            config=GptqConfig(rounding, options.group_size, options.clip, options.cd_passes),
        )
    return AffineWeight(
        options.scheme,
        codes,
        scales.to(rounding.scale_dtype),
        zero_points if rounding.biased else zero_points.to(torch.uint8),
    )
