"""A checkpoint of packed matrices is decoded while it is read; a damaged one is a clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemquant.errors import CheckpointError, GemquantError, UnsupportedError
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.checkpoint.source import text_name
from tests.helpers.grid_gemma import packed_parts, quantization, write_packed_gemma
from tests.helpers.tiny_gemma import Kind

UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric"),
    [(4, 32, True), (4, 32, False), (4, 64, False), (8, 32, True), (8, -1, True), (4, -1, False)],
)
def test_packed_matrices_are_decoded_whole_and_by_rows(
    tmp_path: Path, bits: int, group_size: int, symmetric: bool
) -> None:
    expected = write_packed_gemma(tmp_path, bits=bits, group_size=group_size, symmetric=symmetric)
    opened = open_checkpoint(str(tmp_path))
    for module, weight in expected.items():
        assert torch.equal(opened.tensor(f"{module}.weight"), weight), module
        assert torch.equal(opened.rows(f"{module}.weight", 5, 41), weight[5:41]), module
    assert opened.packed.keys() == {f"{module}.weight" for module in expected}


@pytest.mark.parametrize("kind", ["gemma3", "gemma4_e", "gemma4_unified", "gemma4_moe"])
def test_packed_multimodal_checkpoints_have_experts_and_towers(kind: Kind, tmp_path: Path) -> None:
    expected = write_packed_gemma(tmp_path, kind)
    opened = open_checkpoint(str(tmp_path))
    for module, weight in expected.items():
        assert torch.equal(opened.tensor(text_name(f"{module}.weight") or ""), weight), module
    assert any(".experts.3." in module for module in expected) == (kind == "gemma4_moe")
    assert opened.towers is not None
    assert not opened.towers.problems()


def edited(folder: Path, **changes: torch.Tensor | None) -> Path:
    """The folder with some tensors of one matrix changed, or left out."""
    path = folder / "model.safetensors"
    tensors = load_file(path) | {f"{UP}.{suffix}": part for suffix, part in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return folder


def configured(folder: Path, **changes: Any) -> Path:
    """The folder with keys of quantization_config changed."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))
    return folder


def refusal(folder: Path) -> GemquantError:
    with pytest.raises(GemquantError) as caught:
        open_checkpoint(str(folder))
    return caught.value


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    write_packed_gemma(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("suffix", ["weight_scale", "weight_shape", "weight_packed"])
def test_a_missing_part_is_named(packed: Path, suffix: str) -> None:
    error = refusal(edited(packed, **{suffix: None}))
    assert error.message == f"{UP}: {suffix} of a packed matrix is missing."


def test_scales_of_too_few_groups_are_refused_with_the_scheme(packed: Path) -> None:
    error = refusal(edited(packed, weight_scale=torch.ones(128, 1, dtype=torch.bfloat16)))
    assert isinstance(error, CheckpointError)
    assert "weight_scale (128, 1)" in error.message
    assert error.message.endswith("config.json describes 4 bits, groups of 32, symmetric.")


def test_a_shape_that_is_not_the_models_is_refused(packed: Path) -> None:
    parts, _ = packed_parts(torch.ones(64, 32), 4, 32, symmetric=True)
    error = refusal(edited(packed, **parts))
    assert error.message.startswith(f"{UP}.weight: weight_shape (64, 32), and config.json implies")


def test_groups_in_the_order_of_activations_are_refused(packed: Path) -> None:
    error = refusal(edited(packed, weight_g_idx=torch.zeros(64, dtype=torch.int32)))
    assert isinstance(error, UnsupportedError)
    assert "act-order" in error.message


def test_a_scale_that_is_no_number_is_named_when_it_is_read(packed: Path) -> None:
    scale = load_file(packed / "model.safetensors")[f"{UP}.weight_scale"]
    scale[3, 1] = torch.nan
    opened = open_checkpoint(str(edited(packed, weight_scale=scale)))
    with pytest.raises(CheckpointError, match=rf"{UP}.weight: 32 of \d+ values are NaN"):
        opened.tensor(f"{UP}.weight")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "int-quantized"}, "by compressed-tensors as int-quantized"),
        ({"format": "nvfp4-pack-quantized"}, "as nvfp4-pack-quantized"),
        ({"transform_config": {"config_groups": {"u": {}}}}, "as transform_config"),
        ({"config_groups": None}, "is not that of compressed-tensors"),
        ({"config_groups": {"g": {"weights": {"num_bits": 4}}}}, "is not that of"),
        (quantization(0, 32, symmetric=True), "is no scheme"),
        (quantization(4, 0, symmetric=True), "is no scheme"),
        ({"quant_method": "gptq"}, "quantized already (quant_method 'gptq')"),
    ],
)
def test_a_configuration_that_is_not_decoded_is_refused(
    packed: Path, changes: dict[str, Any], words: str
) -> None:
    assert words in refusal(configured(packed, **changes)).message


def test_a_configuration_over_plain_weights_is_ignored(tmp_path: Path) -> None:
    write_packed_gemma(tmp_path)
    opened = open_checkpoint(str(tmp_path))
    plain = {name: opened.tensor(name, torch.bfloat16) for name in opened.names()}
    save_file(plain, tmp_path / "model.safetensors")
    assert not open_checkpoint(str(tmp_path)).packed
