"""Whatever was given as MODEL, the error says what it is and the command to type."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from gemquant.errors import CheckpointError, GemquantError
from gemquant.formats.checkpoint import open_checkpoint
from tests.helpers.tiny_gemma import write_tiny_gemma


def refusal(ref: str | Path) -> GemquantError:
    """The error of ``gemquant awq REF``."""
    with click.Context(click.Command("awq"), info_name="awq"):
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(str(ref))
        return caught.value


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def as_adapter(folder: Path, **config: object) -> Path:
    named = {"peft_type": "LORA", "base_model_name_or_path": "google/gemma-2-2b", **config}
    write_json(folder / "adapter_config.json", named)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def as_artifact(folder: Path, *, quantized: bool = True, revision: str | None = None) -> Path:
    schemes = [{"bits": 4}] if quantized else []
    source = {"ref": "google/gemma-2-2b", "revision": revision}
    manifest = {"source": source, "quantization": {"schemes": schemes}}
    write_json(folder / "manifest.json", manifest)
    return folder


def test_an_adapter_is_given_with_its_base(tmp_path: Path) -> None:
    error = refusal(as_adapter(tmp_path / "a"))
    assert error.message == f"{tmp_path / 'a'} is an adapter of google/gemma-2-2b, not a model."
    assert error.hint == f"gemquant awq google/gemma-2-2b --lora {tmp_path / 'a'}"


def test_an_adapter_of_mlx_lm_too_and_one_beside_a_configuration(tmp_path: Path) -> None:
    as_adapter(tmp_path / "a", base_model_name_or_path=None, model="./my gemma")
    folder = write_tiny_gemma(tmp_path / "m")
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(folder / name, tmp_path / "a")
    assert refusal(tmp_path / "a").hint == f"gemquant awq './my gemma' --lora {tmp_path / 'a'}"


@pytest.mark.parametrize("configured", [True, False])
def test_an_artifact_names_its_original(tmp_path: Path, configured: bool) -> None:
    folder = as_artifact(tmp_path / "a", revision="abc")
    if configured:
        write_tiny_gemma(folder)
    error = refusal(folder)
    made = "which gemquant made from google/gemma-2-2b@abc."
    assert error.message == f"{folder} is an artifact, {made}"
    assert error.hint == "Start from the original: gemquant awq google/gemma-2-2b@abc"


def test_an_artifact_in_floating_point_is_a_model(tmp_path: Path) -> None:
    folder = as_artifact(write_tiny_gemma(tmp_path / "a"), quantized=False)
    assert open_checkpoint(str(folder)).config["model_type"] == "gemma2"


def test_a_folder_of_artifacts_names_them(tmp_path: Path) -> None:
    for name in ("Q4_K_M", "Q8_0"):
        as_artifact(tmp_path / name)
    error = refusal(tmp_path)
    assert "holds 2 artifacts, made from google/gemma-2-2b: Q4_K_M, Q8_0." in error.message


def test_checkpoints_of_a_training_name_the_last(tmp_path: Path) -> None:
    for step in (500, 1000, 50):
        write_tiny_gemma(tmp_path / f"checkpoint-{step}")
    error = refusal(tmp_path)
    assert error.message.endswith(
        "holds checkpoints of a training: checkpoint-50, checkpoint-500, checkpoint-1000."
    )
    assert error.hint == f"Take one: gemquant awq {tmp_path / 'checkpoint-1000'}"


def test_checkpoints_of_an_adapters_training_are_given_with_their_base(tmp_path: Path) -> None:
    last = as_adapter(tmp_path / "checkpoint-7")
    assert refusal(tmp_path).hint == f"Take one: gemquant awq google/gemma-2-2b --lora {last}"


def test_a_folder_above_models_names_them(tmp_path: Path) -> None:
    write_tiny_gemma(tmp_path / "gemma")
    error = refusal(tmp_path)
    assert error.message == f"{tmp_path} is no model, but holds gemma."
    assert error.hint == f"Take one: gemquant awq {tmp_path / 'gemma'}"


def test_a_folder_of_the_hubs_cache_leads_to_its_snapshot(tmp_path: Path) -> None:
    snapshot = write_tiny_gemma(tmp_path / "models--x--y" / "snapshots" / "abc")
    assert refusal(tmp_path / "models--x--y").hint == f"Take one: gemquant awq {snapshot}"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("tiny-gema2", "tiny-gemma2"),
        ("./models/tiny-gema2", "./models/tiny-gemma2"),
        ("models/tiny-gema2", "models/tiny-gemma2"),
        ("modles/tiny-gemma2", "models/tiny-gemma2"),
        ("models/tiny-gema2@main", "models/tiny-gemma2"),
        ("models/tiny.ggf", "models/tiny.gguf"),
    ],
)
def test_a_mistyped_path_names_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, meant: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "models" / "tiny-gemma2").mkdir(parents=True)
    (tmp_path / "tiny-gemma2").mkdir()
    (tmp_path / "models" / "tiny.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert f"Did you mean {meant}? Then type: gemquant awq {meant}" in str(refusal(typed).hint)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja", "config.json"])
def test_a_link_to_nothing_is_no_missing_file(tmp_path: Path, name: str) -> None:
    folder = write_tiny_gemma(tmp_path / "m")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../blobs/deleted")
    assert refusal(folder).message == f"{folder}: {name}: linked to nothing."


@pytest.mark.parametrize("suffix", ["", ".gguf"])
def test_what_is_neither_file_nor_folder_is_named_as_such(tmp_path: Path, suffix: str) -> None:
    fifo, link = tmp_path / f"fifo{suffix}", tmp_path / f"link{suffix}"
    os.mkfifo(fifo)
    link.symlink_to(link)
    assert refusal(fifo).message == f"{fifo}: not a regular file or folder."
    assert refusal(link).message == (
        f"{link}: not a regular file or folder, but a link to nothing that can be opened."
    )


@pytest.mark.parametrize(
    ("ref", "hint"),
    [
        ("https://huggingface.co/google/gemma-2-2b/tree/main", "gemquant awq google/gemma-2-2b"),
        ("me/x-GGUF:Q4_K_M", "hf download me/x-GGUF --include '*Q4_K_M*' --local-dir ."),
        ("gemma3:4b", "ollama show --modelfile gemma3:4b names it."),
        ("me/x-GGUF/x.gguf", "hf download me/x-GGUF --include '*x.gguf*' --local-dir ."),
    ],
)
def test_a_page_or_a_file_of_the_hub_names_the_command(ref: str, hint: str) -> None:
    assert str(refusal(ref).hint).endswith(hint)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2", shards=3)
    (folder / "model.safetensors.index.json").unlink()
    return folder


def renamed(old: str, new: str) -> Callable[[Path], None]:
    def rename(folder: Path) -> None:
        for path in folder.glob("*.safetensors"):
            path.rename(path.with_name(path.name.replace(old, new)))

    return rename


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda _: None, id="plain"),
        pytest.param(renamed("model-", "pytorch_model-"), id="other-name"),
        pytest.param(renamed(".safetensors", ".fp16.safetensors"), id="variant"),
        pytest.param(lambda f: (f / "consolidated.safetensors").touch(), id="beside-another"),
        pytest.param(lambda f: (f / "adapter_model.safetensors").touch(), id="beside-an-adapter"),
    ],
)
def test_shards_without_an_index_are_read(
    sharded: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    expected = open_checkpoint(str(write_tiny_gemma(sharded.parent / "whole", "gemma2")))
    change(sharded)
    checkpoint = open_checkpoint(str(sharded))
    assert "there is no model.safetensors.index.json; read is:" in caplog.text
    for name in checkpoint.names():
        assert checkpoint.tensor(name).equal(expected.tensor(name)), name


def test_a_missing_shard_is_missed_without_an_index_too(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    assert "3 shards make the model, and 2 are there" in refusal(sharded).message


def test_a_single_file_of_another_name_is_read(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2")
    (folder / "model.safetensors").rename(folder / "gemma.safetensors")
    assert open_checkpoint(str(folder)).config["model_type"] == "gemma2"


def test_two_models_in_one_folder_are_not_mixed(sharded: Path) -> None:
    renamed("model-", "a-")(sharded)
    (sharded / "b.safetensors").touch()
    assert "neither model.safetensors nor" in refusal(sharded).message
