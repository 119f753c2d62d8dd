"""Everything in a Gemma's GGUF beside its tensors, as llama.cpp's converter and quantizer write it.

    general.*        what it is, where it comes from, under which terms
    gemma3.*         the configuration
    tokenizer.*      vocabulary, special tokens, chat template

Where this says more than upstream's converter, a comment says what and why.

Source: llama.cpp ``conversion/base.py``, ``conversion/gemma.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Any

from gguf import GGML_QUANT_VERSION

from gemquant.formats.checkpoint.provenance import Provenance
from gemquant.formats.gguf.general import general_metadata
from gemquant.formats.gguf.keys import FILE_TYPE, architecture_metadata
from gemquant.formats.gguf.special_tokens import special_token_metadata
from gemquant.formats.gguf.tokenizer_parts import TokenizerParts, tokenizer_parts
from gemquant.formats.gguf.values import (
    GgufValue,
    Metadata,
    boolean,
    float32s,
    int32s,
    string,
    strings,
    uint32,
)
from gemquant.formats.gguf.vocabulary import vocabulary
from gemquant.models.architecture import architecture_of, tensor_shapes

QUANTIZATION_VERSION = "general.quantization_version"


def converted_metadata(
    config: Mapping[str, Any],
    tokenizer_files: Mapping[str, bytes],
    provenance: Provenance,
    *,
    file_type: int,
    chat_template: str | None = None,
    name: str | None = None,
) -> dict[str, GgufValue]:
    """Return all keys, in the order of llama.cpp's converter.

    config: as ``gemquant.models.config.text_config`` returns it. tokenizer_files: by name, as
    ``Checkpoint.tokenizer_files`` returns them. file_type: llama.cpp's ``llama_ftype``.
    chat_template: replaces the one of the files. name: replaces the model's own.
    Raises CheckpointError or UnsupportedError where the tokenizer cannot be stored.
    """
    parts = tokenizer_parts(tokenizer_files, provenance.base_model)
    parameters = sum(map(prod, tensor_shapes(config).values()))
    return {
        "general.architecture": string(architecture_of(config).gguf.architecture),
        "general.type": string("model"),
        **general_metadata(provenance, parts.generation, parameters=parameters, name=name),
        **architecture_metadata(config, file_type=file_type),
        QUANTIZATION_VERSION: uint32(GGML_QUANT_VERSION),
        **tokenizer_metadata(parts, config, chat_template=chat_template),
    }


def quantized_metadata(metadata: Metadata, *, file_type: int) -> dict[str, GgufValue]:
    """Return the keys as llama.cpp's quantizer leaves them: version and file type at the end.

    metadata: what the converter wrote, or all of another GGUF (``GgufTensors.typed_metadata``);
    what says that it is one part of several is left out.
    """
    kept = {
        key: value
        for key, value in metadata.items()
        if key not in (QUANTIZATION_VERSION, FILE_TYPE) and not key.startswith("split.")
    }
    return {
        **kept,
        QUANTIZATION_VERSION: uint32(GGML_QUANT_VERSION),
        FILE_TYPE: uint32(file_type),
    }


def tokenizer_metadata(
    parts: TokenizerParts, config: Mapping[str, Any], *, chat_template: str | None = None
) -> dict[str, GgufValue]:
    """Return the keys under ``tokenizer.*``, in the order of llama.cpp's converter."""
    size = config["vocab_size"]
    words = vocabulary(parts, size)
    special = special_token_metadata(parts, config, size=size)
    end_of_turn = special.pop("tokenizer.ggml.eot_token_id", None)
    keys = {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.pre": string("default"),
        "tokenizer.ggml.tokens": strings(words.tokens),
        "tokenizer.ggml.scores": float32s(words.scores),
        "tokenizer.ggml.token_type": int32s(words.types),
        **special,
        **_chat_templates(parts, chat_template),
    }
    if end_of_turn is not None:
        keys["tokenizer.ggml.eot_token_id"] = end_of_turn
    keys["tokenizer.ggml.add_space_prefix"] = boolean(False)
    return keys


def _chat_templates(parts: TokenizerParts, chosen: str | None) -> dict[str, GgufValue]:
    """The default template, and others by name.

    As transformers does, and evaluation here, chat_template.jinja comes before the template in
    tokenizer_config.json; upstream has it the other way round.
    """
    if chosen is not None:
        return {"tokenizer.chat_template": string(chosen)}
    given = parts.config.get("chat_template") if parts.jinja is None else parts.jinja
    listed = given if isinstance(given, list) else [{"name": "default", "template": given}]
    named: dict[str, str] = {}
    for entry in listed:
        label = entry.get("name") if isinstance(entry, dict) else None
        template = entry.get("template") if isinstance(entry, dict) else None
        if isinstance(label, str) and label and isinstance(template, str):
            named[re.sub(r"[^A-Za-z0-9]", "_", label)] = template
    keys = {
        f"tokenizer.chat_template.{label}": string(template)
        for label, template in named.items()
        if label != "default"
    }
    others = sorted(label for label in named if label != "default")
    if others:
        keys["tokenizer.chat_templates"] = strings(others)
    if "default" in named:
        keys["tokenizer.chat_template"] = string(named["default"])
    return keys
