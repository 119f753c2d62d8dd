"""What logits say about the tokens that a window should predict."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gemquant.errors import ArtifactError
from gemquant.runtimes.runtime import Chunk


@dataclass(frozen=True)
class Target:
    """The tokens that a window should predict, from position ``first`` on."""

    first: int
    ids: tuple[int, ...]


class Score:
    """The score of one target, summed over its tokens.

    log_likelihood: nats, summed in double precision. greedy: every token was ranked first.
    """

    def __init__(self) -> None:
        self.log_likelihood = 0.0
        self.greedy = True

    def add(self, chunk: Chunk, target: Target) -> None:
        """Add a target's tokens that a chunk covers; ArtifactError if logits are not finite."""
        first = max(chunk.start, target.first)
        stop = min(chunk.start + len(chunk.logits), target.first + len(target.ids))
        if first >= stop:
            return
        logits = chunk.logits[first - chunk.start : stop - chunk.start]
        ids = torch.tensor(target.ids[first - target.first : stop - target.first])
        ids = ids.to(logits.device)
        if int(ids.max()) >= logits.shape[1]:
            raise ArtifactError(
                f"The tokenizer produced token {int(ids.max())}; the model predicts only "
                f"{logits.shape[1]} tokens."
            )
        log_likelihoods = logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(-1)
        total = float(log_likelihoods.double().sum())
        if not math.isfinite(total):
            raise ArtifactError(
                "The model's predictions are not finite: its weights are broken, or the type "
                "computed in is too narrow.",
                hint="gemquant verify ARTIFACT; or compute in float32: --compute-dtype float32",
            )
        self.log_likelihood += total
        self.greedy = self.greedy and bool((logits.argmax(-1) == ids).all())
