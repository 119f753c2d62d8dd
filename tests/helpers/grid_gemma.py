"""A tiny Gemma whose matrices lie on a 4-bit grid, as a QAT checkpoint's do."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.tiny_gemma import Kind, write_tiny_gemma
from tests.helpers.tiny_gguf import LLAMACPP


def on_grid(weight: Tensor, *, extreme_code: int = 7) -> Tensor:
    """Round (rows, columns) to scales in bfloat16 · codes in groups of 32, in bfloat16."""
    groups = weight.float().unflatten(1, (-1, 32))
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scales = (extreme / extreme_code).to(torch.bfloat16).float()
    scales = torch.where(scales == 0, 1.0, scales)
    codes = (groups / scales).round().clamp(-8 if extreme_code == -8 else -7, 7)
    return (codes * scales).flatten(1).to(torch.bfloat16)


def write_grid_gemma(
    folder: Path, kind: Kind = "gemma3_text", *, extreme_code: int = 7, off: str = "none"
) -> Path:
    """Write a tiny Gemma on a grid. off: a part of names whose matrices stay off it."""
    write_tiny_gemma(folder, kind, overrides=LLAMACPP[kind])
    path = folder / "model.safetensors"
    tensors = {
        name: on_grid(tensor, extreme_code=extreme_code)
        if tensor.ndim == 2 and off not in name
        else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return folder
