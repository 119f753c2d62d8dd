"""How the next token is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gemquant.errors import GemquantError, UsageError

LARGEST_SEED = 2**32 - 2  # llama.cpp takes the next one for "any"


@dataclass(frozen=True)
class Sampling:
    """Defaults are those that Gemma's makers recommend. seed: None for another one each time.

    temperature: 0 takes the likeliest token. max_tokens: of one answer.
    """

    temperature: float = 1.0
    top_p: float = 0.95
    top_k: int = 64
    seed: int | None = None
    max_tokens: int = 1024

    def problems(self) -> Sequence[GemquantError]:
        """Return everything that is out of range."""
        rules = [
            ("--temperature", self.temperature, 0 <= self.temperature <= 10, "from 0 to 10"),
            ("--top-p", self.top_p, 0 < self.top_p <= 1, "above 0, and at most 1"),
            ("--top-k", self.top_k, self.top_k >= 0, "at least 0 (0 for no limit)"),
            ("--max-tokens", self.max_tokens, self.max_tokens >= 1, "at least 1"),
            (
                "--seed",
                self.seed,
                self.seed is None or 0 <= self.seed <= LARGEST_SEED,
                f"from 0 to {LARGEST_SEED}",
            ),
        ]
        return [
            UsageError(f"{flag} {value}: must be {rule}.")
            for flag, value, ok, rule in rules
            if not ok
        ]
