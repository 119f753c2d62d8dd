"""Reading a llamafile back, with the standard library's eyes and not with those that wrote it."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemquant.core.progress import Progress
from gemquant.errors import ArtifactError, GemquantError, refuse
from gemquant.formats.llamafile.arguments import arguments_file
from gemquant.formats.llamafile.digests import digests_of, sha256_of
from gemquant.formats.llamafile.packing import ALIGNMENT
from gemquant.formats.llamafile.record import LlamafileRecord, read_record, record_path
from gemquant.formats.llamafile.zip_records import LOCAL_HEADER_BYTES, data_offset

ARGUMENTS_ENTRY = ".args"


@dataclass(frozen=True)
class Stored:
    """An entry as it lies in the file. stored: not compressed."""

    name: str
    offset: int
    size: int
    crc32: int
    stored: bool


def entries_in(path: Path) -> dict[str, Stored]:
    """List a llamafile's entries with where their data begins.

    Raises ArtifactError where the zip directory, or a local header that it points to, is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            found: dict[str, Stored] = {}
            for info in archive.infolist():
                archive.open(info).close()
                file.seek(info.header_offset)
                offset = data_offset(file.read(LOCAL_HEADER_BYTES), info.header_offset)
                stored = info.compress_type == zipfile.ZIP_STORED
                found[info.filename] = Stored(
                    info.filename, offset, info.file_size, info.CRC, stored
                )
            return found
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, OSError) as error:
        raise ArtifactError(f"{path}: its zip directory cannot be read: {error}.") from None


def arguments_in(path: Path) -> str:
    """Return a llamafile's ``.args``."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(ARGUMENTS_ENTRY).decode(errors="replace")


def read_back(
    path: Path, record: LlamafileRecord, *, weights_folder: Path, progress: Progress
) -> None:
    """Read everything again: the runtime at the beginning, its entries, ours, the weights.

    weights_folder: where external weights stand. ArtifactError lists all in which the file is not
    what its record describes.
    """
    found = entries_in(path)
    problems: list[GemquantError] = []
    runtime = digests_of(path, size=record.runtime.bytes, task="reading runtime", progress=progress)
    if runtime.sha256 != record.runtime.sha256:
        problems.append(ArtifactError(f"{path} does not begin with the runtime on record."))
    problems += [
        ArtifactError(f"{path}: the entry {name} is missing.")
        for name in (*record.runtime.entries, ARGUMENTS_ENTRY)
        if name not in found
    ]
    if ARGUMENTS_ENTRY in found and _arguments_in(path) != arguments_file(record.arguments):
        problems.append(ArtifactError(f"{path}: {ARGUMENTS_ENTRY} does not hold the arguments."))
    if record.weights.offset is None:
        problems += _beside(weights_folder / record.weights.name, record, progress)
    else:
        problems += _inside(path, found, record, progress)
    refuse(problems)


def verify(path: Path, *, progress: Progress) -> LlamafileRecord:
    """Check a llamafile against the record beside it; ArtifactError lists every difference."""
    record = read_record(path)
    read_back(path, record, weights_folder=path.parent, progress=progress)
    if sha256_of(path) != record.file.sha256:
        raise ArtifactError(f"{path} is not the file that {record_path(path).name} describes.")
    return record


def _arguments_in(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(ARGUMENTS_ENTRY)


def _inside(
    path: Path, found: dict[str, Stored], record: LlamafileRecord, progress: Progress
) -> Sequence[GemquantError]:
    weights = record.weights
    entry = found.get(weights.name)
    if entry is None:
        return [ArtifactError(f"{path}: the entry {weights.name} is missing.")]
    if not entry.stored:
        return [ArtifactError(f"{path}: {weights.name} is compressed: no runtime can map it.")]
    if entry.offset % ALIGNMENT or entry.offset != weights.offset:
        return [
            ArtifactError(
                f"{path}: the data of {weights.name} begins at byte {entry.offset}, not at "
                f"{weights.offset}, a multiple of {ALIGNMENT}."
            )
        ]
    seen = digests_of(
        path, offset=entry.offset, size=entry.size, task="reading weights", progress=progress
    )
    if seen.sha256 != weights.sha256 or seen.crc32 != entry.crc32:
        return [ArtifactError(f"{path}: {weights.name} is not the file that was put in.")]
    return []


def _beside(path: Path, record: LlamafileRecord, progress: Progress) -> Sequence[GemquantError]:
    if not path.is_file():
        return [ArtifactError(f"{path} is missing: the llamafile loads its weights from there.")]
    seen = digests_of(path, task="reading weights", progress=progress)
    if seen.sha256 != record.weights.sha256:
        return [ArtifactError(f"{path} is not the file on record.")]
    return []
