"""How a model reads and writes text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Voice:
    """How a model reads and writes text.

    tokenizer: of the package ``tokenizers``. bos: id. ends: ids that end an answer. template: Jinja
    source of the chat template. longest: tokens that a window may have.
    """

    tokenizer: Any
    bos: int
    ends: frozenset[int]
    template: str | None
    longest: int

    def encode(self, text: str) -> list[int]:
        """Token ids, without a BOS but for those that stand in the text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids
