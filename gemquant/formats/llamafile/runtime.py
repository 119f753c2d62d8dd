"""The executable that a llamafile begins with, and the zip entries that it brings along.

A llamafile runtime is itself a zip: its web pages, time zones and GPU modules are entries, found
through a directory at its end. The new directory must list them again, or the runtime loses them.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemquant.core.resources import human_bytes
from gemquant.errors import ArtifactError, UnsupportedError, UsageError
from gemquant.formats.llamafile.digests import sha256_of
from gemquant.formats.llamafile.zip_records import entry_length, moved_entry

MAX_BYTES = 2_000_000_000
"""Size of a runtime; the largest published one, with its GPU modules, has under 1 GB."""

_MAX_ENTRIES = 60_000
_SHA256 = re.compile("[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class BundledEntry:
    """An entry of the runtime's own. record: its line for the new directory."""

    name: str
    record: bytes


@dataclass(frozen=True)
class Runtime:
    """An executable to put first. origin: its URL, or its file's name."""

    path: Path
    origin: str
    bytes: int
    sha256: str
    entries: Sequence[BundledEntry]


def checked_sha256(text: str) -> str:
    """Return a SHA-256 in lower case; UsageError where the text is none."""
    if not _SHA256.fullmatch(text):
        raise UsageError(
            f"--sha256 {text}: must be 64 hexadecimal digits.",
            hint="Copy it from where the runtime is published.",
        )
    return text.lower()


def open_runtime(path: Path, *, origin: str, sha256: str | None) -> Runtime:
    """Hash an executable and read its zip directory, if it has one.

    sha256: what it must be, or None. Raises UsageError for what is no file or too large,
    ArtifactError for a file that is not the expected one, UnsupportedError for a directory that
    cannot be carried over.
    """
    if not path.is_file():
        raise UsageError(
            f"--runtime {path}: no such file.",
            hint="Download one from https://github.com/mozilla-ai/llamafile/releases",
        )
    size = path.stat().st_size
    if not 0 < size <= MAX_BYTES:
        raise UsageError(
            f"--runtime {path}: {human_bytes(size)}; must be from 1 B to {human_bytes(MAX_BYTES)}."
        )
    found = sha256_of(path)
    if sha256 is not None and found != sha256:
        raise ArtifactError(
            f"the runtime {origin} is not the expected file: sha256 {found}, not {sha256}.",
            hint="Compare both with what the runtime's publisher says.",
        )
    return Runtime(path, origin, size, found, bundled_entries(path))


def bundled_entries(path: Path) -> list[BundledEntry]:
    """Read the directory at an executable's end, with offsets from the beginning of the file."""
    if not zipfile.is_zipfile(path):
        return []
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            infos = archive.infolist()
            for info in infos:
                archive.open(info).close()  # its local header is there and has its name
            file.seek(archive.start_dir)
            directory = file.read()
        return _entries(directory, infos)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, OSError) as error:
        raise UnsupportedError(
            f"--runtime {path}: its zip directory cannot be carried over: {error}.",
            hint="Download the runtime again.",
        ) from None


def _entries(directory: bytes, infos: Sequence[zipfile.ZipInfo]) -> list[BundledEntry]:
    if len(infos) > _MAX_ENTRIES:
        raise ValueError(f"{len(infos)} entries; at most {_MAX_ENTRIES} are carried over")
    entries: list[BundledEntry] = []
    position = 0
    for info in infos:
        length = entry_length(directory, position)
        record = directory[position : position + length]
        entries.append(BundledEntry(info.filename, moved_entry(record, info.header_offset)))
        position += length
    return entries
