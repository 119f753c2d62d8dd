"""Reads a finished GGUF artifact back under Gemma's own names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemquant.core.artifact import MANIFEST_FILE, read_manifest, structure_problems
from gemquant.core.protocols import Layout, PlainSpec, QuantizedSpec
from gemquant.core.weights import BlockScheme
from gemquant.errors import ArtifactError, GemquantError, Problems, refuse
from gemquant.formats.gguf.source import GgufTensors
from gemquant.models.architecture import tensor_shapes
from gemquant.numerics.ggml.types import TYPES


class GgufWeights:
    """Satisfies ``protocols.Weights``: numbers as llama.cpp decodes them, norms as w.

    layout: what each of Gemma's tensors is stored as.
    """

    def __init__(self, tensors: GgufTensors) -> None:
        self._tensors = tensors
        self.layout: Layout = {
            name: _spec(tensors, name, shape)
            for name, shape in tensor_shapes(tensors.config).items()
        }

    @classmethod
    def open(cls, folder: Path) -> GgufWeights:
        """Read headers alone; everything that differs from what the model needs is reported.

        Where a manifest stands beside the files, each tensor must be stored as it says.
        """
        try:
            weights = cls(GgufTensors(first_file(folder)))
        except Problems as several:
            raise Problems([ArtifactError(each.message) for each in several.problems]) from None
        except GemquantError as error:
            raise ArtifactError(error.message) from None
        except OSError as error:
            raise ArtifactError(f"{folder} cannot be read: {error.strerror}.") from error
        if (folder / MANIFEST_FILE).exists():
            refuse(structure_problems(read_manifest(folder), weights.layout))
        return weights

    @property
    def config(self) -> Mapping[str, Any]:
        """The text model's configuration, from the metadata."""
        return self._tensors.config

    def names(self) -> Sequence[str]:
        """Names in the order of the forward pass."""
        return list(self.layout)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from headers alone."""
        return self.layout[name].shape

    def stored_dtype(self, name: str) -> torch.dtype:
        """The floating-point type that holds the tensor without loss."""
        return self._tensors.stored_dtype(name)

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return the tensor, decoded."""
        return self.rows(name, 0, self.shape(name)[0], dtype)

    def rows(self, name: str, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return rows of a matrix without decoding the others."""
        return self._tensors.read(name, start, stop, dtype or self.stored_dtype(name))


def first_file(folder: Path) -> Path:
    """Return the only GGUF of a folder, or the first of its parts."""
    found = sorted(folder.glob("*.gguf"))
    if not found:
        raise ArtifactError(f"{folder} holds no .gguf file.")
    return found[0]


def _spec(tensors: GgufTensors, name: str, shape: tuple[int, ...]) -> PlainSpec | QuantizedSpec:
    kind = TYPES.get(tensors.kind(name))
    if kind is None:
        raise ArtifactError(f"{name} is {tensors.kind(name)}, which is not written here.")
    if len(shape) == 2:
        return QuantizedSpec((shape[0], shape[1]), BlockScheme(kind))
    if kind.name != "F32":
        raise ArtifactError(f"{name} is {kind.name}; llama.cpp reads vectors as F32.")
    return PlainSpec(shape, torch.float32)
