"""Requests answered by llama.cpp: artifacts in GGUF."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gemquant.measure.tasks.engines.engine import POSITIONS_AT_ONCE, Chunk, Window
from gemquant.runtimes.llamacpp import LlamaCppRunner
from gemquant.runtimes.llamacpp_model import ContextSize, LlamaContext


@dataclass(frozen=True)
class LlamaCppEngine:
    """A GGUF. Windows that begin alike, as the choices of one question do, share what they read."""

    runner: LlamaCppRunner
    longest: int | None = None

    @property
    def runtime(self) -> str:
        """Name and version of all that computes."""
        return self.runner.runtime

    def chunks(self, windows: Sequence[Window]) -> Iterator[Chunk]:
        """Logits of the wanted positions alone; the head is not computed for the others."""
        if not windows:
            return
        tokens = max(len(window.ids) for window in windows)
        at_once = min(POSITIONS_AT_ONCE, tokens)
        size = ContextSize(tokens=tokens, batch=at_once, outputs=at_once)
        with LlamaContext(self.runner.model, size, threads=self.runner.threads) as context:
            seen: tuple[int, ...] = ()
            for number in sorted(range(len(windows)), key=lambda n: windows[n].ids):
                window = windows[number]
                known = min(_common(seen, window.ids), window.first)
                if known == 0 or not context.keep(known):
                    context.clear()
                    known = 0
                seen = window.ids
                ids = np.array(window.ids, dtype=np.int32)
                for start in range(known, len(ids), at_once):
                    piece = ids[start : start + at_once]
                    wanted = min(len(piece), start + len(piece) - window.first)
                    logits = context.decode(piece, start=start, outputs=max(wanted, 1))
                    if wanted > 0:
                        first = start + len(piece) - wanted
                        yield Chunk(number, first, torch.from_numpy(logits))

    def continuation(self, prompt: Sequence[int], *, most: int) -> Iterator[int]:
        """Yield the likeliest token, then the likeliest behind it, and so on."""
        batch = min(POSITIONS_AT_ONCE, len(prompt))
        size = ContextSize(tokens=len(prompt) + most, batch=batch, outputs=1)
        with LlamaContext(self.runner.model, size, threads=self.runner.threads) as context:
            start, rest = 0, np.array(prompt, dtype=np.int32)
            for _ in range(most):
                for begin in range(0, len(rest), batch):
                    piece = rest[begin : begin + batch]
                    logits = context.decode(piece, start=start, outputs=1)
                    start += len(piece)
                token = int(logits[0].argmax())
                yield token
                rest = np.array([token], dtype=np.int32)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    pairs = zip(first, second, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
