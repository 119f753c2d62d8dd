"""Requests answered by a model of transformers: most artifacts, and every original."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gemquant.measure.tasks.engines.engine import POSITIONS_AT_ONCE, Chunk, Window


@dataclass(frozen=True)
class TransformersEngine:
    """A causal language model. batch_size: windows in one forward pass."""

    runtime: str
    model: Any
    device: torch.device
    batch_size: int = 1
    longest: int | None = None

    @torch.inference_mode()
    def chunks(self, windows: Sequence[Window]) -> Iterator[Chunk]:
        """Logits, the longest windows first: what does not fit is known at once.

        Shorter windows of a batch are filled up behind their end, which a causal model never sees.
        """
        order = sorted(range(len(windows)), key=lambda n: -len(windows[n].ids))
        for begin in range(0, len(order), self.batch_size):
            batch = order[begin : begin + self.batch_size]
            ids = torch.zeros((len(batch), len(windows[batch[0]].ids)), dtype=torch.int64)
            for row, number in enumerate(batch):
                ids[row, : len(windows[number].ids)] = torch.tensor(windows[number].ids)
            hidden = self.model.model(input_ids=ids.to(self.device), use_cache=False)[0]
            for row, number in enumerate(batch):
                window = windows[number]
                for start in range(window.first, len(window.ids), POSITIONS_AT_ONCE):
                    stop = min(start + POSITIONS_AT_ONCE, len(window.ids))
                    yield Chunk(number, start, self._logits(hidden[row, start:stop]))

    @torch.inference_mode()
    def continuation(self, prompt: Sequence[int], *, most: int) -> Iterator[int]:
        """Yield the likeliest token, then the likeliest behind it, and so on."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config.get_text_config())
        rest = torch.tensor([list(prompt)], device=self.device)
        for _ in range(most):
            hidden = self.model.model(input_ids=rest, past_key_values=cache, use_cache=True)[0]
            token = int(self._logits(hidden[0, -1:])[0].argmax())
            yield token
            rest = torch.tensor([[token]], device=self.device)

    def _logits(self, hidden: Tensor) -> Tensor:
        """What the head makes of hidden states (positions, hidden): float32, softcap included."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        softcap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        return logits.float()
