"""A damaged or foreign folder is one clear error, with everything that is wrong in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemquant.errors import CheckpointError, GemquantError, Problems, UnsupportedError
from gemquant.formats.checkpoint import open_checkpoint
from tests.helpers.tiny_gemma import write_tiny_gemma

INDEX = "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")


def refusal(folder: Path) -> GemquantError:
    with pytest.raises(GemquantError) as caught:
        open_checkpoint(str(folder))
    return caught.value


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return write_tiny_gemma(tmp_path / "model", "gemma2")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_tiny_gemma(tmp_path / "model", "gemma2", shards=3)


def test_an_empty_folder_says_what_a_model_folder_holds(tmp_path: Path) -> None:
    error = refusal(tmp_path)
    assert isinstance(error, CheckpointError)
    assert "config.json is missing" in error.message
    assert (
        error.hint == "Give a folder that holds config.json, model.safetensors and tokenizer.json."
    )


def test_a_folder_with_a_gguf_points_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "gemma.gguf").write_bytes(b"GGUF")
    assert refusal(tmp_path).hint == f"Open the file itself: {tmp_path / 'gemma.gguf'}"


def test_another_architecture_lists_the_supported(single: Path) -> None:
    edit_json(single / "config.json", architectures=["LlamaForCausalLM"], model_type="llama")
    error = refusal(single)
    assert isinstance(error, UnsupportedError)
    assert error.message == (
        "architecture LlamaForCausalLM: supported are GemmaForCausalLM, Gemma2ForCausalLM, "
        "Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextModel, "
        "Gemma4ForCausalLM, Gemma4ForConditionalGeneration, Gemma4UnifiedForCausalLM, "
        "Gemma4UnifiedForConditionalGeneration."
    )


def test_pickled_weights_alone_are_refused(single: Path) -> None:
    (single / "model.safetensors").rename(single / "pytorch_model.bin")
    error = refusal(single)
    assert isinstance(error, UnsupportedError)
    assert "only pickled weights (pytorch_model.bin)" in error.message
    assert error.hint is not None
    assert "save_pretrained" in error.hint


def test_missing_weights_are_named(single: Path) -> None:
    (single / "model.safetensors").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in refusal(single).message


def test_a_missing_tokenizer_is_named(single: Path) -> None:
    (single / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refusal(single).message


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    shard = sharded / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    error = refusal(sharded)
    assert "model-00002-of-00003.safetensors: truncated" in error.message


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "a/../../x", "..\\x", "C:\\x", "", "a\0b"],
)
def test_an_index_leads_nowhere_outside(sharded: Path, name: str) -> None:
    index = json.loads((sharded / INDEX).read_text())["weight_map"]
    edit_json(sharded / INDEX, weight_map={**index, NORM: name})
    assert "is not the name of a file in the folder" in refusal(sharded).message


def test_a_shard_that_links_outside_is_refused(sharded: Path, tmp_path: Path) -> None:
    shard = sharded / "model-00002-of-00003.safetensors"
    outside = shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(outside)
    assert f"is a link to {outside.resolve()}, outside the checkpoint" in refusal(sharded).message


def test_a_tokenizer_that_links_outside_is_refused(single: Path, tmp_path: Path) -> None:
    outside = (single / "tokenizer.json").rename(tmp_path / "elsewhere")
    (single / "tokenizer.json").symlink_to(outside)
    assert "tokenizer.json is a link to" in refusal(single).message


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "model-00003-of-00003.safetensors").unlink()
    assert "model-00003-of-00003.safetensors is missing" in refusal(sharded).message


def test_a_tensor_in_two_shards_is_named(sharded: Path) -> None:
    first, second = (sharded / f"model-0000{n}-of-00003.safetensors" for n in (1, 2))
    tensors = load_file(second)
    save_file({**tensors, EMBEDDING: load_file(first)[EMBEDDING]}, second)
    assert refusal(sharded).message == (
        f"{EMBEDDING} is in both model-00001-of-00003.safetensors and "
        "model-00002-of-00003.safetensors."
    )


def test_a_tensor_that_the_index_promises_in_vain_is_named(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())["weight_map"]
    edit_json(sharded / INDEX, weight_map={**index, "x.weight": index[NORM]})
    assert "lists tensors that no shard holds: x.weight" in refusal(sharded).message


def test_a_missing_tensor_is_named(single: Path) -> None:
    edit_weights(single, **{NORM: None})
    assert "1 tensors are missing: model.norm.weight." in refusal(single).message


def test_an_unexpected_tensor_is_named(single: Path) -> None:
    edit_weights(single, stranger=torch.zeros(1))
    assert "1 tensors are not part of a gemma2: stranger." in refusal(single).message


def test_a_wrong_shape_is_named_with_both(single: Path) -> None:
    edit_weights(single, **{NORM: torch.zeros(64)})
    assert f"{NORM}: shape (64,), and config.json implies (128,)" in refusal(single).message


def test_weights_that_are_not_floating_point_are_refused(single: Path) -> None:
    edit_weights(single, **{NORM: torch.zeros(128, dtype=torch.int8)})
    assert f"{NORM}: stored as I8" in refusal(single).message


def test_all_problems_come_at_once(single: Path) -> None:
    edit_weights(single, **{NORM: None, EMBEDDING: torch.zeros(2, 2)})
    (single / "tokenizer.json").unlink()
    error = refusal(single)
    assert isinstance(error, Problems)
    assert str(error).startswith("3 problems:")
    for words in ("model.norm.weight", "shape (2, 2)", "tokenizer.json is missing"):
        assert words in str(error)


def test_a_config_that_is_not_json_is_refused(single: Path) -> None:
    (single / "config.json").write_text("{")
    assert "config.json: not JSON" in refusal(single).message


def test_a_file_that_may_not_be_read_is_named(
    single: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("gemquant.core.untrusted.open_regular", denied)
    assert "config.json: cannot be read: Permission denied." in refusal(single).message


def test_a_path_that_does_not_exist_lists_what_may_be_given() -> None:
    with pytest.raises(CheckpointError, match="no such file or folder") as caught:
        open_checkpoint("/no/such/folder")
    assert caught.value.hint is not None
    assert "sample:gemma-3-270m" in caught.value.hint


def test_a_single_weight_file_points_to_its_folder(single: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file, and not a") as caught:
        open_checkpoint(str(single / "model.safetensors"))
    assert caught.value.hint == f"Open its folder: {single}"
