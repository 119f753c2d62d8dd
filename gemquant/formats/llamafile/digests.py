"""Checksums of files and of stretches within them, in one reading."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

from gemquant.core.progress import Progress

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Digests:
    """What identifies content: its size, the zip format's CRC-32, and SHA-256 in hexadecimal."""

    bytes: int
    crc32: int
    sha256: str


def digests_of(
    path: Path,
    *,
    offset: int = 0,
    size: int | None = None,
    task: str,
    progress: Progress,
) -> Digests:
    """Read a file, or ``size`` bytes of it from ``offset`` on (fewer where it ends before)."""
    left = path.stat().st_size - offset if size is None else size
    crc, sha, done = 0, hashlib.sha256(), 0
    progress.start(task, -(-left // _CHUNK))
    with path.open("rb") as file:
        file.seek(offset)
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            crc = zlib.crc32(chunk, crc)
            sha.update(chunk)
            done += len(chunk)
            left -= len(chunk)
            progress.advance(task)
    return Digests(done, crc, sha.hexdigest())


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
