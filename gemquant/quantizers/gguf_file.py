"""One GGUF file: every matrix in the format that was chosen for it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gemquant.core.family import Substitution
from gemquant.core.protocols import Block, Container
from gemquant.core.recipe import Recipe
from gemquant.core.weights import BlockScheme, BlockWeight
from gemquant.errors import GemquantError, RuntimeMissingError
from gemquant.formats.gguf.names import to_gguf
from gemquant.formats.gguf.types import TypePlan, fallbacks
from gemquant.models.architecture import tensor_shapes
from gemquant.numerics.ggml.types import GgmlType
from gemquant.quantizers.gguf_importance import Weighting

if TYPE_CHECKING:
    from torch import Tensor

VALUES_AT_ONCE = 1 << 18
"""Weights that a thread reads and quantizes at a time: 1 MB in float32 stays in its cache."""


@dataclass(frozen=True)
class KQuantFile:
    """Satisfies ``protocols.Quantizer`` and ``protocols.Telling``.

    types: format of every matrix by Gemma's full name; a tied head has none.
    substitutions: matrices whose rows are not whole blocks of the format that was wanted.
    weighting: how much each column's error counts; None for all alike.
    """

    name: ClassVar[str] = "gguf"

    types: Mapping[str, GgmlType]
    substitutions: Sequence[Substitution] = ()
    weighting: Weighting | None = None

    @classmethod
    def of(
        cls, plan: TypePlan, config: Mapping[str, Any], weighting: Weighting | None
    ) -> KQuantFile:
        """Carry out a choice of types."""
        ours = {to_gguf(name, config["model_type"]): name for name in tensor_shapes(config)}
        types = {ours[t.name]: t.type for t in plan.tensors if len(t.shape) == 2}
        substitutions = [
            Substitution(
                tuple(ours[name] for name in each.names),
                f"{each.type.name}, {each.type.bits:g} bits per weight",
                f"{each.reason} ({each.wanted.bits:g} bits per weight)",
            )
            for each in fallbacks(plan.tensors)
        ]
        return cls(types, tuple(substitutions), weighting)

    @property
    def needs(self) -> frozenset[str]:
        """What the importance of columns is worked out from, if anything."""
        return self.weighting.needs if self.weighting else frozenset()

    def scheme_for(self, name: str, shape: tuple[int, int]) -> BlockScheme | None:  # noqa: ARG002
        """The format that llama.cpp's rules give; None for a head that is the embedding."""
        return BlockScheme(self.types[name]) if name in self.types else None

    def problems(self, linears: Mapping[str, tuple[int, int]]) -> list[GemquantError]:  # noqa: ARG002
        """Formats that nothing on this machine quantizes to."""
        from gemquant.numerics.ggml.kernels import kernel_of

        missing = {k.name for k in self.types.values() if not k.is_float and kernel_of(k) is None}
        if not missing:
            return []
        return [
            RuntimeMissingError(
                f"{', '.join(sorted(missing))}: neither a kernel of gemquant's nor ggml is here.",
                hint="pip install 'gemquant[gguf]' brings ggml; `gemquant doctor` says more.",
            )
        ]

    def facts(self, recipe: Recipe) -> Mapping[str, str | int]:
        """Where the importance of columns comes from, under llama.cpp's keys."""
        return self.weighting.facts(recipe) if self.weighting else {}

    def quantize(self, block: Block, container: Container) -> Mapping[str, BlockWeight]:  # noqa: ARG002
        """Quantize every matrix of the block; once where another file wants the same bytes."""
        made = {}
        for linear in block.structure.linears:
            name = f"{linear}.weight"
            kind = self.types[block.prefix + name]
            weighting = None if kind.is_float else self.weighting
            key: Hashable = ("ggml", name, kind.name, weighting and weighting.key)
            if key not in block.shared:
                importance = weighting.importance(block, linear) if weighting else None
                block.shared[key] = quantized_blocks(block, name, kind, importance=importance)
            made[name] = block.shared[key]
        return made


def quantized_blocks(
    block: Block, name: str, kind: GgmlType, *, importance: Tensor | None
) -> BlockWeight:
    """Read a matrix in small runs of rows and quantize them, on as many threads as torch has.

    What the source has in this format already is passed on as it is, and read to be checked alone.
    """
    import torch

    from gemquant.numerics.ggml.quantize import quantize_rows
    from gemquant.numerics.native import over_rows
    from gemquant.numerics.precision import narrowed

    rows, columns = block.shape(name)
    stored = block.packed.blocks(name, kind.name, 0, rows) if block.packed else None
    out = (
        torch.empty(rows, kind.row_bytes(columns), dtype=torch.uint8) if stored is None else stored
    )
    step = max(1, VALUES_AT_ONCE // columns)

    def run(start: int, stop: int) -> None:
        for first in range(start, stop, step):
            last = min(first + step, stop)
            weight = block.rows(name, first, last).cpu()
            if stored is not None:
                continue
            if kind.name == "F16":
                narrowed(block.prefix + name, weight, torch.float16)
            out[first:last] = quantize_rows(weight, kind, importance=importance)

    over_rows(run, rows, threads=torch.get_num_threads())
    return BlockWeight(BlockScheme(kind), (rows, columns), out)
