"""One decoder layer through AWQ: scales found and folded, then every linear rounded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemquant.core.protocols import AffineScheme, AffineWeight, Block, Container, Statistics
from gemquant.errors import UnsupportedError
from gemquant.models.structure import InputGroup, RowFold
from gemquant.numerics.affine import AffineRounding
from gemquant.numerics.cholesky import GramFactor, factorise
from gemquant.numerics.clipping import quantize_clipped
from gemquant.numerics.gptq import CompensationPlan, quantize_compensated
from gemquant.numerics.norms import fold_into_norm
from gemquant.numerics.scaling import ScaleProblem, search_scale
from gemquant.quantizers.folding import per_row, shared_shape

if TYPE_CHECKING:
    from gemquant.quantizers.awq import AWQ


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldedGroup:
    """Linears that read one input, ready to be rounded as weight · scale.

    weights: linear → (out, in) float32, its rows already divided by the scales folded into them.
    scale: (in,), what the norm or linear before really divides by.
    norms: name → its weight after folding, as stored; empty where nothing folds into a norm.
    gram: (in, in) of the unscaled input. factor: of ``gram``, where compensation needs it.
    """

    weights: Mapping[str, Tensor]
    scale: Tensor
    norms: Mapping[str, Tensor]
    gram: Tensor
    factor: GramFactor | None


def quantize_layer(
    options: AWQ, block: Block, container: Container
) -> Mapping[str, Tensor | AffineWeight]:
    """Quantize a layer's linears and fold their scales into its norms, by short name."""
    if options.compensate and block.index == 0:
        _warn_of_few_tokens(block)
    rounding = _rounding(options, container)
    quantized: dict[str, Tensor | AffineWeight] = {}
    for group in folded_groups(options, block, container):
        quantized |= group.norms
        for linear, weight in group.weights.items():
            quantized[f"{linear}.weight"] = _round(weight, group, options, rounding)
    return quantized


def folded_groups(options: AWQ, block: Block, container: Container) -> Iterator[FoldedGroup]:
    """Find each group's scale and fold it away; nothing but norms is rounded yet.

    The layer computes the same function with weight · scale in place of every weight.
    """
    weights = dict(block.weights)
    # o folds into v, and down into up: a consumer's scale must be known before its producer is
    # rounded.
    for group in reversed(block.structure.groups):
        linears = [linear for linear in group.linears if _is_quantized(linear, options, block)]
        if not linears:
            continue
        statistics = block.statistics[linears[0]]
        gram = _gram_of(statistics, block.prefix + linears[0])
        factor = factorise(gram) if options.compensate else None
        scale = torch.ones_like(statistics.mean_abs)
        norms: dict[str, Tensor] = {}
        if options.scale and group.fold is not None and _is_foldable(group, options, block):
            scale = _search(group, statistics, gram, factor, options, block, container)
            if isinstance(group.fold, RowFold):
                name = f"{group.fold.linear}.weight"
                weights[name] = weights[name] / per_row(scale, group.fold)[:, None]
            else:
                name = f"{group.fold.norm}.weight"
                dtype = container.float_dtype
                norm, scale = fold_into_norm(weights[name], scale, dtype=dtype)
                norms[name] = norm.to(dtype)
        yield FoldedGroup(
            {linear: weights[f"{linear}.weight"] for linear in linears}, scale, norms, gram, factor
        )


def _warn_of_few_tokens(block: Block) -> None:
    """Say so where the codes would fit the calibration tokens rather than the model.

    On Gemma 3 270M, compensation with half as many tokens as the widest input has channels loses
    more than none; with four times as many, far less.
    """
    name, widest = max(
        block.statistics.items(), key=lambda item: item[1].max_abs.shape[0], default=("", None)
    )
    if widest is not None and 2 * widest.tokens <= widest.max_abs.shape[0]:
        logger.warning(
            "%s has %d input channels but only %d calibration tokens: give more with --samples, or "
            "use --no-compensate.",
            block.prefix + name,
            widest.max_abs.shape[0],
            widest.tokens,
        )


def _is_quantized(linear: str, options: AWQ, block: Block) -> bool:
    name = f"{linear}.weight"
    rows, columns = block.weights[name].shape
    return options.scheme_for(block.prefix + name, (rows, columns)) is not None


def _is_foldable(group: InputGroup, options: AWQ, block: Block) -> bool:
    """A layer kept in floating point cannot take a scale without being rounded again."""
    producers = (group.fold.linear,) if isinstance(group.fold, RowFold) else ()
    return all(_is_quantized(linear, options, block) for linear in (*group.linears, *producers))


def _search(
    group: InputGroup,
    statistics: Statistics,
    gram: Tensor,
    factor: GramFactor | None,
    options: AWQ,
    block: Block,
    container: Container,
) -> Tensor:
    problem = ScaleProblem(
        weights=tuple(block.weights[f"{linear}.weight"] for linear in group.linears),
        salience=statistics.mean_abs,
        sensitivity=gram if factor is None else factor.residual_variance,
        rounding=_rounding(options, container),
        group_size=options.group_size,
        shared=shared_shape(group.fold, gram.shape[0]),
    )
    return search_scale(problem)


def _rounding(options: AWQ, container: Container) -> AffineRounding:
    # The middle of a symmetric scheme's codes is a power of two: its bias needs no rounding.
    biased = container.biases and not options.symmetric
    return AffineRounding(options.bits, options.symmetric, container.scale_dtype, biased=biased)


def _round(
    weight: Tensor, group: FoldedGroup, options: AWQ, rounding: AffineRounding
) -> AffineWeight:
    if group.factor is None:
        codes, scales, zero_points = quantize_clipped(
            weight,
            group.scale,
            gram=group.gram,
            rounding=rounding,
            group_size=options.group_size,
            clip=options.clip,
        )
    else:
        codes, scales, zero_points = quantize_compensated(
            weight,
            group.scale,
            gram=group.gram,
            factor=group.factor,
            plan=CompensationPlan(rounding, options.group_size, options.clip, options.refinements),
        )
    return AffineWeight(
        AffineScheme(options.bits, options.group_size, options.symmetric),
        codes,
        scales.to(rounding.scale_dtype),
        zero_points if rounding.biased else zero_points.to(torch.uint8),
    )


def _gram_of(statistics: Statistics, name: str) -> Tensor:
    if statistics.gram is None:
        raise UnsupportedError(f"{name} has no Gram matrix: AWQ needs calibrated statistics.")
    return statistics.gram
