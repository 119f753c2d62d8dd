"""The kinds of quantized weight beside the affine one: a codebook's, 8-bit rows, ggml's blocks.

All satisfy ``protocols.QuantizedWeight``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gemquant.core.scheme import PER_CHANNEL
from gemquant.numerics.ggml.types import GgmlType

if TYPE_CHECKING:
    from torch import Tensor


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
        """There are no zero points."""
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
        """There are no zero points."""
        return True

    @property
    def codes(self) -> str:
        """LLM.int8's."""
        return "llm.int8"


@dataclass(frozen=True)
class RowwiseWeight:
    """A linear weight as 8-bit rows; satisfies ``protocols.Stackable``.

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

    def rows(self, start: int, stop: int) -> RowwiseWeight:
        """Output channels ``start`` to ``stop``."""
        return RowwiseWeight(self.scheme, self.codes[start:stop], self.scales[start:stop])

    @classmethod
    def stacked(cls, parts: Sequence[RowwiseWeight]) -> RowwiseWeight:
        """Stack weights of one scheme along their output channels."""
        import torch

        codes = torch.cat([part.codes for part in parts])
        return cls(parts[0].scheme, codes, torch.cat([part.scales for part in parts]))

    def dequantize(self) -> Tensor:
        """Return code · scale / 127, (out, in) float32."""
        from gemquant.numerics.bitsandbytes import dequantize_rowwise

        return dequantize_rowwise(self.codes, self.scales)


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
"""Of each of ggml's formats: bits of a code, weights that share a scale, no minimum beside it."""


@dataclass(frozen=True)
class BlockScheme:
    """One of ggml's formats, floating-point ones included: runs of a row, each stored by itself."""

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
        """Whether there are no minimums."""
        return _SUB_BLOCKS[self.type.name][2]

    @property
    def codes(self) -> str:
        """Ggml's name of the format."""
        return self.type.name


@dataclass(frozen=True)
class BlockWeight:
    """A weight as ggml's blocks; satisfies ``protocols.Stackable``.

    blocks: (out, bytes of a row) uint8.
    """

    scheme: BlockScheme
    shape: tuple[int, int]
    blocks: Tensor

    def rows(self, start: int, stop: int) -> BlockWeight:
        """Output channels ``start`` to ``stop``."""
        blocks = self.blocks[start:stop]
        return BlockWeight(self.scheme, (blocks.shape[0], self.shape[1]), blocks)

    @classmethod
    def stacked(cls, parts: Sequence[BlockWeight]) -> BlockWeight:
        """Stack weights of one scheme along their output channels."""
        import torch

        blocks = torch.cat([part.blocks for part in parts])
        return cls(parts[0].scheme, (blocks.shape[0], parts[0].shape[1]), blocks)

    def dequantize(self) -> Tensor:
        """Return what llama.cpp decodes, (out, in) float32."""
        from gemquant.numerics.ggml.dequantize import dequantize_rows

        return dequantize_rows(self.blocks, self.scheme.type)
