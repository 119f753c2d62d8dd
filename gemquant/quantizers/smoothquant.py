"""Smoothing: outliers of activations folded into weights; nothing is rounded to fewer bits.

For a converter that rounds weights and activations to 8 bits plainly: what it is given computes the
same function and loses less of it. Only what folds exactly is used: the (1 + w) norms before q, k,
v and before gate, up; the rows of v before o, where heads that share a key-value head share scales;
the rows of up before down, since gelu(gate) · up is linear in up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gemquant.core.protocols import Block, Container
from gemquant.errors import GemquantError, UnsupportedError
from gemquant.models.structure import InputGroup, RowFold
from gemquant.numerics.norms import fold_into_norm
from gemquant.numerics.smoothquant import Smoothed, SmoothingProblem, search_smoothing
from gemquant.quantizers.folding import per_row, shared_shape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Smoothing:
    """Weights in floating point whose inputs have fewer outliers.

    group_size: input channels that will share a weight's scale, −1 for all. found: told what was
    found, by the layer's prefix and group.
    """

    name: ClassVar[str] = "smoothing"
    needs: ClassVar[frozenset[str]] = frozenset({"moments", "sample"})

    group_size: int
    found: Callable[[str, InputGroup, Smoothed], None]

    def scheme_for(self, name: str, shape: tuple[int, int]) -> None:
        """No codes anywhere."""

    def problems(self, linears: Mapping[str, tuple[int, int]]) -> list[GemquantError]:  # noqa: ARG002
        """Nothing can go wrong."""
        return []

    def quantize(self, block: Block, container: Container) -> Mapping[str, Tensor]:
        """Search a layer's scales and fold them; what folding does not touch is left out."""
        changed: dict[str, Tensor] = {}

        def weight(name: str) -> Tensor:
            return changed.get(name, block.weights[name])

        for group in block.structure.groups:
            fold = group.fold
            assert fold is not None
            smoothed = search_smoothing(self._problem(block, group))
            self.found(block.prefix, group, smoothed)
            if not smoothed.by_activations:
                continue
            scale = smoothed.scale
            if isinstance(fold, RowFold):
                name = f"{fold.linear}.weight"
                changed[name] = weight(name) / per_row(scale, fold)[:, None]
            else:
                name = f"{fold.norm}.weight"
                # What the norm as it is stored divides by, so that norm and linears agree.
                changed[name], scale = fold_into_norm(
                    weight(name), scale, dtype=container.float_dtype
                )
            for linear in group.linears:
                name = f"{linear}.weight"
                changed[name] = weight(name) * scale
        return changed

    def _problem(self, block: Block, group: InputGroup) -> SmoothingProblem:
        statistics = block.statistics.get(group.linears[0])
        if statistics is None or statistics.sample is None:
            raise UnsupportedError(
                f"{block.prefix}{group.linears[0]} has no sample of its inputs: smoothing needs "
                "calibrated statistics."
            )
        return SmoothingProblem(
            weights=tuple(block.weights[f"{linear}.weight"] for linear in group.linears),
            inputs=statistics.sample.float(),
            max_abs=statistics.max_abs,
            group_size=self.group_size,
            shared=shared_shape(group.fold, statistics.max_abs.shape[0]),
        )
