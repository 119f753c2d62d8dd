"""What an artifact is, apart from what is told of it: another card makes no other artifact."""

from __future__ import annotations

import hashlib

from gemquant.core.artifact.card import CARD_FILE
from gemquant.core.artifact.manifest import FileRecord, Manifest

EVALUATION_FILE = "evaluation.json"
TASKS_FILE = "tasks.json"
"""What was measured since, as the card shows it."""
ABOUT_FILES = frozenset({CARD_FILE, EVALUATION_FILE, TASKS_FILE})


def content_files(manifest: Manifest) -> dict[str, FileRecord]:
    """All files but the card and what it shows, which may be renewed."""
    return {name: file for name, file in manifest.files.items() if name not in ABOUT_FILES}


def content_digest(manifest: Manifest) -> str:
    """``sha256:`` over the names and hashes of those files, in order of the alphabet."""
    lines = sorted(f"{name} {file.sha256}\n" for name, file in content_files(manifest).items())
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
