"""From checkpoint to certified artifact in one pass, on tiny Gemmas of every generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gemquant.convert import pipeline
from gemquant.convert.plan import plan
from gemquant.core.artifact import Artifact, structure_problems
from gemquant.core.protocols import AffineScheme, AffineWeight, Block, Container, Quantizer
from gemquant.errors import CalibrationError, CheckpointError
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.formats.mlx import MLX
from gemquant.measure.quality.measure import compare
from gemquant.models.architecture import ARCHITECTURES
from gemquant.models.structure import EMBEDDING
from gemquant.quantizers.awq import AWQ
from gemquant.quantizers.rtn import RoundToNearest
from tests.helpers.tiny_gemma import (
    KINDS,
    Kind,
    tiny_config,
    tiny_tensors,
    write_shards,
    write_tiny_gemma,
)
from tests.helpers.tiny_job import CALIBRATION, EVALUATION, contents, run_tiny, tiny_job
from tests.helpers.tiny_windows import tiny_windows


@pytest.fixture
def checkpoint(tiny_folders: dict[Kind, Path]) -> Checkpoint:
    """A tiny Gemma 2 of three layers."""
    return open_checkpoint(str(tiny_folders["gemma2"]))


def test_eight_bits_lose_next_to_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    job = tiny_job(checkpoint, RoundToNearest(bits=8, group_size=32), tmp_path / "out")
    coarse = tiny_job(checkpoint, RoundToNearest(bits=4, group_size=32), tmp_path / "coarse")
    fine_result, coarse_result = run_tiny(checkpoint, [job, coarse])
    for fine, rough in zip(
        fine_result.manifest.certificates[0].slices,
        coarse_result.manifest.certificates[0].slices,
        strict=True,
    ):
        assert 0 < fine.kl_mean.value < 0.02 * rough.kl_mean.value
        assert fine.top1.value > rough.top1.value


@dataclasses.dataclass(frozen=True)
class _Copy(Quantizer):
    """Changes nothing: what is lost is what the container's types lose."""

    name = "copy"
    needs = frozenset[str]()

    def scheme_for(self, name: str, shape: tuple[int, int]) -> None:
        return None

    def problems(self, linears: Mapping[str, tuple[int, int]]) -> list[CheckpointError]:
        return []

    def quantize(self, block: Block, container: Container) -> dict[str, Tensor | AffineWeight]:
        return {}


def test_a_job_that_changes_nothing_is_certified_to_lose_nothing(
    generation: Kind, tiny_folder: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    (artifact,) = run_tiny(checkpoint, [tiny_job(checkpoint, _Copy(), tmp_path / "out")])
    for result in artifact.manifest.certificates[0].slices:
        assert result.kl_mean.value == 0.0
        assert result.top1.value == 1.0
    copied = CompressedTensors().open(artifact.path)
    for name in checkpoint.names():
        assert torch.equal(copied.tensor(name), checkpoint.tensor(name))


def test_the_manifest_says_what_was_done(checkpoint: Checkpoint, tmp_path: Path) -> None:
    quantizer = AWQ(group_size=32, scale=False, gptq=False, skip="layers.1.*")
    job = tiny_job(checkpoint, quantizer, tmp_path / "out")
    (artifact,) = run_tiny(checkpoint, [job])
    manifest = Artifact.open(tmp_path / "out").manifest
    assert manifest == artifact.manifest
    assert (manifest.container, manifest.architecture) == ("compressed-tensors", "gemma2")
    assert manifest.recipe == job.recipe.to_dict()
    assert manifest.source.files == checkpoint.source_digest()
    (scheme,) = manifest.quantization.schemes
    assert (scheme.bits, scheme.group_size, len(scheme.modules)) == (4, 32, 14)
    assert len(manifest.quantization.unquantized) == 7 + 1
    assert manifest.calibration is not None
    assert (manifest.calibration.name, manifest.calibration.windows) == ("calibration", 6)
    assert manifest.calibration.digest == CALIBRATION.digest
    assert manifest.activation_range is not None
    assert manifest.activation_range.where.startswith("model.layers.")
    assert manifest.activation_range.fits_float16
    opened = CompressedTensors().open(tmp_path / "out")
    assert structure_problems(manifest, opened.layout) == []


def test_without_calibration_nothing_is_said_of_activations(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    jobs = [
        tiny_job(checkpoint, RoundToNearest(), tmp_path / "rtn"),
        tiny_job(checkpoint, AWQ(scale=False, gptq=False), tmp_path / "awq"),
    ]
    plain, calibrated = run_tiny(checkpoint, jobs)
    assert (plain.manifest.calibration, plain.manifest.activation_range) == (None, None)
    assert calibrated.manifest.activation_range is not None


def test_a_head_quantized_in_runs_is_the_head_quantized_whole(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job(checkpoint, RoundToNearest(quantize_head=True), tmp_path / "whole")
    run_tiny(checkpoint, [job])
    monkeypatch.setattr("gemquant.calibration.stream.ROWS_AT_ONCE", 100)
    run_tiny(checkpoint, [dataclasses.replace(job, out=tmp_path / "runs")])
    assert contents(tmp_path / "whole") == contents(tmp_path / "runs")


class _WithEmbedding(RoundToNearest):
    """Rounds the embedding too, which a tied head then computes with."""

    def scheme_for(self, name: str, shape: tuple[int, int]) -> AffineScheme | None:
        if name == EMBEDDING:
            return AffineScheme(self.bits, self.group_size, self.symmetric)
        return super().scheme_for(name, shape)


def test_a_quantized_embedding_is_what_tokens_and_a_tied_head_are_measured_with(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    quantizer = _WithEmbedding(bits=3, group_size=32)
    (artifact,) = run_tiny(checkpoint, [tiny_job(checkpoint, quantizer, tmp_path / "out", MLX())])
    assert EMBEDDING.removesuffix(".weight") in artifact.manifest.quantization.schemes[0].modules
    opened = MLX().open(artifact.path)
    assert opened.config["tie_word_embeddings"]
    assert not torch.equal(opened.rows(EMBEDDING, 0, 50), checkpoint.rows(EMBEDDING, 0, 50))
    (again,) = compare(checkpoint, opened, EVALUATION)
    again = again.model_copy(update={"layers_accumulated": ()})
    assert again == artifact.manifest.certificates[0]


def test_an_embedding_quantized_in_runs_is_the_embedding_quantized_whole(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job(checkpoint, _WithEmbedding(group_size=32), tmp_path / "whole", MLX())
    run_tiny(checkpoint, [job])
    monkeypatch.setattr("gemquant.calibration.stream.ROWS_AT_ONCE", 100)
    run_tiny(checkpoint, [dataclasses.replace(job, out=tmp_path / "runs")])
    assert contents(tmp_path / "whole") == contents(tmp_path / "runs")


def test_without_a_certificate_nothing_is_computed_and_the_weights_are_the_same(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job(checkpoint, _WithEmbedding(group_size=32), tmp_path / "certified", MLX())
    run_tiny(checkpoint, [job])

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("something was computed")

    model_type = checkpoint.config["model_type"]
    unloadable = dataclasses.replace(ARCHITECTURES[model_type], library=forbidden)
    monkeypatch.setitem(ARCHITECTURES, model_type, unloadable)
    monkeypatch.setattr("gemquant.core.weights.ChunkedWeight.rows", forbidden)
    run_tiny(checkpoint, [dataclasses.replace(job, out=tmp_path / "plain")], evaluation=())
    certified, plain = contents(tmp_path / "certified"), contents(tmp_path / "plain")
    assert certified["model.safetensors"] == plain["model.safetensors"]


@contextmanager
def nothing_left_in(folder: Path) -> Iterator[None]:
    before = sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("older", [False, True], ids=["absent", "replacing"])
def test_nothing_is_left_behind_when_a_quantizer_fails_midway(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: type[BaseException],
    older: bool,
) -> None:
    out = tmp_path / "deep" / "out"
    good = tiny_job(checkpoint, RoundToNearest(), out)
    if older:
        run_tiny(checkpoint, [good])
    kept = contents(tmp_path)
    quantize = AWQ.quantize

    def failing(self: AWQ, block: Block, container: Container) -> object:
        if block.index == 1:
            raise failure
        return quantize(self, block, container)

    monkeypatch.setattr(AWQ, "quantize", failing)
    jobs = [
        dataclasses.replace(good, force=True),
        tiny_job(checkpoint, AWQ(scale=False, gptq=False), tmp_path / "other"),
    ]
    with nothing_left_in(tmp_path), pytest.raises(failure):
        run_tiny(checkpoint, jobs)
    assert contents(tmp_path) == kept


def test_nothing_is_left_behind_when_the_certificate_fails(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gemquant.measure.quality.streams.compare_predictions", failing)
    with nothing_left_in(tmp_path), pytest.raises(KeyboardInterrupt):
        run_tiny(checkpoint, [tiny_job(checkpoint, RoundToNearest(), tmp_path / "out")])


def test_weights_that_are_no_numbers_leave_an_error_that_names_the_tensor_and_nothing_else(
    tmp_path: Path,
) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2")
    tensors = tiny_tensors({**tiny_config("gemma2"), "tie_word_embeddings": True})
    tensors["model.layers.2.self_attn.k_proj.weight"][0, 0] = float("inf")
    write_shards(folder, tensors)
    checkpoint = open_checkpoint(str(folder))
    (tmp_path / "o").mkdir()
    with (
        nothing_left_in(tmp_path / "o"),
        pytest.raises(CheckpointError, match=r"model\.layers\.2\.self_attn\.k_proj\.weight"),
    ):
        run_tiny(
            checkpoint,
            [tiny_job(checkpoint, AWQ(scale=False, gptq=False), tmp_path / "o" / "out")],
        )


def test_a_quantizer_that_needs_text_is_refused_without_it(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    jobs = [tiny_job(checkpoint, AWQ(scale=False, gptq=False), tmp_path / "out")]
    with nothing_left_in(tmp_path), pytest.raises(CalibrationError, match="awq: calibration text"):
        pipeline.run(plan(jobs, checkpoint), checkpoint, calibration=None, evaluation=EVALUATION)


def test_each_slice_is_reported_as_if_it_had_been_alone(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    job = tiny_job(checkpoint, RoundToNearest(), tmp_path / "both")
    (both,) = run_tiny(checkpoint, [job])
    for n, windows in enumerate(EVALUATION):
        alone = dataclasses.replace(job, out=tmp_path / f"{n}")
        (artifact,) = run_tiny(checkpoint, [alone], evaluation=[windows])
        before = both.manifest.certificates[0].slices[n]
        after = artifact.manifest.certificates[0].slices[0]
        assert (before.slice, before.token_count) == (after.slice, after.token_count)
        assert before.kl_mean.value == pytest.approx(after.kl_mean.value, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_quantizers_see_the_same_numbers_whatever_is_computed_in(
    tiny_folders: dict[Kind, Path], tmp_path: Path, kind: Kind
) -> None:
    checkpoint = open_checkpoint(str(tiny_folders[kind]))
    for dtype in (torch.float32, torch.bfloat16):
        pipeline.run(
            plan([tiny_job(checkpoint, RoundToNearest(), tmp_path / f"{dtype}")], checkpoint),
            checkpoint,
            calibration=None,
            evaluation=[tiny_windows(1, 20)],
            compute_dtype=dtype,
        )
    wide, narrow = contents(tmp_path / "torch.float32"), contents(tmp_path / "torch.bfloat16")
    assert wide["model.safetensors"] == narrow["model.safetensors"]
