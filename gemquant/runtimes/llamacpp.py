"""The finished artifact in llama.cpp: level ``native`` for the container ``gguf``.

Everything from token ids to logits is llama.cpp's own: it dequantizes, quantizes activations where
its kernels do, caches keys and values in float16, and applies the softcap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from gemquant.errors import RuntimeMissingError
from gemquant.runtimes.llamacpp_library import INSTALL, VERSION, library, missing
from gemquant.runtimes.llamacpp_model import (
    ContextSize,
    LlamaContext,
    LlamaModel,
    gguf_file,
)

CONTAINER = "gguf"
POSITIONS_AT_ONCE = 128
"""Logits exist for so many positions: 134 MB with Gemma's vocabulary."""


@dataclass(frozen=True)
class LlamaCppRunner:
    """A loaded artifact. Hold it no longer than needed: the whole model is in memory.

    runtime: name and version of all that computes, for a certificate. max_tokens, max_window: no
    bounds on what to run in all, nor on a window.
    """

    name: ClassVar[str] = "llama.cpp"

    runtime: str
    model: LlamaModel
    threads: int
    max_tokens: int | None = None
    max_window: int | None = None

    @staticmethod
    def unavailable(container: str) -> str | None:
        """Say why a container cannot be run here, or None if it can."""
        if container != CONTAINER:
            return f"llama.cpp does not load {container}"
        return missing()

    @classmethod
    def load(
        cls, folder: Path, container: str, *, device: str = "cpu", threads: int | None = None
    ) -> Self:
        """Load a GGUF, or the one in a finished folder.

        device: anything but ``cpu`` puts every layer on llama.cpp's GPU. threads: torch's where not
        given. RuntimeMissingError where the package is missing or another version; ArtifactError
        where llama.cpp refuses the file.
        """
        reason = cls.unavailable(container)
        if reason is not None:
            raise RuntimeMissingError(
                f"{folder} cannot be run in llama.cpp: {reason}.", hint=INSTALL
            )
        threads = threads or torch.get_num_threads()
        gpu = torch.device(device).type != "cpu"
        model = LlamaModel(gguf_file(folder), gpu=gpu)
        place = "GPU" if gpu else f"{threads} CPU thread{'s' if threads > 1 else ''}"
        version = library().llama_version().decode()
        return cls(f"llama.cpp {version} of xllamacpp {VERSION}; {place}", model, threads)

    def logit_chunks(self, ids: Tensor) -> Iterator[Tensor]:
        """Yield the logits that predict a token, chunk by chunk: (positions, vocabulary) float32.

        ids: (windows, tokens) int64, each window with its BOS. Positions are those of all windows
        in order, but each window's last, which predicts nothing. A chunk lies in llama.cpp's own
        memory and is overwritten by the next.
        """
        predicting = ids.shape[1] - 1
        at_once = min(POSITIONS_AT_ONCE, predicting)
        size = ContextSize(tokens=predicting, batch=at_once, outputs=at_once)
        with LlamaContext(self.model, size, threads=self.threads) as context:
            for window in ids.cpu().numpy().astype(np.int32):
                context.clear()
                for start in range(0, predicting, at_once):
                    chunk = window[start : min(start + at_once, predicting)]
                    yield torch.from_numpy(context.decode(chunk, start=start, outputs=len(chunk)))

    def generate(self, prompt: Sequence[int], *, max_new_tokens: int) -> list[int]:
        """Return the tokens that follow a prompt (BOS included by the caller), greedily."""
        made: list[int] = []
        size = ContextSize(
            tokens=len(prompt) + max_new_tokens,
            batch=min(POSITIONS_AT_ONCE, len(prompt)),
            outputs=1,
        )
        with LlamaContext(self.model, size, threads=self.threads) as context:
            start, rest = 0, np.array(prompt, dtype=np.int32)
            while len(made) < max_new_tokens:
                for begin in range(0, len(rest), size.batch):
                    piece = rest[begin : begin + size.batch]
                    logits = context.decode(piece, start=start, outputs=1)
                    start += len(piece)
                made.append(int(logits[0].argmax()))
                if self.model.ends(made[-1]):
                    break
                rest = np.array(made[-1:], dtype=np.int32)
        return made
