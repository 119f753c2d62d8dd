"""``--tensor-type PATTERN=TYPE``, as llama.cpp's quantize understands it.

The pattern is a regular expression in lower case, sought anywhere in a tensor's name; the first
override that matches decides. llama.cpp compiles it as ECMAScript, so only what means the same
there and in Python is accepted.

Source: llama.cpp ``tools/quantize/quantize.cpp`` (``parse_tensor_type``), ``src/llama-quant.cpp``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gemquant.errors import UsageError
from gemquant.formats.gguf.file_types import tensor_type
from gemquant.numerics.ggml.types import GgmlType

_ESCAPE = r"\\(?:[dws]|[^A-Za-z0-9\s])"
_TOKEN = re.compile(
    rf"(?P<quantifier>(?:[*+?]|\{{\d{{1,3}}(?:,\d{{0,3}})?\}})\??)"
    rf"|(?P<open>\((?:\?[:!])?|\||\^)"
    rf"|(?P<atom>{_ESCAPE}|\\b|\[\^?(?:[^\]\[\\&~|-]|-(?!-)|{_ESCAPE})+\]|[^\\\[\]{{}}()*+?|^])"
    rf"|(?P<close>\))"
)
_UPPER_ESCAPE = re.compile(r"\\[A-Z]")


@dataclass(frozen=True)
class TypeOverride:
    """Tensors whose name holds a match of ``pattern`` get ``type``."""

    pattern: str
    type: GgmlType

    def matches(self, name: str) -> bool:
        """Whether this override speaks of a tensor, by its GGUF name."""
        return re.search(self.pattern, name) is not None

    def __str__(self) -> str:
        return f"{self.pattern}={self.type.name}"


def parse_override(text: str) -> TypeOverride:
    """Parse ``PATTERN=TYPE``; the pattern ends at the first ``=``. Raises UsageError.

    >>> override = parse_override("blk.*.attn_v=q6_k")
    >>> override.type.name, override.matches("blk.11.attn_v.weight")
    ('Q6_K', True)
    """
    pattern, separator, type_name = text.partition("=")
    if not separator or not pattern or not type_name:
        raise UsageError(
            f"--tensor-type {text!r}: must be PATTERN=TYPE.",
            hint="For example --tensor-type 'blk.*.attn_v=Q6_K'.",
        )
    if _UPPER_ESCAPE.search(pattern):
        raise UsageError(
            f"--tensor-type {text!r}: llama.cpp puts the pattern in lower case, so that an escape "
            "in upper case would mean its opposite."
        )
    pattern = pattern.lower()
    _check_portable(pattern, text)
    return TypeOverride(pattern, tensor_type(type_name))


def _check_portable(pattern: str, text: str) -> None:
    """Raise UsageError unless ECMAScript and Python read the pattern alike."""
    position, repeatable = 0, False
    while position < len(pattern):
        token = _TOKEN.match(pattern, position)
        if token is None or (token.lastgroup == "quantifier" and not repeatable):
            raise UsageError(
                f"--tensor-type {text!r}: {pattern[position : position + 3]!r} at character "
                f"{position + 1} of the pattern is not understood alike everywhere.",
                hint="It is a regular expression (.* for anything), sought anywhere in a name, of "
                "letters, digits, . * + ? {n,m} | ( ) [ ] ^ $ \\d \\w \\s \\b; "
                "\\ goes before a sign that stands for itself.",
            )
        repeatable = token.lastgroup in ("atom", "close") and token[0] not in ("$", "\\b")
        position = token.end()
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--tensor-type {text!r}: not a regular expression: {error}.") from None
