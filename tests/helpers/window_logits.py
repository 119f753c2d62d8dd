"""All logits of whole windows, from a runtime's chunks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gemquant.runtimes.runtime import LogitsRuntime, Window


def window_logits(runtime: LogitsRuntime, ids: Tensor) -> Tensor:
    """Logits of every position: (windows, tokens, vocabulary)."""
    windows = [Window(tuple(window)) for window in ids.tolist()]
    return torch.stack(wanted_logits(runtime, windows))


def wanted_logits(runtime: LogitsRuntime, windows: Sequence[Window]) -> list[Tensor]:
    """The wanted logits of each window; fails where a position is missing or comes twice."""
    found: list[dict[int, Tensor]] = [{} for _ in windows]
    for chunk in runtime.logits(windows):
        for row, logits in enumerate(chunk.logits):
            assert chunk.start + row not in found[chunk.window]
            found[chunk.window][chunk.start + row] = logits.clone()
    for window, rows in zip(windows, found, strict=True):
        assert sorted(rows) == list(range(window.first, len(window.ids)))
    return [torch.stack([rows[n] for n in sorted(rows)]) for rows in found]
