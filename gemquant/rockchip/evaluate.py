"""An RKLLM file on a board: level ``native`` for the container ``rkllm``.

Tokens go there, and logits come back, in float32 and bit by bit; all else is the vendor's runtime.
What its logits leave out, such as a softcap, would show as divergence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gemquant.errors import ArtifactError, WorkerError
from gemquant.rockchip.board.events import Done, Loaded, Ran, Rows
from gemquant.rockchip.board.rkllm import RkllmOnBoard, longest_window, rows_of
from gemquant.rockchip.programs.rkllm_structures import layout_of

POSITIONS_AT_ONCE = 128
"""Positions that are compared together, as each time the whole head of the original is read."""


@dataclass(frozen=True)
class RkllmRunner:
    """A file on a board. software: for a document. max_window: as its logits fit there."""

    there: RkllmOnBoard
    software: str
    version: str
    vocabulary: int
    beginning: tuple[int, ...]
    max_tokens: int | None = None

    @classmethod
    def start(
        cls, there: RkllmOnBoard, *, vocabulary: int, prompt: Sequence[int], new_tokens: int
    ) -> RkllmRunner:
        """Have a prompt continued, which tells the release; WorkerError where that fails."""
        loaded, ran = _continued(there, prompt, new_tokens)
        told = there.told
        place = f"{told.platform or 'an unknown chip'}, NPU driver {told.driver or 'unknown'}"
        software = f"librkllmrt {loaded.version} on {place}"
        return cls(there, software, loaded.version, vocabulary, ran.tokens)

    @property
    def max_window(self) -> int:
        """Tokens of a window whose logits the board is asked to hold."""
        return longest_window(self.vocabulary)

    @property
    def not_run(self) -> str | None:
        """Why there is nothing to compare, or None."""
        if layout_of(self.version).logits:
            return None
        return (
            f"librkllmrt {self.version} has no logits, which came with 1.2.0; convert with toolkit "
            "1.2.0 or newer, and install its runtime"
        )

    def generate(self, prompt: Sequence[int], *, max_new_tokens: int) -> list[int]:
        """Return the tokens that follow a prompt, greedily."""
        return list(_continued(self.there, prompt, max_new_tokens)[1].tokens)

    def logit_chunks(self, ids: Tensor) -> Iterator[Tensor]:
        """Yield the logits that predict a token: (positions, vocabulary) float32.

        ids: (windows, tokens). The next chunk overwrites the last. ArtifactError where the runtime
        has another vocabulary; WorkerError where rows are missing.
        """
        windows, tokens = ids.shape
        held = np.empty((POSITIONS_AT_ONCE, self.vocabulary), dtype=np.float32)
        filled, expected = 0, 0
        events = self.there.logits(ids.tolist())
        with closing(events):  # type: ignore[type-var]
            for event in events:
                if isinstance(event, Rows):
                    if event.window * tokens + event.first != expected:
                        raise WorkerError("Logits came from the board in another order.")
                    if event.columns != self.vocabulary:
                        raise ArtifactError(
                            f"{self.software}: logits over {event.columns} tokens, and the model "
                            f"has {self.vocabulary}."
                        )
                    expected += event.rows
                    # The last token of a window predicts nothing that is known.
                    rows = rows_of(event)[: tokens - 1 - event.first]
                    while len(rows):
                        some = rows[: POSITIONS_AT_ONCE - filled]
                        held[filled : filled + len(some)] = some
                        filled, rows = filled + len(some), rows[len(some) :]
                        if filled == POSITIONS_AT_ONCE:
                            yield torch.from_numpy(held)
                            filled = 0
        if expected != windows * tokens:
            raise WorkerError(f"Logits of {expected} tokens came back, and {ids.numel()} went in.")
        if filled:
            yield torch.from_numpy(held[:filled])


def _continued(there: RkllmOnBoard, prompt: Sequence[int], new_tokens: int) -> tuple[Loaded, Ran]:
    loaded, ran, done = None, None, False
    for event in there.generate(prompt, new_tokens=new_tokens):
        if isinstance(event, Loaded):
            loaded = event
        elif isinstance(event, Ran):
            ran = event
        done = done or isinstance(event, Done)
    if loaded is None or ran is None or not done:
        raise WorkerError("The board did not say what it generated.")
    return loaded, ran
