"""Level ``emulated``: a model whose linears compute with 8-bit weights and activations, in torch.

Vendors do not publish what their runtimes do with activations, so the emulation is a bracket: one
scale per token, the finest that an integer product allows, and one for all tokens of a window, the
coarsest; each with the head in float16 and in int8. Embedding: float16. All else (norms, attention
scores, the residual stream) is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from gemquant.calibration.stream import layer_weights
from gemquant.calibration.windows import TokenWindows
from gemquant.core.artifact.evaluation import Emulation, LevelEvaluation
from gemquant.core.protocols import Progress, Silence, Weights
from gemquant.measure.quality.divergence import Head, Predictor, Run, Table, softcapped
from gemquant.measure.quality.streams import (
    EvaluationStreams,
    final_norm,
    head_table,
    reference_runtime,
)
from gemquant.models.architecture import layer_parameters, layer_structure
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import layer_prefix
from gemquant.numerics import int8
from gemquant.numerics.int8 import Granularity, Int8Activations, Int8Weight
from gemquant.numerics.precision import fast_products

GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
HEADS: tuple[Literal["float16", "int8"], ...] = ("float16", "int8")
ALONG: Mapping[Granularity, Literal["per token", "per tensor"]] = {
    "token": "per token",
    "tensor": "per tensor",
}


@dataclass(frozen=True)
class Emulated:
    """Weights to emulate. smoothing: whether activation outliers were folded into them."""

    weights: Weights
    smoothing: bool


@fast_products()
def emulate(
    original: Weights,
    models: Sequence[Emulated],
    evaluation: Sequence[TokenWindows],
    *,
    dtype: str,
    group_size: int,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[LevelEvaluation]:
    """Measure every model at every corner of the bracket, all in one pass over the layers.

    dtype: what is emulated, ``w8a8`` or ``w8a8_g128``; group_size: its input channels that share a
    weight's scale, −1 for all. seed: of the resampling of windows. Returns a record for each corner
    of each model, in the order of the models. UnsupportedError where predictions are not finite.
    """
    progress = progress or Silence()
    skeleton = Skeleton(original.config, device=device, dtype=torch.float32)
    streams = EvaluationStreams(skeleton, evaluation)
    pairs = [(model, granularity) for model in models for granularity in GRANULARITIES]
    streams.embed(original, [(model.weights, torch.float16) for model in models])
    # One for each granularity; both begin alike.
    streams.candidates = [
        stream.copy(stream.hidden.clone()) for stream in streams.candidates for _ in GRANULARITIES
    ]
    for index, _ in streams.layers(original, progress, "emulating layers"):
        prefix, names = layer_prefix(index), layer_parameters(original.config, index)
        linears = layer_structure(original.config, index).linears
        candidates = iter(streams.candidates)
        for model in models:
            layer = _Layer.rounded(
                layer_weights(model.weights, prefix, names, skeleton), linears, group_size
            )
            for granularity in GRANULARITIES:
                with skeleton.replacing(index, layer.functions(granularity)):
                    next(candidates).advance(index, layer.others)
    before, predictors = _predictors(streams, original, pairs, skeleton, group_size)
    results = streams.score(before, predictors, seed=seed, progress=progress)
    corners = [(*pair, head) for pair in pairs for head in HEADS]
    levels = []
    for (model, granularity, head), slices in zip(corners, results, strict=True):
        emulation = Emulation(
            dtype=dtype, activations=ALONG[granularity], head=head, smoothing=model.smoothing
        )
        runtime = _runtime(emulation, group_size, skeleton)
        levels.append(
            LevelEvaluation(level="emulated", runtime=runtime, slices=slices, emulation=emulation)
        )
    return levels


def not_emulated(dtype: str, reason: str) -> LevelEvaluation:
    """Why nothing was emulated."""
    return LevelEvaluation(level="emulated", runtime=f"emulation of {dtype}", not_run=reason)


@dataclass(frozen=True)
class _Layer:
    """A decoder layer. linears: by short module name. others: norms, as they are."""

    linears: Mapping[str, Int8Weight]
    others: Mapping[str, Tensor]

    @classmethod
    def rounded(
        cls, weights: Mapping[str, Tensor], linears: Sequence[str], group_size: int
    ) -> _Layer:
        """Round every linear of a layer's weights."""
        rounded = {
            name: Int8Weight.rounded(weights[f"{name}.weight"], group_size) for name in linears
        }
        others = {
            name: weight
            for name, weight in weights.items()
            if name.removesuffix(".weight") not in rounded
        }
        return cls(rounded, others)

    def functions(self, granularity: Granularity) -> dict[str, Callable[[Tensor], Tensor]]:
        """What each linear computes."""
        inputs = _Inputs(granularity)
        return {
            name: partial(_linear, weight=weight, inputs=inputs)
            for name, weight in self.linears.items()
        }


class _Inputs:
    """Rounds inputs of linears; those that read the same one share its codes."""

    def __init__(self, granularity: Granularity) -> None:
        self._granularity = granularity
        self._last: tuple[Tensor, Int8Activations] | None = None

    def rounded(self, inputs: Tensor) -> Int8Activations:
        """Round inputs (windows, tokens, in)."""
        if self._last is None or self._last[0] is not inputs:
            self._last = (inputs, Int8Activations.rounded(inputs, self._granularity))
        return self._last[1]


def _linear(values: Tensor, *, weight: Int8Weight, inputs: _Inputs) -> Tensor:
    return int8.linear(inputs.rounded(values), weight)


@dataclass(frozen=True)
class Int8Head:
    """A head of 8 bits: hidden states (tokens, hidden) as codes, a table rounded as it is read."""

    hidden: Int8Activations
    table: Table
    group_size: int
    softcap: float | None = None

    @property
    def tokens(self) -> int:
        """How many tokens are predicted."""
        return self.hidden.codes.shape[0]

    def at(self, tokens: Tensor) -> Int8Head:
        """The same of some of the tokens, by number or by mask."""
        hidden = Int8Activations(self.hidden.codes[tokens], self.hidden.scales[tokens])
        return Int8Head(hidden, self.table, self.group_size, self.softcap)

    def run(self, start: int, stop: int) -> Run:
        """Logits of vocabulary entries ``start`` to ``stop``, whose rows are read once."""
        rows = Int8Weight.rounded(self.table(start, stop), self.group_size)

        def logits(tokens: slice) -> Tensor:
            some = Int8Activations(self.hidden.codes[tokens], self.hidden.scales[tokens])
            return softcapped(int8.linear(some, rows), self.softcap)

        return logits


def _predictors(
    streams: EvaluationStreams,
    original: Weights,
    pairs: Sequence[tuple[Emulated, Granularity]],
    skeleton: Skeleton,
    group_size: int,
) -> tuple[Head, list[Predictor]]:
    """The original at its head, then every model at each granularity with each of the heads."""
    predictors: list[Predictor] = []
    softcap = skeleton.logit_softcap
    measured = streams.measured_of(0, streams.ids[:, 1:].numel())
    tables = {id(model): _read_once(head_table(model.weights, skeleton)) for model, _ in pairs}
    for (model, granularity), stream in zip(pairs, streams.candidates, strict=True):
        hidden = skeleton.final_norm(final_norm(model.weights, skeleton), stream.hidden)
        codes = Int8Activations.rounded(hidden[:, :-1], granularity)
        half = hidden.half().to(skeleton.dtype)
        predictors += [
            Head(streams.measured(half), _stored_as_float16(tables[id(model)]), softcap),
            Int8Head(
                Int8Activations(codes.codes.flatten(0, 1), codes.scales.flatten(0, 1)),
                tables[id(model)],
                group_size,
                softcap,
            ).at(measured),
        ]
    normed = skeleton.final_norm(final_norm(original, skeleton), streams.original.hidden)
    return Head(streams.measured(normed), head_table(original, skeleton), softcap), predictors


def _read_once(table: Table) -> Table:
    """Keep the last run of rows: a model's corners ask for the same one after another."""
    last: dict[tuple[int, int], Tensor] = {}

    def rows(start: int, stop: int) -> Tensor:
        if (start, stop) not in last:
            last.clear()
            last[start, stop] = table(start, stop)
        return last[start, stop]

    return rows


def _stored_as_float16(table: Table) -> Table:
    return lambda start, stop: table(start, stop).half().float()


def _runtime(emulation: Emulation, group_size: int, skeleton: Skeleton) -> str:
    along = "output channel" if group_size == -1 else f"{group_size} input channels"
    smoothed = "with" if emulation.smoothing else "without"
    return (
        f"emulation of {emulation.dtype}: int8 weights per {along}, activations int8 "
        f"{emulation.activations}, head {emulation.head}, {smoothed} smoothing; not the vendor's "
        f"arithmetic; {reference_runtime(skeleton)}"
    )
