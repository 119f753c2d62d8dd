"""The zip records of a llamafile, and the file that they make: runtime, entries, directory.

    local header       before each entry's data
    directory entry    one per entry, at the end of the file
    end records        where the directory is; two zip64 records precede it if a number needs them

A number that does not fit 32 bits (16 for the count) is written as all ones, and for real in a
zip64 record. Every entry is dated 1 January 1980, the format's first day.

Source: APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16 and 4.5.3.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_LOCAL = struct.Struct("<IHHHHHIIIHH")
_ENTRY = struct.Struct("<IHHHHHHIIIHHHHHII")
_END = struct.Struct("<IHHHHIIH")
_END64 = struct.Struct("<IQHHIIQQQQ")
_LOCATOR64 = struct.Struct("<IIQI")

LOCAL_SIGNATURE = 0x04034B50
ENTRY_SIGNATURE = 0x02014B50
_END_SIGNATURE = 0x06054B50
_END64_SIGNATURE = 0x06064B50
_LOCATOR64_SIGNATURE = 0x07064B50

_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_VERSION, _VERSION_ZIP64 = 20, 45
_UNIX = 3
_MODE = 0o100644
_UTF8_NAMES = 1 << 11
_STORED = 0
_FIRST_DAY = (1 << 5) | 1  # 1980-01-01
_ZIP64_EXTRA = 1


@dataclass(frozen=True)
class Entry:
    """A file in the zip, stored uncompressed. crc32: of the content."""

    name: str
    size: int
    crc32: int


@dataclass(frozen=True)
class BundledEntry:
    """An entry of the runtime. record: its entry for the new directory."""

    name: str
    record: bytes


def local_header(entry: Entry) -> bytes:
    """Return the header that precedes an entry's data."""
    large = entry.size >= _FULL32
    # Unlike in the directory, zip64 holds both sizes here or neither.
    extra = _zip64([entry.size, entry.size] if large else [])
    version = _VERSION_ZIP64 if large else _VERSION
    head = _LOCAL.pack(LOCAL_SIGNATURE, version, *_common_fields(entry, extra))
    return head + entry.name.encode() + extra


def directory_entry(entry: Entry, offset: int) -> bytes:
    """Return an entry's record in the directory. offset: of its local header."""
    large_size, large_offset = entry.size >= _FULL32, offset >= _FULL32
    numbers = [entry.size, entry.size] * large_size + [offset] * large_offset
    extra = _zip64(numbers)
    version = _VERSION_ZIP64 if numbers else _VERSION
    comment = disk = internal = 0  # internal attributes: binary
    head = _ENTRY.pack(
        *(ENTRY_SIGNATURE, (_UNIX << 8) | version, version, *_common_fields(entry, extra)),
        *(comment, disk, internal, _MODE << 16, min(offset, _FULL32)),
    )
    return head + entry.name.encode() + extra


def _common_fields(entry: Entry, extra: bytes) -> tuple[int, ...]:
    """Flags to lengths, which both headers have."""
    size = min(entry.size, _FULL32)
    date = (0, _FIRST_DAY)
    name_bytes = len(entry.name.encode())
    return (_UTF8_NAMES, _STORED, *date, entry.crc32, size, size, name_bytes, len(extra))


def end_records(*, entries: int, offset: int, size: int) -> bytes:
    """Return the records that end the file: offset and size of the directory."""
    records = b""
    if entries >= _FULL16 or offset >= _FULL32 or size >= _FULL32:
        length = _END64.size - 12  # without this field and the signature
        versions = ((_UNIX << 8) | _VERSION_ZIP64, _VERSION_ZIP64)
        counts = (entries, entries)
        records += _END64.pack(_END64_SIGNATURE, length, *versions, 0, 0, *counts, size, offset)
        records += _LOCATOR64.pack(_LOCATOR64_SIGNATURE, 0, offset + size, 1)
    count = min(entries, _FULL16)
    return records + _END.pack(
        _END_SIGNATURE, 0, 0, count, count, min(size, _FULL32), min(offset, _FULL32), 0
    )


def _zip64(numbers: list[int]) -> bytes:
    if not numbers:
        return b""
    return struct.pack(f"<HH{len(numbers)}Q", _ZIP64_EXTRA, 8 * len(numbers), *numbers)


# ---------------------------------------------------------------- the runtime's entries


def moved_entry(raw: bytes, offset: int) -> bytes:
    """Return a directory entry that points to another offset.

    raw: the entry with name, extra fields and comment, which do not change. ValueError if the
    entry has no field for the offset.
    """
    fields = list(_ENTRY.unpack_from(raw))
    if fields[-1] != _FULL32:
        if offset >= _FULL32:
            raise ValueError(f"an offset of {offset} does not fit")
        fields[-1] = offset
        return _ENTRY.pack(*fields) + raw[_ENTRY.size :]
    # The zip64 field holds, in this order, what the record has no room for: size, packed, offset.
    before = 8 * (fields[9] == _FULL32) + 8 * (fields[8] == _FULL32)
    position = _ENTRY.size + fields[10]
    end = position + fields[11]
    while position + 4 <= end:
        kind, length = struct.unpack_from("<HH", raw, position)
        if kind == _ZIP64_EXTRA and length >= before + 8:
            at = position + 4 + before
            return raw[:at] + struct.pack("<Q", offset) + raw[at + 8 :]
        position += 4 + length
    raise ValueError("its zip64 field is missing")


def entry_length(directory: bytes, position: int) -> int:
    """Length of the directory entry at a position; ValueError if there is none."""
    if len(directory) - position < _ENTRY.size:
        raise ValueError("the directory ends in the middle of an entry")
    fields = _ENTRY.unpack_from(directory, position)
    length: int = _ENTRY.size + fields[10] + fields[11] + fields[12]
    if fields[0] != ENTRY_SIGNATURE or position + length > len(directory):
        raise ValueError("the directory holds an invalid entry")
    return length


def data_offset(header: bytes, offset: int) -> int:
    """Offset of an entry's data. header: first 30 bytes of its local header, at ``offset``."""
    fields = _LOCAL.unpack(header)
    if fields[0] != LOCAL_SIGNATURE:
        raise ValueError(f"no local header at byte {offset}")
    return offset + _LOCAL.size + int(fields[9]) + int(fields[10])


LOCAL_HEADER_BYTES = _LOCAL.size


ALIGNMENT = 65536
"""Of the weights' data, so that every system can map them (Windows 64 KiB, Metal 16 KiB)."""

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Member:
    """An entry to write. content: bytes, or the file with them. aligned: multiple for its data."""

    entry: Entry
    content: bytes | Path
    aligned: int = 1


@dataclass(frozen=True)
class Place:
    """Offsets of an entry."""

    header_offset: int
    data_offset: int


@dataclass(frozen=True)
class Layout:
    """Offsets of all entries. directory: written after the last one. size: of the whole file."""

    places: Sequence[Place]
    directory: bytes
    size: int


def lay_out(
    runtime_bytes: int, bundled: Sequence[BundledEntry], members: Sequence[Member]
) -> Layout:
    """Compute all offsets. A new entry replaces a runtime's entry of the same name."""
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
    """Write the file and make it executable. Padding is left as holes, which read as zeros."""
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
    """Copy a file to the position of ``out``; holes stay holes."""
    begin = out.tell()
    with source.open("rb", buffering=0) as file:
        for start, stop in _extents(file):
            file.seek(start)
            out.seek(begin + start)
            left = stop - start
            while left:
                chunk = file.read(min(_CHUNK, left))
                if not chunk:
                    raise OSError(0, "shrank while it was read", str(source))
                out.write(chunk)
                left -= len(chunk)
        out.seek(begin + os.fstat(file.fileno()).st_size)


def _extents(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield the ranges that hold data; the whole file if the system cannot list them."""
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
