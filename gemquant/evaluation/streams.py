"""The evaluation windows on their way through the original and through what was made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gemquant.calibration.stream import Stream, embed_windows
from gemquant.calibration.windows import TokenWindows, stream_digest
from gemquant.errors import UnsupportedError
from gemquant.evaluation.divergence import Predictor, Table, TokenScores, compare_predictions
from gemquant.evaluation.summary import mean_over_windows, summarise
from gemquant.gemma.skeleton import Skeleton
from gemquant.gemma.structure import EMBEDDING, FINAL_NORM, HEAD
from gemquant.protocols import Weights
from gemquant.results import Measurement, SliceResult


class EvaluationStreams:
    """Hidden states of every slice's windows: one stream for the original, one per candidate.

    slices: windows of one length; they travel together and are reported apart.
    """

    def __init__(self, skeleton: Skeleton, slices: Sequence[TokenWindows]) -> None:
        self._skeleton = skeleton
        self._slices = slices
        self._ids = torch.cat([windows.ids for windows in slices])
        self.original: Stream | None = None
        self.candidates: list[Stream] = []

    def embed(
        self,
        original: Weights,
        candidates: Sequence[tuple[Weights, torch.dtype | None]],
    ) -> None:
        """Begin all streams; a candidate's rows are first rounded to the type it stores."""
        self.original = embed_windows(self._skeleton, original, self._ids)
        self.candidates = [
            embed_windows(self._skeleton, weights, self._ids, stored_as=dtype)
            for weights, dtype in candidates
        ]

    def predictors(self, models: Sequence[tuple[Tensor, Table]]) -> list[Predictor]:
        """The original, then every candidate, at their heads; a model is (norm weight, table)."""
        assert self.original is not None
        streams = [self.original, *self.candidates]
        return [
            Predictor(_predicting(stream.skeleton.final_norm(norm, stream.hidden)), table)
            for stream, (norm, table) in zip(streams, models, strict=True)
        ]

    def foreign(self, hidden: Tensor, table: Table) -> Predictor:
        """A runtime at its head: what it made of the same windows, (windows, tokens, hidden)."""
        moved = hidden.to(self._skeleton.device, self._skeleton.dtype)
        return Predictor(_predicting(moved), table)

    def beginnings(self, *, tokens: int | None, window: int | None) -> EvaluationStreams:
        """The same streams over less: the first window of every slice, cut short.

        tokens: how many in all. window: the longest window; None for no bound. What is cut off
        follows what is kept, and a causal model knows nothing of it. All windows stay where neither
        bound is reached.
        """
        length = min(self._ids.shape[1], window or self._ids.shape[1])
        if length == self._ids.shape[1] and (tokens is None or self._ids.numel() <= tokens):
            return self
        if tokens is not None:
            length = max(2, min(length, tokens // len(self._slices)))
        counts = [windows.ids.shape[0] for windows in self._slices]
        firsts = [sum(counts[:n]) for n in range(len(counts))]
        cut = [windows.ids[:1, :length] for windows in self._slices]
        shorter = EvaluationStreams(
            self._skeleton,
            [
                TokenWindows(ids, windows.name, stream_digest([ids]))
                for ids, windows in zip(cut, self._slices, strict=True)
            ],
        )
        assert self.original is not None
        shorter.original = Stream(self._skeleton, self.original.hidden[firsts, :length])
        shorter.candidates = [
            Stream(self._skeleton, stream.hidden[firsts, :length]) for stream in self.candidates
        ]
        return shorter

    @property
    def digest(self) -> str:
        """``sha256:`` of all windows."""
        return stream_digest([windows.ids for windows in self._slices])

    @property
    def ids(self) -> Tensor:
        """All windows of all slices, (windows, tokens)."""
        return self._ids

    def score(self, original: Predictor, others: Sequence[Predictor]) -> list[list[SliceResult]]:
        """Compare every other model with the original: for each its slices, in the order given.

        UnsupportedError where predictions are not finite.
        """
        results = []
        for scores in self._compare(original, others, self._ids):
            first, slices = 0, []
            for windows in self._slices:
                tokens = windows.ids.shape[0] * (windows.ids.shape[1] - 1)
                part = scores.between(first, first + tokens)
                if not torch.isfinite(part.divergence).all():
                    raise UnsupportedError(
                        f"evaluation slice {windows.name}: predictions are not finite in "
                        f"{self._skeleton.dtype}.",
                        hint="Compute in float32: --dtype float32.",
                    )
                slices.append(summarise(windows.name, part, windows=windows.ids.shape[0]))
                first += tokens
            results.append(slices)
        return results

    def divergence(self, reference: Predictor, other: Predictor) -> Measurement:
        """Mean divergence of one model's predictions from another's, a window of every slice."""
        counts = [windows.ids.shape[0] for windows in self._slices]
        firsts = [sum(counts[:n]) for n in range(len(counts))]
        predicting = self._ids.shape[1] - 1
        tokens = torch.cat(
            [torch.arange(first * predicting, (first + 1) * predicting) for first in firsts]
        ).to(self._skeleton.device)
        chosen = [Predictor(model.hidden[tokens], model.table) for model in (reference, other)]
        (scores,) = self._compare(chosen[0], chosen[1:], self._ids[firsts])
        return mean_over_windows(scores.divergence, windows=len(firsts))

    def _compare(
        self, original: Predictor, others: Sequence[Predictor], ids: Tensor
    ) -> list[TokenScores]:
        return compare_predictions(
            original,
            list(others),
            ids[:, 1:].reshape(-1).to(self._skeleton.device),
            vocabulary=self._skeleton.config.vocab_size,
            softcap=self._skeleton.logit_softcap,
        )


def _predicting(hidden: Tensor) -> Tensor:
    """Positions that predict a token of their window: all but the last."""
    return hidden[:, :-1].reshape(-1, hidden.shape[-1])


def reference_runtime(skeleton: Skeleton) -> str:
    """What computes at level ``reference``, for a certificate."""
    dtype = str(skeleton.dtype).removeprefix("torch.")
    return f"torch {torch.__version__.partition('+')[0]}; {dtype} on {skeleton.device}"


def head_name(config: Mapping[str, object]) -> str:
    """Name of the table that makes logits: the embedding where the head is tied to it."""
    return EMBEDDING if config["tie_word_embeddings"] else HEAD


def head_table(
    weights: Weights, skeleton: Skeleton, *, stored_as: torch.dtype | None = None
) -> Table:
    """A model's head, read in runs of rows."""
    name = head_name(weights.config)

    def rows(start: int, stop: int) -> Tensor:
        table = weights.rows(name, start, stop)
        if stored_as is not None:
            table = table.to(stored_as)
        return table.to(skeleton.device, skeleton.dtype)

    return rows


def final_norm(weights: Weights, skeleton: Skeleton) -> Tensor:
    """Weight of the norm before the head, in the compute type on the device."""
    return weights.tensor(FINAL_NORM, torch.float32).to(skeleton.device, skeleton.dtype)
