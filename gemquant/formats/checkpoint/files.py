"""Files that come with a model, read without trusting names, links, sizes or JSON."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from gemquant.core.untrusted import UntrustedFile, hub_repository
from gemquant.errors import CheckpointError

PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
"""As transformers spells them: of all, of images and sound, of videos."""


def contained(folder: Path, name: str) -> Path:
    """Return ``folder / name``; the file must exist and lie in the folder.

    A snapshot in a Hub cache is a folder of links into the cache's ``blobs``, which therefore count
    as inside. Raises CheckpointError for "..", absolute names and links that lead out.
    """
    pure = PurePosixPath(name)
    if (
        not name
        or "\0" in name
        or "\\" in name
        or pure.is_absolute()
        or ".." in pure.parts
        or PureWindowsPath(name).drive
    ):
        raise CheckpointError(f"{folder}: {name!r} is not the name of a file in the folder.")
    path = folder / name
    if not os.path.exists(path):  # noqa: PTH110 - False for a name that no file can have
        raise CheckpointError(
            f"{folder}: {name} is missing.", hint="Download the checkpoint again."
        )
    target = path.resolve()
    if not any(target.is_relative_to(root) for root in _roots(folder)):
        raise CheckpointError(
            f"{path} is a link to {target}, outside the checkpoint.",
            hint="Put the file itself in the folder, or open the folder that holds it.",
        )
    if not target.is_file():
        raise CheckpointError(f"{path} is not a file.")
    return path


def _roots(folder: Path) -> tuple[Path, ...]:
    resolved = folder.resolve()
    if hub_repository(folder) is not None:
        return (resolved, resolved.parent.parent / "blobs")
    return (resolved,)


MAX_JSON_BYTES = 100_000_000


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of at most 100 MB; raise CheckpointError for any other."""
    content = UntrustedFile(path, MAX_JSON_BYTES, CheckpointError).json()
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object.")
    return content
