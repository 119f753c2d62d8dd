"""A quantized table, held as the runs of rows that it was quantized in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gemquant.core.protocols import Stackable

if TYPE_CHECKING:
    from torch import Tensor


class WeightRuns:
    """Collects consecutive runs of rows; decodes any of them, and never all; a ``RowSource``.

    shape: (rows, columns) of the whole.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._runs: list[tuple[int, Stackable]] = []
        self.rows_held = 0

    def append(self, run: Stackable) -> None:
        """Take the rows that follow those taken so far."""
        self._runs.append((self.rows_held, run))
        self.rows_held += run.shape[0]

    @property
    def runs(self) -> list[Stackable]:
        """Every run taken, in order."""
        return [run for _, run in self._runs]

    def shape(self, name: str) -> tuple[int, int]:  # noqa: ARG002 (there is one table)
        """Shape of the whole table."""
        return self._shape

    def rows(self, name: str, start: int, stop: int) -> Tensor:  # noqa: ARG002
        """Decode rows ``start`` to ``stop`` as a loader will, float32."""
        parts = [
            run.rows(max(start - first, 0), min(stop - first, run.shape[0])).dequantize()
            for first, run in self._runs
            if first < stop and start < first + run.shape[0]
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
