"""A finished artifact in the runtime that users run it in, asked for the same predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gemquant.evaluation.runners.mlx import CONTAINER as MLX_CONTAINER
from gemquant.evaluation.runners.mlx import MlxRunner
from gemquant.evaluation.runners.transformers import TransformersRunner

GENERATED_TOKENS = 16


class Runner(Protocol):
    """A loaded artifact."""

    @property
    def runtime(self) -> str:
        """Name and version of all that computes, for a certificate."""

    @property
    def max_tokens(self) -> int | None:
        """How many tokens it is reasonable to run in all; None for any number."""

    @property
    def max_window(self) -> int | None:
        """Longest window that is computed as the model means it; None for any."""

    def head_rows(self, start: int, stop: int) -> Tensor:
        """Rows of the output table; logits are hidden · rowsᵀ before any softcap."""

    def hidden_states(self, ids: Tensor) -> Tensor:
        """Return what the head reads for (windows, tokens): (windows, tokens, hidden)."""

    def generate(self, prompt: Sequence[int], *, max_new_tokens: int) -> list[int]:
        """Return the tokens that follow a prompt, greedily."""


@dataclass(frozen=True)
class NativeRuntime:
    """A loaded runtime, or why there is none.

    runtime: its name and version. not_run: the reason, where nothing could be loaded.
    """

    runtime: str
    runner: Runner | None
    not_run: str | None = None

    @classmethod
    def find(cls, folder: Path, container: str, *, device: str = "cpu") -> NativeRuntime:
        """Load an artifact in the runtime of its container, where what that needs is installed."""
        kind = MlxRunner if container == MLX_CONTAINER else TransformersRunner
        reason = kind.unavailable(container)
        if reason is not None:
            return cls(kind.name, None, reason)
        runner: Runner = kind.load(folder, container, device=device)
        return cls(runner.runtime, runner)

    @property
    def max_tokens(self) -> int | None:
        """How many tokens it is reasonable to run in all; None for any number."""
        return self._loaded.max_tokens

    @property
    def max_window(self) -> int | None:
        """Longest window that the runtime computes as the model means it; None for any."""
        return self._loaded.max_window

    def hidden_states(self, ids: Tensor) -> Tensor:
        """What the runtime's head reads, (windows, tokens, hidden)."""
        return self._loaded.hidden_states(ids)

    def table(self, start: int, stop: int) -> Tensor:
        """Rows of the runtime's head, float32."""
        return self._loaded.head_rows(start, stop).to(torch.float32)

    def generate(self, prompt: list[int]) -> list[int]:
        """Continue a prompt greedily by a few tokens, as a user would first try."""
        return self._loaded.generate(prompt, max_new_tokens=GENERATED_TOKENS)

    @property
    def _loaded(self) -> Runner:
        assert self.runner is not None, self.not_run
        return self.runner
