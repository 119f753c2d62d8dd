"""Measure finished artifacts against their original: all of them in one pass, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from gemquant.calibration.stream import Stream, layer_weights
from gemquant.calibration.windows import TokenWindows
from gemquant.core.artifact.evaluation import LevelEvaluation, TensorCost
from gemquant.core.protocols import Progress, Silence, Weights
from gemquant.errors import ArtifactError, GemquantError, UnsupportedError, refuse
from gemquant.measure.quality.divergence import Table, TokenScores
from gemquant.measure.quality.embeddings import dense_modules, through_dense
from gemquant.measure.quality.figures import (
    LayerError,
    layer_error,
    layer_errors,
    mean_over_windows,
)
from gemquant.measure.quality.native import NativeRuntime
from gemquant.measure.quality.streams import (
    EvaluationStreams,
    final_norm,
    head_table,
    reference_runtime,
)
from gemquant.measure.quality.tensors import TOKENS, OwnErrors, tensor_costs
from gemquant.models.architecture import architecture_of, layer_parameters
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
    """A finished artifact.

    name: for messages. weights: None where they cannot be decoded; ``unread`` says why, and level
    ``reference`` is not run. load: its runtime, which holds the whole model.
    not_finite_hint: what helps where the runtime's predictions are not finite.
    """

    name: str
    weights: Weights | None
    load: Callable[[], AbstractContextManager[NativeRuntime]] | None = None
    unread: str = ""
    not_finite_hint: str = "Measure without the runtime: --no-native."


def compare(
    original: Weights,
    quantized: Weights,
    evaluation: Sequence[TokenWindows],
    *,
    runtime: NativeRuntime | None = None,
    seed: int = 0,
    device: str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> tuple[LevelEvaluation, ...]:
    """Measure one finished model: the certificates of level ``reference``, and ``native`` if given.

    runtime: a loaded artifact. Raises what ``measure`` does.
    """
    load = None if runtime is None else lambda: nullcontext(runtime)
    (levels,) = measure(
        original,
        [Subject("the artifact", quantized, load)],
        evaluation,
        seed=seed,
        device=device,
        compute_dtype=compute_dtype,
        progress=progress,
    )
    return levels


@fast_products()
def measure(
    original: Weights,
    subjects: Sequence[Subject],
    evaluation: Sequence[TokenWindows],
    *,
    seed: int = 0,
    by_layer: bool = False,
    device: str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> list[tuple[LevelEvaluation, ...]]:
    """Measure every artifact at level ``reference``, and ``native`` where a runtime is given.

    seed: of the resampling of windows. by_layer: also each layer's own error, for one more run of
    each artifact's layers, and what single tensors cost.
    UnsupportedError if an artifact is of another architecture, or the original's values are not
    finite; ArtifactError if an artifact's are not, with the first layer where they are not, or if
    a perplexity is beyond float64.
    """
    progress = progress or Silence()
    decoded = [(each, each.weights) for each in subjects if each.weights is not None]
    refuse([problem for pair in decoded for problem in _differing(original, *pair)])
    skeleton = Skeleton(original.config, device=device, dtype=compute_dtype)
    streams = EvaluationStreams(skeleton, evaluation)
    streams.embed(original, [(weights, None) for _, weights in decoded])
    tracks = {
        each.name: _Track(each.name, weights, streams, number)
        for number, (each, weights) in enumerate(decoded)
    }
    refuse(chain.from_iterable(each.embedding_problems() for each in tracks.values()))
    inputs = streams.original.hidden.clone() if by_layer else None
    embeds = skeleton.architecture.embeds
    # What single tensors cost is measured on predictions, of which an embedding model makes none.
    before = _short(streams) if by_layer and not embeds else None
    for index, parameters in streams.layers(original, progress):
        prefix, names = layer_prefix(index), layer_parameters(original.config, index)
        for track in tracks.values():
            weights = layer_weights(track.weights, prefix, names, skeleton)
            track.stream.advance(index, weights)
            track.observe()
            if inputs is not None:
                alone = streams.original.copy(inputs.clone())
                alone.advance(index, weights)
                track.observe_own(alone.hidden)
        refuse(chain.from_iterable(each.problems(index) for each in tracks.values()))
        if inputs is not None:
            inputs = streams.original.hidden.clone()
        if before is not None:
            after = _short(streams)
            for track in tracks.values():
                weights = layer_weights(track.weights, prefix, names, skeleton)
                track.tensors.observe(index, before, after.hidden, parameters, weights)
            before = after
    if embeds:
        return [_embeddings(each, original, tracks, streams, seed, progress) for each in subjects]
    return _predictions(
        original, subjects, tracks, streams, seed=seed, by_layer=by_layer, progress=progress
    )


def _predictions(
    original: Weights,
    subjects: Sequence[Subject],
    tracks: Mapping[str, _Track],
    streams: EvaluationStreams,
    *,
    seed: int,
    by_layer: bool,
    progress: Progress,
) -> list[tuple[LevelEvaluation, ...]]:
    """The levels of language models, whose layers have all run."""
    skeleton = streams.original.skeleton
    models = [
        (final_norm(weights, skeleton), head_table(weights, skeleton))
        for weights in (original, *(track.weights for track in tracks.values()))
    ]
    predictor, *heads = streams.predictors(models)
    compared = streams.compare(predictor, heads, progress) if heads else []
    refuse(chain.from_iterable(map(_Track.head_problems, tracks.values(), compared)))
    costs: dict[str, tuple[TensorCost, ...]] = {}
    if by_layer:
        cut = streams.beginnings(tokens=TOKENS, window=None).slices
        for name, track in tracks.items():
            fresh = EvaluationStreams(skeleton, cut)
            costs[name] = tensor_costs(original, track.weights, track.tensors, fresh, progress)
    runtime = reference_runtime(skeleton)
    measured = []
    for subject in subjects:
        decoded_track = tracks.get(subject.name)
        if decoded_track is None:
            level = LevelEvaluation(level="reference", runtime=runtime, not_run=subject.unread)
            alone_streams, model_pair = streams.only(None), models[:1]
        else:
            number = decoded_track.number
            level = LevelEvaluation(
                level="reference",
                runtime=runtime,
                slices=streams.figures(compared[number], seed=seed, artifact=subject.name),
                layers_accumulated=layer_errors(streams.slices, decoded_track.accumulated),
                layers_own=layer_errors(streams.slices, decoded_track.own),
                tensors=costs.get(subject.name, ()),
            )
            alone_streams, model_pair = streams.only(number), [models[0], models[number + 1]]
        levels = [level]
        if subject.load is not None:
            levels.append(_native(subject, alone_streams, model_pair, seed, progress))
        measured.append(tuple(levels))
    return measured


def _embeddings(
    subject: Subject,
    original: Weights,
    tracks: Mapping[str, _Track],
    streams: EvaluationStreams,
    seed: int,
    progress: Progress,
) -> tuple[LevelEvaluation, ...]:
    """The levels of an embedding model; one without Dense modules is given the original's."""
    track, skeleton = tracks.get(subject.name), streams.original.skeleton
    dense = dense_modules(original, original.config)
    models = [(final_norm(original, skeleton), dense)]
    missing: list[Tensor] = []
    if track is not None:
        own = dense_modules(track.weights, track.weights.config)
        missing = [] if own else dense
        models.append((final_norm(track.weights, skeleton), own or dense))
    before, *ours = streams.only(None if track is None else track.number).embeddings(models)
    figures = partial(streams.embedding_figures, before, seed=seed, artifact=subject.name)
    reference = partial(LevelEvaluation, level="reference", runtime=reference_runtime(skeleton))
    if track is None:
        levels = [reference(not_run=subject.unread)]
    else:
        levels = [
            reference(
                embeddings=figures(ours[0]),
                layers_accumulated=layer_errors(streams.slices, track.accumulated),
                layers_own=layer_errors(streams.slices, track.own),
            )
        ]
    if subject.load is None:
        return tuple(levels)
    with subject.load() as runtime:
        native = partial(LevelEvaluation, level="native", runtime=runtime.runtime)
        if runtime.not_run is not None:
            return *levels, native(not_run=runtime.not_run)
        progress.start(f"running {runtime.runtime}", 0)
        found = through_dense(runtime.embeddings(streams.ids), missing)
        return *levels, native(embeddings=figures(found))


def _short(streams: EvaluationStreams) -> Stream:
    """The original's hidden states that single tensors are measured on, as they are now."""
    original = streams.beginnings(tokens=TOKENS, window=None).original
    return original.copy(original.hidden.clone())


class _Track:
    """One artifact on its way through the layers, and its errors so far, slice by slice."""

    def __init__(
        self, name: str, weights: Weights, streams: EvaluationStreams, number: int
    ) -> None:
        self.name = name
        self.weights = weights
        self.number = number
        self.stream = streams.candidates[number]
        self.accumulated: list[list[LayerError]] = [[] for _ in streams.slices]
        self.own: list[list[LayerError]] = []
        self.tensors = OwnErrors(self.stream.skeleton)
        self._streams = streams

    def observe(self) -> None:
        """Compare its hidden states with the original's."""
        for errors, pair in zip(self.accumulated, self._pairs(self.stream.hidden), strict=True):
            errors.append(layer_error(*pair))

    def observe_own(self, hidden: Tensor) -> None:
        """The same for a layer whose input was the original's hidden states."""
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
        """The first slice where the original or the artifact has values that are not finite."""
        for windows, (original, other) in zip(self._streams.slices, pairs, strict=True):
            if not torch.isfinite(original).all():
                yield UnsupportedError(
                    f"The original's values stop being finite {where} (slice {windows.name}).",
                    hint="Compute in float32: --compute-dtype float32.",
                )
                return
            if not torch.isfinite(other).all():
                yield ArtifactError(
                    f"{self.name}: its values stop being finite {where} (slice "
                    f"{windows.name}); the original's do not.",
                    hint=f"Check its files: gemquant verify {self.name}; if they are intact, make "
                    "it again.",
                )
                return

    def _pairs(self, hidden: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        original = self._streams.split(self._streams.original.hidden)
        return zip(original, self._streams.split(hidden), strict=True)


def _native(
    subject: Subject,
    streams: EvaluationStreams,
    models: Sequence[tuple[Tensor, Table]],
    seed: int,
    progress: Progress,
) -> LevelEvaluation:
    """Level ``native``. models: the original at its head, and the artifact where it is decoded."""
    assert subject.load is not None
    with subject.load() as runtime:
        if runtime.not_run is not None:
            return LevelEvaluation(level="native", runtime=runtime.runtime, not_run=runtime.not_run)
        streams = streams.beginnings(tokens=runtime.max_tokens, window=runtime.max_window)
        before, *ours = streams.predictors(models)
        predictions = runtime.predictions(streams)
        task = f"running {runtime.runtime}, tokens"
        scores, from_ours = streams.compare_runtime(
            before, ours[0] if ours else None, predictions, progress, task
        )
    for windows, part in zip(streams.slices, scores, strict=True):
        if not torch.isfinite(part.nll_original).all():
            raise UnsupportedError(
                f"The original's predictions of slice {windows.name} are not finite.",
                hint="Compute in float32: --compute-dtype float32.",
            )
        if not torch.isfinite(part.nll_quantized).all():
            others = ", and those of its decoded weights are" if ours else ""
            raise ArtifactError(
                f"{subject.name}: {runtime.runtime}: predictions of slice {windows.name} are not "
                f"finite{others}.",
                hint=subject.not_finite_hint,
            )
    return LevelEvaluation(
        level="native",
        runtime=runtime.runtime,
        slices=streams.figures(scores, seed=seed, artifact=subject.name),
        kl_from_reference=None
        if from_ours is None
        else mean_over_windows(from_ours, len(scores), seed=seed),
    )


def _differing(original: Weights, subject: Subject, weights: Weights) -> Iterator[GemquantError]:
    before, after = original.config, weights.config
    differing = [key for key in SAME if before[key] != after[key]]
    kinds = {architecture_of(config).gguf.architecture for config in (before, after)}
    if len(kinds) == 1:  # a GGUF has one name for all that llama.cpp computes alike
        differing = [key for key in differing if key != "model_type"]
    if differing:
        values = ", ".join(f"{key} {before[key]} and {after[key]}" for key in differing)
        yield UnsupportedError(
            f"{subject.name} and the original cannot be compared: {values}.",
            hint="Name the artifact's own base model with --against.",
        )
