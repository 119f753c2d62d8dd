"""Multimodal artifacts loaded by transformers see and hear as the original does.

Compared with the original whose text model has the artifact's decoded weights. For AutoAWQ install
gptqmodel in an environment of its own and run: pytest -m peer FILE
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gemquant.core.protocols import Exporter, Quantizer
from gemquant.formats.awq_gemm import AwqGemm
from gemquant.formats.bitsandbytes import BitsAndBytes
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.formats.metal import Metal
from gemquant.formats.plain_safetensors import PlainSafetensors
from gemquant.quantizers.bitsandbytes import NF4, Int8
from gemquant.quantizers.cast import Cast
from gemquant.quantizers.rtn import RoundToNearest
from gemquant.runtimes.transformers import Transformers
from tests.helpers.tiny_gemma import NESTED, Kind, stacked
from tests.helpers.tiny_job import run_tiny, tiny_job
from tests.helpers.tiny_multimodal import inputs_of, write_tiny_multimodal

pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("PIL", reason="Pillow is not installed")

WITHOUT_EXPERTS: tuple[Kind, ...] = ("gemma3", "gemma4_e", "gemma4_unified")


def converted(kind: Kind, folder: Path, quantizer: Quantizer, exporter: Exporter) -> Path:
    checkpoint = open_checkpoint(str(write_tiny_multimodal(folder / "model", kind)))
    job = tiny_job(checkpoint, quantizer, folder / "out", exporter)
    run_tiny(checkpoint, [job], evaluation=())
    return folder / "out"


def loaded(folder: Path, **settings: Any) -> Any:
    from transformers import AutoModelForImageTextToText

    model, found = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **settings
    )
    assert (found["missing_keys"], found["unexpected_keys"]) == (set(), set())
    return model.eval()


def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(**inputs).logits
    return result.float()


def expected(
    folder: Path,
    out: Path,
    exporter: Exporter,
    inputs: dict[str, Tensor],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Of the original, its text model replaced by the decoded one, rounded to a type."""
    weights, model = exporter.open(out), loaded(folder)
    tensors = {name: weights.tensor(name, dtype).float() for name in weights.names()}
    named = {
        name.removeprefix("model."): tensor
        for name, tensor in stacked(weights.config, tensors).items()
        if name.startswith("model.")
    }
    missing, unknown = model.model.language_model.load_state_dict(named, strict=False)
    assert (missing, unknown) == ([], [])
    if "lm_head.weight" in tensors:
        model.lm_head.weight = torch.nn.Parameter(tensors["lm_head.weight"])
    return logits(model, inputs)


@pytest.mark.parametrize("kind", NESTED)
def test_a_plain_folder_sees_as_the_original(kind: Kind, tmp_path: Path) -> None:
    exporter = PlainSafetensors(torch.bfloat16)
    out = converted(kind, tmp_path, Cast(), exporter)
    inputs = inputs_of(out, kind)
    seen = logits(loaded(out), inputs)
    torch.testing.assert_close(seen, logits(loaded(tmp_path / "model"), inputs), rtol=0, atol=0)
    assert (seen - logits(loaded(out), inputs_of(out, kind, shade=7))).abs().max() > 1


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", WITHOUT_EXPERTS)
def test_compressed_tensors_sees_as_the_decoded_original(
    kind: Kind, symmetric: bool, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    exporter = CompressedTensors()
    quantizer = RoundToNearest(group_size=32, symmetric=symmetric)
    out = converted(kind, tmp_path, quantizer, exporter)
    inputs = inputs_of(out, kind)
    seen = logits(loaded(out, device_map="cpu"), inputs)
    # With zero points transformers decodes while loading, to bfloat16.
    dtype = torch.float32 if symmetric else torch.bfloat16
    wanted = expected(tmp_path / "model", out, exporter, inputs, dtype)
    torch.testing.assert_close(seen, wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", WITHOUT_EXPERTS)
def test_skipped_layers_and_a_quantized_head_are_found(kind: Kind, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    exporter = CompressedTensors()
    quantizer = RoundToNearest(
        group_size=32, symmetric=True, skip="*.o_proj, layers.1.*", quantize_head=True
    )
    out = converted(kind, tmp_path, quantizer, exporter)
    inputs = inputs_of(out, kind)
    seen = logits(loaded(out, device_map="cpu"), inputs)
    wanted = expected(tmp_path / "model", out, exporter, inputs)
    torch.testing.assert_close(seen, wanted, rtol=0, atol=2e-4)


@pytest.mark.peer
@pytest.mark.parametrize("quantizer", [NF4(), Int8()], ids=["nf4", "int8"])
@pytest.mark.parametrize("kind", WITHOUT_EXPERTS)
def test_bitsandbytes_sees_as_the_decoded_original(
    kind: Kind, quantizer: Quantizer, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    exporter = BitsAndBytes()
    out = converted(kind, tmp_path, quantizer, exporter)
    inputs = inputs_of(out, kind)
    # Beside bitsandbytes' layers transformers converts some parameters, and leaves others.
    model, original = loaded(out, device_map="cpu"), loaded(tmp_path / "model")
    for parameter in model.parameters():
        if parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()
    parameters = dict(model.named_parameters())
    for name, parameter in original.named_parameters():
        if ".language_model." not in name and name != "lm_head.weight":
            assert torch.equal(parameters[name], parameter), name
    # Its products are of bfloat16 or of rounded activations, which a random model amplifies.
    wanted = expected(tmp_path / "model", out, exporter, inputs)
    seen = logits(model, inputs)
    assert (seen - wanted).square().mean().sqrt() / wanted.std() < 0.35


@pytest.mark.parametrize("kind", WITHOUT_EXPERTS)
def test_metal_sees_as_the_decoded_original(kind: Kind, tmp_path: Path) -> None:
    exporter = Metal()
    out = converted(kind, tmp_path, RoundToNearest(group_size=32), exporter)
    inputs = inputs_of(out, kind)
    seen = logits(loaded(out, device_map="cpu").float(), inputs)
    # Off Apple hardware transformers decodes while loading, in bfloat16: scale · code, then + bias.
    wanted = expected(tmp_path / "model", out, exporter, inputs, torch.bfloat16)
    assert (seen - wanted).square().mean().sqrt() / wanted.std() < 0.1


@pytest.mark.peer
@pytest.mark.parametrize("kind", WITHOUT_EXPERTS)
def test_autoawq_sees_as_the_decoded_original(kind: Kind, tmp_path: Path) -> None:
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")
    exporter = AwqGemm()
    out = converted(kind, tmp_path, RoundToNearest(group_size=32), exporter)
    inputs = inputs_of(out, kind)
    model = loaded(out, device_map="cpu")
    quantized = {name for name, _ in model.named_buffers() if name.endswith("qweight")}
    assert quantized
    assert all(".language_model." in name for name in quantized)
    # gptqmodel's kernel is within 1.1 % of each product, which a random model amplifies.
    wanted = expected(tmp_path / "model", out, exporter, inputs)
    assert (logits(model, inputs) - wanted).square().mean().sqrt() / wanted.std() < 0.2


@pytest.mark.parametrize("kind", NESTED)
def test_the_text_model_inside_is_what_the_runtime_reads(kind: Kind, tmp_path: Path) -> None:
    exporter = PlainSafetensors(torch.float32)
    out = converted(kind, tmp_path, Cast(), exporter)
    runtime = Transformers.load(out, "safetensors")
    assert type(runtime.model).__name__ == NESTED[kind][0]
