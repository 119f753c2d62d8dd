"""mlx-lm: level ``native`` for the container ``mlx``.

MLX runs on Apple GPUs and, slowly, on any CPU; the record names which. On a CPU the quantized
products take most of the time, so a few hundred tokens are reasonable there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from gemquant.errors import ArtifactError
from gemquant.formats.checkpoint.tokenizer_files import token_ids
from gemquant.models.architecture import model_types
from gemquant.runtimes.runtime import (
    DEFAULTS,
    POSITIONS_AT_ONCE,
    Chunk,
    HiddenStatesRuntime,
    LoadOptions,
    Requirement,
    SpeedRuntime,
    Timing,
    Window,
    installed_version,
)

if TYPE_CHECKING:
    from torch import Tensor

INSTALL = "pip install 'gemquant[mlx]'"
TOKENS_ON_CPU = 256


class Mlx(HiddenStatesRuntime, SpeedRuntime):
    """A loaded MLX folder."""

    name: ClassVar[str] = "mlx-lm"
    packages: ClassVar[Sequence[str]] = ("mlx-lm", "mlx")
    modules: ClassVar[Sequence[str]] = ("mlx_lm.generate",)

    def __init__(self, model: Any, config: dict[str, Any], software: str, *, gpu: bool) -> None:
        self.model, self._gpu = model, gpu
        self.software = software
        self.max_tokens = None if gpu else TOKENS_ON_CPU
        self.end_tokens = token_ids(config.get("eos_token_id"))
        architecture = model_types().get(config["model_type"])
        if architecture is not None and architecture.mlx.ignores_window:
            self.max_window = int(config["sliding_window"])
            self.software += (
                f"; {architecture.name} only within its window of {self.max_window} tokens"
            )

    @classmethod
    def requirement(cls, container: str, device: str) -> Requirement:
        """Return the packages, on systems that MLX has a build for."""
        del container
        unmet = None
        if sys.platform == "win32":
            unmet = "MLX has no build for Windows; run it on macOS, or on Linux's CPU"
        elif device not in {"cpu", "mps"}:
            unmet = f"mlx-lm runs on Apple GPUs and on CPUs, not on {device}"
        return Requirement(("mlx", "mlx-lm"), INSTALL, unmet)

    @classmethod
    def load(cls, path: Path, container: str, options: LoadOptions = DEFAULTS) -> Self:
        """Load a folder as mlx-lm does, to compute in float32.

        With dtype ``auto`` an Apple GPU computes in the type of the files.
        """
        gpu = options.device == "mps"
        cls.require(path, container, "mps" if gpu else "cpu")
        import mlx.core as mx
        from mlx_lm.utils import load_model

        mx.set_default_device(mx.gpu if gpu else mx.cpu)
        try:
            model, config = load_model(path)
        except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise ArtifactError(f"mlx-lm refuses {path}: {error}") from error
        stored = gpu and options.dtype == "auto"
        if not stored:
            model.set_dtype(mx.float32)
        software = (
            f"mlx-lm {installed_version('mlx-lm')}, mlx {installed_version('mlx')}; "
            f"{'stored' if stored else 'float32'} on "
            f"{'Apple GPU' if gpu else 'CPU, no Apple GPU involved'}"
        )
        return cls(getattr(model, "language_model", model), config, software, gpu=gpu)

    def head_rows(self, start: int, stop: int) -> Tensor:
        """Rows of the output matrix; logits are hidden · rowsᵀ before any softcap."""
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
        """Return what the head reads, after the final norm: (windows, tokens, hidden) float32."""
        import mlx.core as mx
        import torch

        windows = [mx.array(window[None]) for window in ids.cpu().numpy()]
        return torch.cat([_to_torch(self.model.model(window)) for window in windows])

    def logits(self, windows: Sequence[Window]) -> Iterator[Chunk]:
        """Yield the wanted logits; keys and values are cached from one chunk to the next."""
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        for number, window in enumerate(windows):
            cache = make_prompt_cache(self.model)
            ids = np.array(window.ids, dtype=np.int32)
            for start in range(0, len(ids), POSITIONS_AT_ONCE):
                piece = ids[start : start + POSITIONS_AT_ONCE]
                # MLX is lazy: logits that are not read are not computed.
                rows = self.model(mx.array(piece[None]), cache=cache)[0]
                skipped = max(0, window.first - start)
                if skipped < len(piece):
                    yield Chunk(number, start + skipped, _to_torch(rows[skipped:]))
                else:
                    mx.eval([layer.state for layer in cache])

    def tokens(
        self, prompt: Sequence[int], *, limit: int, suppressed: Collection[int] = ()
    ) -> Iterator[int]:
        """Yield the tokens that greedily follow a prompt."""
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        def without(_: Any, logits: Any) -> Any:
            known = [token for token in suppressed if token < logits.shape[-1]]
            logits[:, mx.array(known)] = -mx.inf
            return logits

        processors = [without] if suppressed else None
        for token, _ in generate_step(
            mx.array(list(prompt)), self.model, max_tokens=limit, logits_processors=processors
        ):
            yield int(token)

    def time(self, prompt: Sequence[int], new_tokens: int) -> Timing:
        """Start a new sequence and continue a prompt greedily by exactly ``new_tokens`` tokens.

        mlx-lm computes one token ahead, so prefill cannot be separated from the first token.
        """
        started = time.perf_counter()
        tokens, first = [], 0.0
        for token in self.tokens(prompt, limit=new_tokens):
            tokens.append(token)
            first = first or time.perf_counter() - started
        return Timing(tokens, first, first, time.perf_counter() - started)

    def peak_device_bytes(self) -> int | None:
        """Peak memory of MLX's allocator, on a GPU."""
        import mlx.core as mx

        return int(mx.get_peak_memory()) if self._gpu else None


def _to_torch(array: Any) -> Tensor:
    import mlx.core as mx
    import torch

    return torch.from_numpy(np.array(array.astype(mx.float32)))
