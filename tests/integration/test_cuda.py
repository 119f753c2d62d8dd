"""The same results on an NVIDIA GPU as on the processor, to float tolerance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gemquant.calibration.trace import Trace
from gemquant.convert import pipeline
from gemquant.convert.plan import plan
from gemquant.core.protocols import Block
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.measure.quality.measure import compare
from gemquant.models.skeleton import Skeleton
from gemquant.quantizers.awq import AWQ
from gemquant.quantizers.rtn import RoundToNearest
from tests.helpers.tiny_gemma import Kind
from tests.helpers.tiny_job import CALIBRATION, EVALUATION, tiny_job

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here"),
]


@pytest.fixture(autouse=True)
def float32_products() -> None:
    """TF32 keeps ten bits: no float tolerance covers it."""
    torch.backends.cuda.matmul.allow_tf32 = False


def blocks(checkpoint: Checkpoint, device: str) -> list[Block]:
    skeleton = Skeleton(checkpoint.config, device=device)
    return list(Trace(checkpoint, skeleton, CALIBRATION, gram=True).blocks())


def test_statistics_are_those_of_the_processor(tiny_folder: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    for here, there in zip(blocks(checkpoint, "cpu"), blocks(checkpoint, "cuda"), strict=True):
        for linear, expected in here.statistics.items():
            found = there.statistics[linear]
            assert found.tokens == expected.tokens
            for name in ("sum_squares", "mean_abs", "max_abs", "gram"):
                wanted = getattr(expected, name)
                tolerance = 1e-3 * float(wanted.abs().max())
                torch.testing.assert_close(
                    getattr(found, name).cpu(), wanted, rtol=1e-3, atol=tolerance
                )


def test_rounding_to_nearest_comes_to_the_same_weights(tiny_folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    for device in ("cpu", "cuda"):
        pipeline.run(
            plan([tiny_job(checkpoint, RoundToNearest(), tmp_path / device)], checkpoint),
            checkpoint,
            calibration=None,
            evaluation=(),
            device=device,
        )
    here, there = (CompressedTensors().open(tmp_path / device) for device in ("cpu", "cuda"))
    for name in checkpoint.names():
        # A GPU divides by a constant in another way: a scale may round to its neighbour.
        same = here.tensor(name, torch.float32) == there.tensor(name, torch.float32)
        assert same.float().mean() > 0.99, name


@pytest.mark.parametrize("compensate", [True, False], ids=["compensated", "plain"])
def test_awq_loses_as_little_as_on_the_processor(
    generation: Kind, tiny_folder: Path, tmp_path: Path, compensate: bool
) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    figures = {}
    for device in ("cpu", "cuda"):
        (artifact,) = pipeline.run(
            plan([tiny_job(checkpoint, AWQ(gptq=compensate), tmp_path / device)], checkpoint),
            checkpoint,
            calibration=CALIBRATION,
            evaluation=EVALUATION,
            device=device,
        )
        (certificate,) = artifact.manifest.certificates
        figures[device] = [result.kl_mean.value for result in certificate.slices]
        assert f"on {device}" in certificate.runtime
    # A code on the edge may fall either way and move those after it: figures agree, bytes need not.
    assert figures["cuda"] == pytest.approx(figures["cpu"], rel=0.25)


def test_one_artifact_measures_the_same_on_both(tiny_folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    pipeline.run(
        plan([tiny_job(checkpoint, RoundToNearest(), tmp_path / "out")], checkpoint),
        checkpoint,
        calibration=None,
        evaluation=(),
    )
    opened = CompressedTensors().open(tmp_path / "out")
    (here,) = compare(checkpoint, opened, EVALUATION)
    (there,) = compare(checkpoint, opened, EVALUATION, device="cuda")
    for expected, found in zip(here.slices, there.slices, strict=True):
        for name in ("perplexity_original", "perplexity_quantized", "kl_mean"):
            assert getattr(found, name).value == pytest.approx(
                getattr(expected, name).value, rel=2e-3
            )
