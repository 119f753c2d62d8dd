"""A tiny Gemma 1 that toolkit 1.0.1 converts: heads of 256 that make up the hidden size."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.helpers.tiny_gemma import write_tiny_gemma
from tests.helpers.tiny_sentencepiece import VOCABULARY, tiny_sentencepiece_files

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 1,
    "head_dim": 256,
    "num_hidden_layers": 1,
}


def write_npu_gemma(folder: Path) -> Path:
    """Write it with all files of a published tokenizer."""
    write_tiny_gemma(folder, "gemma", overrides=SHAPE)
    for name, content in tiny_sentencepiece_files().items():
        (folder / name).write_bytes(content)
    return folder


def write_npu_adapter(folder: Path) -> Path:
    """Write a PEFT adapter of rank 4 on its q_proj."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{prefix}.lora_A.weight": torch.randn(4, 256, generator=generator) / 8,
        f"{prefix}.lora_B.weight": torch.randn(256, 4, generator=generator) / 8,
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
