"""What `gemquant gguf` makes of its options before any weight is read."""

from __future__ import annotations

from typing import Any

import pytest

from gemquant.core.options import problems_with
from gemquant.core.scheme import BLOCK_FORMATS
from gemquant.core.weights import _SUB_BLOCKS, BlockScheme
from gemquant.errors import Problems, UsageError
from gemquant.models.config import text_config
from gemquant.models.structure import EMBEDDING, HEAD
from gemquant.numerics.ggml.types import TYPES
from gemquant.quantizers.gguf import KQuant
from gemquant.quantizers.gguf_file import KQuantFile
from tests.helpers.tiny_gemma import tiny_config

WIDE = {"hidden_size": 256, "intermediate_size": 512}


@pytest.fixture
def config() -> dict[str, Any]:
    """A Gemma 2 of three layers whose rows hold every block."""
    return text_config({**tiny_config("gemma2"), **WIDE})


def test_each_type_is_an_artifact_of_its_own(config: dict[str, Any]) -> None:
    q4, q6 = KQuant(type=("q4_k", "Q6_K"), pure=True).members(config)
    assert (q4.label, q6.label) == ("Q4_K_M", "Q6_K")
    assert (q4.options["type"], q4.options["pure"]) == (["Q4_K_M"], True)
    assert isinstance(q6.quantizer, KQuantFile)
    assert set(q6.quantizer.types.values()) == {TYPES["Q6_K"]}


def test_a_tied_head_is_the_embedding(config: dict[str, Any]) -> None:
    (member,) = KQuant().members(config)
    assert member.quantizer.scheme_for(EMBEDDING, (551, 256)) == BlockScheme(TYPES["Q6_K"])
    assert member.quantizer.scheme_for(HEAD, (551, 256)) is None


def test_types_can_be_chosen_tensor_by_tensor(config: dict[str, Any]) -> None:
    quantizer = KQuant(tensor_type=("blk.*.attn_v=Q6_K",), embedding_type="q8_0")
    (member,) = quantizer.members(config)
    assert isinstance(member.quantizer, KQuantFile)
    types = member.quantizer.types
    assert types["model.layers.1.self_attn.v_proj.weight"] == TYPES["Q6_K"]
    assert types[EMBEDDING] == TYPES["Q8_0"]


def test_what_changes_nothing_is_said(config: dict[str, Any]) -> None:
    (member,) = KQuant(tensor_type=("ffn_nothing=Q6_K",)).members(config)
    assert member.notes == ["--tensor-type ffn_nothing=Q6_K: matches no tensor that is left to it."]


def test_everything_wrong_is_told_at_once_with_what_was_meant() -> None:
    quantizer = KQuant(
        type=("Q4_K_N", "Q6_K", "q6_k"),
        tensor_type=("attn_v",),
        output_type="Q9_0",
        split_max_size="2",
    )
    problems = [*quantizer.problems({}), *problems_with(quantizer)]
    told = [str(problem) for problem in problems]
    assert len(told) == 5
    assert told[0].startswith("--type Q4_K_N: ")
    assert "Did you mean Q4_K_S or Q4_K_M" in told[0]
    assert "--tensor-type 'attn_v': must be PATTERN=TYPE" in told[1]
    assert told[2].startswith("--output-type Q9_0: ")
    assert "Did you mean Q8_0" in told[2]
    assert told[3] == "--type Q6_K: asked for 2 times."
    assert told[4].startswith("--split-max-size 2: 2 what?")


def test_two_bits_without_importance_are_refused_as_llama_cpp_does(
    config: dict[str, Any],
) -> None:
    with pytest.raises(UsageError, match="Q2_K_S needs an importance matrix"):
        KQuant(type=("Q2_K_S",)).members(config)


def test_a_format_that_does_not_fit_is_told_for_every_file() -> None:
    narrow = text_config(tiny_config("gemma2"))
    with pytest.raises((Problems, UsageError), match="has 128 columns"):
        KQuant(type=("Q4_K_M", "Q6_K"), embedding_type="Q6_K").members(narrow)


def test_every_format_of_ggml_has_its_sub_blocks_and_its_name() -> None:
    assert tuple(_SUB_BLOCKS) == BLOCK_FORMATS
    assert set(TYPES) == set(BLOCK_FORMATS)


def test_formats_that_nothing_here_quantizes_to_are_told_before_work(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (member,) = KQuant(type=("Q4_K_M",), embedding_type="F16").members(config)
    assert member.quantizer.problems({}) == []
    monkeypatch.setattr("gemquant.numerics.ggml.kernels.kernel_of", lambda kind: None)
    (problem,) = member.quantizer.problems({})
    assert problem.exit_code == 8
    assert problem.message.startswith("Q4_K, Q6_K: neither a kernel of gemquant's nor ggml")


def test_a_file_and_a_calibration_are_one_too_many() -> None:
    (problem,) = KQuant(imatrix="im.gguf", importance=True).problems({})
    assert problem.message == "--imatrix and --importance: one importance matrix at a time."
