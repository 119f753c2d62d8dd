"""How a scheme is named in target files, manifests and tables, for every kind of weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

INTEGER = "integer"
"""Integer codes: w ≈ scale · (code − zero point)."""

PER_CHANNEL = -1
"""Group size that means one scale for a whole output row."""

NAMES = {"nf4": "NF4", "fp4": "FP4", "llm.int8": "LLM.int8"}
"""Codes of other data types, as their authors spell them."""

BLOCK_FORMATS = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0",
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
)  # fmt: skip
"""Formats of ggml, whose names suffice."""


class Scheme(Protocol):
    """How a quantized weight's numbers are stored. Implement it as a frozen dataclass."""

    @property
    def bits(self) -> int:
        """Bits per code."""

    @property
    def group_size(self) -> int:
        """Consecutive weights that share a scale; -1 for the whole row."""

    @property
    def symmetric(self) -> bool:
        """Whether the scheme has no zero points."""

    @property
    def codes(self) -> str:
        """Meaning of the codes: ``integer``, or the name of a data type: ``nf4``, …"""


def in_words(
    bits: Iterable[int], sizes: Iterable[int], symmetric: Iterable[bool], codes: str
) -> str:
    """Name schemes of one kind of codes: ``3/4 bits, groups of 64/128, zero points``."""
    if codes in BLOCK_FORMATS:
        return codes
    widths = "/".join(map(str, bits))
    groups = "/".join("a row" if size == PER_CHANNEL else str(size) for size in sorted(sizes))
    if codes != INTEGER:
        return f"{widths} bits {NAMES.get(codes, codes)}, groups of {groups}"
    symmetry = "/".join("symmetric" if s else "zero points" for s in sorted(symmetric))
    return f"{widths} bits, groups of {groups}, {symmetry}"


def describe(scheme: Scheme) -> str:
    """Name a scheme in words: ``4 bits, groups of 128, zero points``."""
    return in_words((scheme.bits,), (scheme.group_size,), (scheme.symmetric,), scheme.codes)


def label(scheme: Scheme) -> str:
    """Name a scheme for a folder: ``w4-g128``; named codes need no width."""
    if scheme.codes in BLOCK_FORMATS:
        return scheme.codes
    width = [f"w{scheme.bits}"] if scheme.codes == INTEGER else []
    groups = [] if scheme.group_size == PER_CHANNEL else [f"g{scheme.group_size}"]
    return "-".join([*width, *groups])
