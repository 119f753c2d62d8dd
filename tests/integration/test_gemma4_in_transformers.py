"""Artifacts of Gemma 4 loaded by transformers, with compressed-tensors and with bitsandbytes.

Install the extras and run: pytest -m peer FILE
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gemquant.core.protocols import Exporter, QuantizedSpec, Quantizer, Weights
from gemquant.errors import RuntimeMissingError
from gemquant.formats.awq_gemm import AwqGemm
from gemquant.formats.bitsandbytes import BitsAndBytes
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.formats.metal import Metal
from gemquant.formats.plain_safetensors import PlainSafetensors
from gemquant.quantizers.bitsandbytes import FP4, NF4, Int8
from gemquant.quantizers.cast import Cast
from gemquant.quantizers.rtn import RoundToNearest
from gemquant.runtimes.transformers import Transformers
from tests.helpers.packed_modules import compare_packed_linears
from tests.helpers.tiny_gemma import GEMMA4, Kind, stacked, write_tiny_gemma
from tests.helpers.tiny_job import run_tiny, tiny_job

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

DENSE: tuple[Kind, ...] = ("gemma4_e", "gemma4_text", "gemma4_unified")
IDS = torch.randint(3, 300, (2, 40), generator=torch.Generator().manual_seed(0))


def made(kind: Kind, folder: Path, quantizer: Quantizer, exporter: Exporter) -> Weights:
    checkpoint = open_checkpoint(str(write_tiny_gemma(folder / "model", kind)))
    job = tiny_job(checkpoint, quantizer, folder / "out", exporter, text_only=True)
    run_tiny(checkpoint, [job], evaluation=())
    return exporter.open(folder / "out")


def decoded_logits(weights: Weights, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of the library's model with the decoded weights, rounded to a type."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**weights.config), dtype=torch.float32, attn_implementation="sdpa"
    )
    tensors = {name: weights.tensor(name, dtype).float() for name in weights.names()}
    model.load_state_dict(stacked(weights.config, tensors), strict=False)
    model.tie_weights()
    with torch.no_grad():
        logits: Tensor = model.eval()(IDS).logits
    return logits


def loaded_logits(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map="cpu", output_loading_info=True
    )
    assert (found["missing_keys"], found["unexpected_keys"]) == (set(), set())
    with torch.no_grad():
        logits: Tensor = model.eval()(IDS).logits
    return logits.float()


@pytest.mark.parametrize("kind", GEMMA4)
def test_a_plain_folder_has_the_logits_of_its_weights(kind: Kind, tmp_path: Path) -> None:
    weights = made(kind, tmp_path, Cast(), PlainSafetensors(torch.float32))
    expected = decoded_logits(weights)
    torch.testing.assert_close(loaded_logits(tmp_path / "out"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", DENSE)
def test_compressed_tensors_has_the_logits_of_the_decoded_weights(
    kind: Kind, symmetric: bool, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    quantizer = RoundToNearest(group_size=32, symmetric=symmetric)
    weights = made(kind, tmp_path, quantizer, CompressedTensors())
    # With zero points transformers decodes while loading, to bfloat16.
    expected = decoded_logits(weights, torch.float32 if symmetric else torch.bfloat16)
    torch.testing.assert_close(loaded_logits(tmp_path / "out"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("quantizer", [NF4(), FP4(), Int8()], ids=["nf4", "fp4", "int8"])
@pytest.mark.parametrize("kind", DENSE)
def test_every_layer_of_bitsandbytes_decodes_to_our_weights(
    kind: Kind, quantizer: Quantizer, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    import bitsandbytes.functional as bnb
    from transformers import AutoModelForCausalLM

    weights = made(kind, tmp_path, quantizer, BitsAndBytes())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="cpu")
    compared = set()
    for name, module in model.named_modules():
        if not type(module).__module__.startswith("bitsandbytes"):
            continue
        if quantizer.name == "int8":
            found = bnb.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
        else:
            found = bnb.dequantize_4bit(module.weight.data, module.weight.quant_state)
        assert torch.equal(found, weights.tensor(f"{name}.weight").to(found.dtype)), name
        compared.add(name.split(".", 3)[3])
    assert "mlp.down_proj" in compared
    assert "per_layer_projection" not in compared
    with torch.no_grad():
        assert torch.isfinite(model(IDS).logits).all()


@pytest.mark.parametrize("kind", DENSE)
def test_metal_decodes_to_our_weights(kind: Kind, tmp_path: Path) -> None:
    weights = made(kind, tmp_path, RoundToNearest(group_size=32), Metal())
    model = Transformers.load(tmp_path / "out", "metal").model
    for name, spec in weights.layout.items():
        if isinstance(spec, QuantizedSpec):
            found = model.get_parameter(name).bfloat16()  # in which transformers decodes
            assert torch.equal(found, weights.tensor(name, torch.bfloat16)), name
    with torch.no_grad():
        assert torch.isfinite(model(IDS).logits).all()


@pytest.mark.parametrize("kind", DENSE)
def test_every_linear_of_gptqmodel_computes_the_decoded_weight(kind: Kind, tmp_path: Path) -> None:
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")
    weights = made(kind, tmp_path, RoundToNearest(group_size=32), AwqGemm())
    runner = Transformers.load(tmp_path / "out", "awq-gemm")
    decoded = {
        name: weights.tensor(name, torch.float32)
        for name, spec in weights.layout.items()
        if isinstance(spec, QuantizedSpec)
    }
    assert compare_packed_linears(runner.model, decoded, tolerance=0.02) == len(decoded)


def test_quantized_experts_are_refused_and_not_left_random(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    quantizer = RoundToNearest(group_size=32, symmetric=True)
    made("gemma4_moe", tmp_path, quantizer, CompressedTensors())
    with pytest.raises(RuntimeMissingError, match="transformers reads experts as one tensor"):
        Transformers.load(tmp_path / "out", "compressed-tensors")


def test_experts_left_in_bfloat16_beside_nf4_load(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    made("gemma4_moe", tmp_path, NF4(skip="*.experts.*"), BitsAndBytes())
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", device_map="cpu", output_loading_info=True
    )
    assert (found["missing_keys"], found["unexpected_keys"]) == (set(), set())
    with torch.no_grad():
        assert torch.isfinite(model(IDS).logits).all()
