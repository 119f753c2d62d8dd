"""llama.cpp's names and Gemma's translate into one another, as gguf-py translates them."""

from __future__ import annotations

import gguf
import pytest

from gemquant.formats.gguf.names import from_gguf, is_norm, to_gguf
from gemquant.models.architecture import tensor_shapes
from gemquant.models.config import text_config
from gemquant.models.structure import HEAD
from tests.helpers.tiny_gemma import Kind, tiny_config

ARCHITECTURES = {
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}


def test_names_are_those_of_gguf_py(generation: Kind) -> None:
    theirs = gguf.get_tensor_name_map(ARCHITECTURES[generation], 3)
    for name in tensor_shapes(text_config(tiny_config(generation))):
        stem = theirs.get_name(name.removesuffix(".weight"))
        assert to_gguf(name, generation) == f"{stem}.weight"


def test_every_name_comes_back(generation: Kind) -> None:
    for name in [*tensor_shapes(text_config(tiny_config(generation))), HEAD]:
        assert from_gguf(to_gguf(name, generation), generation) == name


@pytest.mark.parametrize(
    "name",
    ["v.blk.0.attn_q.weight", "blk.0.attn_q.bias", "blk.0.ssm_a.weight", "blk.x.attn_q.weight"],
)
def test_a_tensor_that_no_gemma_has_is_none(name: str) -> None:
    assert from_gguf(name, "gemma2") is None


def test_norms_alone_are_stored_one_higher() -> None:
    shapes = tensor_shapes(text_config(tiny_config("gemma3_text")))
    assert all(is_norm(name) == (len(shape) == 1) for name, shape in shapes.items())
