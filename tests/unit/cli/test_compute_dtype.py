"""The type we compute in, and a runtime's, which some quantizers have an option for."""

from __future__ import annotations

import pytest

from gemquant.cli.quantize import quantizer_command
from gemquant.cli.request import read_request
from gemquant.core.recipe import Recipe


def recipe_of(quantizer: str, *args: str) -> Recipe:
    command = quantizer_command(quantizer)
    return read_request(command.make_context(quantizer, ["model", *args]), command.quantizer).recipe


@pytest.mark.parametrize("quantizer", ["nf4", "fp4"])
def test_the_runtimes_type_is_not_the_one_we_compute_in(quantizer: str) -> None:
    recipe = recipe_of(quantizer, "--compute-dtype", "float16")
    assert (recipe.dtype, recipe.options["compute_dtype"]) == ("float32", "float16")


def test_the_type_we_compute_in_is_not_the_runtimes() -> None:
    recipe = recipe_of("nf4", "--dtype", "bfloat16", "--compute-dtype", "float32")
    assert (recipe.dtype, recipe.options["compute_dtype"]) == ("bfloat16", "float32")


def test_cast_computes_in_compute_dtype_since_dtype_is_what_it_writes() -> None:
    recipe = recipe_of("cast", "--dtype", "float16", "--compute-dtype", "bfloat16")
    assert (recipe.dtype, recipe.options["dtype"]) == ("bfloat16", "float16")
