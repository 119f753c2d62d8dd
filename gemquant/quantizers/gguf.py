"""GGUF files as llama.cpp's quantize makes them: every matrix in the format chosen for it."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from gemquant.core.options import option
from gemquant.core.protocols import Block, Container, GridShare, GridUse, Quantizer
from gemquant.core.recipe import Recipe
from gemquant.core.weights import BlockScheme, BlockWeight
from gemquant.errors import (
    GemquantError,
    ProblemCollector,
    UsageError,
    refuse,
)
from gemquant.formats.gguf.mixtures import FILE_TYPES, file_type, tensor_type
from gemquant.formats.gguf.names import from_gguf, places
from gemquant.formats.gguf.types import (
    TypePlan,
    TypeRequest,
    choose_types,
    fallbacks,
    importance_problems,
    parse_override,
)
from gemquant.models.architecture import tensor_shapes
from gemquant.models.mmproj import AUTO, CHOICES
from gemquant.models.structure import DENSE_MODULES
from gemquant.numerics.ggml_types import TYPES, GgmlType
from gemquant.quantizers import qat as grids

if TYPE_CHECKING:
    from torch import Tensor

    from gemquant.core.artifact import Fallback
    from gemquant.quantizers.gguf_importance import ImportanceSource

T = TypeVar("T")

_GRID, _ON_GRID = "Q4_0", "--type Q4_0"
VALUES_AT_ONCE = 1 << 18
"""Weights that a thread reads and quantizes at a time: 1 MB in float32 stays in its cache."""


@dataclass(frozen=True)
class _Choice:
    """What was chosen for a model.

    types: format of every matrix by Gemma's full name; a tied head has none.
    weighting: how much each column's error counts; None for all alike.
    asked: matrices whose format an option names.
    """

    types: Mapping[str, GgmlType] = field(default_factory=dict)
    fallbacks: Sequence[Fallback] = ()
    notes: Sequence[str] = ()
    weighting: ImportanceSource | None = None
    asked: frozenset[str] = frozenset()


@dataclass(frozen=True)
class KQuant(Quantizer):
    """GGUF for llama.cpp: K-quants, IQ4, Q8_0 and others, several types in one pass.

    Formats and bytes are those of llama.cpp's own quantize; no intermediate file is written. As
    there, all errors count alike unless an importance matrix weighs them: --imatrix FILE, or
    --importance to compute one. Each of several types gets a folder inside --output.
    """

    name: ClassVar[str] = "gguf"
    target: ClassVar[str] = "cpu"
    examples: ClassVar[str] = """\b
Examples:
  gemquant gguf sample:gemma-3-270m
  gemquant gguf google/gemma-3-1b-it --type Q4_K_M --type Q6_K -o gemma-3-1b-it-gguf
  gemquant gguf ./my-gemma --lora ./my-adapter --importance --calib my-text.jsonl
  gemquant gguf ./my-gemma --type IQ4_XS --imatrix my-gemma.imatrix.gguf --no-eval
  gemquant gguf gemma-3-1b-it-BF16.gguf --type Q5_K_M --tensor-type 'blk.*.attn_v=Q6_K'
  gemquant gguf google/gemma-2-9b --dry-run
"""

    type: str = option(
        "Q4_K_M", f"File to make; repeat it for several: {', '.join(FILE_TYPES)}.", each=True
    )
    tensor_type: tuple[str, ...] = option(
        (),
        "PATTERN=TYPE: a format for tensors whose name matches, as 'blk.*.attn_v=Q6_K'.",
        repeated=True,
    )
    embedding_type: str = option("", "Format of the embedding, which is usually the head too.")
    output_type: str = option("", "Format of the head.")
    per_layer_embedding_type: str = option(
        "",
        "Format of the embedding that feeds every layer, where there is one. Q8_0, or more where "
        "the type has more; llama.cpp's quantize takes Q6_K.",
    )
    pure: bool = option(False, "The same format for every matrix, no mixture.")
    imatrix: str = option("", "Importance matrix to weigh errors by: a FILE of llama.cpp's.")
    importance: bool = option(
        False, "Weigh errors by an importance matrix, computed from the calibration text."
    )
    split_max_size: str = option("", "Largest file to split into, such as 2GB.", size=True)
    dense_modules: bool = option(
        True,
        "Store the Dense modules of an embedding model in the file too, as llama.cpp reads them.",
    )
    qat: str = option("auto", f"{grids.HELP} Only Q4_0 holds them.", choices=grids.CHOICES)

    mmproj: str = option(
        AUTO,
        "Type of the file of vision and audio towers that goes with a multimodal model's text: "
        "F16 by itself, and none for no such file.",
        choices=CHOICES,
    )

    choice: _Choice = field(default_factory=_Choice)
    found: GridUse = field(default_factory=GridUse)

    @property
    def label(self) -> str:
        """The file type."""
        return self.type

    @property
    def notes(self) -> Sequence[str]:
        """Of the importance matrix, overrides without effect, and what is carried over."""
        return [*self.choice.notes, *grids.use_notes(self.found, self._wants, _ON_GRID)]

    @property
    def fallbacks(self) -> Sequence[Fallback]:
        """Matrices whose rows are not whole blocks of the format that the mixture gives them."""
        return self.choice.fallbacks

    @property
    def needs(self) -> frozenset[str]:
        """Mean squares of activations, for an importance matrix of the calibration text."""
        return frozenset({"moments"}) if self.importance else frozenset()

    def for_model(self, config: Mapping[str, Any]) -> Self:
        """Choose the format of every matrix by llama.cpp's rules; raises every wrong option."""
        request = self._request()
        if DENSE_MODULES in config and not self.dense_modules:
            config = {**config, DENSE_MODULES: {}}
        weighting = self._weighting(config)
        plan = choose_types(config, request, has_importance=weighting is not None)
        refuse(importance_problems(plan, weighting.covered if weighting else None))
        types, shapes = {t.name: t.type for t in plan.tensors}, tensor_shapes(config)
        where = {name: tensor for name, (tensor, _) in places(config).items()}
        return dataclasses.replace(
            self,
            type=request.file_type.name,
            choice=_Choice(
                types={n: types[tensor] for n, tensor in where.items() if len(shapes[n]) == 2},
                fallbacks=_fallbacks(plan, config["model_type"]),
                notes=[*(weighting.notes if weighting else ()), *plan.without_effect],
                weighting=weighting,
                asked=frozenset(n for n, tensor in where.items() if tensor in plan.asked),
            ),
        )

    def with_grids(self, survey: grids.Survey) -> Self:
        """Give matrices on a grid Q4_0 in a file of Q4_0, unless an option names their format."""
        use = grids.grid_use(
            self.qat, survey, holds=self._holds, wanted=self._wants, instead=_ON_GRID
        )
        types = {n: TYPES[_GRID] if n in use.carried else t for n, t in self.choice.types.items()}
        choice = dataclasses.replace(
            self.choice,
            types=types,
            fallbacks=[
                each for each in self.choice.fallbacks if f"{each.module}.weight" not in use.carried
            ],
        )
        return dataclasses.replace(self, choice=choice, found=use)

    @property
    def grid_use(self) -> GridUse:
        """What lies on a 4-bit grid, and what of it is carried over."""
        return self.found

    def _wants(self, name: str, share: GridShare) -> bool:  # noqa: ARG002
        kind = self.choice.types.get(name)
        return kind is not None and not kind.is_float

    def _holds(self, name: str, share: GridShare) -> bool:
        kind = self.choice.types.get(name)
        free = self.type == _GRID and name not in self.choice.asked
        return kind is not None and (kind.name == _GRID or (free and self._wants(name, share)))

    def scheme_for(self, name: str, shape: tuple[int, int]) -> BlockScheme | None:  # noqa: ARG002
        """The format chosen for the model; None for a head that is the embedding."""
        return BlockScheme(self.choice.types[name]) if name in self.choice.types else None

    def problems(self, linears: Mapping[str, tuple[int, int]]) -> list[GemquantError]:  # noqa: ARG002
        """None: every format can be made everywhere."""
        return []

    def facts(self, recipe: Recipe) -> Mapping[str, str | int]:
        """Where the importance of columns comes from, under llama.cpp's keys."""
        return self.choice.weighting.facts(recipe) if self.choice.weighting else {}

    def quantize(self, block: Block, container: Container) -> Mapping[str, BlockWeight]:  # noqa: ARG002
        """Quantize every matrix of the block; once where another file has the same bytes."""
        quantized = {}
        for linear in block.structure.linears:
            name = f"{linear}.weight"
            kind = self.choice.types.get(block.prefix + name)
            if kind is None:
                continue
            weighting = None if kind.is_float else self.choice.weighting
            share = self.found.carried.get(block.prefix + name)
            key: Hashable = ("ggml", name, kind.name, weighting and weighting.key, share is None)
            if key not in block.shared:
                importance = weighting.importance(block, linear) if weighting else None
                block.shared[key] = quantized_blocks(
                    block, name, kind, importance=importance, share=share
                )
            quantized[name] = block.shared[key]
        return quantized

    def _request(self) -> TypeRequest:
        """The options as llama.cpp's rules take them."""
        problems = ProblemCollector()
        kind = problems.attempt(partial(_parse, file_type, "--type", self.type, FILE_TYPES))
        overrides = [problems.attempt(partial(parse_override, text)) for text in self.tensor_type]
        embedding, output, table = (
            problems.attempt(partial(_parse, tensor_type, flag, name, TYPES) if name else _none)
            for flag, name in (
                ("--embedding-type", self.embedding_type),
                ("--output-type", self.output_type),
                ("--per-layer-embedding-type", self.per_layer_embedding_type),
            )
        )
        if self.imatrix and self.importance:
            problems.append(
                UsageError(
                    "--imatrix and --importance: one importance matrix at a time.",
                    hint="Leave --importance out to use the file.",
                )
            )
        problems.refuse()
        return TypeRequest(
            kind.value,
            overrides=tuple(override.value for override in overrides),
            embedding_type=embedding.value,
            output_type=output.value,
            table_type=table.value,
            pure=self.pure,
        )

    def _weighting(self, config: Mapping[str, Any]) -> ImportanceSource | None:
        from gemquant.quantizers import gguf_importance

        if self.imatrix:
            return gguf_importance.importance_from_file(Path(self.imatrix), config)
        return gguf_importance.FromCalibration(config) if self.importance else None


def _fallbacks(plan: TypePlan, generation: str) -> list[Fallback]:
    """Matrices whose rows are not whole blocks of the format that the mixture gives them."""
    from gemquant.core.artifact import Fallback

    return [
        Fallback(
            module=(from_gguf(name, generation) or name).removesuffix(".weight"),
            stored=f"{group.type.name}, {group.type.bits:g} bits per weight",
            reason=f"{group.reason} ({group.preferred.bits:g} bits per weight)",
        )
        for group in fallbacks(plan.tensors)
        for name in group.names
    ]


def _none() -> None:
    return None


def _parse(parse: Callable[[str], T], flag: str, name: str, known: Collection[str]) -> T:
    """Parse the name of a type; UsageError with the flag and similar names if it is unknown."""
    try:
        return parse(name)
    except UsageError as error:
        close = difflib.get_close_matches(name.upper(), known, n=3, cutoff=0.5)
        hint = error.hint or (f"Did you mean {' or '.join(close)}?" if close else None)
        raise UsageError(f"{flag} {name}: {error.message}", hint=hint) from None


def quantized_blocks(
    block: Block,
    name: str,
    kind: GgmlType,
    *,
    importance: Tensor | None,
    share: GridShare | None = None,
) -> BlockWeight:
    """Read a matrix in small runs of rows and quantize them, on as many threads as torch has.

    What the checkpoint has in this format already is copied; it is read only to be checked.
    share: of a matrix whose codes are carried over.
    """
    import torch

    from gemquant.numerics.ggml import quantize_rows
    from gemquant.numerics.native import over_rows
    from gemquant.numerics.precision import narrowed
    from gemquant.quantizers.qat import carried_blocks

    rows, columns = block.shape(name)
    stored = block.source.blocks(name, kind.name, 0, rows) if block.source else None
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
            rounded = partial(quantize_rows, weight, kind, importance=importance)
            out[first:last] = rounded() if share is None else carried_blocks(weight, share, rounded)

    over_rows(run, rows, threads=torch.get_num_threads())
    return BlockWeight(BlockScheme(kind), out)
