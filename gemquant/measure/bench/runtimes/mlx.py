"""mlx-lm, on Apple GPUs and on CPUs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemquant.measure.bench.engine import Load, Mode, Timing
from gemquant.runtimes.mlx import MlxRunner


@dataclass(frozen=True)
class Mlx:
    """The runtime."""

    name: str = MlxRunner.name
    packages: Sequence[str] = ("mlx-lm", "mlx")

    def unavailable(self, container: str, device: str) -> str | None:
        """Say why a container cannot be run here, or None if it can."""
        if device not in {"cpu", "mps"}:
            return f"mlx-lm runs on Apple GPUs and on CPUs, not on {device}"
        return MlxRunner.unavailable(container)

    def modes(self, folder: Path, device: str) -> Sequence[Mode]:
        """One: its defaults."""
        del folder, device  # all are run alike
        return [Mode("default")]

    def prepare(self) -> None:
        """Import mlx-lm."""
        import mlx_lm.generate  # noqa: F401

    def load(self, asked: Load) -> LoadedMlx:
        """Load a folder, to compute in float32 on a CPU and in the files' type on a GPU."""
        runner = MlxRunner.load(
            asked.path,
            asked.container,
            device=asked.device,
            dtype="float32" if asked.device == "cpu" else "stored",
        )
        software = runner.runtime
        if asked.device == "cpu":
            software += "; MLX takes as many threads as it wants"
        return LoadedMlx(software, runner.model, asked.device == "mps")


@dataclass(frozen=True)
class LoadedMlx:
    """A model of mlx-lm."""

    software: str
    model: Any
    on_gpu: bool

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Timing:
        """Forget what was before, and continue a prompt by exactly so many tokens, greedily.

        mlx-lm computes a token ahead, so that prefill cannot be told from the first token.
        """
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        started = time.perf_counter()
        tokens, first = [], 0.0
        for token, _ in generate_step(mx.array(list(prompt)), self.model, max_tokens=new_tokens):
            tokens.append(int(token))
            first = first or time.perf_counter() - started
        return Timing(tokens, first, first, time.perf_counter() - started)

    def peak_device_bytes(self) -> int | None:
        """Largest memory of MLX's own allocator, on a GPU."""
        import mlx.core as mx

        return int(mx.get_peak_memory()) if self.on_gpu else None


RUNTIME = Mlx()
