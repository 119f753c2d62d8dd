"""Which tensors of an artifact cost most: each alone takes the place of the original's.

In the pass over the layers every linear, and every expert as a whole, gets its own error: of the
layer's output, on a few windows. The largest are then measured: one more pass over the layers
carries those windows through the original with one of them replaced, for the divergence that it
causes alone. Tables that are stored as codes are always among these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from gemquant.calibration.stream import Stream, embed_windows, layer_weights, stream_layers
from gemquant.core.artifact.evaluation import TensorCost
from gemquant.core.protocols import Progress, Weights
from gemquant.core.weights import ReadWeights
from gemquant.measure.quality.figures import layer_error
from gemquant.measure.quality.streams import (
    EvaluationStreams,
    final_norm,
    head_name,
    head_table,
)
from gemquant.models.architecture import layer_parameters, layer_structure
from gemquant.models.experts import expert_number
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import (
    EMBEDDING,
    HEAD,
    PER_LAYER_TABLE,
    LayerStructure,
    NormFold,
    RowFold,
    layer_prefix,
)

TOKENS = 2048
"""Of the first window of every slice, so many in all."""
MEASURED = 8
"""So many linears and experts are measured one at a time."""
FOLDED = 0.01
"""A gain that differs by more than this was scaled; storing it in 16 bits changes it by less."""
ALIKE = 0.7
"""A row is a scaled one of the original's if their cosine is at least this."""


@dataclass
class OwnErrors:
    """Errors of an artifact's linears and experts, each alone, as far as the pass has come.

    found: by layer and part.
    """

    skeleton: Skeleton
    found: dict[tuple[int, str], float] = field(default_factory=dict)

    def observe(
        self,
        index: int,
        before: Stream,
        after: Tensor,
        original: Mapping[str, Tensor],
        artifact: Mapping[str, Tensor],
    ) -> None:
        """Add a layer's. before, after: the original's hidden states on both sides of it."""
        structure = layer_structure(self.skeleton.text_config, index)
        unfolded = Unfolded(structure, original, artifact)
        for part in unfolded.parts:
            if expert_number(f"{part}.gate_proj") is not None:
                continue
            changed = unfolded.weights(part)
            if all(torch.equal(changed[name], original[name]) for name in changed):
                continue
            self.found[index, part] = self._error(index, before, after, original, changed)
        if structure.stacks:
            every = {n: p for p in unfolded.parts if "experts." in p for n in unfolded.names(p)}
            together = ReadWeights(every, lambda name: unfolded.weights(every[name])[name])
            whole = self._error(index, before, after, original, together)
            shares = self._by_expert(index, before, original, unfolded)
            total = sum(shares.values()) ** 0.5
            for part, share in shares.items():
                if share:
                    self.found[index, part] = whole * share**0.5 / total

    def largest(self) -> list[tuple[int, str]]:
        """Layer and part of the largest errors, the largest first."""
        return sorted(self.found, key=lambda key: -self.found[key])[:MEASURED]

    def _error(
        self,
        index: int,
        before: Stream,
        after: Tensor,
        original: Mapping[str, Tensor],
        changed: Mapping[str, Tensor],
    ) -> float:
        stream = before.copy(before.hidden.clone())
        stream.advance(index, replaced(original, changed))
        return layer_error(after, stream.hidden).relative

    def _by_expert(
        self, index: int, before: Stream, original: Mapping[str, Tensor], unfolded: Unfolded
    ) -> dict[str, float]:
        """Squared error of what each expert gives for the tokens that reach it."""
        errors: dict[str, float] = {}

        def observer(part: str) -> Callable[[Tensor], None]:
            def see(inputs: Tensor) -> None:
                changed = unfolded.weights(part)
                outputs = [
                    _expert(inputs, *(source[f"{part}.{n}_proj.weight"] for n in KINDS))
                    for source in (original, changed)
                ]
                errors[part] += float((outputs[1] - outputs[0]).square().sum())

            return see

        parts = [part for part in unfolded.parts if "experts." in part]
        errors |= dict.fromkeys(parts, 0.0)
        observers = {f"{part}.gate_proj": observer(part) for part in parts}
        with self.skeleton.observing(index, inputs=observers):
            before.copy(before.hidden.clone()).advance(index, original)
        return errors


KINDS = ("gate", "up", "down")


def _expert(inputs: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    gate, up, down = (weight.to(inputs.dtype) for weight in (gate, up, down))
    inner = gelu(linear(inputs, gate), approximate="tanh") * linear(inputs, up)
    return linear(inner, down)


def replaced(original: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A layer's weights with some of them others; each is read when it is looked up."""
    return ReadWeights(
        list(original), lambda name: changed[name] if name in changed else original[name]
    )


class Unfolded:
    """An artifact's layer in the original's units: what was folded elsewhere is taken back.

    A norm tells by its gain what its linears were multiplied by. What rows were divided by, where
    norms were folded at all, is the factor that best makes the artifact's row of the original's.
    parts: linears, and ``experts.7`` for the three of an expert.
    """

    def __init__(
        self,
        structure: LayerStructure,
        original: Mapping[str, Tensor],
        artifact: Mapping[str, Tensor],
    ) -> None:
        self._original, self._artifact = original, artifact
        self._inputs: dict[str, Tensor] = {}
        self._consumer: dict[str, tuple[str, RowFold]] = {}
        self._rows: dict[str, Tensor] = {}
        for group in structure.groups:
            if isinstance(group.fold, NormFold):
                name, offset = f"{group.fold.norm}.weight", group.fold.offset
                gain = offset + original[name]
                factor = torch.where(gain != 0, (offset + artifact[name]) / gain, 1.0)
                if (factor - 1).abs().max() > FOLDED:
                    self._inputs |= dict.fromkeys(group.linears, factor)
        for group in structure.groups:
            if isinstance(group.fold, RowFold) and group.fold.linear in self._inputs:
                for each in group.linears:
                    self._consumer[each] = (group.fold.linear, group.fold)
        self._producers = {linear for linear, _ in self._consumer.values()}
        self.parts = list(dict.fromkeys(map(_part, structure.linears)))

    def names(self, part: str) -> list[str]:
        """Short names of a part's weights."""
        linears = [f"{part}.{kind}_proj" for kind in KINDS] if "experts." in part else [part]
        return [f"{each}.weight" for each in linears]

    def weights(self, part: str) -> dict[str, Tensor]:
        """A part's weights as they would stand in the original."""
        return {name: self._weight(name.removesuffix(".weight")) for name in self.names(part)}

    def _weight(self, linear: str) -> Tensor:
        weight = self._read(linear)
        if linear in self._producers:
            weight = weight / self._row_factors(linear)[:, None]
        if linear in self._consumer:
            producer, fold = self._consumer[linear]
            factors = self._row_factors(producer)
            if fold.repeats > 1:
                shape = (-1, fold.repeats, fold.head_dim)
                factors = factors.view(-1, 1, fold.head_dim).expand(shape).reshape(-1)
            weight = weight * factors
        return weight

    def _read(self, linear: str) -> Tensor:
        weight, factor = self._artifact[f"{linear}.weight"], self._inputs.get(linear)
        return weight if factor is None else weight * factor

    def _row_factors(self, linear: str) -> Tensor:
        if linear not in self._rows:
            ours, theirs = self._original[f"{linear}.weight"], self._read(linear)
            product = torch.linalg.vecdot(ours, theirs)
            own = torch.linalg.vecdot(ours, ours)
            alike = product > ALIKE * (own * torch.linalg.vecdot(theirs, theirs)).sqrt()
            self._rows[linear] = torch.where(alike, product / own, 1.0)
        return self._rows[linear]


def _part(linear: str) -> str:
    return linear.rpartition(".")[0] if expert_number(linear) is not None else linear


# ---------------------------------------------------------------- one at a time


class _WithTable:
    """The original's tables outside the layers, one of them the artifact's: a ``RowSource``."""

    def __init__(self, original: Weights, artifact: Weights, name: str) -> None:
        self._original, self._artifact, self._name = original, artifact, name

    def shape(self, name: str) -> tuple[int, ...]:
        return self._original.shape(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        source = self._artifact if name == self._name else self._original
        return source.rows(name, start, stop)


@dataclass
class _Track:
    """The original with one part replaced, from the layer on where it is."""

    index: int
    part: str
    stream: Stream | None = None


def tensor_costs(
    original: Weights,
    artifact: Weights,
    own: OwnErrors,
    streams: EvaluationStreams,
    progress: Progress,
) -> tuple[TensorCost, ...]:
    """Measure the parts with the largest errors of their own, and tables; the worst first.

    streams: the windows to measure on, before the first layer.
    """
    skeleton = own.skeleton
    tracks = [
        _Track(-1, name, embed_windows(skeleton, _WithTable(original, artifact, name), streams.ids))
        for name in _tables(original, artifact)
    ]
    tracks += [_Track(index, part) for index, part in own.largest()]
    if not tracks:
        return ()
    streams.embed(original, [])
    stream, before = streams.original, streams.original.copy(streams.original.hidden.clone())
    for index, weights in stream_layers(stream, original, progress, "measuring single tensors"):
        for track in tracks:
            if track.stream is not None:
                track.stream.advance(index, weights)
        starting = [track for track in tracks if track.index == index]
        if starting:
            prefix, names = layer_prefix(index), layer_parameters(original.config, index)
            changed = layer_weights(artifact, prefix, names, skeleton)
            unfolded = Unfolded(layer_structure(original.config, index), weights, changed)
            for track in starting:
                track.stream = before.copy(before.hidden.clone())
                track.stream.advance(index, replaced(weights, unfolded.weights(track.part)))
        before = stream.copy(stream.hidden.clone())
    divergences = _divergences(original, artifact, tracks, streams, progress)
    costs = [
        TensorCost(
            tensor=track.part.removesuffix(".weight")
            if track.index < 0
            else layer_prefix(track.index) + track.part,
            own_error=own.found.get((track.index, track.part)),
            kl_mean=divergence,
        )
        for track, divergence in zip(tracks, divergences, strict=True)
    ]
    return tuple(sorted(costs, key=lambda cost: -cost.kl_mean))


def _tables(original: Weights, artifact: Weights) -> Iterator[str]:
    """Tables of the artifact that are not the original's, by their first rows."""
    names = set(artifact.names())
    for name in (EMBEDDING, PER_LAYER_TABLE, HEAD):
        before = EMBEDDING if name == HEAD and HEAD not in original.names() else name
        if name not in names:
            continue
        ours = original.rows(before, 0, 64, torch.float32)
        theirs = artifact.rows(name, 0, 64, torch.float32)
        if not torch.allclose(ours, theirs, rtol=FOLDED, atol=0):
            yield name


def _divergences(
    original: Weights,
    artifact: Weights,
    tracks: Sequence[_Track],
    streams: EvaluationStreams,
    progress: Progress,
) -> list[float]:
    """Mean divergence that each track ends with, nats per token."""
    skeleton = streams.original.skeleton
    norm, ours = final_norm(original, skeleton), head_table(original, skeleton)
    theirs, replaced_head = head_table(artifact, skeleton), head_name(artifact.config)
    streams.candidates = [track.stream for track in tracks if track.stream is not None]
    tables = [theirs if track.part == replaced_head else ours for track in tracks]
    before, *heads = streams.predictors([(norm, ours), *((norm, table) for table in tables)])
    return [
        float(torch.cat([part.divergence for part in each]).double().mean())
        for each in streams.compare(before, heads, progress)
    ]
