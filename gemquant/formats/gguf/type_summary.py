"""What a choice of types comes to: sizes and counts per type, and what did not fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gemquant.formats.gguf.types import TensorType
from gemquant.numerics.ggml.types import GgmlType


@dataclass(frozen=True)
class TypeShare:
    """All tensors of one type. size_bytes: without padding."""

    type: GgmlType
    tensors: int
    weights: int
    size_bytes: int


@dataclass(frozen=True)
class Fallback:
    """Tensors that have another type than wanted, for one reason."""

    wanted: GgmlType
    type: GgmlType
    reason: str
    names: tuple[str, ...]


def type_shares(tensors: Iterable[TensorType]) -> tuple[TypeShare, ...]:
    """Return one share per type, the largest first."""
    shares: dict[GgmlType, TypeShare] = {}
    for tensor in tensors:
        so_far = shares.get(tensor.type, TypeShare(tensor.type, 0, 0, 0))
        shares[tensor.type] = TypeShare(
            tensor.type,
            so_far.tensors + 1,
            so_far.weights + tensor.weights,
            so_far.size_bytes + tensor.size_bytes,
        )
    return tuple(sorted(shares.values(), key=lambda share: (-share.size_bytes, share.type.name)))


def bits_per_weight(tensors: Iterable[TensorType]) -> float:
    """Return the mean bits per weight over all tensors, norms included, as llama.cpp prints it."""
    shares = type_shares(tensors)
    return 8 * sum(s.size_bytes for s in shares) / sum(s.weights for s in shares)


def fallbacks(tensors: Iterable[TensorType]) -> tuple[Fallback, ...]:
    """Group the tensors whose rows do not fit by what was wanted, what they got, and why."""
    names: dict[tuple[GgmlType, GgmlType, str], list[str]] = {}
    for tensor in tensors:
        if tensor.fallback is not None:
            key = (tensor.wanted, tensor.type, tensor.fallback)
            names.setdefault(key, []).append(tensor.name)
    return tuple(Fallback(*key, tuple(each)) for key, each in names.items())
