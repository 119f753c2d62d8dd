"""``NAME.llamafile.json``: what a llamafile was built from, and the check of a file against it.

The record has no dates, host names or paths. ``docs/llamafile.md`` describes each key. Files are
read back with the standard library's zip reader, not with the code that wrote them.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from gemquant.core.artifact.manifest import Sha256
from gemquant.core.json_document import Document, Record
from gemquant.core.protocols import Progress
from gemquant.core.untrusted import UntrustedFile, sha256_of
from gemquant.errors import ArtifactError, UsageError, refuse
from gemquant.formats.llamafile_archive import ALIGNMENT, LOCAL_HEADER_BYTES, data_offset
from gemquant.formats.llamafile_runtime import digests_of

SUFFIX = ".json"
_MAX_BYTES = 16_000_000


class PartRecord(Record):
    """A file, or a part of one."""

    name: str = Field(description="Name of the file or of the zip entry, without folders.")
    bytes: int = Field(ge=0, description="Size.")
    sha256: Sha256 = Field(description="SHA-256 of the bytes, hexadecimal.")


class RuntimeRecord(Record):
    """The executable that the llamafile begins with, byte for byte."""

    origin: str = Field(description="The URL that it was downloaded from, or its file's name.")
    bytes: int = Field(ge=1, description="Size: the llamafile begins with as many bytes of it.")
    sha256: Sha256 = Field(description="SHA-256 of the runtime as it was given.")
    version: str | None = Field(
        description="First line that the file printed for `--version`; null if it was not run."
    )
    entries: tuple[str, ...] = Field(
        description="Zip entries of the runtime that the llamafile lists again."
    )


class TowersRecord(PartRecord):
    """The mmproj file."""

    offset: int | None = Field(
        description="Offset of its data in the llamafile; null if it is a separate file."
    )


class WeightsRecord(TowersRecord):
    """The GGUF."""

    architecture: str = Field(description="`general.architecture` of its header.")
    license: str | None = Field(description="`general.license` of its header.")


class LlamafileRecord(Document):
    """Everything that a llamafile was built from."""

    kind: Literal["llamafile"] = Field(default="llamafile", description="What this describes.")
    file: PartRecord = Field(description="The executable.")
    runtime: RuntimeRecord = Field(description="The runtime in it.")
    weights: WeightsRecord = Field(
        description="The weights, in the llamafile or in a separate file."
    )
    towers: TowersRecord | None = Field(
        default=None,
        exclude_if=lambda towers: towers is None,
        description="The towers of a multimodal model; left out where there are none.",
    )
    arguments: tuple[str, ...] = Field(
        description="Default arguments; those of the call follow them."
    )
    libraries: Mapping[str, str] = Field(description="Version of gemquant.")


def record_path(llamafile: Path) -> Path:
    """Path of a llamafile's record."""
    return llamafile.with_name(llamafile.name + SUFFIX)


def read_record(llamafile: Path) -> LlamafileRecord:
    """Read a llamafile's record; ArtifactError if it is missing or invalid."""
    path = record_path(llamafile)
    return UntrustedFile(path, _MAX_BYTES, ArtifactError).record(LlamafileRecord)


USERS_ARGUMENTS = "..."
"""Where the runtime inserts the arguments of the call."""

# From 0.10 the runtime splits .args as a shell would (cosmopolitan's cosmo_args: quotes,
# backslashes, # and $NAME mean something); before, each line was one argument. Both read a plain
# argument on its own line alike; 0.10 and later also read quoted ones.
_PLAIN = re.compile(r"(?!\.\.\.)[^\s'\"$#\\\x00-\x1f]+")


def is_plain(argument: str) -> bool:
    """Whether an argument needs no quotes.

    >>> is_plain("--host=127.0.0.1"), is_plain("Be brief.")
    (True, False)
    """
    return _PLAIN.fullmatch(argument) is not None


def arguments_file(arguments: Sequence[str]) -> bytes:
    r"""Write ``.args``, the default arguments; those of the call follow them.

    >>> arguments_file(["-m", "/zip/gemma.gguf", "-p", "It's short."]).decode().splitlines()
    ['-m', '/zip/gemma.gguf', '-p', "'It'\\''s short.'", '...']
    """
    for argument in arguments:
        if "\0" in argument:
            raise UsageError(f"--arg {argument!r}: a NUL byte cannot be in an argument.")
    # Nothing is special between single quotes.
    lines = [a if is_plain(a) else "'" + a.replace("'", r"'\''") + "'" for a in arguments]
    return "".join(f"{line}\n" for line in (*lines, USERS_ARGUMENTS)).encode()


ARGUMENTS_ENTRY = ".args"


@dataclass(frozen=True)
class StoredEntry:
    """An entry as the file holds it. offset: of its data. stored: not compressed."""

    name: str
    offset: int
    size: int
    crc32: int
    stored: bool


def entries_in(path: Path) -> dict[str, StoredEntry]:
    """List a llamafile's entries; ArtifactError if its directory or a local header is damaged."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            entries: dict[str, StoredEntry] = {}
            for info in archive.infolist():
                archive.open(info).close()
                file.seek(info.header_offset)
                offset = data_offset(file.read(LOCAL_HEADER_BYTES), info.header_offset)
                stored = info.compress_type == zipfile.ZIP_STORED
                entries[info.filename] = StoredEntry(
                    info.filename, offset, info.file_size, info.CRC, stored
                )
            return entries
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, OSError) as error:
        raise ArtifactError(f"{path}: its zip directory cannot be read: {error}.") from None


def read_back(
    path: Path, record: LlamafileRecord, *, weights_folders: Sequence[Path], progress: Progress
) -> None:
    """Compare the runtime, its entries, the arguments and the weights with the record.

    weights_folders: where external weights are looked for, in order. ArtifactError lists every
    difference.
    """
    entries = entries_in(path)
    differences = [*_differences(path, entries, record, progress)]
    for part in filter(None, (record.weights, record.towers)):
        if part.offset is None:
            places = [folder / part.name for folder in weights_folders]
            found = next((place for place in places if place.is_file()), places[-1])
            differences += _external(found, part, progress)
        else:
            differences += _packed(path, entries.get(part.name), part, progress)
    refuse(ArtifactError(each) for each in differences)


def _differences(
    path: Path, entries: Mapping[str, StoredEntry], record: LlamafileRecord, progress: Progress
) -> Iterator[str]:
    runtime = digests_of(path, size=record.runtime.bytes, task="reading runtime", progress=progress)
    if runtime.sha256 != record.runtime.sha256:
        yield f"{path} does not begin with the runtime that the record names."
    for name in (*record.runtime.entries, ARGUMENTS_ENTRY):
        if name not in entries:
            yield f"{path}: the entry {name} is missing."
    if ARGUMENTS_ENTRY in entries:
        with zipfile.ZipFile(path) as archive:
            written = archive.read(ARGUMENTS_ENTRY)
        if written != arguments_file(record.arguments):
            yield f"{path}: {ARGUMENTS_ENTRY} differs from the record."


def _external(path: Path, weights: TowersRecord, progress: Progress) -> Iterator[str]:
    if not path.is_file():
        yield f"{path} is missing; the llamafile loads its weights from this file."
    elif digests_of(path, task="reading weights", progress=progress).sha256 != weights.sha256:
        yield f"{path} is not the file that the record describes."


def _packed(
    path: Path, entry: StoredEntry | None, weights: TowersRecord, progress: Progress
) -> Iterator[str]:
    if entry is None:
        yield f"{path}: the entry {weights.name} is missing."
    elif not entry.stored:
        yield f"{path}: {weights.name} is compressed; runtimes map stored entries only."
    elif entry.offset % ALIGNMENT or entry.offset != weights.offset:
        yield (
            f"{path}: the data of {weights.name} begins at byte {entry.offset}, not at "
            f"{weights.offset}, a multiple of {ALIGNMENT}."
        )
    else:
        digests = digests_of(
            path, offset=entry.offset, size=entry.size, task="reading weights", progress=progress
        )
        if digests.sha256 != weights.sha256 or digests.crc32 != entry.crc32:
            yield f"{path}: {weights.name} is not the file that was packed."


def verify(path: Path, *, progress: Progress) -> LlamafileRecord:
    """Check a llamafile against its record file; ArtifactError lists every difference."""
    record = read_record(path)
    read_back(path, record, weights_folders=[path.parent], progress=progress)
    if sha256_of(path) != record.file.sha256:
        raise ArtifactError(f"{path} is not the file that {record_path(path).name} describes.")
    return record
