"""Tiny Gemmas as llama.cpp would convert them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from gemquant.formats.gguf.names import is_norm, to_gguf
from tests.helpers.tiny_gemma import Kind, tiny_config, tiny_tensors, tiny_tokenizer

_ARCHITECTURE = {"gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3"}


LLAMACPP: Mapping[Kind, Mapping[str, Any]] = {
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3_text": {
        "query_pre_attn_scalar": 32,
        "num_hidden_layers": 7,
        "sliding_window_pattern": 6,
    },
}
"""What llama.cpp takes for granted: the scale of the head size; every sixth layer of Gemma 3."""


def tiny_gguf_tensors(kind: Kind, overrides: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """The weights inside ``write_tiny_gguf``'s file before it packs them, under Gemma's names."""
    return tiny_tensors({**tiny_config(kind), **(overrides or {})}, dtype=torch.float32)


def write_tiny_gguf(
    path: Path,
    kind: Kind = "gemma2",
    *,
    packed: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0,
    metadata: dict[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    noise: float = 0.0,
) -> Path:
    """Write a GGUF: norms 1 + w in F32, the embedding in F16, every linear ``packed``.

    metadata: 32-bit integers to write besides, by key. overrides: keys of the configuration.
    noise: what every linear is off by, as a share of its spread.
    """
    writer = gguf.GGUFWriter(path, _ARCHITECTURE[kind])
    _write_metadata(writer, kind, {**tiny_config(kind), **(overrides or {})})
    for key, value in (metadata or {}).items():
        writer.add_uint32(key, value)
    for name, tensor in tiny_gguf_tensors(kind, overrides).items():
        values = (tensor + 1 if is_norm(name) else tensor).numpy()
        stored = to_gguf(name, kind)
        if values.ndim == 1:
            writer.add_tensor(stored, values)
        elif "embed_tokens" in name:
            writer.add_tensor(stored, values.astype("float16"))
        elif noise:
            off = torch.sin(torch.arange(tensor.numel())).view_as(tensor).numpy()
            off = values + noise * values.std() * off
            writer.add_tensor(stored, gguf.quants.quantize(off, packed), raw_dtype=packed)
        else:
            writer.add_tensor(stored, gguf.quants.quantize(values, packed), raw_dtype=packed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_metadata(writer: gguf.GGUFWriter, kind: Kind, config: Mapping[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if kind != "gemma":
        writer.add_sliding_window(config["sliding_window"])
    if kind == "gemma3_text":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config["rope_scaling"]["factor"])
    _write_tokenizer(writer)


OLLAMA: dict[str, Any] = {
    "num_hidden_layers": 34,
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 32,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
"""As small as may be, with the number of layers of a Gemma 3 of 4 billion weights."""


def write_ollamas_gguf(
    path: Path,
    *,
    local: float | None = None,
    tokens: int = 0,
    vision: bool = True,
    overrides: Mapping[str, Any] = OLLAMA,
) -> Path:
    """A Gemma 3 as ollama converts it: with its vision model, without what its runner assumes.

    Source: ollama ``convert/convert_gemma3.go``. local: the base of sliding layers, under its own
    key. tokens: how many more, or fewer, than rows of the embedding. overrides: keys of the
    configuration.
    """
    config = {**tiny_config("gemma3_text"), **overrides}
    vocabulary = tiny_token_metadata()
    extra = [f"<more{n}>" for n in range(tokens)]
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    if local is not None:
        writer.add_float32("gemma3.rope.local.freq_base", local)
        writer.add_float32("gemma3.rope.global.freq_base", 2e6)
    if vision:
        writer.add_uint32("gemma3.vision.block_count", 1)
        writer.add_float32("gemma3.vision.attention.layer_norm_epsilon", 1e-6)
        writer.add_uint32("gemma3.mm.tokens_per_image", 256)
    writer.add_tokenizer_model("llama")
    pieces = [*vocabulary["tokenizer.ggml.tokens"], *extra]
    size = len(pieces) + min(tokens, 0)
    writer.add_token_list(pieces[:size])
    writer.add_token_scores([*vocabulary["tokenizer.ggml.scores"], *[0.0] * len(extra)][:size])
    writer.add_token_types([*vocabulary["tokenizer.ggml.token_type"], *[4] * len(extra)][:size])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    for name, tensor in tiny_gguf_tensors("gemma3_text", overrides).items():
        values = (tensor + 1 if is_norm(name) else tensor).numpy()
        writer.add_tensor(to_gguf(name, "gemma3_text"), values)
    if vision:
        writer.add_tensor("v.patch_embedding.weight", np.zeros((4, 3, 2, 2), np.float32))
        writer.add_tensor("v.blk.0.attn_norm.weight", np.zeros(4, np.float32))
        writer.add_tensor("mm.mm_input_projection.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_token_metadata(extra: Sequence[str] = ()) -> dict[str, Any]:
    """The tiny tokenizer as a GGUF's metadata. extra: user-defined pieces to append."""
    vocab = tiny_tokenizer().get_vocab()
    pieces = [*sorted(vocab, key=vocab.__getitem__), *extra]
    kinds = [_kind(piece) for piece in pieces]
    kinds[len(vocab) :] = [gguf.TokenType.USER_DEFINED] * len(extra)
    normal = [index for index, kind in enumerate(kinds) if kind == gguf.TokenType.NORMAL]
    scores = [-1000.0] * len(pieces)
    for rank, index in enumerate(normal):
        scores[index] = -float(rank)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 3,
    }


def _write_tokenizer(writer: gguf.GGUFWriter) -> None:
    metadata = tiny_token_metadata()
    writer.add_tokenizer_model("llama")
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_scores(metadata["tokenizer.ggml.scores"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def _kind(piece: str) -> int:
    if piece.startswith("<0x"):
        return gguf.TokenType.BYTE
    if piece == "\n":
        return gguf.TokenType.USER_DEFINED
    return gguf.TokenType.CONTROL if piece[0] == "<" and len(piece) > 1 else gguf.TokenType.NORMAL
