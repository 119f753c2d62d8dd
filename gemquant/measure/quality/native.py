"""A finished artifact in the runtime that users run it in, asked for the same predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gemquant.errors import ArtifactError, RuntimeMissingError
from gemquant.measure.quality.divergence import Logits, Predictor
from gemquant.measure.quality.streams import EvaluationStreams
from gemquant.runtimes import llamacpp, mlx, onnx
from gemquant.runtimes.llamacpp import LlamaCppRunner
from gemquant.runtimes.mlx import MlxRunner
from gemquant.runtimes.onnx import OnnxRunner
from gemquant.runtimes.transformers import TransformersRunner

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

    def generate(self, prompt: Sequence[int], *, max_new_tokens: int) -> list[int]:
        """Return the tokens that follow a prompt, greedily."""


@runtime_checkable
class HiddenStatesRunner(Runner, Protocol):
    """A runtime that hands out what its head reads, and the head: little to hold."""

    def head_rows(self, start: int, stop: int) -> Tensor:
        """Rows of the output table; logits are hidden · rowsᵀ before any softcap."""

    def hidden_states(self, ids: Tensor) -> Tensor:
        """Return what the head reads for (windows, tokens): (windows, tokens, hidden)."""


@runtime_checkable
class LogitsRunner(Runner, Protocol):
    """A runtime that hands out logits alone, some positions at a time."""

    def logit_chunks(self, ids: Tensor) -> Iterator[Tensor]:
        """Yield logits (positions, vocabulary) float32, softcap included.

        ids: (windows, tokens). Positions are those of all windows in order, but each window's last.
        A chunk may be overwritten by the next.
        """


RUNNERS: Mapping[str, type[LlamaCppRunner | MlxRunner | OnnxRunner | TransformersRunner]] = {
    llamacpp.CONTAINER: LlamaCppRunner,
    mlx.CONTAINER: MlxRunner,
    onnx.CONTAINER: OnnxRunner,
}
"""What runs a container; transformers runs every other."""


@dataclass(frozen=True)
class NativeRuntime:
    """A loaded runtime, or why there is none.

    runtime: its name and version. not_run: the reason, where nothing could be loaded.
    """

    runtime: str
    runner: Runner | None
    not_run: str | None = None

    @staticmethod
    def available(container: str) -> tuple[str, str | None]:
        """Name the runtime of a container, and what it lacks here; nothing is loaded."""
        kind = RUNNERS.get(container, TransformersRunner)
        return kind.name, kind.unavailable(container)

    @classmethod
    def find(cls, folder: Path, container: str, *, device: str = "cpu") -> NativeRuntime:
        """Load an artifact in the runtime of its container, where what that needs is installed."""
        name, reason = cls.available(container)
        if reason is not None:
            return cls(name, None, reason)
        kind = RUNNERS.get(container, TransformersRunner)
        try:
            runner = kind.load(folder, container, device=device)
        except RuntimeMissingError as error:
            return cls(kind.name, None, error.message)
        return cls(runner.runtime, runner)

    @property
    def max_tokens(self) -> int | None:
        """How many tokens it is reasonable to run in all; None for any number."""
        return self._loaded.max_tokens

    @property
    def max_window(self) -> int | None:
        """Longest window that the runtime computes as the model means it; None for any."""
        return self._loaded.max_window

    def predictions(self, streams: EvaluationStreams) -> Iterator[Predictor]:
        """What the runtime predicts of all windows, in consecutive chunks.

        ArtifactError where its vocabulary is another than the model's.
        """
        runner = self._loaded
        if isinstance(runner, HiddenStatesRunner):
            yield streams.foreign(runner.hidden_states(streams.ids), self._table)
            return
        assert isinstance(runner, LogitsRunner), runner
        for chunk in runner.logit_chunks(streams.ids):
            if chunk.shape[1] != streams.vocabulary:
                raise ArtifactError(
                    f"{self.runtime}: logits over {chunk.shape[1]} tokens, and the model has "
                    f"{streams.vocabulary}."
                )
            yield Logits(chunk)

    def _table(self, start: int, stop: int) -> Tensor:
        """Rows of the runtime's head, float32."""
        assert isinstance(self.runner, HiddenStatesRunner)
        return self.runner.head_rows(start, stop).to(torch.float32)

    def generate(self, prompt: list[int]) -> list[int]:
        """Continue a prompt greedily by a few tokens, as a user would first try."""
        return self._loaded.generate(prompt, max_new_tokens=GENERATED_TOKENS)

    @property
    def _loaded(self) -> Runner:
        assert self.runner is not None, self.not_run
        return self.runner
