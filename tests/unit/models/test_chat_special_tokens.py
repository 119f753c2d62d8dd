"""A tokenizer's own special tokens, as its files name them, in rendered text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from gemquant.calibration.documents import Conversation
from gemquant.calibration.windows import Packer
from gemquant.formats.checkpoint.tokenizer_files import read_tokenizer_files
from gemquant.formats.gguf.tokenizer import GgufTokenizer
from gemquant.models.chat import ChatTemplate, render, special_tokens
from tests.helpers.tiny_gemma import tiny_tokenizer
from tests.helpers.tiny_gguf import tiny_token_metadata

TALK = [{"role": "user", "content": "Hello"}]
SOURCE = (
    "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|{{ image_token }}|"
    "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
)
OWN = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<start_of_turn>",
    "eos_token": {"__type": "AddedToken", "content": "<end_of_turn>", "special": True},
    "pad_token": "<eos>",
    "unk_token": "<unk>",
    "add_bos_token": True,
}


def folder(path: Path, **files: Any) -> Path:
    tiny_tokenizer().save(str(path / "tokenizer.json"))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def rendered(path: Path, config: dict[str, Any] | None = None) -> str:
    tokens = read_tokenizer_files(path).special_tokens(config or {})
    return render(ChatTemplate(SOURCE, tokens), TALK)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (OWN, "<start_of_turn>|<end_of_turn>|<eos>|<unk>||Hello<end_of_turn>"),
        (
            {**OWN, "extra_special_tokens": {"image_token": "<img>"}},
            "<start_of_turn>|<end_of_turn>|<eos>|<unk>|<img>|Hello<end_of_turn>",
        ),
        (
            {**OWN, "image_token": {"__type": "AddedToken", "content": "<img>"}},
            "<start_of_turn>|<end_of_turn>|<eos>|<unk>|<img>|Hello<end_of_turn>",
        ),
        ({**OWN, "pad_token": None}, "<start_of_turn>|<end_of_turn>||<unk>||Hello<end_of_turn>"),
    ],
    ids=["AddedToken", "extra tokens", "a token of the model", "null"],
)
def test_tokens_are_those_of_transformers(tmp_path: Path, config: dict[str, Any], expected: str):
    path = folder(tmp_path, tokenizer_config=config)
    theirs = PreTrainedTokenizerFast.from_pretrained(path).apply_chat_template(
        TALK, chat_template=SOURCE, tokenize=False
    )
    assert rendered(path) == theirs == expected


def test_the_map_of_special_tokens_fills_what_the_configuration_lacks(tmp_path: Path):
    tokens_map = {"bos_token": "<pad>", "eos_token": {"content": "<end_of_turn>"}}
    path = folder(tmp_path, tokenizer_config={"bos_token": "<bos>"}, special_tokens_map=tokens_map)
    assert rendered(path) == "<bos>|<end_of_turn>|<pad>|<unk>||Hello<end_of_turn>"


def test_ids_fill_what_the_files_lack(tmp_path: Path):
    turn = tiny_tokenizer().token_to_id("<end_of_turn>")
    path = folder(tmp_path, generation_config={"eos_token_id": 1, "pad_token_id": 1})
    config = {"eos_token_id": [turn, 1], "bos_token_id": 2, "unk_token_id": -1}
    assert rendered(path, config) == "<bos>|<end_of_turn>|<eos>|<unk>||Hello<end_of_turn>"


def test_without_files_the_tokens_are_gemmas(tmp_path: Path):
    assert rendered(folder(tmp_path)) == "<bos>|<eos>|<pad>|<unk>||Hello<eos>"


@pytest.mark.parametrize("name", ["additional_special_tokens", "extra_special_tokens"])
def test_additional_tokens_are_a_list(name: str):
    listed = ["<a>", {"content": "<b>"}, 3]
    tokens = special_tokens({name: listed}, {}, {}, lambda _: None)
    assert tokens["additional_special_tokens"] == ["<a>", "<b>"]


def test_a_gguf_names_its_tokens_by_id():
    metadata = {**tiny_token_metadata(), "tokenizer.ggml.eos_token_id": 4}
    assert GgufTokenizer(metadata, "file").special_tokens({}) == {
        "bos_token": "<bos>",
        "eos_token": metadata["tokenizer.ggml.tokens"][4],
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }


def test_calibration_text_has_the_tokenizers_own_tokens():
    tokenizer = tiny_tokenizer()
    template = ChatTemplate(
        "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
        {"bos_token": "<bos>", "eos_token": "<end_of_turn>"},
    )
    packer = Packer(tokenizer, 4, 2, template)
    talk = Conversation(({"role": "user", "content": "<pad>"},))
    (row,) = packer.pack(iter([talk, talk]), 1, "text")
    assert [tokenizer.id_to_token(token) for token in row] == [
        "<bos>",
        "<pad>",
        "<end_of_turn>",
        "<pad>",
    ]
