"""The file types that llama-quantize offers, and which tensors each stores in more bits, as data.

A file type names a mixture: Q4_K_M stores most tensors in Q4_K and the sensitive ones in Q6_K. The
rules are llama.cpp's, spelled out for models with Gemma's tensor names. For each file type
and kind of tensor the first rule that applies decides; without one it is the default format.

Source: llama.cpp ``include/llama.h`` (``enum llama_ftype``), ``src/llama-quant.cpp``
(``llama_ftype_get_default_type``, ``llama_tensor_get_type_impl``, ``tensor_type_fallback``),
``tools/quantize/quantize.cpp`` (names and aliases).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gemquant.errors import UsageError
from gemquant.numerics.ggml_types import TYPES, GgmlType


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
NOT_MADE = {
    "IQ1_S": (1.56, "Q2_K_S"), "IQ1_M": (1.75, "Q2_K_S"), "IQ2_XXS": (2.06, "Q2_K_S"),
    "IQ2_XS": (2.31, "Q2_K_S"), "IQ2_S": (2.5, "Q2_K_S"), "IQ2_M": (2.7, "Q2_K_S"),
    "IQ3_XXS": (3.06, "Q2_K"), "IQ3_XS": (3.3, "Q2_K"), "IQ3_S": (3.44, "Q3_K_S"),
    "IQ3_M": (3.66, "Q3_K_S"), "TQ1_0": (1.69, "Q2_K_S"), "TQ2_0": (2.06, "Q2_K_S"),
    "MXFP4": (4.25, "IQ4_XS"), "MXFP4_MOE": (4.25, "IQ4_XS"), "Q8_K": (9.1, "Q8_0"),
}  # fmt: skip
"""File types of llama.cpp's that gemquant does not make: bits, and the nearest that it makes."""
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
    known = FILE_TYPES.get(_ALIASES.get(upper, upper))
    if known is None and upper in NOT_MADE:
        bits, nearest = NOT_MADE[upper]
        raise UsageError(
            f"GGUF type {upper}: gemquant does not make it ({bits} bits per weight).",
            hint=f"The nearest in size: {nearest}.",
        )
    if known is None:
        raise UsageError(f"GGUF type {name!r}: known are {', '.join(FILE_TYPES)}.")
    return known


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


# ---------------------------------------------------------------- rules


@dataclass(frozen=True)
class Place:
    """The position of a tensor among those of its kind.

    index: its turn among the tensors of its kind that these rules decide, or its layer's number in
    a model with experts; layers: of the model, or how many have such a tensor.
    heads_per_kv: query heads that share a key-value head. experts: of a layer, or 0.
    has_importance: whether the file is quantized with an importance matrix at all.
    """

    index: int
    layers: int
    heads_per_kv: int
    has_importance: bool
    experts: int = 0


Condition = Callable[[Place], bool]


def _always(_: Place) -> bool:
    return True


def _first_two(place: Place) -> bool:
    return place.index < 2


def _first_four(place: Place) -> bool:
    return place.index < 4


def _first_eighth(place: Place) -> bool:
    return place.index < place.layers // 8


def _first_sixteenth(place: Place) -> bool:
    return place.index < place.layers // 16


def _first_eighth_unweighted(place: Place) -> bool:
    return _first_eighth(place) and not place.has_importance


def _first_eighth_weighted(place: Place) -> bool:
    return _first_eighth(place) and place.has_importance


def _four_heads_share(place: Place) -> bool:
    return place.heads_per_kv >= 4


def _first_last_and_every_third(place: Place) -> bool:
    """The first and last eighth, and every third layer between."""
    index, eighth = place.index, place.layers // 8
    return index < eighth or index >= 7 * place.layers // 8 or (index - eighth) % 3 == 2


Rules = Mapping[str, tuple[tuple[Condition, str], ...]]

_MORE: Rules = {
    "attn_v": ((_first_last_and_every_third, "Q6_K"),),
    "ffn_down": ((_first_last_and_every_third, "Q6_K"),),
}
_NON_LINEAR: Rules = {
    "attn_v": ((_four_heads_share, "Q5_K"),),
    "ffn_down": ((_first_eighth_unweighted, "Q5_K"),),
}
_RULES: Mapping[str, Rules] = {
    "Q2_K": {
        "attn_v": ((_four_heads_share, "Q4_K"), (_always, "Q3_K")),
        "attn_output": ((_always, "Q3_K"),),
        "ffn_down": ((_always, "Q3_K"),),
    },
    "Q2_K_S": {
        "attn_v": ((_four_heads_share, "Q4_K"),),
        "ffn_down": ((_first_eighth, "Q4_K"),),
    },
    "Q3_K_M": {
        "attn_v": ((_first_two, "Q5_K"), (_always, "Q4_K")),
        "attn_output": ((_always, "Q4_K"),),
        "ffn_down": ((_first_sixteenth, "Q5_K"), (_always, "Q4_K")),
    },
    "Q3_K_L": {
        "attn_v": ((_always, "Q5_K"),),
        "attn_output": ((_always, "Q5_K"),),
        "ffn_down": ((_always, "Q5_K"),),
    },
    "Q4_K_S": {
        "attn_v": ((_first_four, "Q5_K"),),
        "ffn_down": ((_first_eighth, "Q5_K"),),
    },
    "Q4_K_M": _MORE,
    "Q5_K_M": _MORE,
    "IQ4_NL": _NON_LINEAR,
    "IQ4_XS": _NON_LINEAR,
    # Q4_1 and Q5_1 go astray on ffn_down without importance, says the source.
    "Q4_0": {"ffn_down": ((_first_eighth_weighted, "Q4_1"),)},
    "Q5_0": {"ffn_down": ((_first_eighth_weighted, "Q5_1"),)},
}

COUNTED = ("attn_v", "ffn_down")
"""The kinds of tensor whose rules depend on their position."""


_EIGHT = 8
_OF_EIGHT: Mapping[str, Mapping[str, str]] = {
    "attn_v": dict.fromkeys(FILE_TYPES, "Q8_0"),
    "attn_k": dict.fromkeys(FILE_TYPES, "Q8_0"),
    "attn_output": dict.fromkeys(
        ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS"), "Q5_K"
    ),
}
"""Instead of other rules in a model of eight experts, where these are a small part."""


def layer_type(file_type: FileType, kind: str, place: Place) -> GgmlType:
    """Return the format of a linear inside a layer. kind: ``attn_v``, as in ``blk.0.attn_v``."""
    if place.experts == _EIGHT and kind in _OF_EIGHT:
        return TYPES[_OF_EIGHT[kind].get(file_type.name, file_type.default.name)]
    for applies, name in _RULES.get(file_type.name, {}).get(kind, ()):
        if applies(place):
            return TYPES[name]
    return file_type.default


def head_type(file_type: FileType) -> GgmlType:
    """Return the format of the head, or of the embedding where that is also the head."""
    return TYPES["Q8_0"] if file_type.default.name == "Q8_0" else TYPES["Q6_K"]


_FALLBACKS = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}  # fmt: skip


def fitting_type(preferred: GgmlType, columns: int) -> GgmlType:
    """Return ``preferred``, or what llama.cpp takes where rows of ``columns`` are not whole blocks.

    >>> fitting_type(TYPES["Q4_K"], 640).name
    'Q5_0'
    """
    if columns % preferred.block == 0:
        return preferred
    smaller = TYPES[_FALLBACKS.get(preferred.name, preferred.name)]
    return smaller if columns % smaller.block == 0 else TYPES["F16"]
