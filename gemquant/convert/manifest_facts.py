"""What every manifest says alike: the checkpoint, the calibration text, the libraries."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from gemquant.core.artifact import CalibrationRecord, Source

if TYPE_CHECKING:
    from gemquant.calibration.windows import TokenWindows
    from gemquant.formats.checkpoint import Checkpoint

LIBRARIES = ("gemquant", "torch", "transformers", "tokenizers", "safetensors")


def source_record(checkpoint: Checkpoint) -> Source:
    """Name a checkpoint, its revision, and the SHA-256 of every weight file that was read."""
    return Source(
        ref=checkpoint.ref, revision=checkpoint.revision, files=checkpoint.source_digest()
    )


def calibration_record(windows: TokenWindows | None) -> CalibrationRecord | None:
    """Name the text that statistics were gathered on; None where there was none."""
    if windows is None:
        return None
    count, seq_len = windows.ids.shape
    return CalibrationRecord(
        name=windows.name, windows=count, seq_len=seq_len, digest=windows.digest
    )


def library_versions() -> dict[str, str]:
    """Versions, without what is built on which accelerator, of the libraries that decide bytes."""
    return {name: version(name).partition("+")[0] for name in LIBRARIES}
