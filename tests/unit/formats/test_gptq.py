"""GPTQ's container against its documented layout, unpacked here word by word in float64."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from gemquant.core.protocols import AffineScheme
from gemquant.errors import ArtifactError, GemquantError
from gemquant.formats.gptq import Gptq
from tests.helpers.tiny_artifact import W4, tiny_header, write_tiny_weights
from tests.helpers.tiny_gemma import Kind

W8 = AffineScheme(8, 128, symmetric=True)
W4_SYMMETRIC = AffineScheme(4, 32, symmetric=True)
Q_PROJ = "model.layers.0.self_attn.q_proj"
Stored = dict[str, NDArray[np.generic]]


def unpacked(stored: Stored, module: str, bits: int) -> NDArray[np.float64]:
    """w[out, in] = (q - (z + 1)) * s of the input's group, as AutoGPTQ's pack lays it down."""
    per_word, mask = 32 // bits, 2**bits - 1
    words = stored[f"{module}.qweight"].view(np.uint32)
    zero_words = stored[f"{module}.qzeros"].view(np.uint32)
    scales = stored[f"{module}.scales"].astype(np.float64)
    groups = stored[f"{module}.g_idx"]
    columns, rows = words.shape[0] * per_word, words.shape[1]
    weight = np.empty((rows, columns))
    for i in range(columns):
        codes = (words[i // per_word] >> np.uint32(bits * (i % per_word))) & mask
        for o in range(rows):
            word = zero_words[groups[i], o // per_word]
            zero = (int(word) >> (bits * (o % per_word))) & mask
            weight[o, i] = (int(codes[o]) - (zero + 1)) * scales[groups[i], o]
    return weight


@pytest.mark.parametrize("scheme", [W8, W4_SYMMETRIC], ids=["w8-g128", "w4-g32"])
def test_the_documented_layout_gives_the_weights(tmp_path: Path, scheme: AffineScheme) -> None:
    made = write_tiny_weights(tmp_path, Gptq(), tiny_header(Gptq(), scheme=scheme))
    stored = load_file(tmp_path / "model.safetensors")
    expected = made.decoded[f"{Q_PROJ}.weight"].double().numpy()
    assert np.abs(unpacked(stored, Q_PROJ, scheme.bits) - expected).max() < 1e-7


def test_every_tensor_reads_back_as_it_was_written(tmp_path: Path, generation: Kind) -> None:
    made = write_tiny_weights(tmp_path, Gptq(), tiny_header(Gptq(), generation, W8))
    weights = Gptq().open(tmp_path)
    for name, value in made.decoded.items():
        assert torch.equal(weights.tensor(name, torch.float32), value), name
    rows = weights.rows(f"{Q_PROJ}.weight", 3, 50, torch.float32)
    assert torch.equal(rows, made.decoded[f"{Q_PROJ}.weight"][3:50])


def test_zero_points_are_stored_less_one_and_groups_in_order(tmp_path: Path) -> None:
    write_tiny_weights(tmp_path, Gptq(), tiny_header(Gptq(), scheme=W8))
    stored = load_file(tmp_path / "model.safetensors")
    module = "model.layers.0.mlp.down_proj"
    assert (stored[f"{module}.qzeros"] == 0x7F7F7F7F).all()
    assert stored[f"{module}.g_idx"].tolist() == [0] * 128 + [1] * 128 + [2] * 128


def test_the_configuration_is_the_one_that_the_toolkit_asks_for(tmp_path: Path) -> None:
    write_tiny_weights(tmp_path, Gptq(), tiny_header(Gptq(), scheme=W8))
    found = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    asked = {"quant_method": "gptq", "bits": 8, "group_size": 128, "sym": True, "desc_act": False}
    assert {key: found[key] for key in asked} == asked
    assert found["checkpoint_format"] == "gptq"


@pytest.mark.parametrize(
    ("scheme", "complaint"),
    [
        (W4, "is written symmetric"),
        (AffineScheme(3, 32, symmetric=True), "stores 2, 4, 8 bits; asked for 3"),
        (AffineScheme(8, 256, symmetric=True), "Group size 256 does not divide"),
    ],
)
def test_what_the_container_does_not_hold_is_refused(scheme: AffineScheme, complaint: str) -> None:
    problems: list[GemquantError] = Gptq().problems(tiny_header(Gptq(), scheme=scheme))
    assert any(complaint in problem.message for problem in problems)


def test_groups_in_another_order_are_refused(tmp_path: Path) -> None:
    write_tiny_weights(tmp_path, Gptq(), tiny_header(Gptq(), scheme=W8))
    stored = load_file(tmp_path / "model.safetensors")
    stored["model.layers.0.mlp.down_proj.g_idx"][0] = 1
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="g_idx is not that of groups in order"):
        Gptq().open(tmp_path).tensor("model.layers.0.mlp.down_proj.weight")
