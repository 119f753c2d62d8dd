"""The importance matrix: how much each input column of each linear counts, as llama.cpp has it.

A column counts by the mean square of its activations: Σx² over calibration tokens, by their number.

Source: llama.cpp ``tools/quantize/quantize.cpp`` (``load_imatrix``), ``src/llama-quant.cpp``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gemquant.core.protocols import Statistics
from gemquant.errors import UsageError

_EMBEDDING = "token_embd.weight"
_LISTED = 4


@dataclass(frozen=True)
class ImportanceEntry:
    """One linear. sums: (columns,) float32, Σx²; count: tokens, or calls in the older format."""

    sums: Tensor
    count: int

    @classmethod
    def of(cls, statistics: Statistics) -> ImportanceEntry:
        """What the statistics of a linear's input come to."""
        return cls(statistics.sum_squares.float().cpu(), statistics.tokens)

    @property
    def weights(self) -> Tensor:
        """(columns,) float32: Σx² / count, or 1 where nothing was counted."""
        if self.count == 0:
            return torch.ones_like(self.sums)
        return self.sums / torch.tensor(self.count, dtype=torch.float32)


@dataclass(frozen=True)
class ImportanceMatrix:
    """Entries by GGUF name, and what they were computed from.

    chunks of chunk_tokens each; chunk_tokens is 0 where the file does not say.
    """

    entries: Mapping[str, ImportanceEntry]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_tokens: int = 0


@dataclass(frozen=True)
class Importance:
    """An importance matrix as it applies to one model.

    weights: (columns,) float32 by GGUF name. missing: linears without an entry, whose columns count
    alike. foreign: entries for which the model has no tensor.
    """

    weights: Mapping[str, Tensor]
    missing: tuple[str, ...]
    foreign: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not covered, in words; empty where every linear has its entry."""
        notes = []
        if self.missing:
            notes.append(
                f"the importance matrix has no entry for {len(self.missing)} of "
                f"{len(self.missing) + len(self.weights)} linears, whose columns count alike: "
                f"{_listed(self.missing)}."
            )
        if self.foreign:
            notes.append(
                f"{len(self.foreign)} entries of the importance matrix name no tensor of this "
                f"model: {_listed(self.foreign)}."
            )
        return tuple(notes)


def importance_for(matrix: ImportanceMatrix, shapes: Mapping[str, tuple[int, ...]]) -> Importance:
    """Match an importance matrix to a model's tensors. shapes: rows first, by GGUF name.

    An entry of the embedding is optional, and ignored where it does not fit, as llama.cpp does.
    Raises UsageError if another entry has other columns than its tensor, or no entry fits at all.
    """
    columns = {name: shape[-1] for name, shape in shapes.items() if len(shape) > 1}
    fitting = {
        name: entry
        for name, entry in matrix.entries.items()
        if len(entry.sums) == columns.get(name)
    }
    wrong = [n for n in matrix.entries if n in columns and n not in fitting and n != _EMBEDDING]
    if wrong:
        name = wrong[0]
        raise UsageError(
            f"the importance matrix is of another model: {name} has "
            f"{len(matrix.entries[name].sums)} columns in it and {columns[name]} here "
            f"({len(wrong)} such entries).",
            hint="Make one of this model: gemquant imatrix MODEL -o FILE",
        )
    if not fitting:
        raise UsageError(
            f"the importance matrix is of another model: none of its {len(matrix.entries)} "
            "entries names a tensor of this one.",
            hint="Make one of this model: gemquant imatrix MODEL -o FILE",
        )
    linears = [name for name in columns if name.startswith("blk.")]
    return Importance(
        weights={name: entry.weights for name, entry in fitting.items()},
        missing=tuple(name for name in linears if name not in fitting),
        foreign=tuple(name for name in matrix.entries if name not in columns),
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
