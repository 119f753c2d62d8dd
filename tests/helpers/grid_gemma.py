"""A tiny Gemma whose matrices lie on a 4-bit grid, as a QAT checkpoint's do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.tiny_gemma import Kind, write_tiny_gemma
from tests.helpers.tiny_gguf import LLAMACPP


def on_grid(weight: Tensor, *, extreme_code: int = 7) -> Tensor:
    """Round (…, columns) to scales in bfloat16 · codes in groups of 32, in bfloat16."""
    groups = weight.float().unflatten(-1, (-1, 32))
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scales = (extreme / extreme_code).to(torch.bfloat16).float()
    scales = torch.where(scales == 0, 1.0, scales)
    codes = (groups / scales).round().clamp(-8 if extreme_code == -8 else -7, 7)
    return (codes * scales).flatten(-2).to(torch.bfloat16)


def write_grid_gemma(
    folder: Path, kind: Kind = "gemma3_text", *, extreme_code: int = 7, off: str = "none"
) -> Path:
    """Write a tiny Gemma on a grid. off: a part of names whose matrices stay off it."""
    write_tiny_gemma(folder, kind, overrides=LLAMACPP.get(kind))
    path = folder / "model.safetensors"
    tensors = {
        name: on_grid(tensor, extreme_code=extreme_code)
        if tensor.ndim > 1
        and tensor.shape[-1] % 32 == 0
        and off not in name
        and "tower" not in name
        else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def write_packed_gemma(
    folder: Path,
    kind: Kind = "gemma2",
    *,
    bits: int = 4,
    group_size: int = 32,
    symmetric: bool = True,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Write a tiny Gemma as Google's ``…-qat-w4a16-ct``: packed linears, all else in bfloat16.

    group_size: −1 for a scale a row. Returns what the packed matrices decode to, in float32, by
    their names without ``.weight_packed``.
    """
    write_tiny_gemma(folder, kind, overrides=overrides)
    path = folder / "model.safetensors"
    stored, decoded = {}, {}
    for name, tensor in _apart(load_file(path)).items():
        module = name.removesuffix(".weight")
        text = "layers." in name and "tower" not in name and "router" not in name
        if not text or tensor.ndim != 2:
            stored[name] = tensor
            continue
        parts, decoded[module] = packed_parts(tensor, bits, group_size, symmetric=symmetric)
        stored |= {f"{module}.{suffix}": part for suffix, part in parts.items()}
    save_file(stored, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = quantization(bits, group_size, symmetric=symmetric)
    (folder / "config.json").write_text(json.dumps(config))
    return decoded


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A matrix for each expert, as packed checkpoints have them."""
    apart = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".experts.")
        if not layer:
            apart[name] = tensor
            continue
        parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
        for expert, matrix in enumerate(tensor):
            for part, rows in zip(parts, matrix.chunk(len(parts)), strict=True):
                apart[f"{layer}.experts.{expert}.{part}.weight"] = rows.clone()
    return apart


def packed_parts(
    weight: Tensor, bits: int, group_size: int, *, symmetric: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """compressed-tensors' tensors of (out, in), with NumPy alone, and what they decode to."""
    rows, columns = weight.shape
    groups = weight.float().view(rows, -1, columns if group_size == -1 else group_size)
    middle = 2 ** (bits - 1)
    scales = (groups.abs().amax(-1, keepdim=True) / (middle - 0.5)).to(torch.bfloat16).float()
    zeros = torch.full(scales.shape, middle)
    if not symmetric:
        zeros += torch.arange(scales.numel()).view(scales.shape) % 5 - 2
    codes = ((groups / scales).round() + zeros).clamp(0, 2 * middle - 1).to(torch.int64)
    parts = {
        "weight_packed": _words(codes.view(rows, -1), bits),
        "weight_scale": scales[..., 0].to(torch.bfloat16),
        "weight_shape": torch.tensor([rows, columns]),
    }
    if not symmetric:
        parts["weight_zero_point"] = _words(zeros[..., 0].t(), bits).t().contiguous()
    return parts, ((codes - zeros) * scales).view(rows, -1)


def _words(values: Tensor, bits: int) -> Tensor:
    each = values.numpy().astype(np.uint32).reshape(len(values), -1, 32 // bits)
    places = np.arange(32 // bits, dtype=np.uint32) * bits
    return torch.from_numpy((each << places).sum(-1, dtype=np.uint32).view(np.int32))


def quantization(bits: int, group_size: int, *, symmetric: bool) -> dict[str, Any]:
    """``quantization_config`` as llm-compressor writes it."""
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if group_size == -1 else "group",
        "group_size": None if group_size == -1 else group_size,
        "actorder": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head", "re:.*vision_tower.*", "re:.*router.*"],
    }
