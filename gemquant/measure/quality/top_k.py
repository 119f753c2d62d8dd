"""The likeliest tokens of every position, kept while the vocabulary arrives in runs."""

from __future__ import annotations

import torch
from torch import Tensor

COUNT = 5
_GROUPS = 64


class Leading:
    """The five largest logits seen so far, and where they were: one row of state per token.

    Of tied logits any may be kept; equal logits keep the same.
    """

    def __init__(self, tokens: int, device: torch.device) -> None:
        self._logits = torch.full((tokens, COUNT), -torch.inf, device=device)
        self._ids = torch.full((tokens, COUNT), -1, dtype=torch.int64, device=device)

    def see(self, logits: Tensor, rows: slice, start: int) -> None:
        """Add logits (tokens, run) of the vocabulary entries from ``start`` on."""
        largest, where = _largest(logits)
        both = torch.cat([self._logits[rows], largest], 1)
        ids = torch.cat([self._ids[rows], where + start], 1)
        self._logits[rows], kept = both.topk(COUNT, 1)
        self._ids[rows] = ids.gather(1, kept)

    def shared_with(self, other: Leading) -> Tensor:
        """How many of this one's tokens are the other's too, (tokens,) float32."""
        same = (self._ids[:, :, None] == other._ids[:, None, :]) & (self._ids[:, :, None] >= 0)
        return same.any(2).sum(1).float()


def _largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The five largest of each row and their columns; fewer where a row is shorter.

    The five largest of a row lie in those five of its groups whose maxima are largest, so that a
    twelfth of it is sorted. Column c belongs to group c mod 64: maxima of such groups are vector
    instructions.
    """
    tokens, run = logits.shape
    depth = run // _GROUPS
    if run % _GROUPS or depth < COUNT:
        found = logits.topk(min(COUNT, run), 1)
        return found.values, found.indices
    grid = logits.view(tokens, depth, _GROUPS)
    groups = grid.amax(1).topk(COUNT, 1).indices
    members = grid.gather(2, groups[:, None, :].expand(-1, depth, -1)).reshape(tokens, -1)
    values, places = members.topk(COUNT, 1)
    columns = places // COUNT * _GROUPS + groups.gather(1, places % COUNT)
    return values, columns
