"""Tokens that stand for themselves, as a GGUF and as tokenizer.json tell of them.

Gemma lists <mask>, the unused tokens and the like as ordinary added tokens; llama.cpp's converter
stores them as control tokens all the same, so that nobody types them by accident.

The only piece that Gemma 1 and 2 have for a tab is its byte's, <0x09>; their tokenizer.json has the
tab itself in that place.

Source: llama.cpp ``conversion/base.py``, ``does_token_look_special``; transformers 4
``convert_slow_tokenizer.py``, ``GemmaConverter``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

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


TAB, _BYTE_9, _BYTE_8 = "\t", "<0x09>", "<0x08>"


def as_in_tokenizer_json(pieces: Sequence[str]) -> list[str]:
    r"""Spell byte 9 as a tab where no other piece is one.

    >>> as_in_tokenizer_json(["<0x08>", "<0x09>"])
    ['<0x08>', '\t']
    >>> as_in_tokenizer_json(["<0x08>", "<0x09>", "\t"])
    ['<0x08>', '<0x09>', '\t']
    """
    spelled = list(pieces)
    if TAB not in spelled and _BYTE_9 in spelled:
        spelled[spelled.index(_BYTE_9)] = TAB
    return spelled


def as_in_tokenizer_model(pieces: Sequence[str]) -> list[str]:
    r"""Undo ``as_in_tokenizer_json``: a tab after byte 8 is byte 9.

    >>> as_in_tokenizer_model(["<0x08>", "\t"])
    ['<0x08>', '<0x09>']
    """
    spelled = list(pieces)
    if TAB in spelled:
        index = spelled.index(TAB)
        if index and spelled[index - 1] == _BYTE_8:
            spelled[index] = _BYTE_9
    return spelled
