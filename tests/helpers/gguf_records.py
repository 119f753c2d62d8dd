"""Metadata as ``tests/golden/make_gguf_metadata.py`` records it."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from gguf import GGUFValueType

from gemquant.formats.gguf.values import GgufValue

_LISTED = 20
_ARRAY_HEAD_BYTES = 12


def recorded(value: GgufValue) -> list[Any]:
    """Return type and value; of a long array, and of every array of numbers, count and SHA-256."""
    if value.type != GGUFValueType.ARRAY:
        plain = value.value
        if value.type == GGUFValueType.FLOAT32:
            plain = float(np.float32(plain))
        return [value.type.name, plain]
    assert value.element is not None
    kind = f"ARRAY/{value.element.name}"
    if value.element == GGUFValueType.STRING and len(value.value) < _LISTED:
        return [kind, list(value.value)]
    digest = hashlib.sha256(value.packed[_ARRAY_HEAD_BYTES:]).hexdigest()
    return [kind, {"count": len(value.value), "sha256": digest}]
