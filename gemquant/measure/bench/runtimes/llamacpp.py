"""llama.cpp, in process, on GGUF."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemquant.measure.bench.engine import Load, Mode, Timing
from gemquant.runtimes.llamacpp_library import VERSION, library, missing
from gemquant.runtimes.llamacpp_model import (
    ContextSize,
    LlamaContext,
    LlamaModel,
    gguf_file,
)

BATCH = 512
"""Prompt tokens at once: llama.cpp's own default."""


@dataclass(frozen=True)
class LlamaCpp:
    """The runtime."""

    name: str = "llama.cpp"
    packages: Sequence[str] = ("xllamacpp",)

    def unavailable(self, container: str, device: str) -> str | None:
        """Say why a container cannot be run here, or None if it can."""
        del container  # there is one
        reason = missing()
        if reason is None and device != "cpu" and not library().llama_supports_gpu_offload():
            return f"this build of llama.cpp computes on the processor only, not on {device}"
        return reason

    def modes(self, folder: Path, device: str) -> Sequence[Mode]:
        """One: its defaults, flash attention where it chooses that."""
        del folder, device  # all are run alike
        return [Mode("default")]

    def prepare(self) -> None:
        """Load the library."""
        library()

    def load(self, asked: Load) -> LoadedGguf:
        """Load a GGUF and make room for one sequence."""
        gpu = asked.device != "cpu"
        model = LlamaModel(gguf_file(asked.path), gpu=gpu)
        size = ContextSize(tokens=asked.tokens, batch=min(BATCH, asked.tokens), outputs=1)
        context = LlamaContext(model, size, threads=asked.threads)
        place = "GPU" if gpu else "CPU"
        version = library().llama_version().decode()
        software = f"llama.cpp {version} of xllamacpp {VERSION}; {model.description} on {place}"
        return LoadedGguf(software, context, size.batch)


@dataclass(frozen=True)
class LoadedGguf:
    """A GGUF with its context."""

    software: str
    context: LlamaContext
    batch: int

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Timing:
        """Forget what was before, and continue a prompt by exactly so many tokens, greedily."""
        ids = np.array(prompt, dtype=np.int32)
        started = time.perf_counter()
        self.context.clear()
        for start in range(0, len(ids), self.batch):
            piece = ids[start : start + self.batch]
            logits = self.context.decode(piece, start=start, outputs=1)
        prefilled = time.perf_counter()
        tokens = [int(logits[0].argmax())]
        first = time.perf_counter()
        for position in range(len(ids), len(ids) + new_tokens - 1):
            last = np.array(tokens[-1:], dtype=np.int32)
            logits = self.context.decode(last, start=position, outputs=1)
            tokens.append(int(logits[0].argmax()))
        return Timing(tokens, prefilled - started, first - started, time.perf_counter() - started)

    def peak_device_bytes(self) -> int | None:
        """llama.cpp does not tell."""
        return None


RUNTIME = LlamaCpp()
