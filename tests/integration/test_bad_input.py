"""Bad input: one clear screen, the exit code of its class, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.tiny_gemma import Kind, write_tiny_gemma
from tests.unit.cli.conftest import Result, Run

WEIGHTS = "model.safetensors"


def empty_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def truncated_shard(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def index_that_climbs_out(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickle_weights_only(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "pytorch_model.bin")


def wrong_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))


def tokenizer_missing(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "code", "message"),
    [
        (empty_folder, 3, "config.json"),
        (truncated_shard, 3, WEIGHTS),
        (index_that_climbs_out, 3, "../model.safetensors"),
        (pickle_weights_only, 4, "only pickled weights (pytorch_model.bin)"),
        (wrong_architecture, 4, "Gemma2ForCausalLM"),
        (tokenizer_missing, 3, "tokenizer.json"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_model_that_cannot_be_used(
    run: Run, tmp_path: Path, spoil: Callable[[Path], None], code: int, message: str
) -> None:
    folder = write_tiny_gemma(tmp_path / "model", "gemma2")
    spoil(folder)
    refused(run("rtn", "model", "-o", "out"), code, message)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def refused(result: Result, code: int, message: str) -> None:
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) < 25


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--target", "cudda"], 2, "--target cudda: no such target."),
        (["--group-size", "100"], 2, "--group-size 100: must be one of"),
        (["-o", "model"], 7, "model exists."),
        (["-o", "model/config.json/out"], 7, "not a folder"),
        (["--eval-slices", "klingon"], 2, "evaluation slice klingon"),
        (["--device", "cuda:99"], 2, "--device cuda:99: not on this machine"),
        (["--lora", "adapter"], 3, "model.layers.0.self_attn.q_proj"),
        (["--chat-template", "none.jinja"], 2, "--chat-template none.jinja"),
        (["--target", "cpu", "--exporter", "awq-gemm"], 2, "not a container of target cpu"),
        (["--bits", "6"], 4, "6 bits, groups of 128, zero points: no runtime of target cuda"),
        (["--exporter", "awq-gemm", "--bits", "2"], 4, "awq-gemm stores 4 bits; asked for 2"),
        (["--target", "mps", "--group-size", "-1"], 4, "no runtime of target mps loads that"),
        (
            ["--target", "mps", "--exporter", "metal", "--bits", "3"],
            4,
            "metal stores 2, 4, 8 bits; asked for 3.\n  hint: Use --bits 2, 4, 8, or another",
        ),
        (
            ["--target", "mps", "--exporter", "mlx", "--group-size", "-1"],
            4,
            "mlx stores groups of 32, 64, 128; asked for one group per channel.",
        ),
        (
            ["--target", "mps", "--exporter", "mlx", "--quantize-head"],
            4,
            "mlx-lm ties the head of a gemma2 to its embedding",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_request_that_cannot_be_met(
    run: Run,
    tmp_path: Path,
    tiny_folders: dict[Kind, Path],
    args: list[str],
    code: int,
    message: str,
) -> None:
    shutil.copytree(tiny_folders["gemma2"], tmp_path / "model")
    write_foreign_adapter(tmp_path / "adapter")
    refused(run("rtn", "model", "-o", "out", *args), code, message)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "model"]


def write_foreign_adapter(folder: Path) -> None:
    """An adapter of another model: its rank-2 update has other sizes."""
    folder.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {name.format("A"): torch.ones(2, 7), name.format("B"): torch.ones(5, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 2,
        "bias": "none",
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_calibration_text_that_is_too_short(
    run: Run, tmp_path: Path, tiny_folders: dict[Kind, Path]
) -> None:
    (tmp_path / "short.txt").write_text("the quick brown fox\n")
    result = run("awq", str(tiny_folders["gemma2"]), "--calib", "short.txt", "-o", "out")
    refused(result, 5, "windows of 512 need")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["short.txt"]


def test_everything_that_is_wrong_with_a_request_is_said_at_once(
    run: Run, tmp_path: Path, tiny_folders: dict[Kind, Path]
) -> None:
    (tmp_path / "short.txt").write_text("the quick brown fox\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    result = run(
        *("awq", str(tiny_folders["gemma2"]), "--calib", "short.txt", "-o", "out"),
        *("--skip", "nothing_is_called_so", "--eval-slices", "klingon"),
    )
    for part in ("4 problems", "out exists.", "short.txt", "klingon", "nothing_is_called_so"):
        assert part in result.err
