"""SmoothQuant: fold outliers of activations into weights; nothing is rounded to fewer bits.

For a converter that rounds weights and activations to 8 bits: the model that it reads computes the
same function and loses less of it. Scales fold only where that is exact: into the norms before
q, k, v and before gate, up; into the rows of v before o, where heads that share a key-value head
share scales, but not in Gemma 4, which norms values; into the rows of up before down, since
gelu(gate) · up is linear in up.

Source: Xiao et al., 2022, https://arxiv.org/abs/2211.10438.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gemquant.core.protocols import Block, Container, Quantizer
from gemquant.errors import GemquantError, UnsupportedError
from gemquant.models.structure import InputGroup
from gemquant.numerics.smoothquant import SmoothingProblem, SmoothingScale, search_smoothing
from gemquant.quantizers.awq import fold_scale, shared_inputs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SmoothQuant(Quantizer):
    """Floating-point weights whose inputs have fewer outliers.

    group_size: input channels that will share a weight's scale, −1 for all. report: called with the
    layer's prefix, each input group that can be smoothed, and its scale.
    """

    name: ClassVar[str] = "smoothquant"
    needs: ClassVar[frozenset[str]] = frozenset({"moments", "sample"})

    group_size: int
    report: Callable[[str, InputGroup, SmoothingScale], None]

    def scheme_for(self, name: str, shape: tuple[int, int]) -> None:
        """Nothing is quantized."""

    def problems(self, linears: Mapping[str, tuple[int, int]]) -> list[GemquantError]:  # noqa: ARG002
        """None."""
        return []

    def quantize(self, block: Block, container: Container) -> Mapping[str, Tensor]:
        """Search a layer's scales and fold them; tensors that do not change are left out."""
        weights = dict(block.weights)
        changed: dict[str, Tensor] = {}
        for group in block.structure.groups:
            if group.fold is None:
                continue
            smoothing = search_smoothing(self._problem(block, group))
            self.report(block.prefix, group, smoothing)
            if not smoothing.by_activations:
                continue
            stored = container.float_dtype
            name, folded, scale = fold_scale(group.fold, smoothing.scale, weights, dtype=stored)
            changed[name] = weights[name] = folded
            for linear in group.linears:
                name = f"{linear}.weight"
                changed[name] = weights[name] = weights[name] * scale
        return changed

    def _problem(self, block: Block, group: InputGroup) -> SmoothingProblem:
        statistics = block.statistics.get(group.reader)
        if statistics is None or statistics.sample is None:
            raise UnsupportedError(
                f"{block.prefix}{group.reader} has no sample of its inputs: SmoothQuant needs "
                "calibrated statistics."
            )
        return SmoothingProblem(
            weights=tuple(block.weights[f"{linear}.weight"] for linear in group.linears),
            inputs=statistics.sample.float(),
            max_abs=statistics.max_abs,
            group_size=self.group_size,
            shared=shared_inputs(group.fold, statistics.max_abs.shape[0]),
        )
