"""The records of a zip file, written by hand: where data lies is decided here and nowhere else.

    local header       before each entry's data
    directory entry    one per entry, at the end of the file
    end records        where the directory is; zip64's two precede the old one if a number needs it

A number that does not fit 32 bits (16 for the count) is written as all ones, and for real in a
zip64 record. No date is kept: all entries are of 1 January 1980, the format's first day.

Source: APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16 and 4.5.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

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
_UTF8_NAMES = 1 << 11
_STORED = 0
_FIRST_DAY = (1 << 5) | 1  # 1980-01-01
_ZIP64_EXTRA = 1


@dataclass(frozen=True)
class Entry:
    """One file in the zip, stored as it is.

    crc32: of the content. mode: Unix permissions.
    """

    name: str
    size: int
    crc32: int
    mode: int = 0o100644


def local_header(entry: Entry) -> bytes:
    """Return what stands before an entry's data."""
    name = entry.name.encode()
    large = entry.size >= _FULL32
    # Here, unlike in the directory, the two sizes are large together or not at all.
    extra = _zip64([entry.size, entry.size] if large else [])
    size = _FULL32 if large else entry.size
    head = _LOCAL.pack(
        LOCAL_SIGNATURE,
        _VERSION_ZIP64 if large else _VERSION,
        _UTF8_NAMES,
        _STORED,
        0,
        _FIRST_DAY,
        entry.crc32,
        size,
        size,
        len(name),
        len(extra),
    )
    return head + name + extra


def directory_entry(entry: Entry, offset: int) -> bytes:
    """Return an entry's line in the directory. offset: where its local header begins."""
    name = entry.name.encode()
    large_size, large_offset = entry.size >= _FULL32, offset >= _FULL32
    numbers = [entry.size, entry.size] * large_size + [offset] * large_offset
    extra = _zip64(numbers)
    size = _FULL32 if large_size else entry.size
    version = _VERSION_ZIP64 if numbers else _VERSION
    head = _ENTRY.pack(
        ENTRY_SIGNATURE,
        (_UNIX << 8) | version,
        version,
        _UTF8_NAMES,
        _STORED,
        0,
        _FIRST_DAY,
        entry.crc32,
        size,
        size,
        len(name),
        len(extra),
        0,  # comment
        0,  # disk
        0,  # internal attributes: binary
        entry.mode << 16,
        _FULL32 if large_offset else offset,
    )
    return head + name + extra


def end_records(*, entries: int, offset: int, size: int) -> bytes:
    """Return what ends the file: where the directory begins, and how long it is."""
    records = b""
    if entries >= _FULL16 or offset >= _FULL32 or size >= _FULL32:
        records += _END64.pack(
            _END64_SIGNATURE,
            _END64.size - 12,  # without this field and the signature
            (_UNIX << 8) | _VERSION_ZIP64,
            _VERSION_ZIP64,
            0,
            0,
            entries,
            entries,
            size,
            offset,
        )
        records += _LOCATOR64.pack(_LOCATOR64_SIGNATURE, 0, offset + size, 1)
    count = min(entries, _FULL16)
    return records + _END.pack(
        _END_SIGNATURE, 0, 0, count, count, min(size, _FULL32), min(offset, _FULL32), 0
    )


def _zip64(numbers: list[int]) -> bytes:
    if not numbers:
        return b""
    return struct.pack(f"<HH{len(numbers)}Q", _ZIP64_EXTRA, 8 * len(numbers), *numbers)


# ---------------------------------------------------------------- entries of somebody else's


def moved_entry(raw: bytes, offset: int) -> bytes:
    """Return somebody else's directory entry with its local header at another place.

    raw: the entry with name, extra fields and comment, all of which stay as they are. Raises
    ValueError where the entry has no room for the offset.
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
    """Length of the directory entry that begins at a position. ValueError where none does."""
    if len(directory) - position < _ENTRY.size:
        raise ValueError("the directory ends in the middle of an entry")
    fields = _ENTRY.unpack_from(directory, position)
    length: int = _ENTRY.size + fields[10] + fields[11] + fields[12]
    if fields[0] != ENTRY_SIGNATURE or position + length > len(directory):
        raise ValueError("the directory holds what is no entry")
    return length


def data_offset(header: bytes, offset: int) -> int:
    """Where data begins whose local header, given by its first 30 bytes, begins at ``offset``."""
    fields = _LOCAL.unpack(header)
    if fields[0] != LOCAL_SIGNATURE:
        raise ValueError(f"no entry begins at byte {offset}")
    return offset + _LOCAL.size + int(fields[9]) + int(fields[10])


LOCAL_HEADER_BYTES = _LOCAL.size
