"""Level ``native``: the runtime that executes an artifact predicts the windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gemquant.errors import ArtifactError, RuntimeMissingError, UnsupportedError
from gemquant.measure.quality.divergence import Logits, Predictor
from gemquant.measure.quality.streams import EvaluationStreams
from gemquant.runtimes.runtime import (
    EmbeddingRuntime,
    HiddenStatesRuntime,
    LoadOptions,
    logits_runtime,
)

GENERATED_TOKENS = 16


class LogitsSource(Protocol):
    """What this level needs of a runtime; a LogitsRuntime has it, and so has a board."""

    @property
    def software(self) -> str:
        """Name and version of everything that computes, for a certificate."""

    @property
    def max_tokens(self) -> int | None:
        """A reasonable number of tokens to run in all; None for any."""

    @property
    def max_window(self) -> int | None:
        """The longest window that is computed correctly; None for any."""

    def logit_chunks(self, ids: Tensor) -> Iterator[Tensor]:
        """Yield logits (positions, vocabulary) float32 of all windows, each without its last."""

    def generate(self, prompt: Sequence[int], *, max_new_tokens: int) -> list[int]:
        """Return the tokens that greedily follow a prompt."""


@dataclass(frozen=True)
class NativeRuntime:
    """A loaded runtime, or the reason why there is none.

    runtime: its name and version. not_run: the reason, if nothing could be loaded.
    """

    runtime: str
    loaded: LogitsSource | None
    not_run: str | None = None

    @staticmethod
    def available(container: str, name: str | None = None) -> tuple[str, str | None]:
        """Return the name of a container's runtime, and what it lacks here; nothing is loaded."""
        runtime = logits_runtime(container, name)
        return runtime.name, runtime.unavailable(container)

    @classmethod
    def find(
        cls, folder: Path, container: str, *, device: str = "cpu", runtime: str | None = None
    ) -> NativeRuntime:
        """Load an artifact in the runtime of its container, if its packages are installed.

        runtime: the one to take, where several load the container.
        """
        name, reason = cls.available(container, runtime)
        if reason is not None:
            return cls(name, None, reason)
        try:
            loaded = logits_runtime(container, runtime).load(folder, container, LoadOptions(device))
        except RuntimeMissingError as error:
            return cls(name, None, error.message)
        return cls(loaded.software, loaded)

    @property
    def max_tokens(self) -> int | None:
        """A reasonable number of tokens to run in all; None for any."""
        return self._require().max_tokens

    @property
    def max_window(self) -> int | None:
        """The longest window that the runtime computes correctly; None for any."""
        return self._require().max_window

    def predictions(self, streams: EvaluationStreams) -> Iterator[Predictor]:
        """Yield what the runtime predicts at measured positions, in consecutive chunks.

        ArtifactError if its vocabulary differs from the model's.
        """
        runtime = self._require()
        if isinstance(runtime, HiddenStatesRuntime):

            def head_rows(start: int, stop: int) -> Tensor:
                return runtime.head_rows(start, stop).to(torch.float32)

            yield streams.runtime_head(runtime.hidden_states(streams.ids), head_rows)
            return
        first = 0
        for chunk in runtime.logit_chunks(streams.ids):
            if chunk.shape[1] != streams.vocabulary:
                raise ArtifactError(
                    f"{self.runtime}: logits over {chunk.shape[1]} tokens, and the model has "
                    f"{streams.vocabulary}."
                )
            measured = streams.measured_of(first, len(chunk))
            first += len(chunk)
            if len(measured):
                yield Logits(chunk if len(measured) == len(chunk) else chunk[measured])

    def embeddings(self, ids: Tensor) -> Tensor:
        """Embeddings of texts (texts, tokens) by an embedding model: (texts, features), length 1.

        UnsupportedError if the runtime computes none.
        """
        runtime = self._require()
        if not isinstance(runtime, EmbeddingRuntime):
            raise UnsupportedError(
                f"{self.runtime} computes no embeddings here.", hint="Measure without: --no-native"
            )
        return normalize(runtime.embeddings(ids))

    def generate(self, prompt: list[int]) -> list[int]:
        """Continue a prompt greedily by a few tokens, as a user would first try."""
        return self._require().generate(prompt, max_new_tokens=GENERATED_TOKENS)

    def _require(self) -> LogitsSource:
        if self.loaded is None:
            raise RuntimeMissingError(f"{self.runtime}: {self.not_run}")
        return self.loaded
