"""Measure finished artifacts against their original: all of them in one pass, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from gemquant.calibration.stream import Stream, layer_weights
from gemquant.calibration.windows import TokenWindows
from gemquant.core.progress import Progress, Silence
from gemquant.core.protocols import Weights
from gemquant.core.results import Level
from gemquant.errors import ArtifactError, GemquantError, UnsupportedError, refuse
from gemquant.measure.quality.divergence import TokenScores
from gemquant.measure.quality.layer_error import LayerError, layer_error
from gemquant.measure.quality.native import NativeRuntime
from gemquant.measure.quality.streams import (
    EvaluationStreams,
    final_norm,
    head_table,
    reference_runtime,
)
from gemquant.models.architecture import layer_parameters
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import layer_prefix
from gemquant.numerics.precision import fast_products

# A quantized model may untie its head; everything else decides what is computed.
SAME = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


@dataclass(frozen=True)
class Subject:
    """A finished artifact. name: for messages. load: its runtime, which holds the whole model."""

    name: str
    weights: Weights
    load: Callable[[], NativeRuntime] | None = None


@dataclass(frozen=True)
class LevelScores:
    """One level of one artifact: every slice's windows as they were run, with their scores.

    from_reference: divergences of this level's predictions from level ``reference``'s, over the
    first window of every slice.
    """

    level: Level
    runtime: str
    slices: Sequence[tuple[TokenWindows, TokenScores]] = ()
    token_stream: str = ""
    not_run: str | None = None
    from_reference: Tensor | None = None


@dataclass(frozen=True)
class Measured:
    """All that was found of one artifact.

    accumulated: errors behind every layer, a list per slice. own: the same where each layer is fed
    with the original's hidden states; empty unless it was asked for.
    """

    levels: Sequence[LevelScores]
    accumulated: Sequence[Sequence[LayerError]]
    own: Sequence[Sequence[LayerError]]


@fast_products()
def measure(
    original: Weights,
    subjects: Sequence[Subject],
    evaluation: Sequence[TokenWindows],
    *,
    by_layer: bool = False,
    device: str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> list[Measured]:
    """Measure every artifact at level ``reference``, and ``native`` where a runtime is given.

    by_layer: also each layer's own error, for one more run of each artifact's layers.
    UnsupportedError if an artifact is of another architecture, or the original's values are not
    finite; ArtifactError if an artifact's are not, with the first layer behind which they are not.
    """
    progress = progress or Silence()
    refuse([problem for each in subjects for problem in _differing(original, each)])
    skeleton = Skeleton(original.config, device=device, dtype=compute_dtype)
    streams = EvaluationStreams(skeleton, evaluation)
    streams.embed(original, [(each.weights, None) for each in subjects])
    tracks = [_Track(each, streams, number) for number, each in enumerate(subjects)]
    _refuse(track.embedding_problems() for track in tracks)
    assert streams.original is not None
    progress.start("evaluating layers", skeleton.layers)
    for index in range(skeleton.layers):
        before = streams.original.hidden.clone() if by_layer else None
        prefix, names = layer_prefix(index), layer_parameters(original.config, index)
        streams.original.advance(index, layer_weights(original, prefix, names, skeleton))
        for track in tracks:
            weights = layer_weights(track.subject.weights, prefix, names, skeleton)
            track.stream.advance(index, weights)
            track.observe()
            if before is not None:
                alone = Stream(skeleton, before.clone())
                alone.advance(index, weights)
                track.observe_own(alone.hidden)
        _refuse(track.problems(index) for track in tracks)
        progress.advance("evaluating layers")
    progress.note("comparing predictions")
    models = [
        (final_norm(weights, skeleton), head_table(weights, skeleton))
        for weights in (original, *(each.weights for each in subjects))
    ]
    before_head, *heads = streams.predictors(models)
    compared = streams.compare(before_head, heads)
    _refuse(track.head_problems(part) for track, part in zip(tracks, compared, strict=True))
    measured = []
    for number, (track, scores) in enumerate(zip(tracks, compared, strict=True)):
        levels = [_level("reference", reference_runtime(skeleton), streams, scores)]
        if track.subject.load is not None:
            models_of_two = [models[0], models[number + 1]]
            levels.append(_native(track, streams.only(number), models_of_two, progress))
        measured.append(Measured(levels, track.accumulated, track.own))
    return measured


class _Track:
    """One artifact on its way through the layers, and its errors so far, slice by slice."""

    def __init__(self, subject: Subject, streams: EvaluationStreams, number: int) -> None:
        self.subject = subject
        self.stream = streams.candidates[number]
        self.accumulated: list[list[LayerError]] = [[] for _ in streams.slices]
        self.own: list[list[LayerError]] = []
        self._streams = streams

    def observe(self) -> None:
        """Compare its hidden states with the original's."""
        for errors, pair in zip(self.accumulated, self._pairs(self.stream.hidden), strict=True):
            errors.append(layer_error(*pair))

    def observe_own(self, hidden: Tensor) -> None:
        """The same for a layer that was fed with the original's hidden states."""
        self.own = self.own or [[] for _ in self.accumulated]
        for errors, pair in zip(self.own, self._pairs(hidden), strict=True):
            errors.append(layer_error(*pair))

    def embedding_problems(self) -> Iterator[GemquantError]:
        """What is wrong with its embedding."""
        return self._not_finite(self._pairs(self.stream.hidden), "in the embedding")

    def problems(self, index: int) -> Iterator[GemquantError]:
        """What is wrong with the layer that was just observed."""
        if all(errors[-1].finite for errors in self.accumulated):
            return iter(())
        return self._not_finite(self._pairs(self.stream.hidden), f"in decoder layer {index}")

    def head_problems(self, scores: Sequence[TokenScores]) -> Iterator[GemquantError]:
        """What is wrong with predictions, though the last layer's output was right."""
        pairs = ((part.nll_original, part.nll_quantized) for part in scores)
        return self._not_finite(pairs, "at the head")

    def _not_finite(
        self, pairs: Iterable[tuple[Tensor, Tensor]], where: str
    ) -> Iterator[GemquantError]:
        """The first slice where the original or the artifact has values that are no numbers."""
        for windows, (original, other) in zip(self._streams.slices, pairs, strict=True):
            if not torch.isfinite(original).all():
                yield UnsupportedError(
                    f"The original's values stop being finite {where} (slice {windows.name}).",
                    hint="Compute in float32: --dtype float32.",
                )
                return
            if not torch.isfinite(other).all():
                yield ArtifactError(
                    f"{self.subject.name}: its values stop being finite {where} (slice "
                    f"{windows.name}); the original's do not.",
                    hint=f"gemquant verify {self.subject.name} says whether it is as it was made; "
                    "if so, make it again.",
                )
                return

    def _pairs(self, hidden: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        assert self._streams.original is not None
        original = self._streams.split(self._streams.original.hidden)
        return zip(original, self._streams.split(hidden), strict=True)


def _refuse(problems: Iterable[Iterator[GemquantError]]) -> None:
    """Raise what is wrong, once: the original's faults are seen beside every artifact."""
    refuse(chain.from_iterable(problems))


def _level(
    level: Level, runtime: str, streams: EvaluationStreams, scores: Sequence[TokenScores]
) -> LevelScores:
    pairs = tuple(zip(streams.slices, scores, strict=True))
    return LevelScores(level, runtime, pairs, streams.digest)


def _native(
    track: _Track,
    streams: EvaluationStreams,
    models: Sequence[tuple[Tensor, Callable[[int, int], Tensor]]],
    progress: Progress,
) -> LevelScores:
    assert track.subject.load is not None
    runtime = track.subject.load()
    if runtime.not_run is not None:
        return LevelScores(
            "native", runtime.runtime, token_stream=streams.digest, not_run=runtime.not_run
        )
    streams = streams.beginnings(tokens=runtime.max_tokens, window=runtime.max_window)
    progress.note(f"running {runtime.runtime}")
    before, after = streams.predictors(models)
    predictions = runtime.predictions(streams)
    scores, from_ours = streams.compare_foreign(before, after, predictions)
    for windows, part in zip(streams.slices, scores, strict=True):
        if not torch.isfinite(part.nll_quantized).all():
            raise ArtifactError(
                f"{track.subject.name}: {runtime.runtime}: predictions of slice {windows.name} "
                "are not finite, and those of its decoded weights are.",
                hint="Measure without the runtime: --no-native.",
            )
    level = _level("native", runtime.runtime, streams, scores)
    return replace(level, from_reference=from_ours)


def _differing(original: Weights, subject: Subject) -> Iterator[GemquantError]:
    before, after = original.config, subject.weights.config
    differing = [key for key in SAME if before[key] != after[key]]
    if differing:
        told = ", ".join(f"{key} {before[key]} and {after[key]}" for key in differing)
        yield UnsupportedError(
            f"{subject.name} and the original cannot be compared: {told}.",
            hint="Name the artifact's own base model with --against.",
        )
