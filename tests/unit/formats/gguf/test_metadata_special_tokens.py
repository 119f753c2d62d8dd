"""Ids of special tokens, what is added to a text, and chat templates."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gemquant.formats.gguf.metadata import tokenizer_metadata
from gemquant.formats.gguf.vocabulary import tokenizer_parts
from tests.helpers.tiny_sentencepiece import PIECES, tiny_sentencepiece_files, tiny_tokenizer_config

CONFIG: dict[str, Any] = {
    "model_type": "gemma3_text",
    "vocab_size": PIECES,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
CONFIG_FILE, JSON = "tokenizer_config.json", "tokenizer.json"


def keys(
    *,
    tokenizer_config: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
    template: str | None = None,
    jinja: bytes | None = None,
    **config: Any,
) -> dict[str, Any]:
    """Keys with values, without those of the vocabulary.

    tokenizer_config, tokenizer: changes to these files; an empty config is left out.
    """
    files = {JSON: tiny_sentencepiece_files()[JSON]}
    if tokenizer is not None:
        files[JSON] = json.dumps({**json.loads(files[JSON]), **tokenizer}).encode()
    if tokenizer_config != {}:
        changed = {**tiny_tokenizer_config(), "chat_template": None, **(tokenizer_config or {})}
        files[CONFIG_FILE] = json.dumps(changed).encode()
    if jinja is not None:
        files["chat_template.jinja"] = jinja
    made = tokenizer_metadata(
        tokenizer_parts(files, "folder"), {**CONFIG, **config}, chat_template=template
    )
    lists = ("tokens", "scores", "token_type", "model", "pre")
    return {
        key.removeprefix("tokenizer."): entry.value
        for key, entry in made.items()
        if key.removeprefix("tokenizer.ggml.") not in lists
    }


PUBLISHED = {
    "ggml.bos_token_id": 2,
    "ggml.eos_token_id": 1,
    "ggml.unknown_token_id": 3,
    "ggml.padding_token_id": 0,
    "ggml.add_bos_token": True,
    "ggml.add_sep_token": False,
    "ggml.add_eos_token": False,
    "ggml.add_space_prefix": False,
}


def test_a_published_gemma_3() -> None:
    assert keys() == PUBLISHED


def test_a_published_gemma_1_names_its_end_of_turn() -> None:
    assert keys(model_type="gemma") == {**PUBLISHED, "ggml.eot_token_id": 107}


def test_tokenizer_json_alone_says_all_but_whether_eos_is_added() -> None:
    known = {key: value for key, value in PUBLISHED.items() if key != "ggml.add_eos_token"}
    assert keys(tokenizer_config={}) == known


def test_what_tokenizer_config_names_goes_before_the_models_configuration() -> None:
    assert keys(tokenizer_config={"eos_token": "<end_of_turn>"})["ggml.eos_token_id"] == 106


def test_a_token_may_be_spelled_as_an_object() -> None:
    spelled = {"eos_token": {"content": "<end_of_turn>", "special": True}}
    assert keys(tokenizer_config=spelled)["ggml.eos_token_id"] == 106


def test_a_mask_token_is_named() -> None:
    assert keys(tokenizer_config={"mask_token": "<mask>"})["ggml.mask_token_id"] == 4


def test_of_several_ends_the_first_counts_where_nothing_else_names_one() -> None:
    found = keys(tokenizer_config={"eos_token": None}, eos_token_id=[1, 106])
    assert found["ggml.eos_token_id"] == 1


def test_an_id_outside_the_vocabulary_is_left_out() -> None:
    assert "ggml.padding_token_id" not in keys(tokenizer_config={}, pad_token_id=PIECES)


def processor(single: list[str], pair: list[str]) -> dict[str, Any]:
    def spelled(entry: str) -> dict[str, Any]:
        kind = "Sequence" if entry in "AB" else "SpecialToken"
        return {kind: {"id": entry, "type_id": 0}}

    return {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": list(map(spelled, single)),
            "pair": list(map(spelled, pair)),
        }
    }


@pytest.mark.parametrize(
    ("single", "pair", "expected"),
    [
        pytest.param("<bos> A", "<bos> A <bos> B", (True, False, False), id="gemma"),
        pytest.param("<bos> A <eos>", "<bos> A <eos> B <eos>", (True, True, False), id="eos-too"),
        pytest.param("A", "A B", (True, False, None), id="none: tokenizer_config decides"),
        pytest.param("<bos> A", "<bos> A <eos> B", (True, False, True), id="separated"),
    ],
)
def test_the_template_of_the_post_processor_is_read(
    single: str, pair: str, expected: tuple[bool, bool, bool | None]
) -> None:
    found = keys(tokenizer=processor(single.split(), pair.split()))
    assert tuple(found.get(f"ggml.add_{role}_token") for role in ("bos", "eos", "sep")) == expected


def test_a_sequence_of_post_processors_is_looked_through() -> None:
    inner = processor(["<bos>", "A"], ["<bos>", "A", "<bos>", "B"])["post_processor"]
    sequence = {"post_processor": {"type": "Sequence", "processors": [inner]}}
    assert keys(tokenizer=sequence) == PUBLISHED


@pytest.mark.parametrize("damaged", [[], 7, {"type": "TemplateProcessing", "single": 3}])
def test_a_damaged_post_processor_adds_nothing(damaged: Any) -> None:
    found = keys(tokenizer={"post_processor": damaged}, tokenizer_config={})
    assert [key for key in found if "add_" in key] == ["ggml.add_space_prefix"]


def templates(**arguments: Any) -> dict[str, Any]:
    return {key: value for key, value in keys(**arguments).items() if "chat_template" in key}


def test_without_a_template_none_is_written() -> None:
    assert templates() == {}


def test_the_template_of_tokenizer_config_is_written() -> None:
    assert templates(tokenizer_config={"chat_template": "X"}) == {"chat_template": "X"}


def test_a_file_of_its_own_goes_first_as_in_transformers() -> None:
    found = templates(tokenizer_config={"chat_template": "X"}, jinja=b"Y")
    assert found == {"chat_template": "Y"}


def test_a_chosen_template_goes_before_all() -> None:
    several = [{"name": "default", "template": "X"}, {"name": "tool", "template": "T"}]
    found = templates(tokenizer_config={"chat_template": several}, jinja=b"Y", template="Z")
    assert found == {"chat_template": "Z"}


def test_several_templates_are_written_by_name() -> None:
    several = [
        {"name": "tool use", "template": "T"},
        {"name": "default", "template": "D"},
        {"name": "rag", "template": "R"},
        {"name": 7, "template": "no name"},
        "no template",
    ]
    assert templates(tokenizer_config={"chat_template": several}) == {
        "chat_template.tool_use": "T",
        "chat_template.rag": "R",
        "chat_templates": ["rag", "tool_use"],
        "chat_template": "D",
    }
