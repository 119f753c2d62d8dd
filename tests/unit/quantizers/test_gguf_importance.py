"""A file names the importance matrix that it was made with, as llama-quantize does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gemquant.core.recipe import Recipe
from gemquant.formats.gguf.imatrix import ImportanceMatrix, read_imatrix
from gemquant.models.config import text_config
from gemquant.quantizers.gguf_importance import FromCalibration, FromFile
from tests.helpers.tiny_gemma import tiny_config

GOLDEN = Path(__file__).parents[2] / "golden" / "imatrix.gguf"
RECIPE = Recipe(model="tiny", quantizer="gguf", exporter="gguf")


def keys_of(matrix: ImportanceMatrix, name: str) -> dict[str, str | int]:
    return dict(FromFile(Path(name), matrix, {}, (), "gemma2").facts(RECIPE))


def test_keys_are_those_of_llama_quantize() -> None:
    # As llama-quantize v0.5.0 wrote them, given this file.
    assert list(keys_of(read_imatrix(GOLDEN), "a/imatrix.gguf").items()) == [
        ("quantize.imatrix.file", "imatrix.gguf"),
        ("quantize.imatrix.dataset", "text.txt"),
        ("quantize.imatrix.entries_count", 21),
        ("quantize.imatrix.chunks_count", 14),
    ]


def test_what_is_not_known_is_left_out() -> None:
    keys = keys_of(ImportanceMatrix({}), "i.dat")
    assert list(keys) == ["quantize.imatrix.file", "quantize.imatrix.entries_count"]


def test_a_long_text_is_cut_to_127_bytes_between_characters() -> None:
    keys = keys_of(ImportanceMatrix({}, ("ü" * 100,)), "é" * 100)
    assert keys["quantize.imatrix.file"] == "é" * 63
    assert keys["quantize.imatrix.dataset"] == "ü" * 63
    recipe = dataclasses.replace(RECIPE, calib="€" * 100)
    computed = FromCalibration(text_config(tiny_config("gemma2"))).facts(recipe)
    assert computed["quantize.imatrix.dataset"] == "€" * 42
