"""bitsandbytes artifacts against transformers with bitsandbytes, on a CPU.

Install the extra and run: pytest -m peer FILE
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gemquant.formats.bitsandbytes import BitsAndBytes
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.models.structure import EMBEDDING
from gemquant.runtimes.transformers import Transformers
from tests.helpers.tiny_gemma import Kind
from tests.helpers.window_logits import window_logits
from tests.unit.cli.conftest import Run

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

QUANTIZERS = ("int8", "nf4", "fp4")
IDS = torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _installed() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")


def make(run: Run, quantizer: str, model: Path, *more: str) -> None:
    result = run(quantizer, str(model), "--target", "cpu", "--no-eval", "-o", "out", *more)
    assert result.code == 0, result.err


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def quantized_on_load(quantizer: str, model: Path, out: Path) -> dict[str, Tensor]:
    """What transformers stores after quantizing the same folder while it loads."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config: Any = BitsAndBytesConfig(load_in_8bit=True)
    if quantizer != "int8":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantizer,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, quantization_config=config, device_map="cpu"
    )
    loaded.save_pretrained(out)
    return tensors(out)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_tensors_are_those_that_transformers_saves_after_quantizing_on_load(
    run: Run, tmp_path: Path, tiny_folder: Path, quantizer: str
) -> None:
    make(run, quantizer, tiny_folder)
    ours = tensors(tmp_path / "out")
    theirs = quantized_on_load(quantizer, tiny_folder, tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if "quant_state" in name:
            continue
        # transformers rounds the scales' own scales to bfloat16; ours stay in float32.
        found = ours[name].to(tensor.dtype)
        assert torch.equal(found, tensor), name
    if quantizer != "int8":
        assert {t.dtype for n, t in ours.items() if "nested_absmax" in n} == {torch.float32}


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_layer_of_the_runtime_decodes_to_our_weights(
    run: Run, tmp_path: Path, tiny_folder: Path, quantizer: str
) -> None:
    import bitsandbytes.functional as bnb
    from transformers import AutoModelForCausalLM

    make(run, quantizer, tiny_folder)
    weights = BitsAndBytes().open(tmp_path / "out")
    # Not through the runner: the first forward pass repacks the codes for the processor.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="cpu")
    compared = 0
    for name, module in model.named_modules():
        if not type(module).__module__.startswith("bitsandbytes"):
            continue
        if quantizer == "int8":
            found = bnb.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
        else:
            found = bnb.dequantize_4bit(module.weight.data, module.weight.quant_state)
        expected = weights.tensor(f"{name}.weight").to(found.dtype)
        assert torch.equal(found, expected), name
        compared += 1
    assert compared == 7 * weights.config["num_hidden_layers"]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_layer_of_the_runtime_computes_with_our_weights(
    run: Run, tmp_path: Path, tiny_folder: Path, quantizer: str
) -> None:
    make(run, quantizer, tiny_folder)
    weights = BitsAndBytes().open(tmp_path / "out")
    runner = Transformers.load(tmp_path / "out", "bitsandbytes")
    generator = torch.Generator().manual_seed(0)
    for name, module in runner.model.named_modules():
        if not type(module).__module__.startswith("bitsandbytes"):
            continue
        weight = weights.tensor(f"{name}.weight")
        inputs = torch.randn(5, weight.shape[1], generator=generator)
        expected = inputs @ weight.T
        # int8 rounds its inputs to 8 bits, the others theirs to bfloat16.
        tolerance = 0.03 * expected.abs().max().item()
        with torch.inference_mode():
            torch.testing.assert_close(module(inputs).float(), expected, rtol=0, atol=tolerance)


def test_codes_stored_as_bfloat16_load(
    run: Run, tmp_path: Path, tiny_folders: dict[Kind, Path]
) -> None:
    make(run, "nf4", tiny_folders["gemma2"], "--storage-dtype", "bfloat16")
    runner = Transformers.load(tmp_path / "out", "bitsandbytes")
    assert torch.isfinite(window_logits(runner, IDS)).all()


def test_the_embedding_is_the_checkpoints(
    run: Run, tmp_path: Path, tiny_folders: dict[Kind, Path]
) -> None:
    make(run, "nf4", tiny_folders["gemma3"])
    source = open_checkpoint(str(tiny_folders["gemma3"]))
    stored = tensors(tmp_path / "out")[f"language_model.{EMBEDDING}"]  # it stays multimodal
    assert torch.equal(stored, source.tensor(EMBEDDING))
