"""Names, origin, terms and sampling; a card is not trusted."""

from __future__ import annotations

from typing import Any

import pytest
from gguf import GGUFValueType

from gemquant.formats.checkpoint.provenance import Provenance
from gemquant.formats.gguf.metadata import general_metadata

BILLIONS = 2_614_341_888
SIZES = (BILLIONS, BILLIONS, 0, 0)


def general(
    provenance: Provenance | None = None, generation: dict[str, Any] | None = None, **given: Any
) -> dict[str, Any]:
    origin = provenance or Provenance("google/gemma-2-2b-it", "gemma", None)
    arguments = {"sizes": SIZES, "name": None, **given}
    made = general_metadata(origin, generation or {}, **arguments)
    return {key.removeprefix("general."): entry.value for key, entry in made.items()}


def card(matter: str) -> Provenance:
    return Provenance("google/gemma-2-2b-it", "gemma", f"---\n{matter}\n---\n# Card\n")


def test_a_hub_id_says_name_size_and_finetune() -> None:
    assert general() == {
        "name": "Gemma 2 2b It",
        "organization": "Google",
        "finetune": "it",
        "basename": "gemma-2",
        "size_label": "2B",
        "license": "gemma",
    }


def test_without_a_size_in_the_name_it_is_counted() -> None:
    assert general(Provenance("my-model", "gemma", None))["size_label"] == "2.6B"


def test_a_finetune_goes_by_its_own_name_and_names_its_parent() -> None:
    matter = "license: mit\nbase_model: google/gemma-2-2b"
    origin = Provenance("google/gemma-2-2b", "mit", f"---\n{matter}\n---\n", name="poems")
    assert general(origin) == {
        "name": "Poems",
        "size_label": "2.6B",
        "license": "mit",
        "base_model.count": 1,
        "base_model.0.name": "Gemma 2 2b",
        "base_model.0.organization": "Google",
        "base_model.0.repo_url": "https://huggingface.co/google/gemma-2-2b",
    }


def test_a_given_name_goes_before_the_cards() -> None:
    assert general(card("model_name: Card"), name="Mine")["name"] == "Mine"


def test_licence_names_and_links_are_kept() -> None:
    found = general(card("license: other\nlicense_name: x\nlicense_link: https://example.org"))
    assert [found[key] for key in ("license", "license.name", "license.link")] == [
        "other",
        "x",
        "https://example.org",
    ]


def test_norwegian_is_a_language() -> None:
    assert general(card("language:\n- en\n- no"))["languages"] == ["en", "no"]


def test_tags_end_with_the_pipeline() -> None:
    found = general(card("tags:\n- a\npipeline_tag: text-generation"))
    assert found["tags"] == ["a", "text-generation"]


@pytest.mark.parametrize(
    "matter",
    [
        "tags: [1, {a: b}, [c]]",
        "base_model: {name: 7}",
        "base_model: [[], 3]",
        "license: [1]",
        "language: {en: 1}",
        "datasets: ''",
        "base_model: ''",
        "base_model: '///'",
        "model_name: 7\nauthor: []",
        "1: 2\ntrue: x",
    ],
)
def test_what_is_no_text_in_a_card_is_passed_over(matter: str) -> None:
    made = general_metadata(card(matter), {}, sizes=SIZES, name=None)
    for entry in made.values():
        assert entry.packed
    assert made["general.license"].value == "gemma"


def test_recommended_sampling_comes_from_the_generation_configuration() -> None:
    generation = {
        "top_k": 64, "top_p": 0.95, "temperature": 1, "repetition_penalty": 1.1, "sequence": "kp",
    }  # fmt: skip
    made = general_metadata(Provenance("x", "gemma", None), generation, sizes=SIZES, name=None)
    kinds = GGUFValueType
    assert {key: (entry.type, entry.value) for key, entry in made.items() if "sampling" in key} == {
        "general.sampling.sequence": (kinds.STRING, "kp"),
        "general.sampling.top_k": (kinds.INT32, 64),
        "general.sampling.top_p": (kinds.FLOAT32, 0.95),
        "general.sampling.temp": (kinds.FLOAT32, 1.0),
        "general.sampling.penalty_repeat": (kinds.FLOAT32, 1.1),
    }


@pytest.mark.parametrize(
    "generation",
    [{"top_k": "64"}, {"top_k": 1.5}, {"top_k": True}, {"top_k": 2**40}, {"top_p": float("nan")}],
)
def test_sampling_that_is_no_number_is_passed_over(generation: dict[str, Any]) -> None:
    assert [key for key in general(generation=generation) if "sampling" in key] == []
