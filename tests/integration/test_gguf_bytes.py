"""Types and bytes of every tensor are those that llama_model_quantize writes.

Its library is installed by `ci/bench/llama_quantize.py`'s command.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from ci.bench.llama_quantize import Llama, QuantizeOptions
from gemquant.formats.gguf.mixtures import FILE_TYPES
from gemquant.formats.gguf.names import gguf_shapes
from gemquant.formats.gguf.types import TypePlan, TypeRequest, choose_types
from gemquant.numerics.ggml import quantize_rows
from tests.helpers.native_levels import at_level

pytestmark = pytest.mark.peer

# Rows of 256 hold every block; those of 96 make the feed-forward's down projection fall back.
CONFIG: dict[str, Any] = {
    "model_type": "gemma3_text", "num_hidden_layers": 9, "hidden_size": 256,
    "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64,
    "vocab_size": 40, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama() -> Llama:
    try:
        return Llama()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Heavy-tailed weights, exact in bfloat16, with rows of zeros and of one value."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, shape in gguf_shapes(CONFIG).items():
        values = torch.randn(shape, generator=generator)
        values *= 0.02 * (1 + values**2)
        if len(shape) > 1:
            values[0], values[1], values[2] = 0, 3, values[2] * 1e-6
        made[name] = values.bfloat16().float()
    return made


@pytest.fixture(scope="module")
def importance(weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """An entry for every linear but one."""
    generator = np.random.default_rng(0)
    linears = [name for name, weight in weights.items() if weight.ndim > 1 and name[:4] == "blk."]
    entries = {n: 10 * generator.random(weights[n].shape[1]) ** 3 for n in linears}
    del entries["blk.8.ffn_gate.weight"]
    return {name: entry.astype(np.float32) for name, entry in entries.items()}


@pytest.fixture(scope="module", params=["F32", "BF16"])
def source(
    request: pytest.FixtureRequest,
    weights: Mapping[str, Tensor],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A GGUF with these weights, its linears in float32 or in bfloat16."""
    path = tmp_path_factory.mktemp("gguf") / "source.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_context_length(512)
    writer.add_embedding_length(CONFIG["hidden_size"])
    writer.add_block_count(CONFIG["num_hidden_layers"])
    writer.add_feed_forward_length(CONFIG["intermediate_size"])
    writer.add_head_count(CONFIG["num_attention_heads"])
    writer.add_head_count_kv(CONFIG["num_key_value_heads"])
    writer.add_key_length(CONFIG["head_dim"])
    writer.add_layer_norm_rms_eps(1e-6)
    for name, weight in weights.items():
        if request.param == "BF16" and weight.ndim > 1:
            raw = weight.bfloat16().view(torch.int16).numpy().view(np.uint8)
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def expect_equal(
    written: Path, plan: TypePlan, weights: Mapping[str, Tensor], matrix: Mapping[str, np.ndarray]
) -> None:
    reader = gguf.GGUFReader(written)
    assert [t.name for t in reader.tensors] == [t.name for t in plan.tensors]
    for theirs, ours in zip(reader.tensors, plan.tensors, strict=True):
        assert theirs.tensor_type.name == ours.type.name, ours.name
        rows = weights[ours.name].reshape(-1, ours.shape[-1])
        entry = torch.from_numpy(matrix[ours.name]) if ours.name in matrix else None
        blocks = quantize_rows(rows, ours.type, importance=entry).numpy()
        differing = int((blocks.ravel() != theirs.data.view(np.uint8).ravel()).sum())
        assert differing == 0, f"{ours.name}: {differing} of {blocks.size} bytes differ"


@pytest.mark.parametrize("level", ["x86-64", "no kernels"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("file_type", [name for name in FILE_TYPES if name != "Q2_K_S"])
def test_every_byte_is_llama_cpps(
    file_type: str,
    weighted: bool,
    level: str,
    llama: Llama,
    source: Path,
    weights: Mapping[str, Tensor],
    importance: Mapping[str, np.ndarray],
    tmp_path: Path,
) -> None:
    matrix = importance if weighted else {}
    target = tmp_path / "target.gguf"
    llama.quantize(source, target, file_type, QuantizeOptions(), matrix or None)
    request = TypeRequest(FILE_TYPES[file_type])
    plan = choose_types(CONFIG, request, has_importance=weighted)
    with at_level(level):
        expect_equal(target, plan, weights, matrix)


def test_q2_k_s_takes_an_entry_for_every_linear(
    llama: Llama,
    source: Path,
    weights: Mapping[str, Tensor],
    importance: Mapping[str, np.ndarray],
    tmp_path: Path,
) -> None:
    whole = {**importance, "blk.8.ffn_gate.weight": np.ones(256, np.float32)}
    llama.quantize(source, tmp_path / "t.gguf", "Q2_K_S", QuantizeOptions(), whole)
    request = TypeRequest(FILE_TYPES["Q2_K_S"])
    plan = choose_types(CONFIG, request, has_importance=True)
    expect_equal(tmp_path / "t.gguf", plan, weights, whole)
