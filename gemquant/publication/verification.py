"""Whether a folder is still the artifact that was sealed, and its container whole."""

from __future__ import annotations

from pathlib import Path

from gemquant.artifact import Artifact
from gemquant.errors import GemquantError, Problems
from gemquant.plugins import exporter


def artifact_problems(path: Path) -> list[GemquantError]:
    """Everything that is wrong with an artifact: hashes of all files, then the structure."""
    try:
        artifact = Artifact.open(path)
        # What its vendor's tool wrote is in no published format; the hashes have been compared.
        if artifact.manifest.conversion is None:
            exporter(artifact.manifest.container).open(path)
    except Problems as several:
        return list(several.problems)
    except GemquantError as error:
        return [error]
    return []
