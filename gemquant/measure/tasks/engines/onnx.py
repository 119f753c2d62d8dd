"""Requests answered by onnxruntime: folders that onnxruntime-genai's builder made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from gemquant.measure.tasks.engines.engine import Chunk, Window
from gemquant.runtimes.onnx import OnnxRunner


@dataclass(frozen=True)
class OnnxEngine:
    """An ONNX folder."""

    runner: OnnxRunner
    longest: int | None = None

    @property
    def runtime(self) -> str:
        """Name and version of all that computes."""
        return self.runner.runtime

    def chunks(self, windows: Sequence[Window]) -> Iterator[Chunk]:
        """Logits of the wanted positions, one window after the other."""
        for number, window in enumerate(windows):
            # A runner leaves a window's last token out, which predicts nothing there.
            ids = torch.tensor([[*window.ids, window.ids[-1]]])
            start = 0
            for logits in self.runner.logit_chunks(ids):
                unwanted = max(0, window.first - start)
                if unwanted < len(logits):
                    yield Chunk(number, start + unwanted, logits[unwanted:])
                start += len(logits)

    def continuation(self, prompt: Sequence[int], *, most: int) -> Iterator[int]:
        """Yield the likeliest token, then the likeliest behind it, and so on."""
        return islice(self.runner.tokens(prompt), most)
