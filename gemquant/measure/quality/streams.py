"""The evaluation windows on their way through the original and the quantized models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gemquant.calibration.stream import Stream, embed_windows, stream_layers
from gemquant.calibration.windows import TokenWindows, stream_digest
from gemquant.core.artifact.evaluation import EmbeddingEvaluation, SliceEvaluation
from gemquant.core.protocols import Progress, RowSource, Weights
from gemquant.errors import UnsupportedError
from gemquant.measure.quality.divergence import (
    Head,
    Predictor,
    Table,
    TokenScores,
    compare_predictions,
)
from gemquant.measure.quality.embeddings import compare_embeddings, embedded
from gemquant.measure.quality.figures import slice_evaluation
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import EMBEDDING, FINAL_NORM, HEAD


class EvaluationStreams:
    """Hidden states of every slice's windows: one stream for the original, one per candidate.

    slices: windows of one length; they travel together and are reported apart.
    """

    def __init__(self, skeleton: Skeleton, slices: Sequence[TokenWindows]) -> None:
        self._skeleton = skeleton
        self._slices = slices
        self._ids = torch.cat([windows.ids for windows in slices])
        counts = torch.tensor([len(row) for windows in slices for row in windows.positions])
        self._window = torch.arange(len(counts)).repeat_interleave(counts)
        positions = torch.cat([windows.positions.flatten() for windows in slices])
        self._place = self._window * self._ids.shape[1] + positions
        self._original: Stream | None = None
        self.candidates: list[Stream] = []

    @property
    def original(self) -> Stream:
        """The original's; it exists once the streams have begun."""
        if self._original is None:
            raise RuntimeError("the evaluation streams have not begun")
        return self._original

    def embed(
        self,
        original: Weights,
        candidates: Sequence[tuple[RowSource, torch.dtype | None]],
    ) -> None:
        """Begin all streams; a candidate's rows are first rounded to the type it stores."""
        self._original = embed_windows(self._skeleton, original, self._ids)
        self.candidates = [
            embed_windows(self._skeleton, weights, self._ids, stored_as=dtype)
            for weights, dtype in candidates
        ]

    def layers(
        self, original: Weights, progress: Progress, task: str = "evaluating layers"
    ) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
        """Advance the original layer by layer; candidates follow before the next is asked for.

        Yields each layer's index and the original's parameters by short name.
        """
        return stream_layers(self.original, original, progress, task)

    def predictors(self, models: Sequence[tuple[Tensor, Table]]) -> list[Head]:
        """The original, then every candidate, at their heads; a model is (norm weight, table)."""
        streams = [self.original, *self.candidates]
        return [
            self._head(stream.skeleton.final_norm(norm, stream.hidden), table)
            for stream, (norm, table) in zip(streams, models, strict=True)
        ]

    def embeddings(self, models: Sequence[tuple[Tensor, Sequence[Tensor]]]) -> tuple[Tensor, ...]:
        """Of the original, then every candidate; a model is (norm weight, its Dense modules)."""
        streams = [self.original, *self.candidates]
        return tuple(
            embedded(stream.skeleton.final_norm(norm, stream.hidden), dense)
            for stream, (norm, dense) in zip(streams, models, strict=True)
        )

    def embedding_figures(
        self, original: Tensor, other: Tensor, *, seed: int, artifact: str = "the artifact"
    ) -> tuple[EmbeddingEvaluation, ...]:
        """Compare embeddings (texts, features) of every slice."""
        return compare_embeddings(self._slices, original, other, seed=seed, artifact=artifact)

    def runtime_head(self, hidden: Tensor, table: Table) -> Head:
        """A runtime at its head: its hidden states of the same windows, (windows, tokens, hidden).

        Its logits are float32, whatever type we compute in: table yields float32.
        """
        return self._head(hidden.to(self._skeleton.device, torch.float32), table)

    def _head(self, hidden: Tensor, table: Table) -> Head:
        return Head(self.measured(hidden), table, self._skeleton.logit_softcap)

    def measured(self, states: Tensor) -> Tensor:
        """Of states (windows, tokens, n) those whose predictions are measured, (measured, n)."""
        return states.flatten(0, 1)[self._place.to(states.device)]

    def measured_of(self, first: int, count: int) -> Tensor:
        """Which are measured of so many predicting positions, from number ``first`` on.

        They are numbered through all windows; every position predicts but a window's last.
        """
        numbers = self._place - self._window - first
        return numbers[(numbers >= 0) & (numbers < count)]

    def beginnings(self, *, tokens: int | None, window: int | None) -> EvaluationStreams:
        """The same streams over less: the first window of every slice, truncated.

        tokens: how many in all. window: the longest window; None for no bound. The model is causal,
        so what is cut off changes nothing before it. All windows stay where neither bound is
        reached; of truncated ones every position is measured.
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
        shorter._original = self.original.beginnings(firsts, length)
        shorter.candidates = [stream.beginnings(firsts, length) for stream in self.candidates]
        return shorter

    def only(self, number: int | None) -> EvaluationStreams:
        """The same streams with one of the candidates alone, or with none."""
        fewer = EvaluationStreams(self._skeleton, self._slices)
        fewer._original = self._original
        fewer.candidates = [] if number is None else [self.candidates[number]]
        return fewer

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary."""
        return int(self._skeleton.config.vocab_size)

    @property
    def ids(self) -> Tensor:
        """All windows of all slices, (windows, tokens)."""
        return self._ids

    @property
    def slices(self) -> Sequence[TokenWindows]:
        """The slices, in the order in which they travel."""
        return self._slices

    def split(self, hidden: Tensor) -> Sequence[Tensor]:
        """Hidden states (windows, tokens, hidden) of all windows, slice by slice."""
        return torch.split(hidden, [windows.ids.shape[0] for windows in self._slices])

    def score(
        self, original: Predictor, others: Sequence[Predictor], *, seed: int, progress: Progress
    ) -> list[tuple[SliceEvaluation, ...]]:
        """Compare every other model with the original: for each its slices, in the order given.

        UnsupportedError where predictions are not finite.
        """
        results = self.compare(original, others, progress)
        for scores in results:
            for windows, part in zip(self._slices, scores, strict=True):
                if not torch.isfinite(part.divergence).all():
                    raise UnsupportedError(
                        f"evaluation slice {windows.name}: predictions are not finite in "
                        f"{self._skeleton.dtype}.",
                        hint="Compute in float32: --compute-dtype float32.",
                    )
        return [self.figures(scores, seed=seed) for scores in results]

    def figures(
        self, scores: Sequence[TokenScores], *, seed: int, artifact: str = "the artifact"
    ) -> tuple[SliceEvaluation, ...]:
        """Summarise every slice's scores."""
        return tuple(
            slice_evaluation(windows, part, seed=seed, artifact=artifact)
            for windows, part in zip(self._slices, scores, strict=True)
        )

    def compare(
        self, original: Predictor, others: Sequence[Predictor], progress: Progress
    ) -> list[list[TokenScores]]:
        """Score every other model against the original: for each, every slice's tokens."""
        scores = self._compare(original, others, self.targets(), progress)
        return [self.by_slice(each) for each in scores]

    def compare_runtime(
        self,
        original: Predictor,
        ours: Predictor | None,
        predictions: Iterable[Predictor],
        progress: Progress,
        task: str,
    ) -> tuple[list[TokenScores], Tensor | None]:
        """Compare a runtime's predictions, chunk by chunk, with the original's and with our own.

        ours: what the same artifact predicts at level ``reference``; None where it cannot be read
        back. predictions: of all measured tokens, in order; each chunk is scored before the next is
        asked for.
        Returns every slice's tokens, and divergences from ours of the tokens of every slice's first
        window, (tokens,), or None.
        """
        targets, first_windows = self.targets(), self._in_first_windows()
        scores: list[TokenScores] = []
        from_ours: list[TokenScores] = []
        first = 0
        progress.start(task, len(targets))
        for chunk in predictions:
            rows = torch.arange(first, first + chunk.tokens, device=targets.device)
            scores += self._compare(original.at(rows), [chunk], targets[rows])
            first += chunk.tokens
            progress.advance(task, chunk.tokens)
            chosen = first_windows[rows]
            if ours is not None and chosen.any():
                some = chunk if chosen.all() else chunk.at(chosen)
                from_ours += self._compare(ours.at(rows[chosen]), [some], targets[rows[chosen]])
        if first != len(targets):
            raise ValueError(f"the runtime predicts {first} tokens, not {len(targets)}")
        divergence = TokenScores.joined(from_ours).divergence if from_ours else None
        return self.by_slice(TokenScores.joined(scores)), divergence

    def by_slice(self, scores: TokenScores) -> list[TokenScores]:
        """Cut scores of all predicted tokens into those of each slice."""
        first, parts = 0, []
        for windows in self._slices:
            tokens = windows.positions.numel()
            parts.append(scores.between(first, first + tokens))
            first += tokens
        return parts

    def targets(self) -> Tensor:
        """The token after every measured position, (tokens,)."""
        return self._ids.flatten()[self._place + 1].to(self._skeleton.device)

    def _in_first_windows(self) -> Tensor:
        """Which measured positions lie in the first window of their slice, (tokens,) bool."""
        first = torch.zeros(self._ids.shape[0], dtype=torch.bool, device=self._skeleton.device)
        counts = [windows.ids.shape[0] for windows in self._slices]
        first[[sum(counts[:n]) for n in range(len(counts))]] = True
        return first[self._window.to(first.device)]

    def _compare(
        self,
        original: Predictor,
        others: Sequence[Predictor],
        targets: Tensor,
        progress: Progress | None = None,
    ) -> list[TokenScores]:
        return compare_predictions(
            original, others, targets, vocabulary=self.vocabulary, progress=progress
        )


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
