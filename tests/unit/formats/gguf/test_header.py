"""Every way in which a GGUF header can lie is an error that says which."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import gguf
import pytest

from gemquant.errors import CheckpointError
from gemquant.formats.gguf.header import GgufEntry, GgufHeader, read_gguf_header
from gemquant.formats.source_file import SourceFile

F32, Q8_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0
UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, sizes: Sequence[int], offset: int, kind: int = F32) -> bytes:
    """sizes: innermost first, as in the file."""
    layout = f"<I{len(sizes)}QIQ"
    return text(name) + struct.pack(layout, len(sizes), *sizes, kind, offset)


def parsed(
    folder: Path,
    *,
    entries: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: int = 0,
) -> GgufHeader:
    """Write a file with ``data`` bytes after the aligned header and read it."""
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries))
    header += b"".join(entries) + b"".join(tensors)
    path = folder / "a.gguf"
    path.write_bytes(header + b"\0" * (-len(header) % 32 + data))
    return read_gguf_header(SourceFile(path))


def test_metadata_of_every_kind_is_read(tmp_path: Path) -> None:
    entries = [
        entry("n", UINT32, struct.pack("<I", 7)),
        entry("f", FLOAT32, struct.pack("<f", 0.5)),
        entry("b", BOOL, b"\1"),
        entry("s", STRING, text("é")),
        entry("a", ARRAY, struct.pack("<IQII", UINT32, 2, 1, 2)),
        entry("t", ARRAY, struct.pack("<IQ", STRING, 2) + text("x") + text("")),
    ]
    expected = {"n": 7, "f": 0.5, "b": True, "s": "é", "a": [1, 2], "t": ["x", ""]}
    assert parsed(tmp_path, entries=entries).metadata == expected


def test_shapes_are_rows_first_and_positions_those_in_the_file(tmp_path: Path) -> None:
    tensors = [tensor("w", (32, 2), 0, Q8_0), tensor("v", (3,), 96)]
    found = parsed(tmp_path, tensors=tensors, data=108).tensors
    start = found["w"].begin
    assert start % 32 == 0
    assert found == {
        "w": GgufEntry(Q8_0, (2, 32), start, start + 68),
        "v": GgufEntry(F32, (3,), start + 96, start + 108),
    }


@pytest.mark.parametrize(
    ("entries", "tensors", "words"),
    [
        pytest.param(
            [entry("k", BOOL, b"\1"), entry("k", BOOL, b"\1")],
            [],
            "key k appears twice",
            id="key-twice",
        ),
        pytest.param([entry("k", 77, b"")], [], "metadata of type 77", id="metadata-type"),
        pytest.param(
            [entry("k", ARRAY, struct.pack("<IQ", ARRAY, 1))], [], "type 9", id="nested-array"
        ),
        pytest.param(
            [entry("k", ARRAY, struct.pack("<IQ", UINT32, 2**62))], [], "truncated", id="long-array"
        ),
        pytest.param(
            [entry("general.alignment", UINT32, struct.pack("<I", 0))],
            [],
            "general.alignment 0 is not usable",
            id="alignment",
        ),
        pytest.param(
            [], [tensor("a", (8,), 0), tensor("a", (8,), 32)], "a appears twice", id="twice"
        ),
        pytest.param([], [tensor("a", (), 0)], "a: rank 0", id="rank-0"),
        pytest.param([], [tensor("a", (1,) * 5, 0)], "a: rank 5", id="rank-5"),
        pytest.param([], [tensor("a", (8,), 4)], "a is not aligned to 32", id="not-aligned"),
        pytest.param(
            [], [tensor("a", (8,), 0), tensor("b", (8,), 64)], "b leaves a gap after a", id="gap"
        ),
        pytest.param(
            [], [tensor("a", (16,), 0), tensor("b", (8,), 32)], "b overlaps a", id="overlap"
        ),
        pytest.param([], [tensor("a", (40,), 0)], "header describes", id="past-the-end"),
        pytest.param(
            [], [tensor("a", (2**62, 2**62), 0)], "header describes", id="overflowing-size"
        ),
        pytest.param([], [tensor("a", (20,), 0, Q8_0)], "Q8_0's block of 32", id="half-a-block"),
    ],
)
def test_a_wrong_header_is_refused(
    tmp_path: Path, entries: list[bytes], tensors: list[bytes], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        parsed(tmp_path, entries=entries, tensors=tensors, data=96 if tensors[1:] else 36)
