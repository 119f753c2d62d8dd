"""Gemma 4 through the whole pipeline: artifacts, what they keep, and interrupted runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gemquant.convert import pipeline
from gemquant.convert.job import JobWriter
from gemquant.convert.plan import plan
from gemquant.convert.resume import ResumePolicy
from gemquant.core.artifact import structure_problems
from gemquant.core.protocols import Block, Exporter, Quantizer
from gemquant.errors import GemquantError, Problems
from gemquant.formats.awq_gemm import AwqGemm
from gemquant.formats.bitsandbytes import BitsAndBytes
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.formats.metal import Metal
from gemquant.formats.mlx import MLX
from gemquant.formats.plain_safetensors import PlainSafetensors
from gemquant.quantizers.awq import AWQ
from gemquant.quantizers.bitsandbytes import NF4
from gemquant.quantizers.cast import Cast
from gemquant.quantizers.rtn import RoundToNearest
from tests.helpers.tiny_gemma import GEMMA4, Kind, write_tiny_gemma
from tests.helpers.tiny_job import CALIBRATION, EVALUATION, contents, run_tiny, tiny_job

ROUTER = "it chooses the experts"
EIGHT_BITS = RoundToNearest(bits=8, group_size=32, symmetric=True)
FOUR_BITS = AWQ(group_size=32, symmetric=True, cd_passes=0)


@pytest.mark.parametrize("kind", GEMMA4)
def test_artifacts_are_written_certified_and_reopened(kind: Kind, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_tiny_gemma(tmp_path / "model", kind)))
    jobs = [
        tiny_job(checkpoint, EIGHT_BITS, tmp_path / "rtn", text_only=True),
        tiny_job(checkpoint, FOUR_BITS, tmp_path / "awq", text_only=True),
        tiny_job(
            checkpoint,
            Cast(),
            tmp_path / "cast",
            PlainSafetensors(torch.bfloat16),
            text_only=True,
        ),
    ]
    rtn, awq, cast = run_tiny(checkpoint, jobs)
    loss = [each.manifest.certificates[0].slices[0].kl_mean.value for each in (rtn, awq, cast)]
    assert loss[1] > loss[0] > loss[2] == 0
    for artifact, job in zip((rtn, awq, cast), jobs, strict=True):
        assert structure_problems(artifact.manifest, job.exporter.open(job.out).layout) == []
    assert cast.manifest.license == "apache-2.0"
    assert (cast.path / "NOTICE").read_text().startswith("Gemma 4 is licensed under the Apache")
    card = (cast.path / "README.md").read_text()
    assert "license_link: https://www.apache.org/licenses/LICENSE-2.0" in card
    assert "Gemma Terms" not in card
    assert "extra_gated" not in card
    plain = open_checkpoint(str(tmp_path / "cast"))
    assert dict(plain.config) == dict(checkpoint.config)
    name = checkpoint.names()[-3]
    assert torch.equal(plain.tensor(name), checkpoint.tensor(name))


def test_the_manifest_has_the_size_of_the_per_layer_embedding(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_tiny_gemma(tmp_path / "model", "gemma4_e")))
    eight_bits = RoundToNearest(group_size=32, quantize_embedding=True)
    jobs = [
        tiny_job(checkpoint, FOUR_BITS, tmp_path / "awq", text_only=True),
        tiny_job(checkpoint, eight_bits, tmp_path / "mlx", MLX(), text_only=True),
    ]
    artifacts = run_tiny(checkpoint, jobs, evaluation=())
    for artifact, bits in zip(artifacts, (16, 9), strict=True):
        table = artifact.manifest.per_layer_embedding
        assert table is not None
        assert table.weights == 465 * 224
        assert table.bits_per_weight == pytest.approx(bits, abs=0.05)
        assert table.bytes == pytest.approx(table.weights * bits / 8, abs=600)


def test_experts_are_written_as_loaders_read_them(tmp_path: Path) -> None:
    source = write_tiny_gemma(tmp_path / "model", "gemma4_moe")
    checkpoint = open_checkpoint(str(source))
    jobs = [
        tiny_job(checkpoint, FOUR_BITS, tmp_path / "awq", text_only=True),
        tiny_job(
            checkpoint,
            Cast(),
            tmp_path / "cast",
            PlainSafetensors(torch.bfloat16),
            text_only=True,
        ),
    ]
    awq, _ = run_tiny(checkpoint, jobs, evaluation=())
    stored = load_file(tmp_path / "awq" / "model.safetensors")
    prefix = "model.layers.3.experts.7."
    assert stored[f"{prefix}gate_proj.weight_packed"].shape == (64, 128 // 8)
    assert stored[f"{prefix}down_proj.weight_scale"].shape == (128, 64 // 32)
    scales = [tensor for name, tensor in stored.items() if name.endswith("weight_scale")]
    assert all(bool((each.float() > 0).all()) for each in scales)
    assert "model.layers.3.router.proj.weight" in stored
    plain = load_file(tmp_path / "cast" / "model.safetensors")
    before = load_file(source / "model.safetensors")
    fused = "layers.2.experts.gate_up_proj"
    assert torch.equal(plain[f"model.{fused}"], before[f"model.language_model.{fused}"])
    assert [each.reason for each in awq.manifest.fallbacks] == [ROUTER] * 4
    routed = awq.manifest.routed
    assert [each.layer for each in routed] == [0, 1, 2, 3]
    assert all(sum(each.tokens) == 6 * 45 * 2 for each in routed)


@pytest.mark.parametrize("kind", ["gemma4_e", "gemma4_moe"])
def test_an_interrupted_run_goes_on_and_writes_the_same_bytes(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(str(write_tiny_gemma(tmp_path / "model", kind)))
    last = checkpoint.config["num_hidden_layers"] - 1
    quantize = JobWriter.quantize
    quantized: list[int] = []

    def interrupted(self: JobWriter, block: Block) -> object:
        quantized.append(block.index)
        if block.index == last and quantized.count(last) == 2:
            raise KeyboardInterrupt
        return quantize(self, block)

    def run(name: str) -> None:
        job = tiny_job(checkpoint, FOUR_BITS, tmp_path / name)
        pipeline.run(
            plan([job], checkpoint),
            checkpoint,
            calibration=CALIBRATION,
            evaluation=EVALUATION,
            resume=ResumePolicy("0" * 64, every_seconds=0.0),
        )

    monkeypatch.setattr(JobWriter, "quantize", interrupted)
    run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("again")
    run("again")
    assert quantized[-1:] == [last]
    assert quantized.count(0) == 2
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("kind", "quantizer", "exporter", "message"),
    [
        ("gemma4_moe", AWQ(group_size=32), AwqGemm(), "awq-gemm holds no experts"),
        ("gemma4_moe", RoundToNearest(group_size=32), Metal(), "metal holds no experts"),
        ("gemma4_moe", NF4(), BitsAndBytes(), "bitsandbytes holds no experts"),
        (
            "gemma4_moe",
            AWQ(group_size=32),
            CompressedTensors(),
            "vLLM reads no experts with zero points",
        ),
    ],
)
def test_experts_that_no_loader_reads_are_refused(
    kind: Kind, quantizer: Quantizer, exporter: Exporter, message: str, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(str(write_tiny_gemma(tmp_path / "model", kind)))
    with pytest.raises(GemquantError) as caught:
        plan([tiny_job(checkpoint, quantizer, tmp_path / "out", exporter)], checkpoint)
    error = caught.value
    problems = error.problems if isinstance(error, Problems) else [error]
    assert any(message in each.message and each.hint for each in problems)


def test_experts_can_be_left_in_bfloat16_by_name(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_tiny_gemma(tmp_path / "model", "gemma4_moe")))
    quantizer = NF4(skip="*.experts.*")
    job = tiny_job(checkpoint, quantizer, tmp_path / "nf4", BitsAndBytes(), text_only=True)
    run_tiny(checkpoint, [job], evaluation=())
    stored = load_file(tmp_path / "nf4" / "model.safetensors")
    assert stored["model.layers.0.experts.down_proj"].shape == (8, 128, 64)
    assert stored["model.layers.0.mlp.down_proj.weight"].dtype == torch.uint8
