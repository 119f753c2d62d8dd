"""AWQ GEMM artifacts through transformers with gptqmodel, on a CPU.

gptqmodel pins much; install it in an environment of its own and run: pytest -m peer FILE
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gemquant.core.protocols import AffineScheme
from gemquant.formats.awq_gemm import AwqGemm
from gemquant.runtimes.transformers import Transformers
from tests.helpers.packed_modules import compare_packed_linears
from tests.helpers.tiny_artifact import W4, W4_SYMMETRIC, tiny_header, write_tiny_weights
from tests.helpers.tiny_gemma import Kind

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
