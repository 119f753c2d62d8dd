"""Quantized weights: integer codes, codebooks, 8-bit rows, ggml's blocks; whole or in chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from gemquant.core.scheme import INTEGER, PER_CHANNEL, Scheme
from gemquant.numerics.ggml_types import GgmlType

if TYPE_CHECKING:
    from torch import Tensor


class QuantizedWeight(Protocol):
    """A linear's weight as codes and what decodes them."""

    @property
    def scheme(self) -> Scheme:
        """How its numbers are stored."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    def rows(self, start: int, stop: int) -> QuantizedWeight:
        """Output channels ``start`` to ``stop``."""

    def dequantize(self) -> Tensor:
        """Decoded as a loader decodes it, before it rounds: (out, in) float32."""


@dataclass(frozen=True)
class Stackable(ABC):
    """A weight whose rows are quantized independently: its other fields have a row for each."""

    scheme: Scheme

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    @abstractmethod
    def dequantize(self) -> Tensor:
        """Decoded as a loader decodes it, before it rounds: (out, in) float32."""

    def tensors(self) -> dict[str, Any]:
        """The fields with a row for each output channel, by name: torch tensors."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "scheme"}

    def rows(self, start: int, stop: int) -> Self:
        """Output channels ``start`` to ``stop``."""
        return replace(self, **{name: part[start:stop] for name, part in self.tensors().items()})


@dataclass(frozen=True)
class QuantizedRows:
    """Some rows of a quantized matrix too large to hold; a matrix's chunks come in order."""

    start: int
    weight: Stackable


class ReadWeights(Mapping[str, "Tensor"]):
    """Tensors by name, each read at every access, so that none stays in memory."""

    def __init__(self, names: Collection[str], read: Callable[[str], Tensor]) -> None:
        self._names, self._read = names, read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class ChunkedWeight:
    """Collects consecutive chunks of a quantized matrix; decodes any rows; a ``RowSource``.

    shape: (rows, columns) of the whole matrix.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._chunks: list[tuple[int, Stackable]] = []
        self.row_count = 0

    def append(self, chunk: Stackable) -> None:
        """Take the next rows."""
        self._chunks.append((self.row_count, chunk))
        self.row_count += chunk.shape[0]

    def stacked(self) -> Stackable:
        """All rows taken so far as one weight."""
        import torch

        chunks = [chunk for _, chunk in self._chunks]
        names = chunks[0].tensors()
        joined: dict[str, Any] = {
            name: torch.cat([chunk.tensors()[name] for chunk in chunks]) for name in names
        }
        return replace(chunks[0], **joined)

    def shape(self, name: str) -> tuple[int, int]:  # noqa: ARG002 (there is one matrix)
        """Shape of the whole matrix."""
        return self._shape

    def rows(self, name: str, start: int, stop: int) -> Tensor:  # noqa: ARG002
        """Decode rows ``start`` to ``stop`` as a loader will, float32."""
        import torch

        parts = [
            chunk.rows(max(start - first, 0), min(stop - first, chunk.shape[0])).dequantize()
            for first, chunk in self._chunks
            if first < stop and start < first + chunk.shape[0]
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


# ---------------------------------------------------------------- affine: integer codes


@dataclass(frozen=True)
class AffineScheme:
    """How a linear layer's numbers are stored: w ≈ scale · (code − zero_point).

    group_size: input channels that share a scale, or PER_CHANNEL for the whole row.
    symmetric: the zero point is fixed at 2**(bits − 1) and not stored.
    """

    bits: int
    group_size: int
    symmetric: bool

    @property
    def codes(self) -> str:
        """Integers."""
        return INTEGER

    def groups(self, columns: int) -> int:
        """Number of groups in a row of ``columns`` input channels."""
        return 1 if self.group_size == PER_CHANNEL else columns // self.group_size


@dataclass(frozen=True)
class AffineWeight(Stackable):
    """An affine weight.

    codes: (out, in) uint8. scales: (out, groups) in the container's type.
    zero_points: (out, groups) uint8, also where the scheme is symmetric; float32 and not whole
    where the container stores biases.
    """

    scheme: AffineScheme
    codes: Tensor
    scales: Tensor
    zero_points: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return (self.codes.shape[0], self.codes.shape[1])

    def dequantize(self) -> Tensor:
        """Return scale · (code − zero_point) as float32, (out, in)."""
        from gemquant.numerics import affine, mlx_affine

        if self.zero_points.is_floating_point():
            return mlx_affine.dequantize(self.codes, self.scales, self.zero_points)
        return affine.dequantize(self.codes, self.scales, self.zero_points)


# ---------------------------------------------------------------- codebooks: NF4, FP4

CodebookName = Literal["nf4", "fp4"]


@dataclass(frozen=True)
class CodebookScheme:
    """w ≈ scale · value of the code; a scale covers a block of consecutive weights.

    codes: ``nf4`` or ``fp4``. group_size: weights in a block, which may run past a row's end.
    nested: the scales are quantized too, to 8 bits.
    compute_dtype, storage_dtype: the runtime multiplies in the one, and takes the packed codes for
        numbers of the other, as torch spells them.
    """

    codes: CodebookName
    group_size: int
    nested: bool
    compute_dtype: str = "bfloat16"
    storage_dtype: str = "uint8"

    @property
    def bits(self) -> int:
        """Two codes in a byte."""
        return 4

    @property
    def symmetric(self) -> bool:
        """Without zero points."""
        return True

    def blocks(self, shape: tuple[int, int]) -> int:
        """Number of blocks of a weight, the last one perhaps shorter."""
        return -(-shape[0] * shape[1] // self.group_size)


@dataclass(frozen=True)
class NestedScales:
    """Scales of scales: scale = value of the code · scale of its 256 + offset.

    codes: (blocks,) uint8 of the dynamic type. scales: (blocks / 256, rounded up) float32.
    offset: the mean of all scales, a float32.
    """

    codes: Tensor
    scales: Tensor
    offset: float


@dataclass(frozen=True)
class CodebookWeight:
    """A linear weight as codes of a codebook.

    packed: (out · in / 2,) uint8, the earlier code in the high half.
    scales: (blocks,) float32, as a loader decodes them where they are nested.
    skip: weights of the first block that belong to rows before these.
    """

    scheme: CodebookScheme
    shape: tuple[int, int]
    packed: Tensor
    scales: Tensor
    nested: NestedScales | None = None
    skip: int = 0

    @classmethod
    def of(cls, weight: Tensor, scheme: CodebookScheme) -> CodebookWeight:
        """Quantize a weight (out, in); its number of elements is even."""
        from gemquant.numerics.bitsandbytes import (
            dequantize_dynamic,
            quantize_blockwise,
            quantize_dynamic,
        )

        shape = (weight.shape[0], weight.shape[1])
        packed, scales = quantize_blockwise(
            weight, codes=scheme.codes, block_size=scheme.group_size
        )
        if not scheme.nested:
            return cls(scheme, shape, packed, scales)
        offset = scales.mean()
        codes, outer = quantize_dynamic(scales - offset)
        nested = NestedScales(codes, outer, float(offset))
        return cls(scheme, shape, packed, dequantize_dynamic(codes, outer) + offset, nested)

    def rows(self, start: int, stop: int) -> CodebookWeight:
        """Output channels ``start`` to ``stop``, for decoding alone; their width is even."""
        columns, size = self.shape[1], self.scheme.group_size
        first, last = self.skip + start * columns, self.skip + stop * columns
        return CodebookWeight(
            self.scheme,
            (stop - start, columns),
            self.packed[start * columns // 2 : stop * columns // 2],
            self.scales[first // size : -(-last // size)],
            skip=first % size,
        )

    def dequantize(self) -> Tensor:
        """Return scale · value, (out, in) float32."""
        from gemquant.numerics.bitsandbytes import dequantize_blockwise

        size = self.scheme.group_size
        return dequantize_blockwise(
            self.packed, self.scales, codes=self.scheme.codes, block_size=size, skip=self.skip
        ).view(self.shape)


# ---------------------------------------------------------------- LLM.int8: 8-bit rows


@dataclass(frozen=True)
class RowwiseScheme:
    """w ≈ code · scale / 127: signed 8-bit codes, a scale for each row.

    threshold: inputs larger than this are computed in float16 by the runtime; 0 for never.
    """

    threshold: float

    @property
    def bits(self) -> int:
        """A byte for each code."""
        return 8

    @property
    def group_size(self) -> int:
        """The whole row."""
        return PER_CHANNEL

    @property
    def symmetric(self) -> bool:
        """Without zero points."""
        return True

    @property
    def codes(self) -> str:
        """LLM.int8's."""
        return "llm.int8"


@dataclass(frozen=True)
class RowwiseWeight(Stackable):
    """A linear weight as 8-bit rows.

    codes: (out, in) int8. scales: (out,) float32, each row's largest magnitude.
    """

    scheme: RowwiseScheme
    codes: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weight: Tensor, scheme: RowwiseScheme) -> RowwiseWeight:
        """Quantize a weight (out, in)."""
        from gemquant.numerics.bitsandbytes import quantize_rowwise

        return cls(scheme, *quantize_rowwise(weight))

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return (self.codes.shape[0], self.codes.shape[1])

    def dequantize(self) -> Tensor:
        """Return code · scale / 127, (out, in) float32."""
        from gemquant.numerics.bitsandbytes import dequantize_rowwise

        return dequantize_rowwise(self.codes, self.scales)


# ---------------------------------------------------------------- ggml's blocks

_SUB_BLOCKS: Mapping[str, tuple[int, int, bool]] = {
    "F32": (32, 1, True),
    "F16": (16, 1, True),
    "BF16": (16, 1, True),
    "Q4_0": (4, 32, True),
    "Q4_1": (4, 32, False),
    "Q5_0": (5, 32, True),
    "Q5_1": (5, 32, False),
    "Q8_0": (8, 32, True),
    "Q2_K": (2, 16, False),
    "Q3_K": (3, 16, True),
    "Q4_K": (4, 32, False),
    "Q5_K": (5, 32, False),
    "Q6_K": (6, 16, True),
    "IQ4_NL": (4, 32, True),
    "IQ4_XS": (4, 32, True),
}
"""For each ggml format: bits of a code, weights that share a scale, whether it has no minimum."""


@dataclass(frozen=True)
class BlockScheme:
    """One of ggml's formats, floating-point ones included: parts of rows, each stored alone."""

    type: GgmlType

    @property
    def bits(self) -> int:
        """Bits of a code; scales come on top."""
        return _SUB_BLOCKS[self.type.name][0]

    @property
    def group_size(self) -> int:
        """Weights that share a scale; 1 for floating-point numbers."""
        return _SUB_BLOCKS[self.type.name][1]

    @property
    def symmetric(self) -> bool:
        """Whether the format has no minimums."""
        return _SUB_BLOCKS[self.type.name][2]

    @property
    def codes(self) -> str:
        """Ggml's name of the format."""
        return self.type.name


@dataclass(frozen=True)
class BlockWeight(Stackable):
    """A weight as ggml's blocks.

    blocks: (out, bytes of a row) uint8.
    """

    scheme: BlockScheme
    blocks: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, row_bytes = self.blocks.shape
        return (rows, row_bytes // self.scheme.type.block_bytes * self.scheme.type.block)

    def dequantize(self) -> Tensor:
        """Return what llama.cpp decodes, (out, in) float32."""
        from gemquant.numerics.ggml import dequantize_rows

        return dequantize_rows(self.blocks, self.scheme.type)
