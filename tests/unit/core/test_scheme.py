"""Schemes in words and in folder names, whatever their kind."""

from __future__ import annotations

import pytest

from gemquant.core.protocols import PER_CHANNEL, AffineScheme, Scheme
from gemquant.core.scheme import describe, label
from gemquant.core.weights import CodebookScheme, RowwiseScheme


@pytest.mark.parametrize(
    ("scheme", "words", "name"),
    [
        (AffineScheme(4, 128, symmetric=False), "4 bits, groups of 128, zero points", "w4-g128"),
        (AffineScheme(8, PER_CHANNEL, symmetric=True), "8 bits, groups of a row, symmetric", "w8"),
        (CodebookScheme("nf4", 64, nested=True), "4 bits NF4, groups of 64", "g64"),
        (RowwiseScheme(6.0), "8 bits LLM.int8, groups of a row", ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_scheme_is_named(scheme: Scheme, words: str, name: str) -> None:
    assert (describe(scheme), label(scheme)) == (words, name)
