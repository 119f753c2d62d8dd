"""The importance of each input column: from a file of llama.cpp's, or from this run's calibration.

Both give the same numbers: Σx² and its count are float32, as in an importance matrix.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gemquant.core.protocols import Block
from gemquant.core.recipe import Recipe
from gemquant.formats.gguf.imatrix import ImportanceEntry, ImportanceMatrix, importance_for
from gemquant.formats.gguf.names import experts_of, gguf_shapes

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST_BYTES = 127
"""Of a text that llama-quantize records: its field holds 128 with the final zero."""


class ImportanceSource(Protocol):
    """Where the importance of columns comes from."""

    @property
    def key(self) -> str:
        """Two sources with one key give the same importances."""

    @property
    def needs(self) -> frozenset[str]:
        """Statistics to gather."""

    @property
    def covered(self) -> Collection[str]:
        """GGUF names of the weights that have importances."""

    @property
    def notes(self) -> Sequence[str]:
        """Warnings for the user."""

    def importance(self, block: Block, linear: str) -> Tensor | None:
        """Importance (columns,) float32 of a linear by its short name; None where all are equal."""

    def facts(self, recipe: Recipe) -> Mapping[str, str | int]:
        """The metadata keys ``quantize.imatrix.*`` that llama-quantize writes."""


@dataclass(frozen=True, eq=False)
class FromFile:
    """An importance matrix in a file."""

    path: Path
    matrix: ImportanceMatrix
    weights: Mapping[str, Tensor]
    notes: Sequence[str]
    config: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The file."""
        return f"file {self.path.resolve()}"

    @property
    def needs(self) -> frozenset[str]:
        """None."""
        return frozenset()

    @property
    def covered(self) -> Collection[str]:
        """The entries that the model has a tensor for."""
        return self.weights.keys()

    def importance(self, block: Block, linear: str) -> Tensor | None:
        """The file's entry, if it has one; of an expert, its part of the layer's."""
        tensor, expert = self._places[f"{block.prefix}{linear}.weight"]
        weights, columns = self.weights.get(tensor), block.shape(f"{linear}.weight")[1]
        return None if weights is None else weights[expert * columns :][:columns]

    @cached_property
    def _places(self) -> Mapping[str, tuple[str, int]]:
        return experts_of(self.config)

    def facts(self, recipe: Recipe) -> Mapping[str, str | int]:  # noqa: ARG002 (protocol)
        """Name of the file, the text that it was computed on, its size.

        llama-quantize records the path as it was typed; this records the bare name.
        """
        keys: dict[str, str | int] = {"quantize.imatrix.file": _shortened(self.path.name)}
        if self.matrix.datasets:
            keys["quantize.imatrix.dataset"] = _shortened(self.matrix.datasets[0])
        keys["quantize.imatrix.entries_count"] = len(self.matrix.entries)
        if self.matrix.chunks:
            keys["quantize.imatrix.chunks_count"] = self.matrix.chunks
        return keys


@dataclass(frozen=True)
class FromCalibration:
    """The importance matrix of this run's calibration text."""

    config: Mapping[str, Any]

    @property
    def key(self) -> str:
        """A constant: a run has one calibration text."""
        return "calibration"

    @property
    def needs(self) -> frozenset[str]:
        """Mean squares."""
        return frozenset({"moments"})

    @property
    def covered(self) -> Collection[str]:
        """Every linear of every layer."""
        shapes = gguf_shapes(self.config)
        return [n for n, shape in shapes.items() if len(shape) > 1 and n.startswith("blk.")]

    @property
    def notes(self) -> Sequence[str]:
        """None."""
        return ()

    def importance(self, block: Block, linear: str) -> Tensor | None:
        """Σx² by the number of tokens, for a decoder layer's linears: the head has no entry."""
        if not block.prefix:
            return None
        return ImportanceEntry.of(block.statistics[linear]).weights

    def facts(self, recipe: Recipe) -> Mapping[str, str | int]:
        """The text and its size; there is no file."""
        text = recipe.calib if recipe.calib.startswith("hf:") else Path(recipe.calib).name
        return {
            "quantize.imatrix.dataset": _shortened(text),
            "quantize.imatrix.entries_count": len(self.covered),
            "quantize.imatrix.chunks_count": recipe.samples,
        }


def _shortened(text: str) -> str:
    """The first bytes of a text, without half a character at the end.

    Source: llama.cpp ``tools/quantize/quantize.cpp``, which copies them into ``val_str``.
    """
    return text.encode()[:_LONGEST_BYTES].decode(errors="ignore")


def importance_from_file(path: Path, config: Mapping[str, Any]) -> FromFile:
    """Read an importance matrix of either form and match it to a model.

    CheckpointError if it cannot be read, UsageError if it is another model's.
    """
    from gemquant.formats.gguf.imatrix import read_imatrix

    matrix = read_imatrix(path)
    importance = importance_for(matrix, gguf_shapes(config))
    return FromFile(path, matrix, importance.weights, importance.notes, config)
