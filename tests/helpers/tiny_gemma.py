"""Tiny random Gemmas of every generation, as folders like those on the Hub.

Shapes are chosen to expose transposed or confused axes: the vocabulary size differs from every
other dimension, heads · head_dim ≠ hidden, queries share key-value heads, the sliding window (8) is
shorter than any test's windows, and every linear's input is divisible by 128.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from gemquant.models.architecture import architecture_of, stacked_tensors, tensor_shapes
from gemquant.models.config import text_config
from gemquant.models.structure import EMBEDDING, HEAD, PER_LAYER_TABLE

Kind = Literal[
    "gemma",
    "gemma2",
    "gemma3_text",
    "gemma3",
    "gemma4_e",
    "gemma4_text",
    "gemma4_moe",
    "gemma4_unified",
    "embedding",
]
GENERATIONS: tuple[Kind, ...] = ("gemma", "gemma2", "gemma3_text")
KINDS: tuple[Kind, ...] = (*GENERATIONS, "gemma3")
GEMMA4: tuple[Kind, ...] = ("gemma4_e", "gemma4_text", "gemma4_moe", "gemma4_unified")
"""Per-layer inputs and shared keys; values from keys; experts; without towers. All but the second
as published, in a multimodal model."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

_WORDS = (
    "the of and to in is that for with as on it was by this are from not have be at which "
    "def return import self user model hello world quick brown fox jumps over lazy dog"
)
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")


def _merges() -> list[tuple[str, str]]:
    """Every prefix of every word, shortest first within a word, so that whole words are tokens."""
    merges: dict[tuple[str, str], None] = {}
    for word in _WORDS.split():
        piece = "▁"
        for letter in word:
            merges[(piece, letter)] = None
            piece += letter
    return list(merges)


def tiny_tokenizer() -> Tokenizer:
    """Return a BPE with byte fallback, laid out like Gemma's: specials, merged pieces, letters."""
    merges = _merges()
    pieces = [*_SPECIAL, "\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["".join(pair) for pair in merges]
    pieces += ["▁", *(chr(code) for code in range(33, 127))]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", 2)]
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in _SPECIAL])
    tokenizer.add_tokens([AddedToken("\n", normalized=False)])
    return tokenizer


def write_tiny_tokenizer(folder: Path, *, ends: bool = False) -> None:
    """Write tokenizer.json and a tokenizer_config.json that carries the chat template.

    ends: of an embedding model, which reads an EOS after each text.
    """
    tokenizer = tiny_tokenizer()
    if ends:
        tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "add_eos_token": ends,
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "unk_token": "<unk>",
        **({} if ends else {"chat_template": CHAT_TEMPLATE}),
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", config)


_COMMON: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_attention_heads": 8,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "use_cache": True,
    "torch_dtype": "bfloat16",
}

_SLIDING, _FULL = "sliding_attention", "full_attention"
_GEMMA4: dict[str, Any] = {
    "model_type": "gemma4_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 32,
    "global_head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 8,
    "final_logit_softcapping": 3.0,
    "hidden_size_per_layer_input": 0,
    "num_hidden_layers": 4,
    "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL],
}
_VALUES_FROM_KEYS: dict[str, Any] = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}

_OWN: dict[str, dict[str, Any]] = {
    "gemma4_e": {
        **_GEMMA4,
        "num_key_value_heads": 1,
        "num_hidden_layers": 7,
        "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL, _SLIDING, _SLIDING, _FULL],
        "num_kv_shared_layers": 3,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": 0,  # as many as the vocabulary
    },
    "gemma4_text": {**_GEMMA4, **_VALUES_FROM_KEYS, "architectures": ["Gemma4ForCausalLM"]},
    "gemma4_moe": {
        **_GEMMA4,
        **_VALUES_FROM_KEYS,
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 64,
    },
    "gemma4_unified": {**_GEMMA4, **_VALUES_FROM_KEYS, "model_type": "gemma4_unified_text"},
    "gemma": {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "hidden_act": "gelu",
        "hidden_activation": None,
        "rope_theta": 10000.0,
        "rope_scaling": None,
    },
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 10000.0,
        "sliding_window": 8,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "cache_implementation": "hybrid",
    },
    "gemma3_text": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window": 8,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
}


_OWN["embedding"] = {
    **_OWN["gemma3_text"],
    "architectures": ["Gemma3TextModel"],
    "use_bidirectional_attention": True,
    "rope_scaling": None,
}
PROMPTS = {"query": "the query: ", "document": "of none, the text: "}


def write_sentence_modules(folder: Path, hidden: int, *, seed: int = 0) -> None:
    """Write what sentence-transformers stores with an embedding model, as EmbeddingGemma's."""
    generator = torch.Generator().manual_seed(seed + 2)
    kinds = ("Transformer", "Pooling", "Dense", "Dense", "Normalize")
    dense = {"2_Dense": (hidden, 192), "3_Dense": (192, hidden)}
    paths = ("", "1_Pooling", *dense, "4_Normalize")
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2))
    prompts = {"prompts": PROMPTS, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write_json(folder / "config_sentence_transformers.json", prompts)
    _write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": False}
    )
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    pooling = {f"pooling_mode_{name}": name == "mean_tokens" for name in names}
    sizes: dict[str, Any] = {"word_embedding_dimension": hidden}
    (folder / "1_Pooling").mkdir()
    _write_json(folder / "1_Pooling" / "config.json", sizes | pooling | {"include_prompt": True})
    for name, (read, given) in dense.items():
        sizes = {"in_features": read, "out_features": given, "bias": False}
        (folder / name).mkdir()
        activation = "torch.nn.modules.linear.Identity"
        _write_json(folder / name / "config.json", {**sizes, "activation_function": activation})
        weight = torch.randn((given, read), generator=generator) / read**0.5
        save_file({"linear.weight": weight}, folder / name / "model.safetensors")


NESTED: Mapping[Kind, tuple[str, str]] = {
    "gemma3": ("Gemma3ForConditionalGeneration", "gemma3"),
    "gemma4_e": ("Gemma4ForConditionalGeneration", "gemma4"),
    "gemma4_moe": ("Gemma4ForConditionalGeneration", "gemma4"),
    "gemma4_unified": ("Gemma4UnifiedForConditionalGeneration", "gemma4_unified"),
}
"""Multimodal models: their class and ``model_type``."""


_EYES = {
    "model_type": "gemma4_vision",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "patch_size": 4,
    "pooling_kernel_size": 2,
    "position_embedding_size": 20,
}
_EARS = {
    "model_type": "gemma4_audio",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "output_proj_dims": 24,
    "subsampling_conv_channels": [128, 4],
}
_SENSES: Mapping[str, Mapping[str, Any]] = {
    "gemma4_e": {"vision_config": {**_EYES, "use_clipped_linears": True}, "audio_config": _EARS},
    "gemma4_moe": {"vision_config": {**_EYES, "standardize": True}, "audio_config": None},
    "gemma4_unified": {
        "vision_config": {
            "model_type": "gemma4_unified_vision",
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "mm_embed_dim": 24,
            "mm_posemb_size": 11,
            "output_proj_dims": 24,
        },
        "audio_config": {"model_type": "gemma4_unified_audio", "audio_embed_dim": 20},
    },
}


def tiny_config(kind: Kind) -> dict[str, Any]:
    """Return a ``config.json`` as published: the flat, older spelling, or nested for "gemma3"."""
    own = _OWN["gemma3_text" if kind == "gemma3" else kind]
    text = copy.deepcopy({**_COMMON, **own, "vocab_size": tiny_tokenizer().get_vocab_size()})
    if kind == "gemma4_unified":
        del text["hidden_size_per_layer_input"]
    if "vocab_size_per_layer_input" in text:
        text["vocab_size_per_layer_input"] = text["vocab_size"]
    if kind not in NESTED:
        return text
    text.pop("architectures", None)
    del text["torch_dtype"]
    if kind != "gemma3":
        name, model_type = NESTED[kind]
        outer = {"architectures": [name], "model_type": model_type, "text_config": text}
        return {**outer, **copy.deepcopy(_SENSES[kind]), "torch_dtype": "bfloat16"}
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "mm_tokens_per_image": 4,
        "image_token_index": 7,
        "torch_dtype": "bfloat16",
    }


def tiny_tensors(
    config: Mapping[str, Any],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    tied: bool = True,
) -> dict[str, Tensor]:
    """Return seeded weights under the text model's names.

    Norm gains spread over two orders of magnitude with a few outliers, as in real Gemmas, so that
    some input channels matter much more than others; linears have heavier tails than a normal.
    """
    generator = torch.Generator().manual_seed(seed)
    config = {**text_config(config), "tie_word_embeddings": tied}
    shapes = tensor_shapes(config)
    offset = architecture_of(config).norm_offset
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if name in (EMBEDDING, HEAD):
            values /= shape[1] ** 0.5
        elif name == PER_LAYER_TABLE:
            values /= config["hidden_size_per_layer_input"] ** 0.5
        elif name.endswith("layer_scalar"):
            values = values.abs() / 4 + 0.7
        elif len(shape) == 2:
            values *= (1 + values.square()) / (3.9 * shape[1] ** 0.5)
        else:
            values = torch.exp(0.5 * values)
            values[:: max(shape[0] // 4, 1)] *= 6
            values -= offset
            if offset == 0 and name.endswith("q_norm.weight"):
                values /= 16  # nothing else scales the scores of attention
        tensors[name] = values.to(dtype)
    return tensors


def stacked(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as a library stores them: experts in two tensors a layer."""
    result = dict(tensors)
    for name, stack in stacked_tensors(config).items():
        result[name] = torch.cat([result.pop(part) for part in stack.parts]).view(stack.shape)
    return result


def _published(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named as in Google's multimodal files, with keys and values that no layer reads."""
    head, count = "model.language_model.", config["num_hidden_layers"]
    named = {name.replace("model.", head, 1): tensor for name, tensor in tensors.items()}
    for index in range(count - config["num_kv_shared_layers"], count):
        for part in ("k_proj", "v_proj", "k_norm"):
            named[f"{head}layers.{index}.self_attn.{part}.weight"] = torch.ones(1)
    return named


_PROCESSORS = {"processor_class": "Gemma3Processor", "image_seq_length": 4}


def tower_tensors(
    config: Mapping[str, Any], *, seed: int = 0, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Tensor]:
    """Seeded weights of the towers under their published names; clipped linears clip a little."""
    generator = torch.Generator().manual_seed(seed + 1)
    text = text_config(config)
    tensors = {}
    for name, shape in architecture_of(text).tower_shapes(config, text).items():
        values = torch.randn(shape, generator=generator)
        if name.endswith(("_min", "_max")):
            values = (values.abs() / 4 + 3) * (-1 if name.endswith("_min") else 1)
        elif len(shape) > 1:
            values /= max(shape[1:]) ** 0.5
        elif "norm" in name and name.endswith("weight"):
            values = 1 + values / 4
        else:
            values /= 4
        tensors[name] = values.to(dtype)
    return tensors


def write_tiny_gemma(
    folder: Path,
    kind: Kind = "gemma2",
    *,
    seed: int = 0,
    shards: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    tied: bool = True,
    towers: bool = True,
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Write config, weights and tokenizer into ``folder`` (created) and return it.

    shards: one ``model.safetensors``, or several with an index. tied: whether the head shares the
    embedding's weights. towers: whether a multimodal model has them. overrides: keys of the text
    configuration to change first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(kind)
    text = config["text_config"] if kind in NESTED else config
    text.update(overrides or {})
    if kind in NESTED and not towers:
        config |= {"vision_config": None, "audio_config": None}
    if not tied:
        config["tie_word_embeddings"] = text["tie_word_embeddings"] = False
    _write_json(folder / "config.json", config)
    tensors = tiny_tensors(text, seed=seed, dtype=dtype, tied=tied)
    read = text_config(config)
    tensors = stacked(read, tensors)
    if kind in NESTED:
        if kind == "gemma3":
            tensors = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
        else:
            tensors = _published(read, tensors)
    if kind == "embedding":
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        write_sentence_modules(folder, text["hidden_size"], seed=seed)
    if kind in NESTED and towers:
        tensors |= tower_tensors(config, seed=seed, dtype=dtype)
        _write_json(folder / "processor_config.json", _PROCESSORS)
    write_shards(folder, tensors, shards)
    write_tiny_tokenizer(folder, ends=kind == "embedding")
    return folder


def write_shards(folder: Path, tensors: Mapping[str, Tensor], shards: int = 1) -> None:
    """Write tensors as one file, or as several of about the same count with an index."""
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        chosen = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        save_file({n: tensors[n] for n in chosen}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(chosen, file))
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
