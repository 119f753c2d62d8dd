"""Folding a scale into the rows of the linear before, where heads may share a key-value head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemquant.models.structure import NormFold, RowFold

if TYPE_CHECKING:
    from torch import Tensor


def shared_shape(fold: NormFold | RowFold | None, channels: int) -> tuple[int, int, int] | None:
    """(kv_heads, repeats, head_dim) where one producing row feeds several inputs."""
    if not isinstance(fold, RowFold) or fold.repeats == 1:
        return None
    return (channels // (fold.repeats * fold.head_dim), fold.repeats, fold.head_dim)


def per_row(scale: Tensor, fold: RowFold) -> Tensor:
    """The scale of each producing row: (rows,) from (rows · repeats,)."""
    if fold.repeats == 1:
        return scale
    return scale.reshape(-1, fold.repeats, fold.head_dim)[:, 0].reshape(-1)
