"""All metadata of a Gemma's GGUF, as llama.cpp's converter and quantizer write it.

    general.*        name, origin, licence, recommended sampling
    gemma3.*         the configuration
    tokenizer.*      vocabulary, special tokens, chat template

The ``gguf`` package splits a model's name (gemma-2, 2B, it), as it does for the converter. A card
comes with the checkpoint: only texts and lists of texts are taken from it. Where a key goes beyond
upstream's converter, a comment gives the reason.

Source: llama.cpp ``conversion/base.py``, ``conversion/gemma.py``, ``gguf-py/gguf/metadata.py``,
``gguf-py/gguf/vocab.py`` (``SpecialVocab``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import gguf
from gguf import GGML_QUANT_VERSION, GGUFValueType, TokenType
from gguf.utility import size_label

from gemquant.formats.checkpoint.provenance import Provenance, front_matter
from gemquant.formats.gguf.config import FILE_TYPE, architecture_metadata, is_ollamas
from gemquant.formats.gguf.names import gguf_shapes
from gemquant.formats.gguf.values import (
    GgufValue,
    Metadata,
    boolean,
    float32,
    float32s,
    int32,
    int32s,
    string,
    strings,
    uint32,
)
from gemquant.formats.gguf.vocabulary import (
    PADDING_SCORE,
    TokenizerParts,
    bpe_vocabulary,
    tokenizer_parts,
    vocabulary,
)
from gemquant.models.architecture import architecture_of

# What llama.cpp calls it, what generation_config.json may call it, and its type.
_SAMPLING: Sequence[tuple[str, tuple[str, ...], GGUFValueType]] = (
    ("top_k", ("top_k",), GGUFValueType.INT32),
    ("top_p", ("top_p",), GGUFValueType.FLOAT32),
    ("min_p", ("min_p",), GGUFValueType.FLOAT32),
    ("xtc_probability", ("xtc_probability",), GGUFValueType.FLOAT32),
    ("xtc_threshold", ("xtc_threshold",), GGUFValueType.FLOAT32),
    ("temp", ("temperature",), GGUFValueType.FLOAT32),
    ("penalty_last_n", ("penalty_last_n",), GGUFValueType.INT32),
    ("penalty_repeat", ("penalty_repeat", "repetition_penalty"), GGUFValueType.FLOAT32),
    ("mirostat", ("mirostat",), GGUFValueType.INT32),
    ("mirostat_tau", ("mirostat_tau",), GGUFValueType.FLOAT32),
    ("mirostat_eta", ("mirostat_eta",), GGUFValueType.FLOAT32),
)
_TEXTS = (
    "name", "author", "version", "organization", "finetune", "basename", "description",
    "quantized_by", "size_label", "license", "license_name", "license_link", "url", "doi", "uuid",
    "repo_url", "source_url", "source_doi", "source_uuid", "source_repo_url",
)  # fmt: skip
_KEYS_OF_TEXTS: Mapping[str, str] = {
    "license_name": "license.name",
    "license_link": "license.link",
    "source_url": "source.url",
    "source_doi": "source.doi",
    "source_uuid": "source.uuid",
    "source_repo_url": "source.repo_url",
}
_PARENT_FIELDS = (
    "name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url",
)  # fmt: skip


def general_metadata(
    provenance: Provenance,
    generation: Mapping[str, Any],
    *,
    sizes: tuple[int, int, int, int],
    name: str | None,
) -> dict[str, GgufValue]:
    """Return the keys from the recommended sampling to the languages, in upstream's order.

    generation: generation_config.json. sizes: for the label: weights in all, of what is no expert,
    of one expert in every layer, and the number of experts.
    name: replaces the name that the card or the checkpoint's own name gives.
    """
    fields = _found(provenance, sizes[0])
    fields["name"] = name or fields.get("name") or provenance.base_model
    fields.setdefault("size_label", size_label(*sizes))
    # Upstream writes no licence where the card names none; a derivative inherits the Gemma terms.
    fields.setdefault("license", provenance.license)
    keys = _sampling(generation)
    for field in _TEXTS:
        if field in fields:
            keys[f"general.{_KEYS_OF_TEXTS.get(field, field)}"] = string(fields[field])
    for field, key in (("base_models", "base_model"), ("datasets", "dataset")):
        if field in fields:
            keys |= _parents(key, fields[field])
    for field in ("tags", "languages"):
        # An empty array has no element to take the type from.
        if fields.get(field):
            keys[f"general.{field}"] = strings(fields[field])
    return keys


def _found(provenance: Provenance, parameters: int) -> dict[str, Any]:
    name = provenance.name or provenance.base_model
    known = gguf.Metadata.apply_metadata_heuristic(
        gguf.Metadata(), _card(provenance.card), {"_name_or_path": name}, None, parameters
    )
    fields: dict[str, Any] = {}
    for field in _TEXTS:
        value: Any = getattr(known, field)
        if value:  # upstream joins several licences
            fields[field] = ",".join([value] if isinstance(value, str) else value)
    for field in ("base_models", "datasets", "tags", "languages"):
        value = getattr(known, field)
        if value is not None:
            fields[field] = value
    return fields


def _card(card: str | None) -> dict[str, Any]:
    """The texts and lists of texts in the card's front matter."""
    # YAML takes Norwegian for False, and knows no tabs.
    matter = front_matter((card or "").replace("- no\n", '- "no"\n').replace("\t", "  "))
    fields: dict[str, Any] = {}
    for key, value in matter.items():
        if isinstance(value, str):
            fields[str(key)] = value
        elif isinstance(value, list):
            fields[str(key)] = [item for item in value if isinstance(item, str)]
    return fields


def _parents(key: str, parents: Sequence[Mapping[str, Any]]) -> dict[str, GgufValue]:
    keys: dict[str, GgufValue] = {f"general.{key}.count": uint32(len(parents))}
    for index, parent in enumerate(parents):
        for field in _PARENT_FIELDS:
            if isinstance(parent.get(field), str):
                keys[f"general.{key}.{index}.{field}"] = string(parent[field])
    return keys


def _sampling(generation: Mapping[str, Any]) -> dict[str, GgufValue]:
    keys: dict[str, GgufValue] = {}
    sequence = generation.get("sequence")
    if isinstance(sequence, str):
        keys["general.sampling.sequence"] = string(sequence)
    for key, names, kind in _SAMPLING:
        value: Any = next((generation[name] for name in names if name in generation), None)
        if type(value) not in (int, float) or not abs(value) < 2**31:
            continue
        if kind == GGUFValueType.INT32:
            if float(value).is_integer():
                keys[f"general.sampling.{key}"] = int32(int(value))
        else:
            keys[f"general.sampling.{key}"] = float32(float(value))
    return keys


# ---------------------------------------------------------------- special tokens


# The converter's names of the roles, and llama.cpp's keys, spelled as it spells them.
_ROLES: Mapping[str, str] = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding",
    "cls": "cls", "mask": "mask",
}  # fmt: skip


def special_token_metadata(
    parts: TokenizerParts, config: Mapping[str, Any], *, size: int
) -> dict[str, GgufValue]:
    """Return ids of special tokens below ``size``, and whether BOS, EOS and SEP are added."""
    ids: dict[str, int] = {}
    for role in _ROLES:
        index = _named(parts, role)
        if index is not None and 0 <= index < size:
            ids.setdefault(role, index)
    for role in _ROLES:
        index = config.get(f"{role}_token_id")
        # Upstream passes over a list such as [1, 106]; llama.cpp would end at id 2, Gemma's <bos>.
        index = index[0] if isinstance(index, list) and index else index
        if type(index) is int and 0 <= index < size:
            ids.setdefault(role, index)
    # Where no file names it, upstream leaves it out; llama.cpp would take id 0, Gemma's <pad>.
    if "unk" not in ids and parts.unknown in parts.pieces[:size]:
        ids["unk"] = parts.pieces.index(parts.unknown)
    keys = {f"tokenizer.ggml.{_ROLES[role]}_token_id": uint32(ids[role]) for role in ids}
    for role, adds in _additions(parts).items():
        keys[f"tokenizer.ggml.add_{role}_token"] = boolean(adds)
    # Upstream also means to name CodeGemma's infill tokens, and has no key for them.
    end_of_turn = architecture_of(config).gguf.end_of_turn_id
    if end_of_turn is not None and size > end_of_turn:
        named = _named(parts, "eot")
        keys["tokenizer.ggml.eot_token_id"] = uint32(end_of_turn if named is None else named)
    return keys


def _content(parts: TokenizerParts, role: str) -> str | None:
    entry = parts.config.get(f"{role}_token")
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None


def _named(parts: TokenizerParts, role: str) -> int | None:
    content = _content(parts, role)
    return None if content is None else parts.id_of(content)


def _additions(parts: TokenizerParts) -> dict[str, bool]:
    """Which special tokens the post-processor adds, or else tokenizer_config.json."""
    adds: dict[str, bool] = {}
    processors = parts.post_processor.get("processors")
    for processor in processors if isinstance(processors, list) else [parts.post_processor]:
        if isinstance(processor, dict) and processor.get("type") == "TemplateProcessing":
            adds |= _template_additions(parts, processor)
    if parts.config:
        for role in _ROLES:
            value = parts.config.get(f"add_{role}_token")
            if isinstance(value, bool):
                adds.setdefault(role, value)
    return adds


def _template_additions(parts: TokenizerParts, processor: Mapping[str, Any]) -> dict[str, bool]:
    """Read ``<bos> A`` and ``<bos> A <bos> B``: BOS before a text, no SEP between two."""
    single, pair = _template(processor, "single"), _template(processor, "pair")
    adds: dict[str, bool] = {}
    first = single[0] if len(single) > 1 else None
    last = single[-1] if len(single) > 1 else None
    eos = _content(parts, "eos") or _content(parts, "sep")
    if first is not None:
        adds["bos"] = first in (_content(parts, "bos") or first, _content(parts, "cls"))
    if last is not None:
        adds["eos"] = last == (eos or last)
    between = pair[1 if first and pair[:1] == [first] else 0 :]
    if last and between[-1:] == [last]:
        between = between[:-1]
    if len(between) > 2 and between[0] is None and between[-1] is None:
        ends = (_content(parts, "sep"), eos)
        adds["sep"] = last is None and any(token in ends for token in between[1:-1] if token)
    return adds


def _template(processor: Mapping[str, Any], name: str) -> Sequence[str | None]:
    """The special tokens of a template, in order; None stands for a text."""
    entries = processor.get(name)
    tokens: list[str | None] = []
    for entry in entries if isinstance(entries, list) else []:
        special = entry.get("SpecialToken") if isinstance(entry, dict) else None
        token = special.get("id") if isinstance(special, dict) else None
        tokens.append(token if isinstance(token, str) else None)
    return tokens


# ---------------------------------------------------------------- all of it

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
    sizes = _sizes(gguf_shapes(config))
    return {
        "general.architecture": string(architecture_of(config).gguf.architecture),
        "general.type": string("model"),
        **general_metadata(provenance, parts.generation, sizes=sizes, name=name),
        **architecture_metadata(config, file_type=file_type),
        **_suppressed(parts.generation),
        QUANTIZATION_VERSION: uint32(GGML_QUANT_VERSION),
        **tokenizer_metadata(parts, config, chat_template=chat_template),
    }


def copied_metadata(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, GgufValue]:
    """Return the keys of a GGUF for another one of the same model, which llama.cpp can load.

    What ollama leaves out or spells otherwise is added, what is of its vision model left out, and
    the vocabulary made as long as the embedding.
    """
    kept = dict(metadata)
    plain = {key: value.value for key, value in kept.items()}
    if is_ollamas(plain):
        prefix = f"{plain['general.architecture']}."
        own = architecture_metadata(config, file_type=0)
        kept = {key: value for key, value in kept.items() if not key.startswith(prefix)} | own
    size = config["vocab_size"]
    padding = [f"[PAD{index}]" for index in range(len(plain["tokenizer.ggml.tokens"]), size)]
    for key, filler, make in (
        ("tokens", padding, strings),
        ("scores", [PADDING_SCORE] * len(padding), float32s),
        ("token_type", [int(TokenType.UNUSED)] * len(padding), int32s),
    ):
        values = plain[f"tokenizer.ggml.{key}"]
        if len(values) != size:
            kept[f"tokenizer.ggml.{key}"] = make([*values, *filler][:size])
    return kept


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int, int]:
    """Weights in all, of what is no expert, and of one expert in every layer; experts.

    As gguf-py counts them.
    """
    experts = [shape for name, shape in shapes.items() if "_exps." in name and len(shape) == 3]
    total, of_experts = sum(map(prod, shapes.values())), sum(map(prod, experts))
    count = experts[0][0] if experts else 0
    return total, total - of_experts, of_experts // max(count, 1), count


def _suppressed(generation: Mapping[str, Any]) -> dict[str, GgufValue]:
    """Tokens that are never sampled. Upstream writes them for one class of models alone."""
    tokens = generation.get("suppress_tokens")
    if not isinstance(tokens, list) or not tokens or not all(type(t) is int for t in tokens):
        return {}
    return {"tokenizer.ggml.suppress_tokens": int32s(tokens)}


def quantized_metadata(metadata: Metadata, *, file_type: int) -> dict[str, GgufValue]:
    """Return the keys as llama.cpp's quantizer leaves them: version and file type at the end.

    metadata: what the converter wrote, or all of another GGUF (``GgufTensors.typed_metadata``);
    what says that it is one part of several is left out.
    """
    rest = {
        key: value
        for key, value in metadata.items()
        if key not in (QUANTIZATION_VERSION, FILE_TYPE) and not key.startswith("split.")
    }
    return {
        **rest,
        QUANTIZATION_VERSION: uint32(GGML_QUANT_VERSION),
        FILE_TYPE: uint32(file_type),
    }


def tokenizer_metadata(
    parts: TokenizerParts, config: Mapping[str, Any], *, chat_template: str | None = None
) -> dict[str, GgufValue]:
    """Return the keys under ``tokenizer.*``, in the order of llama.cpp's converter."""
    size, gguf = config["vocab_size"], architecture_of(config).gguf
    kept = {"model": string("llama"), "pre": string("default")}
    words = None if gguf.merges else vocabulary(parts, size)
    if words is None:
        words = bpe_vocabulary(parts, size, gguf.visible_tokens)
        kept = {"model": string(gguf.architecture)}
    kept |= {
        "tokens": strings(words.tokens),
        "scores": float32s(words.scores),
        "token_type": int32s(words.types),
    }
    if gguf.merges:
        kept["merges"] = strings([" ".join(map(_spelled, pair)) for pair in parts.merges])
    special = special_token_metadata(parts, config, size=size)
    end_of_turn = special.pop("tokenizer.ggml.eot_token_id", None)
    keys = {
        **{f"tokenizer.ggml.{key}": value for key, value in kept.items()},
        **special,
        **_chat_templates(parts, chat_template),
    }
    if end_of_turn is not None:
        keys["tokenizer.ggml.eot_token_id"] = end_of_turn
    keys["tokenizer.ggml.add_space_prefix"] = boolean(False)
    if gguf.merges:
        keys["tokenizer.ggml.add_bos_token"] = boolean(True)
    return keys


def _spelled(part: str) -> str:
    """A part of a merge; a space, which separates the parts, is moved up as gguf-py does it."""
    return part.replace(" ", chr(ord(" ") + 256))


def _chat_templates(parts: TokenizerParts, chosen: str | None) -> dict[str, GgufValue]:
    """The default template, and others by name.

    As transformers does, and evaluation here, chat_template.jinja comes before the template in
    tokenizer_config.json; upstream has it the other way round.
    """
    if chosen is not None:
        return {"tokenizer.chat_template": string(chosen)}
    template = parts.config.get("chat_template") if parts.jinja is None else parts.jinja
    listed = template if isinstance(template, list) else [{"name": "default", "template": template}]
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
