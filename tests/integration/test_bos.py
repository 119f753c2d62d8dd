"""<bos> is there exactly once, whoever puts a conversation into tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gemquant.checkpoint.tokenizer_files import read_tokenizer_files, with_chat_template
from gemquant.gemma.chat import render
from gemquant.gemma.chat_templates import VARIANTS
from tests.tiny_gemma import tiny_tokenizer, write_tiny_tokenizer

BOS = 2
TALK = [{"role": "user", "content": "Hello"}]


def folder_with(variant: str, folder: Path, *, only: str | None = None) -> Path:
    """A tokenizer's folder with a variant in both places that consumers read, or in one."""
    write_tiny_tokenizer(folder)
    files = with_chat_template(read_tokenizer_files(folder).files, VARIANTS[variant])
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if only == "tokenizer_config.json":
        (folder / "chat_template.jinja").unlink()
    elif only is not None:
        config = json.loads((folder / "tokenizer_config.json").read_bytes())
        del config["chat_template"]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_rendered_text_is_encoded_without_a_second_one(variant: str) -> None:
    tokenizer = tiny_tokenizer()
    written = tokenizer.encode(render(VARIANTS[variant], TALK), add_special_tokens=False).ids
    added = tokenizer.encode(render(VARIANTS[variant], TALK, bos="")).ids
    assert written.count(BOS) == 1
    assert written == added


@pytest.mark.parametrize("only", [None, "tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_transformers_reads_the_template_from_either_place(
    variant: str, only: str | None, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder_with(variant, tmp_path, only=only))
    ids = tokenizer.apply_chat_template(TALK, add_generation_prompt=True)["input_ids"]
    expected = render(VARIANTS[variant], TALK, add_generation_prompt=True)
    assert ids.count(BOS) == 1
    assert ids == tiny_tokenizer().encode(expected, add_special_tokens=False).ids
