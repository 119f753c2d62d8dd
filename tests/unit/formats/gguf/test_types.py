"""Every tensor gets the type that llama.cpp's quantize gave it."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gemquant.errors import UsageError
from gemquant.formats.gguf.mixtures import FILE_TYPES, NOT_MADE, file_type, tensor_type
from gemquant.formats.gguf.types import (
    TensorType,
    TypePlan,
    TypeRequest,
    choose_types,
    fallbacks,
    gguf_shapes,
    importance_problems,
    parse_override,
)

GOLDEN = json.loads(
    (Path(__file__).parents[3] / "golden" / "gguf_types.json").read_text(encoding="utf-8")
)


def config(model: str) -> dict[str, Any]:
    return {"vocab_size": 512, **GOLDEN["models"][model]}


def request(file_type_name: str, asked: dict[str, Any]) -> TypeRequest:
    types = {k: tensor_type(asked[k]) for k in ("embedding_type", "output_type") if k in asked}
    overrides = tuple(parse_override(f"{p}={t}") for p, t in asked.get("overrides", ()))
    pure = asked.get("pure", False)
    return TypeRequest(file_type(file_type_name), overrides=overrides, pure=pure, **types)


def expected(layout: int) -> dict[str, str]:
    """A layout of the golden file, tensor by tensor."""
    types = {}
    for runs, kinds in GOLDEN["layouts"][layout].items():
        counts, names = runs.split()[::2], runs.split()[1::2]
        each = [n for count, n in zip(counts, names, strict=True) for _ in range(int(count))]
        for kind, (layer, name) in itertools.product(kinds.split(), enumerate(each)):
            outside = kind in ("token_embd", "output")
            types[f"{kind}.weight" if outside else f"blk.{layer}.{kind}.weight"] = name
    return types


def chosen(plan: TypePlan) -> dict[str, str]:
    return {t.name: t.type.name for t in plan.tensors if len(t.shape) > 1}


def runs(model: str) -> Iterator[tuple[str, int | None, TypePlan]]:
    for key, layout in GOLDEN["runs"].items():
        of, file_type_name, importance, asked = key.split("|")
        if of == model:
            preferred = request(file_type_name, GOLDEN["asked"].get(asked, {}))
            yield key, layout, choose_types(config(of), preferred, has_importance=bool(importance))


@pytest.mark.parametrize("model", GOLDEN["models"])
def test_every_tensor_has_llama_cpps_type(model: str) -> None:
    compared = 0
    for key, layout, plan in runs(model):
        if layout is not None:
            assert chosen(plan) == expected(layout), key
            compared += 1
    assert compared >= 59


def test_only_what_llama_cpp_refuses_without_importance_is_a_problem() -> None:
    for key, layout, plan in runs("gemma-3-270m"):
        covered = None if "|importance|" not in key else [t.name for t in plan.tensors]
        assert bool(importance_problems(plan, covered)) == (layout is None), key


def test_a_tensor_without_an_entry_is_named() -> None:
    plan = choose_types(config("short"), request("Q2_K_S", {}), has_importance=True)
    covered = {t.name for t in plan.tensors} - {"blk.1.ffn_up.weight"}
    (problem,) = importance_problems(plan, covered)
    assert problem.message.startswith(
        "Q2_K_S needs entries of the importance matrix for 1 tensors, blk.1.ffn_up.weight first"
    )


@pytest.mark.parametrize("pattern", GOLDEN["patterns"])
def test_a_pattern_matches_what_std_regex_matches(pattern: str) -> None:
    preferred = request("Q4_0", {"pure": True, "overrides": [(pattern, "F16")]})
    plan = choose_types(config("gemma-2-2b"), preferred, has_importance=False)
    assert chosen(plan) == expected(GOLDEN["patterns"][pattern])


@pytest.mark.parametrize("pattern", GOLDEN["refused_patterns"])
def test_a_pattern_that_std_regex_refuses_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError):
        parse_override(f"{pattern}=F16")


def test_file_types_have_llama_cpps_numbers() -> None:
    assert {name: made.number for name, made in FILE_TYPES.items()} == GOLDEN["file_types"]


def test_norms_stay_in_float32() -> None:
    plan = choose_types(config("gemma-3-1b"), request("Q4_K_M", {}), has_importance=False)
    assert {t.type.name for t in plan.tensors if len(t.shape) == 1} == {"F32"}


def test_tensors_outside_of_layers_come_first_and_layers_in_order() -> None:
    names = list(gguf_shapes(config("gemma-2-2b")))
    assert names[:4] == [
        "output_norm.weight",
        "token_embd.weight",
        "blk.0.attn_k.weight",
        "blk.0.attn_norm.weight",
    ]
    layers = [int(name.split(".")[1]) for name in names[2:]]
    assert layers == sorted(layers)


def test_a_fallback_says_what_was_wanted_and_why() -> None:
    plan = choose_types(config("gemma-3-270m"), request("Q4_K_M", {}), has_importance=False)
    by_name = {t.name: t for t in plan.tensors}
    query = by_name["blk.0.attn_q.weight"]
    assert (query.type.name, query.preferred.name) == ("Q5_0", "Q4_K")
    assert query.fallback == "640 columns are not a multiple of Q4_K's block of 256"
    assert by_name["token_embd.weight"].preferred.name == "Q6_K"
    assert by_name["blk.0.ffn_down.weight"].fallback is None


def test_an_explicit_type_that_does_not_fit_is_refused() -> None:
    preferred = request("Q4_K_M", {"embedding_type": "Q6_K"})
    with pytest.raises(UsageError, match="640 columns; Q6_K needs a multiple of 256"):
        choose_types(config("gemma-3-270m"), preferred, has_importance=False)


@pytest.mark.parametrize(
    ("file_type_name", "asked", "note"),
    [
        ("F16", {"overrides": [("attn_v", "Q8_0")]}, "F16 files have no mixture"),
        ("Q4_0", {"overrides": [("attn", "Q8_0"), ("attn_v", "F16")]}, "attn_v=F16: matches no"),
        ("Q4_0", {"overrides": [("attn_x", "Q8_0")]}, "matches no tensor"),
        ("Q4_0", {"output_type": "Q8_0", "pure": True}, "in --pure's own format"),
        ("F16", {"output_type": "Q8_0"}, "in F16's own format"),
        ("Q4_0", {"output_type": "Q8_0", "embedding_type": "Q8_0"}, "--embedding-type is given"),
        (
            "Q4_0",
            {"output_type": "Q8_0", "overrides": [("embd", "F16")]},
            "--tensor-type matches it",
        ),
    ],
)
def test_what_changes_nothing_is_said(
    file_type_name: str, asked: dict[str, Any], note: str
) -> None:
    plan = choose_types(config("short"), request(file_type_name, asked), has_importance=False)
    (only,) = plan.without_effect
    assert note in only


def test_a_mixtures_name_is_no_tensors_type() -> None:
    with pytest.raises(UsageError) as caught:
        parse_override("attn_v=Q4_K_M")
    assert caught.value.hint == (
        "Q4_K_M is a mixture for a whole file; a tensor has one format, such as Q4_K."
    )


@pytest.mark.parametrize("text", ["attn_v", "=Q8_0", "attn_v="])
def test_an_override_without_pattern_or_type_shows_the_form(text: str) -> None:
    with pytest.raises(UsageError, match="must be PATTERN=TYPE"):
        parse_override(text)


def test_an_escape_in_upper_case_is_refused() -> None:
    with pytest.raises(UsageError, match="lower case"):
        parse_override(r"blk\.\D=Q8_0")


@pytest.mark.parametrize("pattern", ["a**", "a*+", r"(a)\1", "[[:alpha:]]", "[]a]", "^*", r"\x61"])
def test_what_python_and_ecmascript_read_differently_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="not understood alike"):
        parse_override(f"{pattern}=Q8_0")


@pytest.mark.parametrize("name", ["Q4_K", "q4_k_m"])
def test_a_file_type_has_an_alias_and_any_case(name: str) -> None:
    assert file_type(name).name == "Q4_K_M"


def test_an_unknown_file_type_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"'Q9_K': known are F32, F16, BF16, Q8_0"):
        file_type("Q9_K")


def test_a_file_type_of_llamacpps_that_is_not_made_names_the_nearest() -> None:
    with pytest.raises(
        UsageError, match=r"IQ2_XXS: gemquant does not make it \(2.06 bits"
    ) as error:
        file_type("iq2_xxs")
    assert error.value.hint == "The nearest in size: Q2_K_S."
    assert {nearest for _, nearest in NOT_MADE.values()} <= FILE_TYPES.keys()
    assert not NOT_MADE.keys() & FILE_TYPES.keys()


# ---------------------------------------------------------------- rows of 640, which fit no K-quant

GEMMA_3_270M: dict[str, Any] = {
    "model_type": "gemma3_text", "num_hidden_layers": 18, "hidden_size": 640,
    "intermediate_size": 2048, "num_attention_heads": 4, "num_key_value_heads": 1,
    "head_dim": 256, "vocab_size": 262144, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def tensors() -> tuple[TensorType, ...]:
    request = TypeRequest(file_type("Q4_K_M"))
    return choose_types(GEMMA_3_270M, request, has_importance=False).tensors


def test_types_and_sizes_are_those_of_llama_quantize(tensors: tuple[TensorType, ...]) -> None:
    assert Counter(tensor.type.name for tensor in tensors) == {
        "Q8_0": 10, "Q5_0": 81, "Q6_K": 9, "Q4_K": 27, "F32": 109,
    }  # fmt: skip
    # 9 of the ffn_down, 640 rows of 2048 columns: 8 blocks of 210 bytes each.
    sizes = [tensor.size_bytes for tensor in tensors if tensor.type.name == "Q6_K"]
    assert sum(sizes) == 9 * 640 * 8 * 210
    bits = 8 * sum(t.size_bytes for t in tensors) / sum(t.weights for t in tensors)
    assert bits == pytest.approx(7.3581, abs=0.00005)


def test_fallbacks_are_grouped_by_reason(tensors: tuple[TensorType, ...]) -> None:
    groups = {(f.preferred.name, f.type.name): f for f in fallbacks(tensors)}
    assert {key: len(f.names) for key, f in groups.items()} == {
        ("Q6_K", "Q8_0"): 10,
        ("Q4_K", "Q5_0"): 81,
    }
    assert groups["Q6_K", "Q8_0"].names[0] == "token_embd.weight"
