"""What a path holds, told from its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gemquant.errors import ArtifactError
from gemquant.measure.bench.subject import Subject
from gemquant.runtimes.text import read_tokenizer
from tests.helpers.tiny_gemma import Kind
from tests.helpers.tiny_gguf import write_tiny_gguf


def test_a_plain_checkpoint(tiny_folders: dict[Kind, Path]) -> None:
    folder = tiny_folders["gemma2"]
    subject = Subject.open(str(folder))
    assert subject.container == "safetensors"
    assert subject.size_bytes == sum(file.stat().st_size for file in folder.iterdir())
    tokenizer, bos = read_tokenizer(subject.path, subject.container)
    assert (tokenizer.get_vocab_size(), bos) == (465, 2)


def test_a_gguf_file_and_its_own_tokenizer(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "model.gguf")
    for named in (path, tmp_path):
        subject = Subject.open(str(named))
        assert (subject.container, subject.files) == ("gguf", [path])
        tokenizer, bos = read_tokenizer(subject.path, subject.container)
        assert (tokenizer.get_vocab_size(), bos) == (465, 2)


def test_a_folder_of_onnxruntime_genai(tmp_path: Path) -> None:
    (tmp_path / "genai_config.json").write_text("{}")
    assert Subject.open(str(tmp_path)).container == "onnx"


@pytest.mark.parametrize(
    ("config", "container"),
    [
        ({}, "safetensors"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq-gemm"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
        ({"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}, "mlx"),
    ],
)
def test_a_foreign_folder_is_told_by_its_configuration(
    tmp_path: Path, config: dict[str, Any], container: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Subject.open(str(tmp_path)).container == container


def test_what_no_runtime_loads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"contains no manifest\.json, config\.json or"):
        Subject.open(str(tmp_path))
    with pytest.raises(ArtifactError, match="neither a folder nor a GGUF file"):
        Subject.open(str(tmp_path / "absent"))
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    with pytest.raises(ArtifactError, match="quant_method gptq"):
        Subject.open(str(tmp_path))


def test_manifest_and_card_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("x" * 1000)
    assert Subject.open(str(tmp_path)).size_bytes == 2
