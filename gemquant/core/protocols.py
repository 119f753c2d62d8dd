"""The plug-in interface: what the author of a quantizer or an exporter implements.

A quantizer decides numbers; an exporter stores them; the pipeline carries blocks from one to the
other. Shapes are written (rows, columns); a linear layer's weight is (out, in).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from gemquant.core.scheme import PER_CHANNEL as PER_CHANNEL  # noqa: PLC0414
from gemquant.core.scheme import Scheme
from gemquant.core.weights import AffineScheme as AffineScheme  # noqa: PLC0414 - the contract
from gemquant.core.weights import AffineWeight as AffineWeight  # noqa: PLC0414 - part of it too
from gemquant.core.weights import QuantizedWeight as QuantizedWeight  # noqa: PLC0414
from gemquant.errors import GemquantError

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from gemquant.core.artifact import Fallback, TowerRecord
    from gemquant.core.recipe import Recipe
    from gemquant.formats.source_model import Origin
    from gemquant.models.structure import LayerStructure

# ---------------------------------------------------------------- progress


class Progress(Protocol):
    """What long work reports to: tasks counted in steps, and remarks."""

    def start(self, task: str, total: int) -> None:
        """A task of ``total`` steps begins; 0: of unknown length, until another one begins."""

    def advance(self, task: str, amount: int = 1) -> None:
        """Some steps of a task are done."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""


class Silence:
    """Progress that says nothing."""

    def start(self, task: str, total: int) -> None:
        """Say nothing."""

    def advance(self, task: str, amount: int = 1) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


# ---------------------------------------------------------------- weights, before and after


class Weights(Protocol):
    """A model's tensors under Gemma's own names, whatever file they come from.

    A checkpoint and a finished artifact both satisfy it, so both can be streamed and compared.
    """

    @property
    def config(self) -> Mapping[str, Any]:
        """The text model's configuration, as in the ``config.json`` of a text-only Gemma."""

    def names(self) -> Sequence[str]:
        """Names of all tensors: ``model.layers.0.self_attn.q_proj.weight`` and so on."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from headers alone."""

    def stored_dtype(self, name: str) -> dtype:
        """The floating-point type that holds the tensor without loss (packed types: float32)."""

    def tensor(self, name: str, dtype: dtype | None = None) -> Tensor:
        """The tensor, decoded; in its stored type unless ``dtype`` is given."""

    def rows(self, name: str, start: int, stop: int, dtype: dtype | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` of a matrix, without decoding the others."""


@dataclass(frozen=True)
class RowChunks:
    """A matrix too large to hold, as consecutive runs of rows (an embedding table)."""

    shape: tuple[int, int]
    dtype: dtype
    chunks: Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class PlainSpec:
    """A tensor that will be stored as it is."""

    shape: tuple[int, ...]
    dtype: dtype


@dataclass(frozen=True)
class QuantizedSpec:
    """A matrix that will be stored as codes and what decodes them."""

    shape: tuple[int, int]
    scheme: Scheme


Layout = Mapping[str, "PlainSpec | QuantizedSpec"]
"""What will be written under each of Gemma's names: known from headers, before any work."""


# ---------------------------------------------------------------- what flows: blocks


@dataclass(frozen=True)
class Statistics:
    """What the unquantized activations at one linear's input say; n is the number of inputs.

    tokens: how many input vectors were seen.
    gram: Σ x xᵀ, (n, n) float32, or None if no quantizer asked for it.
    mean_abs, max_abs: per channel, (n,) float32. sum_squares: Σ x², (n,) float64.
    sample: some hundreds of the inputs themselves, evenly spaced, (tokens, n) float32, or None if
        no quantizer asked for them.
    """

    tokens: int
    sum_squares: Tensor
    mean_abs: Tensor
    max_abs: Tensor
    gram: Tensor | None = None
    sample: Tensor | None = None


class RowSource(Protocol):
    """Matrices that are read a few rows at a time, so that none is held in memory."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop``."""


class BlockSource(RowSource, Protocol):
    """The checkpoint's tensors of one block, by short name."""

    def blocks(self, name: str, kind: str, start: int, stop: int) -> Tensor | None:
        """Rows as stored, (rows, bytes) uint8, if the checkpoint has ggml's format ``kind``."""


FLOAT16_LIMIT = 65504.0
"""The largest float16."""


@dataclass(frozen=True)
class ActivationRange:
    """How large one layer's activations become: absolute values over all calibration tokens.

    residual: of the residual stream, the layer's own output. largest: of that and of every
    module's output and linear's input inside the layer. where: the module of the largest.
    """

    residual: float
    largest: float
    where: str

    @property
    def fits_float16(self) -> bool:
        """Whether float16 holds all of it."""
        return self.largest < FLOAT16_LIMIT


@dataclass(frozen=True)
class RoutedTokens:
    """How many calibration tokens reached each expert of a layer.

    least: an expert that fewer reached is quantized with its layer's statistics.
    """

    tokens: tuple[int, ...]
    least: int

    @property
    def few(self) -> tuple[int, ...]:
        """The experts that too few reached."""
        return tuple(n for n, tokens in enumerate(self.tokens) if tokens < self.least)


@dataclass(frozen=True)
class Block:
    """One decoder layer, with the statistics of its inputs; or some rows of embedding or head.

    prefix: ``model.layers.3.``; empty for the embedding and the head.
    weights: short name (``self_attn.q_proj.weight``) → float32 tensor.
    statistics: linear's short module name (``self_attn.q_proj``) → its input's statistics;
        linears that read the same input share one object. Those of all experts' input stand under
        ``InputGroup.reader`` too.
    activation_range: how large the layer's activations become; None without calibration.
    shared: results that another job may want of the same block; dropped with it.
    source: where each access to ``weights`` reads them, so that none stays in memory; ``rows``
        needs the least. None where they are in memory.
    """

    index: int
    prefix: str
    structure: LayerStructure
    weights: Mapping[str, Tensor]
    statistics: Mapping[str, Statistics]
    activation_range: ActivationRange | None = None
    shared: dict[Hashable, Any] = field(default_factory=dict)
    source: BlockSource | None = None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight by its short name."""
        if self.source is not None:
            return self.source.shape(name)
        return tuple(self.weights[name].shape)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of a weight by its short name, float32."""
        if self.source is not None:
            return self.source.rows(name, start, stop)
        return self.weights[name][start:stop]


@dataclass(frozen=True)
class GridShare:
    """How much of a matrix lies on a 4-bit grid, as found in some of its rows.

    shape: (out, in). groups: of 32 weights, those that tell; on_grid: of these, on a grid.
    dtype: the type that the weights were rounded to, as torch spells it. group_sizes: those in
    which the matrix lies on a grid; empty where it does not. scale_errors: type → the largest
    relative error of a scale that it stores; 0 where all weights are exact.
    """

    shape: tuple[int, int]
    groups: int
    on_grid: int
    dtype: str
    group_sizes: tuple[int, ...] = ()
    scale_errors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GridUse:
    """Matrices that were tested for a 4-bit grid, and those whose codes are carried over."""

    surveyed: Mapping[str, GridShare] = field(default_factory=dict)
    carried: Mapping[str, GridShare] = field(default_factory=dict)

    @property
    def on_grid(self) -> Mapping[str, GridShare]:
        """Matrices that lie on a grid."""
        return {name: share for name, share in self.surveyed.items() if share.group_sizes}

    @property
    def groups(self) -> tuple[int, int]:
        """Groups of all matrices that tell, and of these those on a grid."""
        shares = self.surveyed.values()
        return sum(each.groups for each in shares), sum(each.on_grid for each in shares)


@dataclass(frozen=True)
class Container:
    """The types a file format stores numbers in, which a quantizer must round to.

    scale_dtype: type of a quantized weight's scales.
    float_dtype: type of everything that stays floating point (norms, embeddings).
    biases: an affine weight is stored as scale · code + bias, the bias in the scale's type. Its
        zero points are then −bias / scale, unless the scheme is symmetric.
    self_contained: the weight files carry configuration and tokenizer too, so that no files of
        either are written.
    """

    scale_dtype: dtype
    float_dtype: dtype
    biases: bool = False
    self_contained: bool = False


# ---------------------------------------------------------------- plug-ins


class Quantizer(Protocol):
    """An algorithm that decides numbers. Subclass it as a frozen dataclass.

    Every field declared with ``gemquant.core.options.option`` becomes a flag, a recipe key and a
    fact in the manifest; the first line of the docstring is the help text. ``scheme_for``,
    ``problems`` and ``quantize`` are to be written; the rest has defaults.
    """

    name: ClassVar[str]

    @property
    def needs(self) -> frozenset[str]:
        """Statistics to gather: some of "moments", "gram", "sample"; empty for no calibration."""
        return frozenset()

    def for_model(self, config: Mapping[str, Any]) -> Quantizer:  # noqa: ARG002
        """Decide what depends on the whole model; called once, before all other methods.

        Raises what is wrong with options and model together.
        """
        return self

    def with_grids(self, survey: Callable[[], Mapping[str, GridShare]]) -> Quantizer:  # noqa: ARG002
        """Take over matrices that lie on a 4-bit grid; called once, after ``for_model``.

        survey: reads some rows of every matrix; full name → what was found.
        """
        return self

    @property
    def grid_use(self) -> GridUse:
        """What was found and is carried over; nothing where ``with_grids`` did not look."""
        return GridUse()

    def scheme_for(self, name: str, shape: tuple[int, int]) -> Scheme | None:
        """Scheme for a linear's weight by its full name, or None to leave it in floating point.

        ``model.embed_tokens.weight`` and ``lm_head.weight`` are asked about too, a head whether it
        is tied or not: answer None to leave them alone. A tied head without a scheme computes with
        the embedding as it is stored. Both are quantized in runs of rows, which ``quantize`` gets
        as blocks of one linear.
        """

    def problems(self, linears: Mapping[str, tuple[int, int]]) -> list[GemquantError]:
        """Everything that would go wrong, from options and shapes alone."""

    def quantize(
        self, block: Block, container: Container
    ) -> Mapping[str, Tensor | QuantizedWeight]:
        """Return every tensor of the block that changes, by short name; others are copied.

        The result depends on the options and the arguments alone: a resumed run continues after
        the last finished block and must write the same bytes.
        """

    @property
    def label(self) -> str:
        """What names the artifact's folder and files; empty to name them after the schemes."""
        return ""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know before the run."""
        return ()

    @property
    def fallbacks(self) -> Sequence[Fallback]:
        """Layers that are not stored as requested, for the manifest."""
        return ()

    def facts(self, recipe: Recipe) -> Mapping[str, str | int]:  # noqa: ARG002
        """What a container with room for it records, under that container's own keys."""
        return {}


@dataclass(frozen=True)
class ArtifactHeader:
    """All that an exporter needs before the first block.

    config: the text model's configuration. layout: what will be stored, in the order of writing.
    origin: for containers that hold more than tensors. label, facts: the quantizer's.
    towers: of a multimodal artifact, what passes through unchanged, by published names.
    """

    config: Mapping[str, Any]
    layout: Layout
    origin: Origin | None = None
    label: str = ""
    facts: Mapping[str, str | int] = field(default_factory=dict)
    towers: Mapping[str, PlainSpec] = field(default_factory=dict)


class Writer(Protocol):
    """Receives tensors in any order and writes them into the container."""

    def write(self, tensors: Mapping[str, Any]) -> None:
        """Store Tensor, QuantizedWeight, RowChunks or QuantizedRows by Gemma's full names."""

    def flush(self) -> None:
        """Make what has been stored durable; only ``resumable`` exporters are asked to."""

    def finish(self) -> Mapping[str, Any]:
        """Flush everything; return the runtime's configuration to be saved as config.json."""


class Exporter(Protocol):
    """Writes and reads back one container format. Knows no algorithm."""

    name: ClassVar[str]
    resumable: ClassVar[bool] = False
    """Whether ``create`` can continue the files of an interrupted run."""
    without_towers: ClassVar[str] = "its loaders read text models"
    """Why it holds no towers, where it does not."""
    holds_embeddings: ClassVar[bool] = False
    """Whether it holds an embedding model, which has no head."""

    @property
    def holds_towers(self) -> bool:
        """Whether it holds a multimodal model; its writer then gets the tensors of its towers."""
        return False

    def configured(self, options: Mapping[str, Any]) -> Exporter:  # noqa: ARG002
        """The exporter for a quantizer's options: the type to store, sizes of files."""
        return self

    def container(self, config: Mapping[str, Any]) -> Container:
        """Types that this format stores for this model."""

    def problems(self, header: ArtifactHeader) -> list[GemquantError]:
        """Every layer or option that the format cannot hold."""

    def file_sizes(self, header: ArtifactHeader) -> Mapping[str, int]:
        """Bytes of each weight file, from the layout alone."""

    def tower_records(self, header: ArtifactHeader) -> Sequence[TowerRecord]:
        """What the manifest says of the towers, which pass through unless a subclass differs."""
        from gemquant.core.artifact import tower_records

        return tower_records(header.towers)

    def create(
        self, folder: Path, header: ArtifactHeader, finished: Collection[str] | None = None
    ) -> AbstractContextManager[Writer]:
        """Open a writer in an existing scratch folder.

        finished: where the folder holds the files of an interrupted run, the tensors that are
        complete; all others come again. OutputError if the files are not those of this header.
        """

    def open(self, folder: Path) -> Weights:
        """Read a finished folder back; quantized weights decode as their runtime decodes them."""
