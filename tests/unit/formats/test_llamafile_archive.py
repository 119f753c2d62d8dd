from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from gemquant.formats.llamafile_archive import (
    ALIGNMENT,
    Entry,
    Member,
    directory_entry,
    end_records,
    lay_out,
    local_header,
    moved_entry,
    write,
)
from gemquant.formats.llamafile_record import entries_in

GIB = 1 << 30


def test_a_small_entry_is_the_bytes_of_the_appnote():
    entry = Entry("a", 5, 0x01020304)
    assert local_header(entry).hex() == (
        "504b0304" "1400" "0008" "0000" "0000" "2100" "04030201" "05000000" "05000000" "0100" "0000"
        "61"
    )  # fmt: skip
    assert directory_entry(entry, 7).hex() == (
        "504b0102" "1403" "1400" "0008" "0000" "0000" "2100" "04030201" "05000000" "05000000"
        "0100" "0000" "0000" "0000" "0000" "0000a481" "07000000" "61"
    )  # fmt: skip


def test_the_end_is_the_bytes_of_the_appnote():
    assert end_records(entries=1, offset=36, size=47).hex() == (
        "504b0506" "0000" "0000" "0100" "0100" "2f000000" "24000000" "0000"
    )  # fmt: skip


def test_a_local_header_past_4_gib_has_both_sizes_in_zip64():
    header = local_header(Entry("a", 5 * GIB, 0))
    assert struct.unpack_from("<H", header, 4) == (45,)
    assert struct.unpack_from("<II", header, 18) == (0xFFFFFFFF, 0xFFFFFFFF)
    assert struct.unpack_from("<HHQQ", header, 31) == (1, 16, 5 * GIB, 5 * GIB)


@pytest.mark.parametrize(
    ("size", "offset", "numbers"),
    [
        (5 * GIB, 7, [5 * GIB, 5 * GIB]),
        (7, 6 * GIB, [6 * GIB]),
        (5 * GIB, 6 * GIB, [5 * GIB, 5 * GIB, 6 * GIB]),
        (0xFFFFFFFF, 7, [0xFFFFFFFF, 0xFFFFFFFF]),
        (0xFFFFFFFE, 0xFFFFFFFE, []),
    ],
)
def test_the_directory_has_in_zip64_what_needs_it(size: int, offset: int, numbers: list[int]):
    record = directory_entry(Entry("a", size, 0), offset)
    extra = record[47:]
    expected = struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""
    assert extra == expected


def test_somebody_elses_entry_moves_and_keeps_the_rest():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("page", (2001, 2, 3, 4, 5, 6))
        info.comment, info.extra = b"words", struct.pack("<HH4s", 0xCAFE, 4, b"more")
        archive.writestr(info, b"content")
        start = archive.start_dir
    raw = buffer.getvalue()[start:-22]
    moved = moved_entry(raw, 99)
    assert moved[42:46] == struct.pack("<I", 99)
    assert moved[:42] + moved[46:] == raw[:42] + raw[46:]


def test_a_zip64_entry_of_somebody_elses_moves_within_its_extra_field():
    raw = directory_entry(Entry("a", 5 * GIB, 3), 6 * GIB)
    assert moved_entry(raw, 9 * GIB) == directory_entry(Entry("a", 5 * GIB, 3), 9 * GIB)


def test_a_move_past_4_gib_without_a_field_for_it_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        moved_entry(directory_entry(Entry("a", 1, 0), 7), 5 * GIB)


@pytest.mark.parametrize("runtime_bytes", [1, 65_000, 65_536, 131_000])
def test_the_data_begins_at_a_multiple_of_65536(runtime_bytes: int):
    members = [
        Member(Entry(".args", 4, 0), b"...\n"),
        Member(Entry("g.gguf", 9, 0), b"123456789", ALIGNMENT),
    ]
    place = lay_out(runtime_bytes, [], members).places[-1]
    assert place.data_offset % 65536 == 0
    assert place.header_offset == place.data_offset - 36


def sparse(path: Path, size: int, ending: bytes) -> int:
    """Write a file of zeros and an ending, without the zeros; return its CRC-32."""
    with path.open("wb") as file:
        file.truncate(size - len(ending))
        file.seek(0, 2)
        file.write(ending)
    return zlib.crc32(ending)


def test_a_file_past_4_gib_is_read_back_by_the_standard_library(tmp_path: Path):
    runtime, weights, out = tmp_path / "runtime", tmp_path / "w.gguf", tmp_path / "out"
    runtime.write_bytes(b"\x7fELF" + bytes(1000))
    size = 4 * GIB + 12_345
    sparse(weights, size, b"the end")
    # The sum of the whole is not computed here: nobody reads four gigabytes of zeros.
    members = [
        Member(Entry(".args", 4, zlib.crc32(b"...\n")), b"...\n"),
        Member(Entry("w.gguf", size, 0xDEADBEEF), weights, ALIGNMENT),
        Member(Entry("after", 5, zlib.crc32(b"after")), b"after"),
    ]
    write(out, runtime, members, lay_out(1004, [], members))
    found = entries_in(out)
    assert (found["w.gguf"].offset, found["w.gguf"].size) == (65536, size)
    assert found["w.gguf"].crc32 == 0xDEADBEEF
    with zipfile.ZipFile(out) as archive:
        assert archive.getinfo("after").header_offset == 65536 + size
        assert archive.read("after") == b"after"
        assert archive.read(".args") == b"...\n"
    with out.open("rb") as file:
        file.seek(65536 + size - 7)
        assert file.read(7) == b"the end"
    assert out.stat().st_blocks * 512 < 10_000_000, "the hole was written to disk"
