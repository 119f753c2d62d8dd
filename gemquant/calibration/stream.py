"""Hidden states of a set of windows, carried through a model one decoder layer at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gemquant.core.progress import Progress
from gemquant.core.protocols import RowSource, Weights
from gemquant.errors import CalibrationError
from gemquant.formats.checkpoint import Checkpoint
from gemquant.models.architecture import layer_parameters
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import EMBEDDING, layer_prefix

TOKENS_AT_ONCE = 1024
ROWS_AT_ONCE = 8192


@dataclass
class Stream:
    """Hidden states (windows, tokens, hidden) of one model at one depth."""

    skeleton: Skeleton
    hidden: Tensor

    def advance(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Carry every window through decoder layer ``index``, in place.

        weights: the layer's parameters by short name; computation is in the skeleton's type.
        """
        weights = {name: weight.to(self.skeleton.dtype) for name, weight in weights.items()}
        at_once = max(1, TOKENS_AT_ONCE // self.hidden.shape[1])
        for start in range(0, self.hidden.shape[0], at_once):
            windows = slice(start, start + at_once)
            self.hidden[windows] = self.skeleton.layer(index, weights, self.hidden[windows])

    def finish(self, norm: Tensor) -> Tensor:
        """Final hidden states after the last norm, (windows · tokens, hidden)."""
        normed = self.skeleton.final_norm(norm, self.hidden)
        return normed.reshape(-1, normed.shape[-1])


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
    rows = torch.empty(
        unique_ids.shape[0],
        skeleton.config.hidden_size,
        dtype=skeleton.dtype,
        device=skeleton.device,
    )
    for start in range(0, vocabulary, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, vocabulary)
        first, last = torch.searchsorted(unique_ids, torch.tensor([start, stop])).tolist()
        if first == last:
            continue
        table = weights.rows(EMBEDDING, start, stop)
        chosen = table[unique_ids[first:last] - start]
        if stored_as is not None:
            chosen = chosen.to(stored_as)
        rows[first:last] = skeleton.embed(chosen)
    return Stream(skeleton, rows[positions.to(skeleton.device)])


def layer_weights(
    weights: Weights, prefix: str, names: list[str], skeleton: Skeleton
) -> dict[str, Tensor]:
    """Read one layer's parameters by short name, as float32 on the compute device."""
    return {
        name: weights.tensor(prefix + name, torch.float32).to(skeleton.device) for name in names
    }


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

    Satisfies ``protocols.BlockSource`` too.
    """

    def __init__(self, weights: Weights, parts: Mapping[str, RowsOf], device: torch.device) -> None:
        self._weights, self._parts, self._device = weights, parts, device

    @classmethod
    def of_layer(
        cls, weights: Weights, prefix: str, names: list[str], device: torch.device
    ) -> UnheldWeights:
        """One decoder layer's."""
        parts = {name: RowsOf(prefix + name, 0, weights.shape(prefix + name)[0]) for name in names}
        return cls(weights, parts, device)

    def __getitem__(self, name: str) -> Tensor:
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
