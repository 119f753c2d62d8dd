"""Read-only Gemmas: folders, Hub repositories, GGUF files and the sample."""

from __future__ import annotations

from gemquant.checkpoint.checkpoint import Checkpoint
from gemquant.checkpoint.opening import open_checkpoint
from gemquant.checkpoint.provenance import Provenance

__all__ = ["Checkpoint", "Provenance", "open_checkpoint"]
