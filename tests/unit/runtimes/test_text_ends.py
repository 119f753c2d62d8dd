"""A text ends at every token by which any of the model's files or its template ends one."""

from __future__ import annotations

import json
from pathlib import Path

from gemquant.formats.checkpoint import open_checkpoint
from gemquant.runtimes.text import TextInterface
from tests.helpers.tiny_gemma import write_tiny_gemma


def test_ends_are_the_union_of_all_files_and_the_template(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2", overrides={"eos_token_id": 7})
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 8]}))
    template = "{% for m in messages %}{{ m['content'] }}<start_of_turn>{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    text = TextInterface.of_checkpoint(open_checkpoint(str(folder)))
    # Of the tokenizer: <eos> 1; of the template: <start_of_turn> 4; of the generation: 5.
    assert text.end_tokens == {7, 8, 9, 1, 4, 5}


def test_the_text_interface_of_an_artifact_is_read_though_it_is_no_model_to_start_from(
    tmp_path: Path,
) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2")
    manifest = {"source": {"ref": "a/b"}, "quantization": {"schemes": [{}]}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert TextInterface.of_artifact(folder, "compressed-tensors").end_tokens == {1, 5}
