"""AWQ GEMM artifacts through transformers with gptqmodel, on a CPU.

gptqmodel pins much; install it in an environment of its own and run: pytest -m peer FILE
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from gemquant.core.protocols import AffineScheme, Silence
from gemquant.formats.awq_gemm import AwqGemm
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.quantizers.qat import survey_grids
from gemquant.quantizers.rtn import RoundToNearest
from gemquant.runtimes.transformers import Transformers
from tests.helpers.grid_gemma import write_grid_gemma
from tests.helpers.packed_modules import compare_packed_linears
from tests.helpers.tiny_artifact import W4, W4_SYMMETRIC, tiny_header, write_tiny_weights
from tests.helpers.tiny_gemma import Kind
from tests.helpers.tiny_job import run_tiny, tiny_job

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("scheme", [W4, W4_SYMMETRIC], ids=["zero-points", "symmetric"])
def test_every_linear_of_gptqmodel_computes_the_decoded_weight(
    tmp_path: Path, generation: Kind, scheme: AffineScheme
) -> None:
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")
    header = tiny_header(AwqGemm(), generation, scheme)
    made = write_tiny_weights(tmp_path, AwqGemm(), header)
    runner = Transformers.load(tmp_path, "awq-gemm")
    # Measured with gptqmodel 7.6.0: at most 1.1 % of the largest output.
    compared = compare_packed_linears(runner.model, made.decoded, tolerance=0.02)
    assert compared == 7 * header.config["num_hidden_layers"]


def test_negative_scales_of_a_grid_compute_the_decoded_weight(tmp_path: Path) -> None:
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")
    checkpoint = open_checkpoint(
        str(write_grid_gemma(tmp_path / "model", "gemma2", extreme_code=-8))
    )
    survey = partial(survey_grids, checkpoint, Silence())
    quantizer = RoundToNearest(group_size=32).with_grids(survey)
    run_tiny(
        checkpoint,
        [tiny_job(checkpoint, quantizer, tmp_path / "out", AwqGemm())],
        evaluation=(),
    )
    made = AwqGemm().open(tmp_path / "out")
    assert min(float(made.quantized(name).scales.min()) for name in quantizer.grid_use.carried) < 0
    runner = Transformers.load(tmp_path / "out", "awq-gemm")
    decoded = {name: checkpoint.tensor(name, torch.float32) for name in checkpoint.names()}
    assert compare_packed_linears(runner.model, decoded, tolerance=0.02) == 21
