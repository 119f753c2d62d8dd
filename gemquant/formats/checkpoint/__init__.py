"""Read-only Gemmas: folders, Hub repositories, GGUF files and the sample."""

from __future__ import annotations

from gemquant.formats.checkpoint.checkpoint import Checkpoint, open_checkpoint
from gemquant.formats.checkpoint.provenance import Provenance

__all__ = ["Checkpoint", "Provenance", "open_checkpoint"]
