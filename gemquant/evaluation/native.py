"""A finished artifact in the runtime that users run it in, asked for the same predictions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gemquant.evaluation.runners.transformers import TransformersRunner

GENERATED_TOKENS = 16


@dataclass(frozen=True)
class NativeRuntime:
    """A loaded runtime, or why there is none.

    runtime: its name and version. not_run: the reason, where nothing could be loaded.
    """

    runtime: str
    runner: TransformersRunner | None
    not_run: str | None = None

    @classmethod
    def find(cls, folder: Path, container: str, *, device: str = "cpu") -> NativeRuntime:
        """Load an artifact through transformers where what it needs is installed."""
        reason = TransformersRunner.unavailable(container)
        if reason is not None:
            return cls(TransformersRunner.name, None, reason)
        runner = TransformersRunner.load(folder, container, device=device)
        return cls(runner.runtime, runner)

    def hidden_states(self, ids: Tensor) -> Tensor:
        """What the runtime's head reads, (windows, tokens, hidden)."""
        return self._loaded.hidden_states(ids)

    def table(self, start: int, stop: int) -> Tensor:
        """Rows of the runtime's head, float32."""
        return self._loaded.head[start:stop].to(torch.float32)

    def generate(self, prompt: list[int]) -> list[int]:
        """Continue a prompt greedily by a few tokens, as a user would first try."""
        return self._loaded.generate(prompt, max_new_tokens=GENERATED_TOKENS)

    @property
    def _loaded(self) -> TransformersRunner:
        assert self.runner is not None, self.not_run
        return self.runner
