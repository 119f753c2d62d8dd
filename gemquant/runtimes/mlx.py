"""The finished artifact in mlx-lm: level ``native`` for the container ``mlx``.

MLX runs on Apple GPUs and, slowly, on any CPU; a certificate says which. On a CPU its quantized
products take most of the time, so a few hundred tokens are what is reasonable there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from gemquant.errors import ArtifactError, RuntimeMissingError

CONTAINER = "mlx"
INSTALL = "pip install 'gemquant[mlx]'"
TOKENS_ON_CPU = 256


@dataclass(frozen=True)
class MlxRunner:
    """A loaded artifact. Hold it no longer than needed: the whole model is in memory.

    runtime: name and version of all that computes, for a certificate.
    max_tokens: how many it is reasonable to run in all, or None. max_window: the longest window
    that mlx-lm computes as the model means it, or None for any.
    """

    name: ClassVar[str] = "mlx-lm"

    runtime: str
    model: Any
    max_tokens: int | None
    max_window: int | None

    @staticmethod
    def unavailable(container: str) -> str | None:
        """Say why a container cannot be run here, or None if it can."""
        if container != CONTAINER:
            return f"mlx-lm does not load {container}"
        if sys.platform == "win32":
            return "MLX has no build for Windows; run it on macOS, or on Linux's CPU"
        missing = [package for package in ("mlx", "mlx-lm") if _version(package) is None]
        return f"{' and '.join(missing)} not installed; {INSTALL}" if missing else None

    @classmethod
    def load(
        cls,
        folder: Path,
        container: str,
        *,
        device: str = "cpu",
        dtype: Literal["float32", "stored"] = "float32",
    ) -> Self:
        """Load a finished folder as mlx-lm does.

        device: ``mps`` for the Apple GPU. dtype: what to compute in. RuntimeMissingError where a
        package is missing; ArtifactError where mlx-lm refuses the files.
        """
        reason = cls.unavailable(container)
        if reason is not None:
            raise RuntimeMissingError(f"{folder} cannot be run in mlx-lm: {reason}.", hint=INSTALL)
        import mlx.core as mx
        from mlx_lm.utils import load_model

        on_gpu = device == "mps"
        mx.set_default_device(mx.gpu if on_gpu else mx.cpu)
        try:
            model, config = load_model(folder)
        except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise ArtifactError(f"mlx-lm refuses {folder}: {error}") from error
        if dtype == "float32":
            model.set_dtype(mx.float32)
        place = "Apple GPU" if on_gpu else "CPU, no Apple GPU involved"
        runtime = f"mlx-lm {_version('mlx-lm')}, mlx {_version('mlx')}; {dtype} on {place}"
        window = None
        if config["model_type"] == "gemma2":
            # mlx-lm's Gemma 2 lets every layer attend to everything.
            window = int(config["sliding_window"])
            runtime += f"; Gemma 2 only within its window of {window} tokens"
        return cls(runtime, model, None if on_gpu else TOKENS_ON_CPU, window)

    def head_rows(self, start: int, stop: int) -> Tensor:
        """Rows of the output table; logits are hidden · rowsᵀ before any softcap."""
        import mlx.core as mx

        layer, rows = self.model.get("lm_head", self.model.model.embed_tokens), slice(start, stop)
        if "scales" not in layer:
            return _to_torch(layer.weight[rows])
        decoded = mx.dequantize(
            layer.weight[rows],
            layer.scales[rows],
            layer.biases[rows],
            group_size=layer.group_size,
            bits=layer.bits,
        )
        return _to_torch(decoded)

    def hidden_states(self, ids: Tensor) -> Tensor:
        """Return what the head reads, after the final norm.

        ids: (windows, tokens) int64, each window with its BOS. Returns (windows, tokens, hidden)
        float32; one window is in flight at a time.
        """
        return torch.cat([_to_torch(self.model.model(_to_mlx(window[None]))) for window in ids])

    def logits(self, ids: Tensor, positions: Sequence[int]) -> Tensor:
        """Return logits at chosen positions, softcap included.

        ids: (windows, tokens). Returns (windows, len(positions), vocabulary) float32.
        """
        rows = [_to_torch(self.model(_to_mlx(window[None]))) for window in ids]
        return torch.cat(rows)[:, list(positions)]

    def generate(self, prompt: Sequence[int], *, max_new_tokens: int) -> list[int]:
        """Return the tokens that follow a prompt (BOS included by the caller), greedily."""
        return list(islice(self.tokens(prompt), max_new_tokens))

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        """Yield what greedily follows a prompt, without end."""
        from mlx_lm.generate import generate_step

        ids = _to_mlx(torch.tensor(list(prompt)))
        for token, _ in generate_step(ids, self.model, max_tokens=-1):
            yield int(token)


def _to_mlx(ids: Tensor) -> Any:
    import mlx.core as mx

    return mx.array(ids.cpu().numpy())


def _to_torch(array: Any) -> Tensor:
    import mlx.core as mx

    return torch.from_numpy(np.array(array.astype(mx.float32)))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
