"""The type we compute in, and a runtime's, which some quantizers have an option for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemquant.cli.quantize import QuantizerCommand
from gemquant.cli.quantizer_options import read_request
from gemquant.core.recipe import Recipe


def recipe_of(quantizer: str, *args: str) -> Recipe:
    command = QuantizerCommand(quantizer)
    return read_request(command.make_context(quantizer, ["model", *args]), command.quantizer).recipe


@pytest.mark.parametrize("quantizer", ["awq", "nf4", "fp4", "int8", "cast", "gguf"])
def test_every_quantizer_calls_the_type_we_compute_in_compute_dtype(quantizer: str) -> None:
    assert recipe_of(quantizer, "--compute-dtype", "bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize("quantizer", ["nf4", "fp4"])
def test_the_runtimes_type_is_bnb_compute_dtype(quantizer: str) -> None:
    recipe = recipe_of(quantizer, "--bnb-compute-dtype", "float16")
    assert (recipe.dtype, recipe.options["bnb_compute_dtype"]) == ("float32", "float16")


def test_cast_writes_dtype() -> None:
    recipe = recipe_of("cast", "--dtype", "float16", "--compute-dtype", "bfloat16")
    assert (recipe.dtype, recipe.options["dtype"]) == ("bfloat16", "float16")


def test_the_former_flag_works_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe_of("awq", "--dtype", "bfloat16").dtype == "bfloat16"
    assert capsys.readouterr().err == "note: --dtype is now called --compute-dtype.\n"


def test_the_current_flag_wins_over_the_former() -> None:
    assert recipe_of("awq", "--dtype", "bfloat16", "--compute-dtype", "float32").dtype == "float32"


def test_a_manifest_of_before_gives_the_same_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"block_size": 64, "compute_dtype": "float16"}
    recipe = {"model": "m", "quantizer": "nf4", "options": options, "dtype": "bfloat16"}
    (tmp_path / "manifest.json").write_text(json.dumps({"recipe": recipe}))
    read = recipe_of("nf4", "--recipe", str(tmp_path / "manifest.json"))
    assert (read.dtype, read.options["bnb_compute_dtype"]) == ("bfloat16", "float16")
    assert capsys.readouterr().err == "note: compute_dtype is now called bnb_compute_dtype.\n"
