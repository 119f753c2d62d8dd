"""AutoAWQ 0.2.9 itself, in the environment that $GEMQUANT_AUTOAWQ_PYTHON names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gemquant.formats.awq_gemm import AwqGemm
from gemquant.formats.checkpoint import open_checkpoint
from tests.helpers.tiny_gemma import Kind, write_tiny_gemma
from tests.unit.cli.conftest import Run

PYTHON = os.environ.get("GEMQUANT_AUTOAWQ_PYTHON")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="GEMQUANT_AUTOAWQ_PYTHON names no environment"),
]
FEW = "--threads 1 --samples 4 --seq-len 48 --eval-windows 1 --group-size 32".split()
INPUTS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "pre_feedforward_layernorm": ("mlp.gate_proj",),
}
UP_PROJ = "model.layers.0.mlp.up_proj.weight"


def engine() -> tuple[str, ...]:
    assert PYTHON
    return ("--engine", "autoawq", "--python", PYTHON, "--eval-slices", "english,code")


@pytest.mark.parametrize("kind", ["gemma", "gemma2"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_its_artifact_is_read_back_measured_and_verified(
    run: Run, tmp_path: Path, kind: Kind, tied: bool
) -> None:
    model = write_tiny_gemma(tmp_path / "model", kind, tied=tied)
    # The tiny Gemma 1 has 32 value channels, too few for AutoAWQ's search for ranges.
    clip = "--no-clip" if kind == "gemma" else "--clip"
    made = run("awq", str(model), *FEW, *engine(), clip, "-o", "out", "--json")
    assert made.code == 0, made.err
    manifest = json.loads(made.out)["manifest"]
    assert (manifest["container"], manifest["quantization"]["quantizer"]) == ("awq-gemm", "autoawq")
    assert manifest["libraries"]["autoawq"] == "0.2.9"
    assert manifest["calibration"]["windows"] == 4
    reference = manifest["certificates"][0]
    assert all(0 < s["kl_mean"]["value"] < 5 for s in reference["slices"])
    assert run("verify", "out").code == 0
    stored, original = AwqGemm().open(Path("out")), open_checkpoint(str(model))
    error = stored.tensor(UP_PROJ) - original.tensor(UP_PROJ, torch.float32)
    assert error.abs().mean() > 0
    embedding = "model.embed_tokens.weight"
    assert torch.equal(stored.tensor(embedding), original.tensor(embedding))


def test_its_search_for_scales_leaves_the_weights_what_they_were(run: Run, tmp_path: Path) -> None:
    model = write_tiny_gemma(tmp_path / "model", "gemma2")
    assert run("awq", str(model), *FEW, *engine(), "--no-eval", "--no-clip", "-o", "out").code == 0
    stored, original = AwqGemm().open(Path("out")), open_checkpoint(str(model))
    for layer in range(3):
        for norm, linears in INPUTS.items():
            name = f"model.layers.{layer}.{norm}.weight"
            after, before = (each.tensor(name, torch.float32) for each in (stored, original))
            scale = (1 + after) / (1 + before)
            for linear in linears:
                name = f"model.layers.{layer}.{linear}.weight"
                weight = original.tensor(name, torch.float32)
                error = stored.tensor(name, torch.float32) * scale - weight
                # Rounding to 4 bits leaves a tenth; what scales multiplied in remains, several.
                assert float(error.norm() / weight.norm()) < 0.2, name


def test_the_manifest_as_recipe_runs_autoawq_again(
    run: Run, tiny_folders: dict[Kind, Path]
) -> None:
    assert PYTHON
    made = run("awq", str(tiny_folders["gemma2"]), *FEW, *engine(), "--no-eval", "-o", "out")
    assert made.code == 0, made.err
    again = run(
        *("awq", "--recipe", "out/manifest.json", "--python", PYTHON),
        *("--threads", "1", "--no-eval", "-o", "again"),
    )
    assert again.code == 0, again.err
    # The order of its file's metadata is not its own choice; its numbers are.
    first, second = (load_file(f"{name}/model.safetensors") for name in ("out", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
