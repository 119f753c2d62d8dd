"""Read-only Gemmas: folders, Hub repositories, GGUF files and the sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemquant.formats.checkpoint.checkpoint import Checkpoint, open_checkpoint
    from gemquant.formats.checkpoint.provenance import Provenance

__all__ = ["Checkpoint", "Provenance", "open_checkpoint"]


def __getattr__(name: str) -> Any:
    """Import what opens models when it is asked for: what only looks at paths needs no torch."""
    if name not in __all__:
        raise AttributeError(name)
    from gemquant.formats.checkpoint import checkpoint

    return getattr(checkpoint, name)
