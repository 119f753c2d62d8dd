"""A file says which importance matrix it was made with, as llama-quantize says it."""

from __future__ import annotations

from pathlib import Path

from gemquant.formats.gguf.imatrix import read_imatrix
from gemquant.formats.gguf.importance import ImportanceMatrix
from gemquant.formats.gguf.importance_keys import importance_keys

GOLDEN = Path(__file__).parents[3] / "golden" / "imatrix.gguf"


def test_keys_are_those_of_llama_quantize() -> None:
    keys = importance_keys(read_imatrix(GOLDEN), "imatrix.gguf")
    # As llama-quantize v0.5.0 wrote them, given this file.
    assert [(key, value.type.name, value.value) for key, value in keys.items()] == [
        ("quantize.imatrix.file", "STRING", "imatrix.gguf"),
        ("quantize.imatrix.dataset", "STRING", "text.txt"),
        ("quantize.imatrix.entries_count", "UINT32", 21),
        ("quantize.imatrix.chunks_count", "UINT32", 14),
    ]


def test_what_is_not_known_is_left_out() -> None:
    keys = importance_keys(ImportanceMatrix({}), "i.dat")
    assert list(keys) == ["quantize.imatrix.file", "quantize.imatrix.entries_count"]


def test_a_long_name_is_cut_between_characters() -> None:
    keys = importance_keys(ImportanceMatrix({}), "é" * 100)
    assert keys["quantize.imatrix.file"].value == "é" * 63
