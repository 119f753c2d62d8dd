"""<bos> is there exactly once, whoever puts a conversation into tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gemquant.__main__ import main
from gemquant.formats.checkpoint.tokenizer_files import read_tokenizer_files, with_chat_template
from gemquant.models.chat import ChatTemplate, render
from gemquant.models.chat_templates import VARIANTS
from gemquant.runtimes import llamacpp_library
from gemquant.runtimes.chat.server import LlamaCppChat, ServerSettings
from tests.helpers.tiny_gemma import tiny_tokenizer, write_tiny_gemma, write_tiny_tokenizer
from tests.helpers.tiny_gguf import LLAMACPP

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
    written = tokenizer.encode(
        render(ChatTemplate(VARIANTS[variant]), TALK), add_special_tokens=False
    ).ids
    added = tokenizer.encode(render(ChatTemplate(VARIANTS[variant], {"bos_token": ""}), TALK)).ids
    assert written.count(BOS) == 1
    assert written == added


@pytest.mark.parametrize("only", [None, "tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_transformers_reads_the_template_from_either_place(
    variant: str, only: str | None, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder_with(variant, tmp_path, only=only))
    ids = tokenizer.apply_chat_template(TALK, add_generation_prompt=True)["input_ids"]
    expected = render(ChatTemplate(VARIANTS[variant]), TALK, add_generation_prompt=True)
    assert ids.count(BOS) == 1
    assert ids == tiny_tokenizer().encode(expected, add_special_tokens=False).ids


needs_llamacpp = pytest.mark.skipif(
    llamacpp_library.missing() is not None, reason=str(llamacpp_library.missing())
)


def read_by_llamacpp(path: Path) -> int:
    """Tokens that llama.cpp makes of the conversation with the file's own template."""
    settings = ServerSettings(path, "tiny", None, 256, 64, "f16", threads=1, gpu=False)
    engine = LlamaCppChat(settings)
    answer = engine._server.handle_chat_completions({"messages": TALK, "max_tokens": 1})
    return int(answer["usage"]["prompt_tokens"])


@needs_llamacpp
@pytest.mark.parametrize("added", [True, False], ids=["added by the file", "not added"])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_gguf_made_here_is_read_with_one(variant: str, added: bool, tmp_path: Path) -> None:
    model = write_tiny_gemma(tmp_path / "model", "gemma2", overrides=LLAMACPP["gemma2"])
    options = ["--type", "Q8_0", "--chat-template", variant, "--no-eval", "--quiet"]
    assert main(["gguf", str(model), *options, "-o", str(tmp_path / "made")]) == 0
    (path,) = (tmp_path / "made").glob("*.gguf")
    if not added:
        key, boolean = b"tokenizer.ggml.add_bos_token", (7).to_bytes(4, "little")
        content = path.read_bytes()
        assert content.count(key + boolean + b"\1") == 1
        path.write_bytes(content.replace(key + boolean + b"\1", key + boolean + b"\0"))
    ids = tiny_tokenizer().encode(
        render(ChatTemplate(VARIANTS[variant]), TALK, add_generation_prompt=True),
        add_special_tokens=False,
    )
    assert ids.ids.count(BOS) == 1
    assert read_by_llamacpp(path) == len(ids.ids)
