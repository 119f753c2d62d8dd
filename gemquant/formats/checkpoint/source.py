"""Tensors of a checkpoint's files: the source they are read from, their names, finite values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gemquant.errors import CheckpointError
from gemquant.models.architecture import text_prefixes, tower_prefixes

# What DataParallel and peft put before the names of what they wrap.
_WRAPPERS = ("module.", "base_model.model.")
# And torch.compile, FSDP and activation checkpointing, also before those of modules inside.
_INNER_WRAPPERS = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# A module that holds the whole model as its own ``model``.
_DOUBLED = re.compile(r"(model\.)+(?=model\.|lm_head\.)")
# The decoder alone, as saved without its head.
_BARE = ("embed_tokens.", "layers.", "norm.")
# A buffer that early checkpoints saved with the weights; it follows from the configuration.
_DERIVED = "rotary_emb.inv_freq"


def text_name(name: str) -> str | None:
    """Return the text-only model's name for a tensor, or None if it is not part of that model.

    >>> text_name("language_model.model.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    >>> text_name("vision_tower.vision_model.embeddings.patch_embedding.weight")
    """
    name = unwrapped(name)
    if name.startswith(_BARE):
        name = f"model.{name}"
    if name.startswith(tower_prefixes()) or name.endswith(_DERIVED):
        return None
    for prefix, replacement in text_prefixes().items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


def text_module(module: str) -> str:
    """The text model's name for a module of a multimodal one; other words stay as they are.

    >>> text_module("model.language_model.layers.0.mlp"), text_module("Linear")
    ('model.layers.0.mlp', 'Linear')
    """
    return (text_name(f"{module}.") or module).removesuffix(".")


def unwrapped(name: str) -> str:
    """A tensor's name without what wrappers of modules add."""
    name = _INNER_WRAPPERS.sub("", name)
    while name.startswith(_WRAPPERS):
        name = next(name.removeprefix(w) for w in _WRAPPERS if name.startswith(w))
    return name[match.end() :] if (match := _DOUBLED.match(name)) else name


def is_wrapped(name: str) -> bool:
    """Whether a tensor's name is another than any published Gemma has."""
    return name.startswith(_BARE) or unwrapped(name) != name


class TensorSource(Protocol):
    """Named tensors in files, decoded on request; nothing is read before."""

    @property
    def files(self) -> Sequence[Path]:
        """The weight files."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes from headers alone."""

    @property
    def packed(self) -> Mapping[str, str]:
        """Format of every matrix that is quantized already: ggml's name, or the scheme."""

    def stored_dtype(self, name: str) -> torch.dtype:
        """The floating-point type that holds the tensor without loss."""

    def read(self, name: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows ``start`` to ``stop`` (elements of a vector) in ``dtype``."""


def require_finite(tensor: Tensor, what: str) -> None:
    """Raise CheckpointError if the tensor holds a NaN or an infinity."""
    if tensor.numel() == 0:
        return
    # One pass without a temporary: the smallest and largest value carry any NaN or infinity.
    low, high = torch.aminmax(tensor)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        bad = tensor.numel() - sum(
            int(chunk.isfinite().count_nonzero()) for chunk in torch.split(tensor, 1024)
        )
        raise CheckpointError(
            f"{what}: {bad} of {tensor.numel()} values are NaN or infinite.",
            hint="Download the checkpoint again; if it stays, the model itself is broken.",
        )
