"""The file types that llama.cpp's quantize offers and gemquant writes.

A file type names a mixture: Q4_K_M stores most tensors in Q4_K and the sensitive ones in Q6_K.

Source: llama.cpp ``include/llama.h`` (``enum llama_ftype``), ``src/llama-quant.cpp``
(``llama_ftype_get_default_type``), ``tools/quantize/quantize.cpp`` (names and aliases).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gemquant.errors import UsageError
from gemquant.numerics.ggml.types import TYPES, GgmlType


@dataclass(frozen=True)
class FileType:
    """One mixture. number: the metadata ``general.file_type``; default: most tensors' format."""

    name: str
    number: int
    default: GgmlType


_NUMBERS = {
    "F32": 0, "F16": 1, "BF16": 32,
    "Q8_0": 7, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9,
    "Q2_K": 10, "Q2_K_S": 21, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13,
    "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18,
    "IQ4_NL": 25, "IQ4_XS": 30,
}  # fmt: skip
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


def _default(name: str) -> GgmlType:
    """Q4_K for Q4_K_M: the format that the file type is named after."""
    return TYPES[name] if name in TYPES else TYPES[name.rpartition("_")[0]]


FILE_TYPES: Mapping[str, FileType] = {
    name: FileType(name, number, _default(name)) for name, number in _NUMBERS.items()
}
"""Every file type that gemquant writes, by llama.cpp's name."""


def file_type(name: str) -> FileType:
    """Return a file type by its name in any case, or by llama.cpp's alias of it.

    >>> file_type("q4_k").name
    'Q4_K_M'
    """
    upper = name.upper()
    found = FILE_TYPES.get(_ALIASES.get(upper, upper))
    if found is None:
        raise UsageError(f"GGUF type {name!r}: known are {', '.join(FILE_TYPES)}.")
    return found


def tensor_type(name: str) -> GgmlType:
    """Return the format of a single tensor by ggml's name in any case.

    Raises UsageError, also for a file type such as Q4_K_M, which no single tensor can have.
    """
    upper = name.upper()
    if upper in TYPES:
        return TYPES[upper]
    hint = None
    if upper in FILE_TYPES:
        hint = f"{upper} is a mixture for a whole file; a tensor has one format, such as "
        hint += f"{FILE_TYPES[upper].default.name}."
    raise UsageError(f"tensor type {name!r}: known are {', '.join(TYPES)}.", hint=hint)
