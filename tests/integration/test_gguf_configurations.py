"""llama.cpp computes, from the keys written here, what its own converter would lose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.formats.gguf.config import unrepresentable
from gemquant.formats.gguf.metadata import converted_metadata
from gemquant.formats.gguf.names import is_norm, to_gguf
from gemquant.models.architecture import ARCHITECTURES
from gemquant.models.config import text_config
from gemquant.runtimes.llamacpp import LlamaCpp
from gemquant.runtimes.runtime import LoadOptions
from tests.helpers.llama_vocabulary import why_not
from tests.helpers.tiny_gemma import Kind, tiny_config, write_tiny_gemma
from tests.helpers.tiny_windows import tiny_windows

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"llama.cpp: {why_not()}")

IDS = tiny_windows(2, 40).ids
NEAR = 5e-3
"""Nats per token: keys, values and the head's inputs are float16 in llama.cpp."""

PUBLISHED: Mapping[Kind, Mapping[str, Any]] = {
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3_text": {"query_pre_attn_scalar": 32, "rope_scaling": None, "sliding_window_pattern": 6},
}


def expected_logits(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Tensor:
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), dtype=torch.float32, attn_implementation="eager"
    )
    state = {name: checkpoint.tensor(name, torch.float32) for name in checkpoint.names()}
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    with torch.no_grad():
        logits: Tensor = model.eval()(IDS).logits
    return logits[:, :-1].reshape(-1, logits.shape[-1])


def written(path: Path, checkpoint: Checkpoint) -> Path:
    """Every tensor in float32, through the gguf package's own writer."""
    generation = checkpoint.config["model_type"]
    writer = gguf.GGUFWriter(path, ARCHITECTURES[generation].gguf.architecture)
    metadata = converted_metadata(
        checkpoint.config, checkpoint.tokenizer_files(), checkpoint.provenance, file_type=0
    )
    for key, value in metadata.items():
        if key != "general.architecture":
            writer.add_key_value(key, value.value, value.type, value.element)
    for name in checkpoint.names():
        tensor = checkpoint.tensor(name, torch.float32)
        writer.add_tensor(
            to_gguf(name, generation), (tensor + 1 if is_norm(name) else tensor).numpy()
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def divergence(first: Tensor, second: Tensor) -> float:
    p, q = (torch.log_softmax(logits.double(), -1) for logits in (first, second))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        pytest.param("gemma", {"rope_theta": 100.0}, id="gemma-base"),
        pytest.param(
            "gemma", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, id="gemma-scaling"
        ),
        pytest.param("gemma2", {"rope_theta": 100.0}, id="gemma2-base"),
        pytest.param(
            "gemma2", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, id="gemma2-scaling"
        ),
        pytest.param(
            "gemma2",
            {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            id="gemma2-pattern",
        ),
        pytest.param("gemma3_text", {"sliding_window_pattern": 2}, id="gemma3-pattern"),
        pytest.param("gemma3_text", {"sliding_window_pattern": 1}, id="gemma3-no-window"),
        pytest.param("gemma3_text", {"rope_local_base_freq": 100.0}, id="gemma3-local-base"),
        pytest.param(
            "gemma3_text",
            {
                "sliding_window_pattern": 1,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            id="gemma3-scaling",
        ),
        pytest.param("gemma3_text", {"final_logit_softcapping": 1.0}, id="gemma3-cap"),
    ],
)
def test_a_configuration_is_computed_as_transformers_computes_it(
    kind: Kind, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_tiny_gemma(tmp_path / "m", kind, overrides={**PUBLISHED[kind], **changes})
    checkpoint = open_checkpoint(str(folder))
    assert unrepresentable(checkpoint.config) == []
    runner = LlamaCpp.load(written(tmp_path / "m.gguf", checkpoint), "gguf", LoadOptions(threads=1))
    found = torch.cat([chunk.clone() for chunk in runner.logit_chunks(IDS)])
    assert divergence(expected_logits(checkpoint, checkpoint.config), found) < NEAR
    # What llama.cpp would compute without the keys is far from that.
    published = text_config({**tiny_config(kind), **PUBLISHED[kind]})
    assert divergence(expected_logits(checkpoint, published), found) > 4 * NEAR


def test_a_head_that_is_not_tied_is_used(tmp_path: Path) -> None:
    folder = write_tiny_gemma(
        tmp_path / "m", "gemma3_text", tied=False, overrides=PUBLISHED["gemma3_text"]
    )
    checkpoint = open_checkpoint(str(folder))
    runner = LlamaCpp.load(written(tmp_path / "m.gguf", checkpoint), "gguf", LoadOptions(threads=1))
    found = torch.cat([chunk.clone() for chunk in runner.logit_chunks(IDS)])
    assert divergence(expected_logits(checkpoint, checkpoint.config), found) < NEAR
    tied = replace(checkpoint, config={**checkpoint.config, "tie_word_embeddings": True})
    assert divergence(expected_logits(tied, tied.config), found) > 4 * NEAR
