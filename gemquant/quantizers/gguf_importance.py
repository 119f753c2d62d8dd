"""How much the error of each input column counts: by a file of llama.cpp's, or by this calibration.

Both give the same numbers: Σx² and its count are kept in float32, as an importance matrix has them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gemquant.core.protocols import Block
from gemquant.core.recipe import Recipe
from gemquant.formats.gguf.importance import ImportanceEntry, ImportanceMatrix, importance_for
from gemquant.formats.gguf.names import to_gguf
from gemquant.formats.gguf.types import gguf_shapes

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST = 127
"""Bytes of a text that llama.cpp's quantize records."""


class Weighting(Protocol):
    """Where the importance of columns comes from."""

    @property
    def key(self) -> str:
        """Two weightings of one key give the same importances."""

    @property
    def needs(self) -> frozenset[str]:
        """Statistics to gather."""

    @property
    def covered(self) -> Collection[str]:
        """GGUF names of the weights that have importances."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know of it."""

    def importance(self, block: Block, linear: str) -> Tensor | None:
        """(columns,) float32 of a linear by its short module name; None where all count alike."""

    def facts(self, recipe: Recipe) -> Mapping[str, str | int]:
        """What llama.cpp's quantize records of it."""


@dataclass(frozen=True, eq=False)
class OfFile:
    """An importance matrix that somebody computed before."""

    path: Path
    matrix: ImportanceMatrix
    weights: Mapping[str, Tensor]
    notes: Sequence[str]
    generation: str

    @property
    def key(self) -> str:
        """The file."""
        return f"file {self.path.resolve()}"

    @property
    def needs(self) -> frozenset[str]:
        """Nothing: it is all in the file."""
        return frozenset()

    @property
    def covered(self) -> Collection[str]:
        """The entries that the model has a tensor for."""
        return self.weights.keys()

    def importance(self, block: Block, linear: str) -> Tensor | None:
        """The file's entry, if it has one."""
        return self.weights.get(to_gguf(f"{block.prefix}{linear}.weight", self.generation))

    def facts(self, recipe: Recipe) -> Mapping[str, str | int]:  # noqa: ARG002 (protocol)
        """Name of the file, what it was computed on, how much it holds."""
        told: dict[str, str | int] = {"quantize.imatrix.file": self.path.name[:_LONGEST]}
        if self.matrix.datasets:
            told["quantize.imatrix.dataset"] = self.matrix.datasets[0][:_LONGEST]
        told["quantize.imatrix.entries_count"] = len(self.matrix.entries)
        if self.matrix.chunks:
            told["quantize.imatrix.chunks_count"] = self.matrix.chunks
        return told


@dataclass(frozen=True)
class OfCalibration:
    """The importance matrix of the calibration text, as it is gathered."""

    config: Mapping[str, Any]

    @property
    def key(self) -> str:
        """There is one calibration in a pass."""
        return "calibration"

    @property
    def needs(self) -> frozenset[str]:
        """Mean squares."""
        return frozenset({"moments"})

    @property
    def covered(self) -> Collection[str]:
        """Every linear of every layer."""
        shapes = gguf_shapes(self.config)
        return [n for n, shape in shapes.items() if len(shape) == 2 and n.startswith("blk.")]

    @property
    def notes(self) -> Sequence[str]:
        """Nothing."""
        return ()

    def importance(self, block: Block, linear: str) -> Tensor | None:
        """Σx² by the number of tokens, for a decoder layer's linears: the head has no entry."""
        if not block.prefix:
            return None
        return ImportanceEntry.of(block.statistics[linear]).weights

    def facts(self, recipe: Recipe) -> Mapping[str, str | int]:
        """The text, and how much of it; there is no file."""
        text = recipe.calib if recipe.calib.startswith("hf:") else Path(recipe.calib).name
        return {
            "quantize.imatrix.dataset": text[:_LONGEST],
            "quantize.imatrix.entries_count": len(self.covered),
            "quantize.imatrix.chunks_count": recipe.samples,
        }


def of_file(path: Path, config: Mapping[str, Any]) -> OfFile:
    """Read an importance matrix of either form and match it to a model.

    CheckpointError if it cannot be read, UsageError if it is another model's.
    """
    from gemquant.formats.gguf.imatrix import read_imatrix

    matrix = read_imatrix(path)
    found = importance_for(matrix, gguf_shapes(config))
    return OfFile(path, matrix, found.weights, found.notes, config["model_type"])
