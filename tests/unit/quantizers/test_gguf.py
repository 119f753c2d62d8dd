"""What `gemquant gguf` makes of its options before any weight is read."""

from __future__ import annotations

from typing import Any

import pytest

from gemquant.core.options import problems_with, recorded_options
from gemquant.core.scheme import BLOCK_FORMATS
from gemquant.core.weights import _SUB_BLOCKS, BlockScheme
from gemquant.errors import Problems, UsageError
from gemquant.models.config import text_config
from gemquant.models.structure import EMBEDDING, HEAD
from gemquant.numerics.ggml_types import TYPES
from gemquant.quantizers.gguf import KQuant
from tests.helpers.tiny_gemma import tiny_config

WIDE = {"hidden_size": 256, "intermediate_size": 512}


@pytest.fixture
def config() -> dict[str, Any]:
    """A Gemma 2 of three layers whose rows hold every block."""
    return text_config({**tiny_config("gemma2"), **WIDE})


def test_a_type_is_named_in_any_case_and_made_alone(config: dict[str, Any]) -> None:
    q4, q6 = (KQuant(type=name, pure=True).for_model(config) for name in ("q4_k", "Q6_K"))
    assert (q4.label, q6.label) == ("Q4_K_M", "Q6_K")
    assert recorded_options(q4)["type"] == ["Q4_K_M"]
    assert set(q6.choice.types.values()) == {TYPES["Q6_K"]}


def test_before_the_model_is_known_nothing_is_quantized() -> None:
    assert KQuant().scheme_for(EMBEDDING, (551, 256)) is None


def test_a_tied_head_is_the_embedding(config: dict[str, Any]) -> None:
    quantizer = KQuant().for_model(config)
    assert quantizer.scheme_for(EMBEDDING, (551, 256)) == BlockScheme(TYPES["Q6_K"])
    assert quantizer.scheme_for(HEAD, (551, 256)) is None


def test_types_can_be_chosen_tensor_by_tensor(config: dict[str, Any]) -> None:
    quantizer = KQuant(tensor_type=("blk.*.attn_v=Q6_K",), embedding_type="q8_0")
    types = quantizer.for_model(config).choice.types
    assert types["model.layers.1.self_attn.v_proj.weight"] == TYPES["Q6_K"]
    assert types[EMBEDDING] == TYPES["Q8_0"]


def test_what_changes_nothing_is_said(config: dict[str, Any]) -> None:
    quantizer = KQuant(tensor_type=("ffn_nothing=Q6_K",)).for_model(config)
    assert quantizer.notes == [
        "--tensor-type ffn_nothing=Q6_K: matches no tensor that is left to it."
    ]


def test_everything_wrong_is_reported_at_once_with_what_was_meant(config: dict[str, Any]) -> None:
    quantizer = KQuant(type="Q4_K_N", tensor_type=("attn_v",), output_type="Q9_0")
    with pytest.raises(Problems) as raised:
        quantizer.for_model(config)
    messages = [str(problem) for problem in raised.value.problems]
    assert len(messages) == 3
    assert messages[0].startswith("--type Q4_K_N: ")
    assert "Did you mean Q4_K_S or Q4_K_M" in messages[0]
    assert "--tensor-type 'attn_v': must be PATTERN=TYPE" in messages[1]
    assert messages[2].startswith("--output-type Q9_0: ")
    assert "Did you mean Q8_0" in messages[2]


def test_a_part_without_a_unit_is_refused() -> None:
    (problem,) = problems_with(KQuant(split_max_size="2"))
    assert problem.message == "--split-max-size 2: 2 what?"


def test_two_bits_without_importance_are_refused_as_llama_cpp_does(
    config: dict[str, Any],
) -> None:
    with pytest.raises(UsageError, match="Q2_K_S needs an importance matrix"):
        KQuant(type="Q2_K_S").for_model(config)


def test_a_format_that_does_not_fit_is_refused() -> None:
    narrow = text_config(tiny_config("gemma2"))
    with pytest.raises((Problems, UsageError), match="has 128 columns"):
        KQuant(type="Q6_K", embedding_type="Q6_K").for_model(narrow)


def test_every_format_of_ggml_has_its_sub_blocks_and_its_name() -> None:
    assert tuple(_SUB_BLOCKS) == BLOCK_FORMATS
    assert set(TYPES) == set(BLOCK_FORMATS)


def test_a_file_and_a_calibration_are_one_too_many(config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--imatrix and --importance: one importance matrix"):
        KQuant(imatrix="im.gguf", importance=True).for_model(config)
