"""The file itself: runtime, entries, directory, each at its place."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gemquant.formats.llamafile.runtime import BundledEntry
from gemquant.formats.llamafile.zip_records import Entry, directory_entry, end_records, local_header

ALIGNMENT = 65536
"""Of the weights' data: a page on every system that maps them (Windows 64 KiB, Metal 16 KiB)."""

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Member:
    """An entry to write. content: its bytes, or the file that holds them; aligned: of its data."""

    entry: Entry
    content: bytes | Path
    aligned: int = 1


@dataclass(frozen=True)
class Place:
    """Where an entry lies: its local header, and its data."""

    header_offset: int
    data_offset: int


@dataclass(frozen=True)
class Layout:
    """Where everything lies. directory: what follows the last entry; size: of the whole file."""

    places: Sequence[Place]
    directory: bytes
    size: int


def lay_out(
    runtime_bytes: int, bundled: Sequence[BundledEntry], members: Sequence[Member]
) -> Layout:
    """Decide where everything lies, before a byte is written.

    An entry of the runtime's own with the name of a new one is no longer listed.
    """
    end = runtime_bytes
    places: list[Place] = []
    for member in members:
        header = len(local_header(member.entry))
        data = -(-(end + header) // member.aligned) * member.aligned
        places.append(Place(data - header, data))
        end = data + member.entry.size
    ours = {member.entry.name for member in members}
    records = [entry.record for entry in bundled if entry.name not in ours]
    records += [
        directory_entry(member.entry, place.header_offset)
        for member, place in zip(members, places, strict=True)
    ]
    directory = b"".join(records)
    directory += end_records(entries=len(records), offset=end, size=len(directory))
    return Layout(places, directory, end + len(directory))


def write(path: Path, runtime: Path, members: Sequence[Member], layout: Layout) -> None:
    """Write the file and make it executable. Gaps are left as holes, which read as zeros."""
    with path.open("wb") as out:
        _copy(runtime, out)
        for member, place in zip(members, layout.places, strict=True):
            out.seek(place.header_offset)
            out.write(local_header(member.entry))
            if isinstance(member.content, bytes):
                out.write(member.content)
            else:
                _copy(member.content, out)
        out.seek(layout.size - len(layout.directory))
        out.write(layout.directory)
    path.chmod(0o755)


def _copy(source: Path, out: BinaryIO) -> None:
    """Copy a file to where ``out`` stands; what is a hole stays one."""
    begin = out.tell()
    with source.open("rb", buffering=0) as file:
        for start, stop in _extents(file):
            file.seek(start)
            out.seek(begin + start)
            left = stop - start
            while left:
                chunk = file.read(min(_CHUNK, left))
                if not chunk:
                    raise OSError(0, "became shorter while it was read", str(source))
                out.write(chunk)
                left -= len(chunk)
        out.seek(begin + os.fstat(file.fileno()).st_size)


def _extents(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield the stretches of a file that hold data: the whole, where the system does not tell."""
    size = os.fstat(file.fileno()).st_size
    if not hasattr(os, "SEEK_DATA"):
        yield 0, size
        return
    stop = 0
    while stop < size:
        try:
            start = os.lseek(file.fileno(), stop, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        stop = os.lseek(file.fileno(), start, os.SEEK_HOLE)
        yield start, stop
