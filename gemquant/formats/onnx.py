"""A Gemma's weights from the graph that onnxruntime-genai's builder writes.

Norms are stored as 1 + w; a float linear as (in, out); q, k and v side by side. A quantized linear
is the operator MatMulNBits: codes (out, groups, bytes), the low nibble first, scales (out, groups),
zero points 2^(bits − 1) unless they are stored too.

Source: onnxruntime ``docs/ContribOperators.md``, MatMulNBits and GatherBlockQuantized.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from gemquant.core.artifact import MANIFEST_FILE, read_manifest, structure_problems
from gemquant.core.protocols import (
    ArtifactHeader,
    Container,
    Exporter,
    PlainSpec,
    QuantizedSpec,
    Writer,
)
from gemquant.core.untrusted import UntrustedFile
from gemquant.core.weights import AffineScheme, AffineWeight
from gemquant.errors import (
    ArtifactError,
    GemquantError,
    RuntimeMissingError,
    UnsupportedError,
    refuse,
)
from gemquant.formats.checkpoint.files import read_json_object
from gemquant.formats.packed_weights import StoredWeights
from gemquant.formats.source_file import SourceFile
from gemquant.models.architecture import layer_structure, tensor_shapes
from gemquant.models.config import text_config
from gemquant.models.structure import EMBEDDING, FINAL_NORM, HEAD, layer_prefix

QUANTIZED = "MatMulNBits"
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


@dataclass(frozen=True)
class _Linear:
    """Output channels ``first`` and on of a matrix product's second operand."""

    node: Node
    first: int


class OnnxWeights(StoredWeights):
    """Satisfies ``protocols.Weights``; quantized weights decode as onnxruntime decodes them."""

    def __init__(self, config: Mapping[str, Any], graph: OnnxGraph) -> None:
        # A head that is stored separately, in any form, is not tied.
        tied = EMBEDDING not in graph.stored
        super().__init__({**config, "tie_word_embeddings": tied}, {})
        self._graph = graph
        self._linears = _linears(self._config, graph)
        self.layout = {
            name: self._spec(name, shape) for name, shape in tensor_shapes(self._config).items()
        }

    def stored_dtype(self, name: str) -> torch.dtype:
        """The stored type; float32 for quantized weights, and for norms, which are stored + 1."""
        spec = self.layout[name]
        matrix = isinstance(spec, PlainSpec) and len(spec.shape) == 2
        return spec.dtype if isinstance(spec, PlainSpec) and matrix else torch.float32

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return the tensor, decoded."""
        if len(self.shape(name)) == 2:
            return self.rows(name, 0, self.shape(name)[0], dtype)
        return (self._graph.tensor(_norm(name, self._config)).float() - 1).to(
            dtype or torch.float32
        )

    def rows(self, name: str, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return rows of a matrix without decoding the others."""
        stop = min(stop, self.shape(name)[0])
        if isinstance(self.layout[name], QuantizedSpec):
            return self.quantized(name, start, stop).dequantize().to(dtype or torch.float32)
        if name in self._linears:
            linear = self._linears[name]
            columns = slice(linear.first + start, linear.first + stop)
            rows = self._graph.tensor(linear.node.inputs[1])[:, columns].T.contiguous()
        else:
            rows = self._graph.tensor(EMBEDDING)[start:stop].clone()
        return rows.to(dtype or rows.dtype)

    def quantized(self, name: str, start: int, stop: int) -> AffineWeight:
        """Return some rows of a quantized weight as codes, scales and zero points."""
        spec, linear = self.layout[name], self._linears[name]
        assert isinstance(spec, QuantizedSpec)
        assert isinstance(spec.scheme, AffineScheme)
        bits, size = spec.scheme.bits, spec.scheme.group_size
        chosen = slice(linear.first + start, linear.first + stop)
        _, packed, scales, *zeros = linear.node.inputs
        codes = _unpacked(self._graph.tensor(packed)[chosen].flatten(1), bits)
        groups = spec.shape[1] // size
        rows = codes.shape[0]
        all_scales = self._graph.tensor(scales)
        scale = all_scales.reshape(-1, groups)[chosen].clone()
        zero = torch.full(scale.shape, 2 ** (bits - 1), dtype=torch.uint8)
        if zeros and zeros[0]:
            stored = self._graph.tensor(zeros[0])
            zero = _unpacked(stored.reshape(all_scales.numel() // groups, -1)[chosen], bits)
            zero = zero[:, :groups].contiguous()
        return AffineWeight(spec.scheme, codes.reshape(rows, -1)[:, : spec.shape[1]], scale, zero)

    def overwrite(self, name: str, start: int, weight: AffineWeight) -> None:
        """Store other codes, scales and zero points for rows from ``start`` on, in the file."""
        spec, linear = self.layout[name], self._linears[name]
        first = linear.first + start
        _, packed, scales, *zeros = linear.node.inputs
        bits, groups = weight.scheme.bits, weight.scales.shape[1]
        rows = spec.shape[1] * bits // 8
        self._graph.write(packed, first * rows, _packed(weight.codes, bits))
        width = groups * weight.scales.element_size()
        self._graph.write(scales, first * width, weight.scales.contiguous().view(torch.uint8))
        if zeros and zeros[0]:
            octets = _packed(weight.zero_points, bits)
            self._graph.write(zeros[0], first * octets.shape[1], octets)

    def _spec(self, name: str, shape: tuple[int, ...]) -> PlainSpec | QuantizedSpec:
        if len(shape) == 1:
            norm = _norm(name, self._config)
            refuse(_differing(name, self._graph.shape(norm), shape))
            return PlainSpec(shape, self._graph.dtype(norm))
        if name not in self._linears:
            refuse(_differing(name, self._graph.shape(EMBEDDING), shape))
            return PlainSpec(shape, self._graph.dtype(EMBEDDING))
        linear = self._linears[name]
        node = linear.node
        if node.operator != QUANTIZED:
            inputs, outputs = self._graph.shape(node.inputs[1])
            refuse(_differing(name, (inputs, min(outputs - linear.first, shape[0])), shape[::-1]))
            return PlainSpec(shape, self._graph.dtype(node.inputs[1]))
        bits, size = node.numbers["bits"], node.numbers["block_size"]
        actual = (node.numbers["N"] - linear.first, node.numbers["K"])
        refuse(_differing(name, (min(actual[0], shape[0]), actual[1]), shape))
        if bits not in (4, 8) or size < 1 or shape[1] % size:
            raise ArtifactError(f"{name} is stored in {bits} bits and groups of {size}.")
        packed = (node.numbers["N"], shape[1] // size, size * bits // 8)
        refuse(_differing(name, self._graph.shape(node.inputs[1]), packed))
        symmetric = len(node.inputs) < 4 or not node.inputs[3]
        return QuantizedSpec((shape[0], shape[1]), AffineScheme(bits, size, symmetric))


def _linears(config: Mapping[str, Any], graph: OnnxGraph) -> dict[str, _Linear]:
    """Find the operator of every linear, the head's too; and of the embedding, where it is tied."""
    linears: dict[str, _Linear] = {}
    for index in range(config["num_hidden_layers"]):
        layer = f"/model/layers.{index}"
        together = any(name.startswith(f"{layer}/attn/qkv_proj/") for name in graph.nodes)
        first = 0
        structure = layer_structure(config, index)
        for linear in structure.linears:
            part, _, projection = linear.partition(".")
            place = f"{layer}/{part.removeprefix('self_')}/{projection}/MatMul"
            if linear in _QKV and together:
                node = graph.node(f"{layer}/attn/qkv_proj/MatMul")
                linears[f"{layer_prefix(index)}{linear}.weight"] = _Linear(node, first)
                first += structure.linear_shapes[linear][0]
            else:
                linears[f"{layer_prefix(index)}{linear}.weight"] = _Linear(graph.node(place), 0)
    head = EMBEDDING if config["tie_word_embeddings"] else HEAD
    linears[head] = _Linear(graph.node("/lm_head/MatMul"), 0)
    return linears


def _norm(name: str, config: Mapping[str, Any]) -> str:
    """Name of a norm's weight in the graph."""
    if name == FINAL_NORM:
        return f"model.layers.{config['num_hidden_layers']}.final_norm_layernorm.weight"
    if ".self_attn." in name:
        return name.replace(".self_attn.", ".attn.").replace("_norm.", "_norm.layernorm.")
    return name


def _unpacked(octets: Tensor, bits: int) -> Tensor:
    """Codes (rows, n) of bytes (rows, n · bits / 8), the low nibble first."""
    if bits == 8:
        return octets.clone()
    return torch.stack([octets & 15, octets >> 4], dim=-1).flatten(1)


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Undo ``_unpacked``; an odd count is filled up with a zero."""
    if bits == 8:
        return codes
    padded = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2))
    return padded[:, ::2] | padded[:, 1::2] << 4


def _differing(
    name: str, actual: tuple[int, ...], expected: tuple[int, ...]
) -> list[GemquantError]:
    if actual == expected:
        return []
    return [ArtifactError(f"{name} is stored as {actual}, not as {expected}.")]


# ---------------------------------------------------------------- the container: never created here


@dataclass(frozen=True)
class Onnx(Exporter):
    """Exporter that only reads; satisfies ``protocols.Exporter``."""

    name: ClassVar[str] = "onnx"
    without_towers: ClassVar[str] = "the builder of onnxruntime-genai makes the text decoder"

    def container(self, config: Mapping[str, Any]) -> Container:  # noqa: ARG002 (protocol)
        """The types that the builder stores for a CPU."""
        return Container(torch.float32, torch.float32)

    def problems(self, header: ArtifactHeader) -> list[GemquantError]:  # noqa: ARG002
        """The builder decides the codes, so that no quantizer here fits."""
        return [_only_read()]

    def file_sizes(self, header: ArtifactHeader) -> Mapping[str, int]:  # noqa: ARG002
        """Not known before the builder has written them."""
        raise _only_read()

    def create(
        self,
        folder: Path,  # noqa: ARG002
        header: ArtifactHeader,  # noqa: ARG002
        finished: Collection[str] | None = None,  # noqa: ARG002
    ) -> AbstractContextManager[Writer]:
        """Refuse."""
        raise _only_read()

    def open(self, folder: Path) -> OnnxWeights:
        """Read a finished folder back; ArtifactError if its structure is not this container's."""
        path = folder / "config.json"
        try:
            config = text_config(read_json_object(path))
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error
        except GemquantError as error:
            raise ArtifactError(error.message) from None
        weights = OnnxWeights(config, OnnxGraph.open(folder))
        if (folder / MANIFEST_FILE).exists():
            refuse(structure_problems(read_manifest(folder), weights.layout))
        return weights


def _only_read() -> UnsupportedError:
    return UnsupportedError(
        "onnx: onnxruntime-genai's builder writes this container and decides its codes.",
        hint="Run: gemquant onnx MODEL",
    )


# ---------------------------------------------------------------- the graph


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
        self._files: dict[str, SourceFile] = {}

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
        file = UntrustedFile(path, MAX_GRAPH_BYTES, ArtifactError)
        try:
            graph = onnx.load_from_string(file.bytes()).graph
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
        """The tensor as it is stored."""
        where = self._where(name)
        if where.file not in self._files:
            self._files[where.file] = SourceFile(self._folder / where.file)
        return self._files[where.file].tensor(where.offset, where.shape, where.dtype)

    def write(self, name: str, offset: int, octets: Tensor) -> None:
        """Write bytes over a part of a tensor, ``offset`` bytes from its beginning."""
        where = self._where(name)
        if offset + octets.numel() > math.prod(where.shape) * where.dtype.itemsize:
            raise ValueError(f"{octets.numel()} bytes at {offset} are beyond {name}.")
        with (self._folder / where.file).open("r+b") as file:
            file.seek(where.offset + offset)
            file.write(octets.contiguous().numpy().data)

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
