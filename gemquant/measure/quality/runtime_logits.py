"""Another program's logits against the original's, some positions at a time as they come."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gemquant.calibration.stream import layer_weights
from gemquant.calibration.windows import TokenWindows
from gemquant.core.progress import Progress
from gemquant.core.protocols import Weights
from gemquant.core.results import SliceResult
from gemquant.errors import WorkerError
from gemquant.measure.quality.divergence import Logits, TokenScores, compare_predictions
from gemquant.measure.quality.streams import EvaluationStreams, final_norm, head_table
from gemquant.measure.quality.summary import summarise
from gemquant.models.architecture import layer_parameters
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import layer_prefix
from gemquant.numerics.precision import fast_products


class ForeignLogits:
    """The original at its head, waiting for what another program predicts of the same windows.

    Positions come in order, all but each window's last, of any number at a time.
    """

    @fast_products()
    def __init__(
        self, original: Weights, slices: Sequence[TokenWindows], *, progress: Progress
    ) -> None:
        skeleton = Skeleton(original.config, device="cpu", dtype=torch.float32)
        self._streams = EvaluationStreams(skeleton, slices)
        self._streams.embed(original, [])
        assert self._streams.original is not None
        progress.start("running the original", skeleton.layers)
        for index in range(skeleton.layers):
            names = layer_parameters(original.config, index)
            weights = layer_weights(original, layer_prefix(index), names, skeleton)
            self._streams.original.advance(index, weights)
            progress.advance("running the original")
        table = head_table(original, skeleton)
        (self._original,) = self._streams.predictors([(final_norm(original, skeleton), table)])
        self._targets = self._streams.ids[:, 1:].reshape(-1)
        self._scores: list[TokenScores] = []
        self._seen = 0

    @property
    def vocabulary(self) -> int:
        """How many logits a position has."""
        return self._streams.vocabulary

    @property
    def digest(self) -> str:
        """``sha256:`` of all windows."""
        return self._streams.digest

    @property
    def windows(self) -> Tensor:
        """What is to be predicted, (windows, tokens)."""
        return self._streams.ids

    def add(self, logits: Tensor) -> None:
        """Score the next positions, (positions, vocabulary) float32.

        WorkerError where they are of another shape, not finite, or too many.
        """
        if logits.ndim != 2 or logits.shape[1] != self.vocabulary:
            raise WorkerError(
                f"the simulator gives logits {tuple(logits.shape)}; the model knows "
                f"{self.vocabulary} tokens."
            )
        if not torch.isfinite(logits).all():
            raise WorkerError("the simulator gives logits that are not finite.")
        rows = slice(self._seen, self._seen + logits.shape[0])
        if rows.stop > len(self._targets):
            raise WorkerError("the simulator gives more logits than it was asked for.")
        chosen = torch.arange(rows.start, rows.stop)
        self._scores += compare_predictions(
            self._original.at(chosen),
            [Logits(logits)],
            self._targets[rows],
            vocabulary=self.vocabulary,
        )
        self._seen = rows.stop

    def results(self) -> list[SliceResult]:
        """What was lost, slice by slice; WorkerError where positions are missing."""
        if self._seen != len(self._targets):
            raise WorkerError(
                f"the simulator gave {self._seen} of {len(self._targets)} predictions."
            )
        by_slice = self._streams.by_slice(TokenScores.joined(self._scores))
        return [
            summarise(windows.name, scores, windows=windows.ids.shape[0])
            for windows, scores in zip(self._streams.slices, by_slice, strict=True)
        ]
