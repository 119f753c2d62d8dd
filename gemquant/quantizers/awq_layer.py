"""One decoder layer through AWQ: scales found and folded, then every linear rounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemquant.errors import UnsupportedError
from gemquant.gemma.structure import InputGroup, NormFold, RowFold
from gemquant.numerics.affine import AffineRounding
from gemquant.numerics.clipping import RATIOS, quantize_clipped
from gemquant.numerics.compensation import CompensationPlan, quantize_compensated
from gemquant.numerics.factor import GramFactor, factorise
from gemquant.numerics.norms import fold_into_norm
from gemquant.numerics.scaling import ScaleProblem, search_scale
from gemquant.protocols import AffineScheme, AffineWeight, Block, Container, Statistics

if TYPE_CHECKING:
    from gemquant.quantizers.awq import AWQ


def quantize_layer(
    options: AWQ, block: Block, container: Container
) -> Mapping[str, Tensor | AffineWeight]:
    """Quantize a layer's linears and fold their scales into its norms, by short name."""
    search = _LayerSearch(options, block, container)
    # o folds into v, and down into up: a consumer's scale must be known before its producer is
    # rounded.
    for group in reversed(block.structure.groups):
        search.quantize_group(group)
    return search.quantized


class _LayerSearch:
    """A layer's weights as scales fold into their rows, and what has been quantized so far."""

    def __init__(self, options: AWQ, block: Block, container: Container) -> None:
        self.options = options
        self.block = block
        self.container = container
        self.rounding = AffineRounding(
            options.bits,
            options.symmetric,
            container.scale_dtype,
            biased=container.biases and not options.symmetric,
        )
        self.ratios = RATIOS if options.clip else (1.0,)
        self.weights = dict(block.weights)
        self.quantized: dict[str, Tensor | AffineWeight] = {}

    def quantize_group(self, group: InputGroup) -> None:
        """Scale and round the linears that read one input."""
        linears = [linear for linear in group.linears if self._is_quantized(linear)]
        if not linears:
            return
        statistics = self.block.statistics[linears[0]]
        gram = _gram_of(statistics, self.block.prefix + linears[0])
        factor = factorise(gram) if self.options.compensate else None
        scale = torch.ones_like(statistics.mean_abs)
        fold = group.fold
        if self.options.scale and fold is not None and self._is_foldable(group, fold):
            scale = self._fold(fold, self._search(group, fold, statistics, gram, factor))
        for linear in linears:
            self.quantized[f"{linear}.weight"] = self._round(linear, scale, gram, factor)

    def _is_quantized(self, linear: str) -> bool:
        name = f"{linear}.weight"
        rows, columns = self.block.weights[name].shape
        return self.options.scheme_for(self.block.prefix + name, (rows, columns)) is not None

    def _is_foldable(self, group: InputGroup, fold: NormFold | RowFold) -> bool:
        """A layer kept in floating point cannot take a scale without being rounded again."""
        producers = (fold.linear,) if isinstance(fold, RowFold) else ()
        return all(self._is_quantized(linear) for linear in (*group.linears, *producers))

    def _search(
        self,
        group: InputGroup,
        fold: NormFold | RowFold,
        statistics: Statistics,
        gram: Tensor,
        factor: GramFactor | None,
    ) -> Tensor:
        problem = ScaleProblem(
            weights=tuple(self.block.weights[f"{linear}.weight"] for linear in group.linears),
            salience=statistics.mean_abs,
            sensitivity=gram.diagonal() if factor is None else factor.residual_variance,
            rounding=self.rounding,
            group_size=self.options.group_size,
            shared=_shared_shape(fold, gram.shape[0]),
        )
        return search_scale(problem, gram=gram if factor is None else None)

    def _fold(self, fold: NormFold | RowFold, scale: Tensor) -> Tensor:
        """Divide what comes before by the scale; return the scale that was really folded."""
        if isinstance(fold, RowFold):
            name = f"{fold.linear}.weight"
            self.weights[name] = self.weights[name] / _per_row(scale, fold)[:, None]
            return scale
        name = f"{fold.norm}.weight"
        norm, scale = fold_into_norm(self.weights[name], scale, dtype=self.container.float_dtype)
        self.quantized[name] = norm.to(self.container.float_dtype)
        return scale

    def _round(
        self, linear: str, scale: Tensor, gram: Tensor, factor: GramFactor | None
    ) -> AffineWeight:
        options, weight = self.options, self.weights[f"{linear}.weight"]
        if factor is None:
            codes, scales, zero_points = quantize_clipped(
                weight,
                scale,
                gram=gram,
                rounding=self.rounding,
                group_size=options.group_size,
                ratios=self.ratios,
            )
        else:
            plan = CompensationPlan(
                self.rounding, options.group_size, self.ratios, options.refinements
            )
            codes, scales, zero_points = quantize_compensated(
                weight, scale, gram=gram, factor=factor, plan=plan
            )
        return AffineWeight(
            AffineScheme(options.bits, options.group_size, options.symmetric),
            codes,
            scales.to(self.container.scale_dtype),
            zero_points if self.rounding.biased else zero_points.to(torch.uint8),
        )


def _gram_of(statistics: Statistics, name: str) -> Tensor:
    if statistics.gram is None:
        raise UnsupportedError(f"{name} has no Gram matrix: AWQ needs calibrated statistics.")
    return statistics.gram


def _shared_shape(fold: NormFold | RowFold, channels: int) -> tuple[int, int, int] | None:
    """(kv_heads, repeats, head_dim) where one producing row feeds several inputs."""
    if isinstance(fold, NormFold) or fold.repeats == 1:
        return None
    return (channels // (fold.repeats * fold.head_dim), fold.repeats, fold.head_dim)


def _per_row(scale: Tensor, fold: RowFold) -> Tensor:
    """The scale of each producing row: (rows,) from (rows · repeats,)."""
    if fold.repeats == 1:
        return scale
    return scale.reshape(-1, fold.repeats, fold.head_dim)[:, 0].reshape(-1)
