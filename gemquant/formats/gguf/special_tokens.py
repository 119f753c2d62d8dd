"""Which tokens have a part to play, and whether texts begin with BOS, as llama.cpp is told.

Source: llama.cpp ``gguf-py/gguf/vocab.py``, ``SpecialVocab``; ``conversion/gemma.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gemquant.formats.gguf.tokenizer_parts import TokenizerParts
from gemquant.formats.gguf.values import GgufValue, boolean, uint32
from gemquant.models.architecture import architecture_of

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
    """What the post-processor adds to a text; failing that, what tokenizer_config.json says."""
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
    """The special tokens of a template in their places; None stands for a text."""
    entries = processor.get(name)
    found: list[str | None] = []
    for entry in entries if isinstance(entries, list) else []:
        special = entry.get("SpecialToken") if isinstance(entry, dict) else None
        token = special.get("id") if isinstance(special, dict) else None
        found.append(token if isinstance(token, str) else None)
    return found
