"""Another program's logits against the original's, some positions at a time as they come."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gemquant.calibration.windows import TokenWindows
from gemquant.core.artifact.evaluation import SliceEvaluation
from gemquant.core.protocols import Progress, Weights
from gemquant.errors import WorkerError
from gemquant.measure.quality.divergence import Logits, TokenScores, compare_predictions
from gemquant.measure.quality.streams import EvaluationStreams, final_norm, head_table
from gemquant.models.skeleton import Skeleton
from gemquant.numerics.precision import fast_products


class RuntimeLogits:
    """The original at its head, to be compared with another program's logits of the same windows.

    Positions come in order, all but each window's last, any number at a time.
    """

    @fast_products()
    def __init__(
        self, original: Weights, slices: Sequence[TokenWindows], *, progress: Progress
    ) -> None:
        skeleton = Skeleton(original.config, device="cpu", dtype=torch.float32)
        self._streams = EvaluationStreams(skeleton, slices)
        self._streams.embed(original, [])
        for _ in self._streams.layers(original, progress, "running the original"):
            pass
        table = head_table(original, skeleton)
        (self._original,) = self._streams.predictors([(final_norm(original, skeleton), table)])
        self._targets = self._streams.targets()
        self._scores: list[TokenScores] = []
        self._expected = self._streams.ids[:, 1:].numel()
        self._received = self._scored = 0

    @property
    def vocabulary(self) -> int:
        """How many logits a position has."""
        return self._streams.vocabulary

    @property
    def windows(self) -> Tensor:
        """The windows to predict, (windows, tokens)."""
        return self._streams.ids

    def add(self, logits: Tensor) -> None:
        """Score the next positions, (positions, vocabulary) float32.

        WorkerError where they have another shape, are not finite, or are too many.
        """
        if logits.ndim != 2 or logits.shape[1] != self.vocabulary:
            raise WorkerError(
                f"the simulator returned logits {tuple(logits.shape)}; the model has "
                f"{self.vocabulary} tokens."
            )
        if not torch.isfinite(logits).all():
            raise WorkerError("the simulator returned logits that are not finite.")
        measured = self._streams.measured_of(self._received, logits.shape[0])
        self._received += logits.shape[0]
        if self._received > self._expected:
            raise WorkerError("the simulator returned more logits than requested.")
        rows = slice(self._scored, self._scored + len(measured))
        self._scores += compare_predictions(
            self._original.at(torch.arange(rows.start, rows.stop)),
            [Logits(logits[measured])],
            self._targets[rows],
            vocabulary=self.vocabulary,
        )
        self._scored = rows.stop

    def results(self, *, seed: int = 0) -> tuple[SliceEvaluation, ...]:
        """The figures, slice by slice; WorkerError where positions are missing."""
        if self._received != self._expected:
            raise WorkerError(
                f"the simulator returned {self._received} of {self._expected} predictions."
            )
        scores = self._streams.by_slice(TokenScores.joined(self._scores))
        return self._streams.figures(scores, seed=seed)
