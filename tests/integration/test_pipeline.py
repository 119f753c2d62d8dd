"""Artifacts of the whole pipeline, by every generation: their bytes and their certificates."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gemquant.core.artifact import Artifact, LevelEvaluation
from gemquant.core.artifact.evaluation import SliceEvaluation
from gemquant.core.protocols import Exporter
from gemquant.formats.awq_gemm import AwqGemm
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.measure.quality.measure import compare
from gemquant.measure.quality.native import NativeRuntime
from gemquant.models.structure import EMBEDDING, FINAL_NORM, HEAD
from gemquant.quantizers.awq import AWQ
from gemquant.quantizers.rtn import RoundToNearest
from gemquant.runtimes.transformers import Transformers
from tests.helpers.tiny_gemma import Kind, write_tiny_gemma
from tests.helpers.tiny_job import EVALUATION, contents, run_tiny, tiny_job
from tests.helpers.window_logits import window_logits

QUANTIZERS = [RoundToNearest(), AWQ(), AWQ(bits=3, group_size=32, symmetric=True)]


@pytest.fixture
def checkpoint(tiny_folders: dict[Kind, Path]) -> Checkpoint:
    """A tiny Gemma 2 of three layers."""
    return open_checkpoint(str(tiny_folders["gemma2"]))


def assert_same_figures(record: LevelEvaluation, slices: list[SliceEvaluation]) -> None:
    for stored, found in zip(record.slices, slices, strict=True):
        assert stored.slice == found.slice
        assert stored.windows.tokens == found.windows.tokens
        assert stored.token_stream == found.token_stream
        for figure in ("perplexity_original", "perplexity_quantized", "kl_mean", "kl_p999"):
            before, after = getattr(stored, figure), getattr(found, figure)
            assert after.value == pytest.approx(before.value, rel=1e-4)
            assert (after.low, after.high) == pytest.approx((before.low, before.high), rel=1e-3)
        assert found.top1.value == pytest.approx(stored.top1.value, abs=1e-9)


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=["rtn", "awq", "awq-3-symmetric"])
def test_the_certificate_is_what_a_comparison_finds_afterwards(
    generation: Kind,
    tiny_folder: Path,
    tmp_path: Path,
    quantizer: RoundToNearest | AWQ,
) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    exporter: Exporter = CompressedTensors() if quantizer.bits == 3 else AwqGemm()
    (artifact,) = run_tiny(
        checkpoint, [tiny_job(checkpoint, quantizer, tmp_path / "out", exporter)]
    )
    (record,) = artifact.manifest.certificates
    (certificate,) = compare(checkpoint, exporter.open(artifact.path), EVALUATION)
    assert_same_figures(record, list(certificate.slices))
    assert record.slices[0].kl_mean.value > 0
    assert record.runtime == certificate.runtime


def test_the_text_tower_of_a_multimodal_gemma_becomes_a_text_model(
    tiny_folders: dict[Kind, Path], tmp_path: Path
) -> None:
    tower = open_checkpoint(str(tiny_folders["gemma3"]))
    text = open_checkpoint(str(tiny_folders["gemma3_text"]))
    run_tiny(tower, [tiny_job(tower, AWQ(), tmp_path / "tower", text_only=True)])
    run_tiny(text, [tiny_job(text, AWQ(), tmp_path / "text")])
    first, second = contents(tmp_path / "tower"), contents(tmp_path / "text")
    assert first["model.safetensors"] == second["model.safetensors"]
    assert json.loads(first["config.json"])["architectures"] == ["Gemma3ForCausalLM"]


def test_jobs_in_one_pass_write_the_bytes_that_they_write_alone(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    quantizers = [RoundToNearest(), AWQ(), AWQ(gptq=False, group_size=32)]
    jobs = [tiny_job(checkpoint, q, tmp_path / f"{n}") for n, q in enumerate(quantizers)]
    together = run_tiny(checkpoint, jobs)
    for job, artifact in zip(jobs, together, strict=True):
        alone = dataclasses.replace(job, out=tmp_path / "alone", force=True)
        run_tiny(checkpoint, [alone])
        assert contents(artifact.path) == contents(tmp_path / "alone")


@pytest.mark.parametrize("quantizer", [RoundToNearest(), AWQ()], ids=["rtn", "awq"])
def test_two_runs_write_the_same_bytes(
    generation: Kind, tiny_folder: Path, tmp_path: Path, quantizer: RoundToNearest | AWQ
) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    for name in ("a", "b"):
        run_tiny(checkpoint, [tiny_job(checkpoint, quantizer, tmp_path / name)])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_measuring_does_not_change_what_is_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for name, evaluation in (("with", EVALUATION), ("without", ())):
        run_tiny(checkpoint, [tiny_job(checkpoint, AWQ(), tmp_path / name)], evaluation=evaluation)
    measured, unmeasured = contents(tmp_path / "with"), contents(tmp_path / "without")
    assert measured["model.safetensors"] == unmeasured["model.safetensors"]
    assert Artifact.open(tmp_path / "without").manifest.certificates == ()


@pytest.mark.parametrize("quantizer", [RoundToNearest(), AWQ()], ids=["rtn", "awq"])
def test_an_untied_head_is_carried_and_measured(
    generation: Kind, tmp_path: Path, quantizer: RoundToNearest | AWQ
) -> None:
    checkpoint = open_checkpoint(str(write_tiny_gemma(tmp_path / "m", generation, tied=False)))
    (artifact,) = run_tiny(checkpoint, [tiny_job(checkpoint, quantizer, tmp_path / "out")])
    opened = CompressedTensors().open(artifact.path)
    assert torch.equal(opened.tensor(HEAD), checkpoint.tensor(HEAD))
    (certificate,) = compare(checkpoint, opened, EVALUATION)
    assert_same_figures(artifact.manifest.certificates[0], list(certificate.slices))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", [RoundToNearest, AWQ])
def test_a_quantized_head_is_carried_and_measured(
    tmp_path: Path, kind: type[RoundToNearest | AWQ], tied: bool
) -> None:
    checkpoint = open_checkpoint(str(write_tiny_gemma(tmp_path / "m", "gemma2", tied=tied)))
    job = tiny_job(checkpoint, kind(quantize_head=True), tmp_path / "out")
    (artifact,) = run_tiny(checkpoint, [job])
    opened = CompressedTensors().open(artifact.path)
    source = checkpoint.tensor(EMBEDDING if tied else HEAD, torch.float32)
    stored = opened.tensor(HEAD, torch.float32)
    assert 0 < (stored - source).abs().mean() < 0.5 * source.abs().mean()
    assert torch.equal(opened.tensor(EMBEDDING), checkpoint.tensor(EMBEDDING))
    assert torch.equal(opened.tensor(FINAL_NORM), checkpoint.tensor(FINAL_NORM))
    (certificate,) = compare(checkpoint, opened, EVALUATION)
    assert_same_figures(artifact.manifest.certificates[0], list(certificate.slices))


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero-points"])
def test_transformers_alone_loads_what_was_certified(
    generation: Kind, tiny_folder: Path, tmp_path: Path, symmetric: bool
) -> None:
    pytest.importorskip("compressed_tensors", reason="the runtime under test is not installed")
    checkpoint = open_checkpoint(str(tiny_folder))
    job = tiny_job(checkpoint, AWQ(symmetric=symmetric), tmp_path / "out")
    (artifact,) = run_tiny(checkpoint, [job])
    runner = Transformers.load(artifact.path, "compressed-tensors")
    windows = EVALUATION[0]
    found = torch.log_softmax(window_logits(runner, windows.ids[:, :39]).double(), -1)
    nll = -found.gather(-1, windows.ids[:, 1:, None]).mean()
    (certificate,) = compare(checkpoint, job.exporter.open(artifact.path), [windows])
    expected = math.log(certificate.slices[0].perplexity_quantized.value)
    # The library decodes weights with zero points into bfloat16, a source of noise of its own.
    assert float(nll) == pytest.approx(expected, rel=1e-4 if symmetric else 0.1)


def test_the_native_level_finds_the_reference_level_again(
    generation: Kind, tiny_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors", reason="the runtime under test is not installed")
    checkpoint = open_checkpoint(str(tiny_folder))
    job = tiny_job(checkpoint, AWQ(symmetric=True), tmp_path / "out")
    (artifact,) = run_tiny(checkpoint, [job])
    runtime = NativeRuntime.find(artifact.path, "compressed-tensors")
    reference, native = compare(
        checkpoint, job.exporter.open(artifact.path), EVALUATION, runtime=runtime
    )
    assert native.level == "native"
    assert native.runtime.startswith("transformers ")
    assert native.kl_from_reference is not None
    assert native.kl_from_reference.value < 1e-6
    for theirs, ours in zip(native.slices, reference.slices, strict=True):
        assert theirs.kl_mean.value == pytest.approx(ours.kl_mean.value, rel=1e-3)
        assert theirs.perplexity_quantized.value == pytest.approx(
            ours.perplexity_quantized.value, rel=1e-3
        )


def test_an_adapter_changes_what_is_written(tiny_folders: dict[Kind, Path], tmp_path: Path) -> None:
    base = tiny_folders["gemma3_text"]
    adapter = write_adapter(tmp_path / "adapter")
    plain, merged = open_checkpoint(str(base)), open_checkpoint(str(base), lora=(str(adapter),))
    for name, checkpoint in (("plain", plain), ("merged", merged)):
        run_tiny(checkpoint, [tiny_job(checkpoint, AWQ(), tmp_path / name)])
    first, second = contents(tmp_path / "plain"), contents(tmp_path / "merged")
    assert first["model.safetensors"] != second["model.safetensors"]
    assert first["tokenizer.json"] == second["tokenizer.json"]
    sources = Artifact.open(tmp_path / "merged").manifest.source.files
    assert "lora/adapter_model.safetensors" in sources
    weights = CompressedTensors().open(tmp_path / "merged")
    (near,) = compare(merged, weights, EVALUATION)
    (far,) = compare(plain, weights, EVALUATION)
    for with_adapter, without in zip(near.slices, far.slices, strict=True):
        assert with_adapter.kl_mean.value < without.kl_mean.value


def write_adapter(folder: Path) -> Path:
    """A PEFT adapter of rank 4 on every q_proj and down_proj of the tiny Gemma 3."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    shapes = {"self_attn.q_proj": (256, 128), "mlp.down_proj": (128, 384)}
    tensors = {}
    for layer in range(3):
        for module, (rows, columns) in shapes.items():
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(4, columns, generator=generator) / 8
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) / 8
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "bias": "none",
        "target_modules": ["q_proj", "down_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
