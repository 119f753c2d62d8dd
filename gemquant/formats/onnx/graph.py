"""An ONNX file's nodes and tensors; the tensors stay in their file.

The ``onnx`` package parses the graph; external data is mapped within checked bounds.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from gemquant.core.untrusted import UntrustedFile
from gemquant.errors import ArtifactError, RuntimeMissingError

MODEL_FILE = "model.onnx"
INSTALL = "pip install 'gemquant[onnx]'"
MAX_GRAPH_BYTES = 64_000_000

INTEGER_ATTRIBUTE = 2
"""onnx.AttributeProto.INT."""

# Numbers of onnx.TensorProto.DataType.
_TYPES: Mapping[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    10: torch.float16,
    16: torch.bfloat16,
}


@dataclass(frozen=True)
class Node:
    """An operator with its inputs' names, and its integer attributes by name."""

    operator: str
    inputs: tuple[str, ...]
    numbers: Mapping[str, int]


@dataclass(frozen=True)
class Stored:
    """A tensor's type, shape and place."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: str
    offset: int


class OnnxGraph:
    """nodes: by name. stored: every tensor of external data."""

    def __init__(
        self, folder: Path, nodes: Mapping[str, Node], stored: Mapping[str, Stored]
    ) -> None:
        self.nodes = nodes
        self.stored = stored
        self._folder = folder
        self._maps: dict[str, mmap.mmap] = {}

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Parse the graph; ArtifactError if it is not one, or names data outside its files.

        RuntimeMissingError without the package that parses it.
        """
        try:
            import onnx
        except ImportError:
            raise RuntimeMissingError(
                f"{folder / MODEL_FILE} cannot be read: onnx is not installed.", hint=INSTALL
            ) from None
        path = folder / MODEL_FILE
        try:
            graph = onnx.load_from_string(_bounded(path)).graph
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error
        except Exception as error:
            # Protobuf's errors share no class that could be named without importing it.
            if type(error).__name__ != "DecodeError":
                raise
            raise ArtifactError(f"{path} is not an ONNX model: {error}.") from None
        nodes = {node.name: _node(node) for node in graph.node}
        stored = {i.name: _stored(folder, i) for i in graph.initializer if i.data_location == 1}
        return cls(folder, nodes, stored)

    def tensor(self, name: str) -> Tensor:
        """The tensor as it is mapped: do not write to it."""
        where = self._where(name)
        if where.file not in self._maps:
            with (self._folder / where.file).open("rb") as file:
                # Copy-on-write, since torch has no notion of memory that cannot be written.
                self._maps[where.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        count = math.prod(where.shape)
        mapped = self._maps[where.file]
        flat = torch.frombuffer(mapped, dtype=where.dtype, count=count, offset=where.offset)
        return flat.view(where.shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._where(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor."""
        return self._where(name).dtype

    def node(self, name: str) -> Node:
        """A node whose name is this, or this and an ending of the quantizer's."""
        for candidate in (name, f"{name}_Q4", f"{name}_Q8"):
            if candidate in self.nodes:
                return self.nodes[candidate]
        raise ArtifactError(f"{self._folder / MODEL_FILE} has no node {name}.")

    def _where(self, name: str) -> Stored:
        if name not in self.stored:
            raise ArtifactError(f"{self._folder / MODEL_FILE} has no tensor {name}.")
        return self.stored[name]


def _bounded(path: Path) -> bytes:
    return UntrustedFile(path, MAX_GRAPH_BYTES, ArtifactError).bytes()


def _node(node: Any) -> Node:
    numbers = {a.name: a.i for a in node.attribute if a.type == INTEGER_ATTRIBUTE}
    return Node(node.op_type, tuple(node.input), numbers)


def _stored(folder: Path, tensor: Any) -> Stored:
    """Check that a tensor's external data is within a plain file of the folder."""
    shape = tuple(tensor.dims)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        dtype = _TYPES[tensor.data_type]
        file, offset = entries["location"], int(entries.get("offset", "0"))
    except (KeyError, ValueError) as error:
        raise ArtifactError(
            f"{MODEL_FILE}: {tensor.name} has unusable external data: {error}."
        ) from None
    path = folder / file
    if Path(file).name != file or path.is_symlink() or not path.is_file():
        raise ArtifactError(
            f"{MODEL_FILE}: {tensor.name} is in {file!r}, which is not a file of its folder."
        )
    needed = offset + math.prod(shape) * dtype.itemsize
    if offset < 0 or min(shape, default=1) < 1 or needed > path.stat().st_size:
        raise ArtifactError(f"{MODEL_FILE}: {tensor.name} is outside {file}.")
    return Stored(shape, dtype, file, offset)
