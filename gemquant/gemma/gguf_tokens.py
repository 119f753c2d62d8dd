"""Tokens that stand for themselves, as a GGUF and as tokenizer.json tell of them.

Gemma lists <mask>, the unused tokens and the like as ordinary added tokens; llama.cpp's converter
stores them as control tokens all the same, so that nobody types them by accident.

Source: llama.cpp ``conversion/base.py``, ``does_token_look_special``.
"""

from __future__ import annotations

import re

SPACE = "▁"
"""How SentencePiece spells a space."""

_LOOKS_SPECIAL = re.compile(
    r"<pad>|<mask>|<2mass>|\[@BOS@\]|<\|.*\|>|<｜.*｜>|<unused.*>", re.DOTALL
)


def looks_special(token: str) -> bool:
    """Whether llama.cpp's converter takes an ordinary added token for a control token.

    >>> looks_special("<unused7>"), looks_special("<table>")
    (True, False)
    """
    return _LOOKS_SPECIAL.fullmatch(token) is not None
