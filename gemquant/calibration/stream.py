"""Hidden states of a set of windows, carried through a model one decoder layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gemquant.core.protocols import Progress, RowSource, Weights
from gemquant.errors import CalibrationError
from gemquant.formats.checkpoint import Checkpoint
from gemquant.models.architecture import layer_parameters, layer_structure, tensor_shapes
from gemquant.models.experts import expert_number
from gemquant.models.skeleton import SharedStates, Skeleton
from gemquant.models.structure import (
    EMBEDDING,
    PER_LAYER_NORM,
    PER_LAYER_PROJECTION,
    PER_LAYER_TABLE,
    layer_prefix,
)

TOKENS_AT_ONCE = 1024
TOKENS_OF_EXPERTS = 8192
"""Tokens at once where each batch reads every expert's weights anew."""
ROWS_AT_ONCE, VALUES_AT_ONCE = 8192, 48_000_000
FEW_ROWS = 8
"""As many rows are read with others rather than passed over."""


def runs_of_rows(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Divide the rows of a table into runs that fit in memory: (first, after the last)."""
    step = min(ROWS_AT_ONCE, max(1, VALUES_AT_ONCE // columns))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _neighbours(ids: Tensor, columns: int) -> Iterator[Tensor]:
    """Divide ascending numbers of rows where one is far from the next, or all are too many."""
    step = min(ROWS_AT_ONCE, max(1, VALUES_AT_ONCE // columns))
    cuts = (ids.diff() > FEW_ROWS).nonzero().flatten() + 1
    for group in ids.tensor_split(cuts):
        yield from (part for part in group.split(step // FEW_ROWS or 1) if len(part))


@dataclass(frozen=True)
class LayerInputs:
    """Inputs that every layer has of its own, which depend on the token alone.

    source: holds the projection. embedded, rows: of every token that occurs, its scaled embedding
    and its row of the second table, the parts of all layers side by side. positions: (windows,
    tokens) → which of these.
    """

    skeleton: Skeleton
    source: RowSource
    embedded: Tensor
    rows: Tensor
    positions: Tensor

    def of(self, index: int) -> Tensor:
        """Layer ``index``'s of every token that occurs, (tokens that occur, narrow)."""
        width = self.rows.shape[1] // self.skeleton.layers
        part = slice(index * width, (index + 1) * width)

        def weight(name: str, start: int, stop: int) -> Tensor:
            return self.source.rows(name, start, stop).to(self.embedded)

        return self.skeleton.per_layer_input(
            self.embedded,
            self.rows[:, part].to(self.embedded),
            weight(PER_LAYER_PROJECTION, part.start, part.stop),
            weight(PER_LAYER_NORM, 0, width),
        )


@dataclass
class Stream:
    """Hidden states (windows, tokens, hidden) of one model at one depth.

    inputs: where its layers have inputs of their own. shared: keys and values that later layers
    read, as of yet.
    """

    skeleton: Skeleton
    hidden: Tensor
    inputs: LayerInputs | None = None
    shared: SharedStates = field(default_factory=dict)

    def advance(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Carry every window through decoder layer ``index``, in place.

        weights: the layer's parameters by short name; computation is in the skeleton's type.
        Experts' are read for every batch of windows.
        """
        dtype = self.skeleton.dtype
        held = {name: weights[name].to(dtype) for name in weights if expert_number(name) is None}
        experts = len(held) < len(weights)
        tokens = TOKENS_OF_EXPERTS if experts else TOKENS_AT_ONCE
        at_once = max(1, tokens // self.hidden.shape[1])
        own = None if self.inputs is None else self.inputs.of(index)
        for start in range(0, self.hidden.shape[0], at_once):
            windows = slice(start, start + at_once)
            shared = {kind: (k[windows], v[windows]) for kind, (k, v) in self.shared.items()}
            before = dict(shared)
            self.hidden[windows] = self.skeleton.layer(
                index,
                held,
                self.hidden[windows],
                own=own[self.inputs.positions[windows]]
                if own is not None and self.inputs
                else None,
                shared=shared,
                experts=(lambda name: weights[name].to(dtype)) if experts else None,
            )
            for kind, states in shared.items():
                if before.get(kind) is not states:
                    self._share(kind, windows, states)

    def _share(self, kind: str, windows: slice, states: tuple[Tensor, Tensor]) -> None:
        if windows.start == 0:  # never into the tensors that a copy may hold
            count = self.hidden.shape[0]
            key, value = (state.new_empty(count, *state.shape[1:]) for state in states)
            self.shared[kind] = (key, value)
        for whole, state in zip(self.shared[kind], states, strict=True):
            whole[windows] = state

    def copy(self, hidden: Tensor) -> Stream:
        """The same windows with other hidden states, and shared states of their own."""
        return replace(self, hidden=hidden, shared=dict(self.shared))

    def beginnings(self, windows: Sequence[int], tokens: int) -> Stream:
        """Some of the windows, truncated."""
        inputs = self.inputs and replace(
            self.inputs, positions=self.inputs.positions[windows, :tokens]
        )
        shared = {
            kind: (k[windows, :, :tokens], v[windows, :, :tokens])
            for kind, (k, v) in self.shared.items()
        }
        return Stream(self.skeleton, self.hidden[windows, :tokens], inputs, shared)

    def state(self, name: str) -> dict[str, Tensor]:
        """All that crosses to the next layer, by a name for each tensor."""
        states = {name: self.hidden}
        for kind, pair in self.shared.items():
            states |= {f"{name}.{kind}.{part}": each for part, each in zip("kv", pair, strict=True)}
        return states

    def restore(self, name: str, states: Mapping[str, Tensor]) -> None:
        """Go on from what ``state`` gave under a name."""
        device = self.skeleton.device
        self.hidden = states[name].to(device)
        kinds = {
            key.split(".")[-2] for key in states if key.startswith(f"{name}.") and key[-2:] == ".k"
        }
        self.shared = {
            kind: (states[f"{name}.{kind}.k"].to(device), states[f"{name}.{kind}.v"].to(device))
            for kind in kinds
        }

    def finish(self, norm: Tensor) -> Tensor:
        """Final hidden states after the last norm, (windows · tokens, hidden)."""
        normed = self.skeleton.final_norm(norm, self.hidden)
        return normed.reshape(-1, normed.shape[-1])


def carried_bytes(config: Mapping[str, Any], tokens: int, dtype: torch.dtype) -> int:
    """What a stream of so many tokens holds from layer to layer, at most.

    Hidden states; keys and values that later layers read; for layers with inputs of their own, the
    tokens' rows of both embeddings, in at most 32 bits.
    """
    shared: dict[str, int] = {}
    for index in reversed(range(config["num_hidden_layers"])):
        layer = layer_structure(config, index)
        if layer.cache_values == 0:
            shared.setdefault(layer.attention, 0)
        elif shared.get(layer.attention) == 0:
            shared[layer.attention] = layer.cache_values
    states: int = tokens * (config["hidden_size"] + sum(shared.values())) * dtype.itemsize
    table = tensor_shapes(config).get(PER_LAYER_TABLE)
    if table is None:
        return states
    row: int = table[1] * 4 + config["hidden_size"] * dtype.itemsize
    return states + min(tokens, table[0]) * row


def embed_windows(
    skeleton: Skeleton,
    weights: RowSource,
    ids: Tensor,
    *,
    stored_as: torch.dtype | None = None,
) -> Stream:
    """Look up token ids (windows, tokens) in an embedding table read in runs of rows.

    stored_as: round the rows to this type first, as an artifact that stores them so would.
    CalibrationError if an id has no row.
    """
    unique_ids, positions = torch.unique(ids, return_inverse=True)
    vocabulary = weights.shape(EMBEDDING)[0]
    if unique_ids[-1] >= vocabulary:
        raise CalibrationError(
            f"token id {int(unique_ids[-1])} is outside the vocabulary of {vocabulary}: the "
            "tokenizer has tokens that the weights lack."
        )

    def looked_up(name: str, convert: Callable[[Tensor], Tensor]) -> Tensor:
        """The rows of the tokens that occur, read with few others."""
        parts = []
        for few in _neighbours(unique_ids, weights.shape(name)[1]):
            start, stop = int(few[0]), int(few[-1]) + 1
            chosen = weights.rows(name, start, stop)[few - start]
            parts.append(convert(chosen if stored_as is None else chosen.to(stored_as)))
        return torch.cat(parts)

    embedded, positions = looked_up(EMBEDDING, skeleton.embed), positions.to(skeleton.device)
    inputs = None
    if PER_LAYER_TABLE in tensor_shapes(skeleton.text_config):
        rows = looked_up(PER_LAYER_TABLE, lambda chosen: chosen.to(skeleton.device))
        inputs = LayerInputs(skeleton, weights, embedded, rows, positions)
    return Stream(skeleton, embedded[positions], inputs)


def layer_weights(
    weights: Weights, prefix: str, names: list[str], skeleton: Skeleton
) -> Mapping[str, Tensor]:
    """Read one layer's parameters by short name, as float32 on the compute device.

    Experts' are read at each access, so that one at a time is in memory.
    """
    held = {
        name: weights.tensor(prefix + name, torch.float32).to(skeleton.device)
        for name in names
        if expert_number(name) is None
    }
    if len(held) == len(names):
        return held
    return UnheldWeights.of_layer(weights, prefix, names, skeleton.device, held)


def stream_layers(
    stream: Stream, weights: Weights, progress: Progress, task: str, *, layers: int | None = None
) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
    """Advance a stream layer by layer; yield each layer's index and parameters by short name.

    Work on a layer is done before the next is read, and counts towards the
    progress of ``task``. layers: how many; by default all.
    """
    count = stream.skeleton.layers if layers is None else layers
    progress.start(task, count)
    for index in range(count):
        names = layer_parameters(weights.config, index)
        parameters = layer_weights(weights, layer_prefix(index), names, stream.skeleton)
        stream.advance(index, parameters)
        yield index, parameters
        progress.advance(task)


@dataclass(frozen=True)
class RowsOf:
    """Some rows of one of a model's tensors."""

    tensor: str
    start: int
    stop: int


class UnheldWeights(Mapping[str, Tensor]):
    """Parameters by short name, float32: read at each access, so that none stays in memory.

    held: those that are in memory after all. Satisfies ``protocols.BlockSource`` too.
    """

    def __init__(
        self,
        weights: Weights,
        parts: Mapping[str, RowsOf],
        device: torch.device,
        held: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        self._weights, self._parts, self._device, self._held = weights, parts, device, held

    @classmethod
    def of_layer(
        cls,
        weights: Weights,
        prefix: str,
        names: list[str],
        device: torch.device,
        held: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> UnheldWeights:
        """One decoder layer's."""
        parts = {name: RowsOf(prefix + name, 0, weights.shape(prefix + name)[0]) for name in names}
        return cls(weights, parts, device, held)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._held:
            return self._held[name]
        return self.rows(name, 0, self.shape(name)[0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from headers alone."""
        part = self._parts[name]
        return (part.stop - part.start, *self._weights.shape(part.tensor)[1:])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop``."""
        part = self._parts[name]
        first, last = part.start + start, min(part.start + stop, part.stop)
        return self._weights.rows(part.tensor, first, last, torch.float32).to(self._device)

    def blocks(self, name: str, kind: str, start: int, stop: int) -> Tensor | None:
        """Rows as they are stored, if that is in ggml's format ``kind``."""
        if not isinstance(self._weights, Checkpoint):
            return None
        part = self._parts[name]
        first, last = part.start + start, min(part.start + stop, part.stop)
        return self._weights.blocks(part.tensor, kind, first, last)
