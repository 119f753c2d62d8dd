"""Requests answered by mlx-lm: MLX folders, on an Apple GPU or slowly on any processor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from gemquant.measure.tasks.engines.engine import POSITIONS_AT_ONCE, Chunk, Window
from gemquant.runtimes.mlx import MlxRunner


@dataclass(frozen=True)
class MlxEngine:
    """An MLX folder."""

    runner: MlxRunner

    @property
    def runtime(self) -> str:
        """Name and version of all that computes."""
        return self.runner.runtime

    @property
    def longest(self) -> int | None:
        """The window of a Gemma 2, beyond which mlx-lm computes something else."""
        return self.runner.max_window

    def chunks(self, windows: Sequence[Window]) -> Iterator[Chunk]:
        """Logits of the wanted positions; keys and values are kept from one chunk to the next."""
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        for number, window in enumerate(windows):
            cache = make_prompt_cache(self.runner.model)
            ids = np.array(window.ids, dtype=np.int32)
            for start in range(0, len(ids), POSITIONS_AT_ONCE):
                piece = ids[start : start + POSITIONS_AT_ONCE]
                # MLX computes lazily: a head that nobody asks for costs nothing.
                logits = self.runner.model(mx.array(piece[None]), cache=cache)[0]
                unwanted = max(0, window.first - start)
                if unwanted < len(piece):
                    made = np.array(logits[unwanted:].astype(mx.float32))
                    yield Chunk(number, start + unwanted, torch.from_numpy(made))
                else:
                    mx.eval([each.state for each in cache])

    def continuation(self, prompt: Sequence[int], *, most: int) -> Iterator[int]:
        """Yield the likeliest token, then the likeliest behind it, and so on."""
        return islice(self.runner.tokens(prompt), most)
