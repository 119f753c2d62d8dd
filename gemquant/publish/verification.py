"""Whether a folder is still the artifact that was sealed, and its container whole."""

from __future__ import annotations

from pathlib import Path

from gemquant.convert.plugins import exporter
from gemquant.core.artifact import Artifact
from gemquant.errors import GemquantError, Problems
from gemquant.rockchip.rkllm_file import sealed_problems


def artifact_problems(path: Path) -> list[GemquantError]:
    """Everything that is wrong with an artifact: hashes of all files, then the structure."""
    try:
        artifact = Artifact.open(path)
        if artifact.manifest.conversion is not None:
            return [*sealed_problems(path, artifact.manifest)]
        exporter(artifact.manifest.container).open(path)
    except Problems as several:
        return list(several.problems)
    except GemquantError as error:
        return [error]
    return []
