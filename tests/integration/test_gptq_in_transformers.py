"""GPTQ checkpoints through transformers with gptqmodel, on a CPU.

gptqmodel pins much; install it in an environment of its own and run: pytest -m peer FILE
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gemquant.core.protocols import AffineScheme
from gemquant.formats.gptq import Gptq
from tests.helpers.packed_modules import compare_packed_linears
from tests.helpers.tiny_artifact import tiny_header, write_tiny_weights
from tests.helpers.tiny_gemma import Kind

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

W8 = AffineScheme(8, 128, symmetric=True)


def test_every_linear_of_gptqmodel_computes_the_decoded_weight(
    tmp_path: Path, generation: Kind
) -> None:
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")
    from transformers import AutoModelForCausalLM

    header = tiny_header(Gptq(), generation, W8)
    made = write_tiny_weights(tmp_path, Gptq(), header)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    compared = compare_packed_linears(model, made.decoded, tolerance=0.002)
    assert compared == 7 * header.config["num_hidden_layers"]
