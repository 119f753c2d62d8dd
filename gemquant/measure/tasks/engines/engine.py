"""The interface of every runtime that answers requests, and what is made of its logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gemquant.errors import ArtifactError

POSITIONS_AT_ONCE = 128
"""Logits exist for so many positions: 134 MB with Gemma's vocabulary."""


@dataclass(frozen=True)
class Window:
    """Token ids that a model reads, BOS included. first: where predictions begin to be wanted."""

    ids: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class Chunk:
    """Logits behind consecutive positions of one window, (positions, vocabulary) float32.

    window: its number in what was asked for. start: the first of the positions. The logits may be
    overwritten when the next chunk is asked for.
    """

    window: int
    start: int
    logits: Tensor


class Engine(Protocol):
    """A loaded model that is asked for logits and for greedy continuations."""

    @property
    def runtime(self) -> str:
        """Name and version of all that computes."""

    @property
    def longest(self) -> int | None:
        """Most tokens in a window that is computed as the model means it; None for any."""

    def chunks(self, windows: Sequence[Window]) -> Iterator[Chunk]:
        """Logits of every window from its ``first`` position on, in whatever order is quickest."""

    def continuation(self, prompt: Sequence[int], *, most: int) -> Iterator[int]:
        """Yield so many tokens that greedily follow a prompt (BOS included by the caller)."""


@dataclass(frozen=True)
class Target:
    """The tokens that a window should predict, from position ``first`` on."""

    first: int
    ids: tuple[int, ...]


class Score:
    """What one target's tokens scored, summed over them.

    log_likelihood: nats, added up in double precision. greedy: every token was ranked first.
    """

    def __init__(self) -> None:
        self.log_likelihood = 0.0
        self.greedy = True

    def see(self, chunk: Chunk, target: Target) -> None:
        """Add what a chunk says of a target; ArtifactError where logits are not finite."""
        first = max(chunk.start, target.first)
        stop = min(chunk.start + len(chunk.logits), target.first + len(target.ids))
        if first >= stop:
            return
        logits = chunk.logits[first - chunk.start : stop - chunk.start]
        wanted = torch.tensor(target.ids[first - target.first : stop - target.first])
        wanted = wanted.to(logits.device)
        if int(wanted.max()) >= logits.shape[1]:
            raise ArtifactError(
                f"The tokenizer gives the token {int(wanted.max())}, and the model predicts "
                f"{logits.shape[1]} tokens."
            )
        found = logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(-1)
        total = float(found.double().sum())
        if not math.isfinite(total):
            raise ArtifactError(
                "The model's predictions are not finite: its weights are broken, or the type "
                "computed in is too narrow.",
                hint="gemquant verify ARTIFACT; or compute in float32: --dtype float32",
            )
        self.log_likelihood += total
        self.greedy = self.greedy and bool((logits.argmax(-1) == wanted).all())
