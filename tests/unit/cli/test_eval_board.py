"""`gemquant eval --board` against stand-ins for ssh and the runtime: no hardware was here."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gemquant.calibration.windows import TokenWindows
from gemquant.core.artifact import ConversionRecord, Manifest, Source, finalize, quantization_record
from gemquant.core.artifact.evaluation import EvaluationDocument
from gemquant.core.protocols import PlainSpec
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.measure.quality.evaluation import Evaluation
from gemquant.models.architecture import tensor_shapes
from tests.helpers.stand_in_board import ADDRESS, StandInBoard
from tests.helpers.stand_in_rkllmrt import random_table, stand_in_runtime, write_table
from tests.helpers.tiny_gemma import write_tiny_gemma
from tests.unit.cli.conftest import Run

SHORT = ("--eval-windows", "2", "--eval-slices", "english,code", "--seq-len", "24", "--json", "-q")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """An artifact whose RKLLM file is a table of logits, and the tiny Gemma it is said to be of."""
    write_tiny_gemma(tmp_path / "model", "gemma2")
    config = open_checkpoint(str(tmp_path / "model")).config
    folder = tmp_path / "tiny-rkllm"
    folder.mkdir()
    write_table(folder / "tiny.rkllm", random_table(config["vocab_size"]))
    layout = {n: PlainSpec(s, torch.float16) for n, s in tensor_shapes(config).items()}
    manifest = Manifest(
        container="rkllm",
        architecture="gemma2",
        base_model="google/gemma-2-2b",
        source=Source(ref=str(tmp_path / "model"), files={"w": "0" * 64}),
        recipe={"model": str(tmp_path / "model"), "quantizer": "rkllm", "exporter": "rkllm"},
        quantization=quantization_record(
            "rkllm", layout, float_dtype="float16", file_bytes=1_000_000
        ),
        conversion=ConversionRecord(
            tool="rkllm-toolkit",
            version="1.3.0",
            python="3.12.1",
            platform="rk3588",
            dtype="w8a8",
            runtime="1.3.0",
            driver="0.9.8",
            calls=(),
        ),
        libraries={"torch": "2.13.0"},
    )
    finalize(folder, manifest, original_card=None)
    return folder


def expected(model: Path, windows: TokenWindows) -> dict[str, float]:
    """Perplexities and mean divergence by the formulas, from whole logits of either model."""
    original = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        before = original(windows.ids).logits[:, :-1].double().log_softmax(-1)
    table = torch.from_numpy(random_table(before.shape[-1]))
    after = table[windows.ids[:, :-1]].double().log_softmax(-1)
    targets = windows.ids[:, 1:, None]
    return {
        "perplexity_original": math.exp(-before.gather(2, targets).mean()),
        "perplexity_quantized": math.exp(-after.gather(2, targets).mean()),
        "kl_mean": float((before.exp() * (before - after)).sum(-1).mean()),
        "top1": float((before.argmax(-1) == after.argmax(-1)).double().mean()),
    }


def test_perplexity_and_divergence_are_those_of_whole_logits(
    run: Run,
    board: StandInBoard,
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[TokenWindows] = []
    run_evaluation = Evaluation.run

    def noted(self: Evaluation, *arguments: Any, **more: Any) -> EvaluationDocument:
        seen.extend(self.slices)
        return run_evaluation(self, *arguments, **more)

    monkeypatch.setattr(Evaluation, "run", noted)
    done = run("eval", str(artifact), "--board", ADDRESS, *SHORT, "--compute-dtype", "float32")
    assert done.code == 0, done.err
    (told,) = json.loads(done.out)["artifacts"]
    reference, native = told["levels"]
    assert reference["not_run"].startswith("the RKLLM format is not published")
    assert native["not_run"] is None
    assert native["runtime"] == "librkllmrt 1.3.0 on rk3588, NPU driver 0.9.8"
    assert [each["slice"] for each in native["slices"]] == ["english", "code"]
    for found, windows in zip(native["slices"], seen, strict=True):
        for name, value in expected(tmp_path / "model", windows).items():
            assert found[name]["value"] == pytest.approx(value, rel=2e-4), name
    assert board.home() == []


def test_a_window_is_cut_to_what_the_board_may_hold(
    run: Run, board: StandInBoard, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = int(np.fromfile(artifact / "tiny.rkllm", "<i4", 2)[1])
    monkeypatch.setattr("gemquant.rockchip.board_rkllm.LOGITS_BYTES", 4 * vocabulary * 9)
    done = run("eval", str(artifact), "--board", ADDRESS, *SHORT)
    assert done.code == 0, done.err
    native = json.loads(done.out)["artifacts"][0]["levels"][1]
    assert [(s["seq_len"], s["windows"]["tokens"]) for s in native["slices"]] == [(9, [8])] * 2


def test_a_runtime_without_logits_is_not_run_and_says_why(
    run: Run, board: StandInBoard, artifact: Path
) -> None:
    shutil.copy(stand_in_runtime("1.1.2"), board.root / "usr/lib/librkllmrt.so")
    done = run("eval", str(artifact), "--board", ADDRESS, *SHORT)
    assert done.code == 0, done.err
    native = json.loads(done.out)["artifacts"][0]["levels"][1]
    assert native["slices"] == []
    assert "librkllmrt 1.1.2 has no logits, which came with 1.2.0" in native["not_run"]


def test_another_vocabulary_is_refused(run: Run, board: StandInBoard, artifact: Path) -> None:
    model = artifact.parent / "model"
    other = artifact.parent / "other"
    write_tiny_gemma(other, "gemma2", overrides={"vocab_size": 1024})
    assert model.is_dir()
    done = run("eval", str(artifact), "--board", ADDRESS, *SHORT, "--against", str(other))
    assert done.code == 6
    assert "tokens, and the model has 1024" in done.err


def test_an_rkllm_artifact_without_a_board_says_how(run: Run, artifact: Path) -> None:
    done = run("eval", str(artifact))
    assert done.code == 2
    assert f"gemquant eval {artifact} --board ssh://USER@HOST" in done.err


def test_an_artifact_for_another_chip_is_refused(
    run: Run, board: StandInBoard, artifact: Path
) -> None:
    board.write("proc/device-tree/compatible", "rockchip,rk3576\0")
    done = run("eval", str(artifact), "--board", ADDRESS, *SHORT)
    assert done.code == 4
    assert "is for rk3588; the board has an rk3576" in done.err
