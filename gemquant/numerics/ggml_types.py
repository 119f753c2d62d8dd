"""GGML's number formats, as data.

Source: ggml/include/ggml.h (``enum ggml_type``) and ggml/src/ggml-common.h (block layouts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class GgmlType:
    """One format: runs of ``block`` weights of a row are stored in ``block_bytes`` bytes.

    number: ggml's own identifier, as GGUF files store it.
    """

    name: str
    number: int
    block: int
    block_bytes: int

    @property
    def bits(self) -> float:
        """Stored bits per weight."""
        return 8 * self.block_bytes / self.block

    @property
    def is_float(self) -> bool:
        """Stores floating-point numbers one by one."""
        return self.block == 1

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row; ValueError if its columns are not whole blocks.

        >>> TYPES["Q4_K"].row_bytes(512)
        288
        """
        if columns % self.block:
            raise ValueError(f"{columns} columns are not a multiple of {self.name}'s {self.block}")
        return columns // self.block * self.block_bytes


_ALL = (
    GgmlType("F32", 0, 1, 4),
    GgmlType("F16", 1, 1, 2),
    GgmlType("Q4_0", 2, 32, 18),
    GgmlType("Q4_1", 3, 32, 20),
    GgmlType("Q5_0", 6, 32, 22),
    GgmlType("Q5_1", 7, 32, 24),
    GgmlType("Q8_0", 8, 32, 34),
    GgmlType("Q2_K", 10, 256, 84),
    GgmlType("Q3_K", 11, 256, 110),
    GgmlType("Q4_K", 12, 256, 144),
    GgmlType("Q5_K", 13, 256, 176),
    GgmlType("Q6_K", 14, 256, 210),
    GgmlType("IQ4_NL", 20, 32, 18),
    GgmlType("IQ4_XS", 23, 256, 136),
    GgmlType("BF16", 30, 1, 2),
)

TYPES: Mapping[str, GgmlType] = {kind.name: kind for kind in _ALL}
"""Every format that gemquant writes, by ggml's name."""
