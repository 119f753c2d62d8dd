"""Name, origin, terms and recommended sampling of a model, under ``general.*``.

What a name says (gemma-2, 2B, it) is worked out by the ``gguf`` package, as llama.cpp's converter
does it. A card comes with the checkpoint: of it only texts and lists of texts are passed on.

Source: llama.cpp ``gguf-py/gguf/metadata.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gguf import GGUFValueType, Metadata
from gguf.utility import size_label

from gemquant.formats.checkpoint.provenance import Provenance, front_matter
from gemquant.formats.gguf.values import GgufValue, float32, int32, string, strings, uint32

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
    provenance: Provenance, generation: Mapping[str, Any], *, parameters: int, name: str | None
) -> dict[str, GgufValue]:
    """Return the keys from the recommended sampling to the languages, in upstream's order.

    generation: generation_config.json. parameters: weights of the model, for its size label.
    name: replaces the name that the card or the checkpoint's own name gives.
    """
    found = _found(provenance, parameters)
    found["name"] = name or found.get("name") or provenance.base_model
    found.setdefault("size_label", size_label(parameters, parameters, 0, 0))
    # Upstream writes no licence where the card names none; what is made from a Gemma has its terms.
    found.setdefault("license", provenance.license)
    keys = _sampling(generation)
    for field in _TEXTS:
        if field in found:
            keys[f"general.{_KEYS_OF_TEXTS.get(field, field)}"] = string(found[field])
    for field, key in (("base_models", "base_model"), ("datasets", "dataset")):
        if field in found:
            keys |= _parents(key, found[field])
    for field in ("tags", "languages"):
        # An array needs a type, and an empty one says nothing.
        if found.get(field):
            keys[f"general.{field}"] = strings(found[field])
    return keys


def _found(provenance: Provenance, parameters: int) -> dict[str, Any]:
    own = provenance.name or provenance.base_model
    known = Metadata.apply_metadata_heuristic(
        Metadata(), _card(provenance.card), {"_name_or_path": own}, None, parameters
    )
    found: dict[str, Any] = {}
    for field in _TEXTS:
        value: Any = getattr(known, field)
        if value:  # upstream joins several licences
            found[field] = ",".join([value] if isinstance(value, str) else value)
    for field in ("base_models", "datasets", "tags", "languages"):
        value = getattr(known, field)
        if value is not None:
            found[field] = value
    return found


def _card(card: str | None) -> dict[str, Any]:
    """The card's front matter, less everything that is neither text nor a list of texts."""
    # YAML takes Norwegian for False, and knows no tabs.
    matter = front_matter((card or "").replace("- no\n", '- "no"\n').replace("\t", "  "))
    kept: dict[str, Any] = {}
    for key, value in matter.items():
        if isinstance(value, str):
            kept[str(key)] = value
        elif isinstance(value, list):
            kept[str(key)] = [item for item in value if isinstance(item, str)]
    return kept


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
