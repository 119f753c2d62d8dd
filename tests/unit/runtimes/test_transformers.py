from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gemquant.core.protocols import AffineScheme
from gemquant.errors import ArtifactError, RuntimeMissingError
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.formats.metal import Metal
from gemquant.models.structure import HEAD
from gemquant.runtimes import runtime as runtime_module
from gemquant.runtimes.transformers import Transformers
from tests.helpers.tiny_artifact import (
    W4,
    W4_SYMMETRIC,
    TinyArtifact,
    tiny_header,
    write_tiny_weights,
)
from tests.helpers.tiny_gemma import Kind
from tests.helpers.window_logits import window_logits

CONTAINER = "compressed-tensors"
IDS = torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(0))

pytest.importorskip("compressed_tensors", reason="the runtime under test is not installed")


def dense(made: TinyArtifact, scheme: AffineScheme) -> PreTrainedModel:
    """The decoded weights in a plain model: what the runtime must agree with.

    transformers decodes asymmetric weights into bfloat16, the type of their scales.
    """
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**made.header.config), dtype=torch.float32
    )
    decoded = {
        name: value if scheme.symmetric or value.ndim == 1 else value.bfloat16().float()
        for name, value in made.decoded.items()
    }
    assert model.load_state_dict(decoded, strict=False).unexpected_keys == []
    model.tie_weights()
    return model.eval()


@pytest.mark.parametrize("scheme", [W4, W4_SYMMETRIC], ids=["zero-points", "symmetric"])
def test_a_foreign_loader_computes_the_same_logits(
    tmp_path: Path, generation: Kind, scheme: AffineScheme
) -> None:
    exporter = CompressedTensors()
    made = write_tiny_weights(tmp_path, exporter, tiny_header(exporter, generation, scheme))
    runtime = Transformers.load(tmp_path, CONTAINER)
    with torch.no_grad():
        expected = dense(made, scheme)(IDS).logits
    found = window_logits(runtime, IDS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_shards_and_mixed_symmetric_schemes_load(tmp_path: Path) -> None:
    exporter = CompressedTensors(max_shard_bytes=100_000)
    coarse = AffineScheme(8, 128, symmetric=True)
    names = {f"model.layers.{n}.mlp.down_proj.weight": coarse for n in range(3)}
    header = tiny_header(exporter, scheme=W4_SYMMETRIC, schemes=names)
    made = write_tiny_weights(tmp_path, exporter, header)
    with torch.no_grad():
        expected = dense(made, W4_SYMMETRIC)(IDS).logits
    found = window_logits(Transformers.load(tmp_path, CONTAINER), IDS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scheme", [W4, W4_SYMMETRIC], ids=["zero-points", "symmetric"])
def test_a_quantized_untied_head_loads(tmp_path: Path, scheme: AffineScheme) -> None:
    exporter = CompressedTensors()
    header = tiny_header(exporter, scheme=scheme, tied=False, quantized_head=True)
    made = write_tiny_weights(tmp_path, exporter, header, tied=False)
    runtime = Transformers.load(tmp_path, CONTAINER)
    expected = made.decoded[HEAD] if scheme.symmetric else made.decoded[HEAD].bfloat16().float()
    assert torch.equal(runtime.head_rows(0, len(expected)), expected)


def test_hidden_states_are_what_the_head_reads(tmp_path: Path) -> None:
    exporter = CompressedTensors()
    write_tiny_weights(tmp_path, exporter, tiny_header(exporter, "gemma3_text"))
    runtime = Transformers.load(tmp_path, CONTAINER)
    hidden = runtime.hidden_states(IDS)
    assert hidden.shape == (2, 20, 128)
    expected = window_logits(runtime, IDS)
    torch.testing.assert_close(hidden @ runtime.head_rows(0, 465).T, expected)


def test_generation_continues_with_the_likeliest_token(tmp_path: Path) -> None:
    exporter = CompressedTensors()
    write_tiny_weights(tmp_path, exporter, tiny_header(exporter, "gemma3_text"))
    runtime = Transformers.load(tmp_path, CONTAINER)
    prompt = [2, 50, 60]
    first, *_rest = runtime.generate(prompt, max_new_tokens=3)
    assert first == int(window_logits(runtime, torch.tensor([prompt]))[0, -1].argmax())


def test_nothing_is_printed_while_loading(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    exporter = CompressedTensors()
    write_tiny_weights(tmp_path, exporter, tiny_header(exporter))
    capfd.readouterr()
    Transformers.load(tmp_path, CONTAINER)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_metal_logits_are_those_of_the_decoded_weights(
    tmp_path: Path, generation: Kind, bits: int
) -> None:
    scheme = AffineScheme(bits, 64, symmetric=False)
    made = write_tiny_weights(tmp_path, Metal(), tiny_header(Metal(), generation, scheme))
    # transformers decodes into the type of the scales, as it does for zero points.
    with torch.no_grad():
        expected = dense(made, scheme)(IDS).logits
    runtime = Transformers.load(tmp_path, "metal")
    torch.testing.assert_close(window_logits(runtime, IDS), expected, rtol=0, atol=1e-5)


def test_the_runtime_of_metal_says_that_its_kernel_was_not_executed(tmp_path: Path) -> None:
    write_tiny_weights(tmp_path, Metal(), tiny_header(Metal(), scheme=W4))
    software = Transformers.load(tmp_path, "metal").software
    assert software.endswith("float32 on cpu; Metal kernel not executed here")


def test_a_missing_package_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_module, "installed_version", lambda package: None)
    with pytest.raises(
        RuntimeMissingError, match="gptqmodel and accelerate not installed"
    ) as caught:
        Transformers.load(tmp_path, "awq-gemm")
    assert caught.value.hint == "pip install gptqmodel accelerate"


def test_a_folder_that_the_runtime_refuses_is_an_artifact_error(tmp_path: Path) -> None:
    exporter = CompressedTensors()
    write_tiny_weights(tmp_path, exporter, tiny_header(exporter))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="transformers refuses"):
        Transformers.load(tmp_path, CONTAINER)
