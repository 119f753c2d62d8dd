"""What every runtime brings to be measured: one file in ``runtimes`` for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Load:
    """What a runtime is asked to load, and how to compute.

    tokens: the longest sequence. dtype: ``auto`` or the name of a torch type.
    """

    path: Path
    container: str
    mode: str
    device: str
    dtype: str
    threads: int
    tokens: int


@dataclass(frozen=True)
class Timing:
    """One run. All seconds count from when the prompt was handed over.

    tokens: the new ones, greedily chosen. prefill_seconds: until the prompt's logits were there.
    first_token_seconds, total_seconds: until the first and the last new token were in our hands.
    """

    tokens: Sequence[int]
    prefill_seconds: float
    first_token_seconds: float
    total_seconds: float


class Engine(Protocol):
    """A loaded artifact."""

    @property
    def software(self) -> str:
        """Versions, type computed in and place."""

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Timing:
        """Forget what was before, and continue a prompt by exactly so many tokens, greedily."""

    def peak_device_bytes(self) -> int | None:
        """Largest memory allocated on an accelerator, if there is one and the runtime tells."""


@dataclass(frozen=True)
class Mode:
    """A way of running. not_run: why it is not possible here, or None."""

    name: str
    not_run: str | None = None


class Runtime(Protocol):
    """What can load some containers. Everything but ``load`` is cheap and imports nothing large."""

    @property
    def name(self) -> str:
        """As its users call it."""

    @property
    def packages(self) -> Sequence[str]:
        """Distributions whose versions decide the figures."""

    def unavailable(self, container: str, device: str) -> str | None:
        """Say why a container cannot be run here, or None if it can."""

    def modes(self, folder: Path, device: str) -> Sequence[Mode]:
        """The ways of running an artifact, the plainest first."""

    def prepare(self) -> None:
        """Import what loading needs, so that it is not counted as loading."""

    def load(self, asked: Load) -> Engine:
        """Load an artifact."""
