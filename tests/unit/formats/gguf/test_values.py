"""Metadata is packed as the gguf package reads it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFValueType

from gemquant.formats.gguf.values import (
    GgufValue,
    StoredArray,
    boolean,
    booleans,
    float32,
    float32s,
    int32,
    int32s,
    packed_metadata,
    string,
    strings,
    uint32,
)

ALL = {
    "text": string("▁é"),
    "empty": string(""),
    "count": uint32(7),
    "signed": int32(-3),
    "number": float32(0.5),
    "yes": boolean(True),
    "texts": strings(["a", "", "世"]),
    "numbers": float32s([-0.0, 1.5]),
    "types": int32s([1, -6]),
    "flags": booleans([True, False]),
}


def test_the_gguf_package_reads_back_every_type(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    header = b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + len(ALL).to_bytes(8, "little")
    path.write_bytes(header + packed_metadata(ALL))
    fields = GGUFReader(path).fields
    found = {key: (fields[key].types, fields[key].contents()) for key in ALL}
    kinds = GGUFValueType
    assert found == {
        "text": ([kinds.STRING], "▁é"),
        "empty": ([kinds.STRING], ""),
        "count": ([kinds.UINT32], 7),
        "signed": ([kinds.INT32], -3),
        "number": ([kinds.FLOAT32], 0.5),
        "yes": ([kinds.BOOL], True),
        "texts": ([kinds.ARRAY, kinds.STRING], ["a", "", "世"]),
        "numbers": ([kinds.ARRAY, kinds.FLOAT32], [-0.0, 1.5]),
        "types": ([kinds.ARRAY, kinds.INT32], [1, -6]),
        "flags": ([kinds.ARRAY, kinds.BOOL], [True, False]),
    }


def test_a_string_is_its_length_and_its_bytes() -> None:
    assert packed_metadata({"k": string("ab")}) == (
        b"\x01\0\0\0\0\0\0\0k" + b"\x08\0\0\0" + b"\x02\0\0\0\0\0\0\0ab"
    )


def test_an_array_of_arrays_is_not_written() -> None:
    nested = GgufValue(GGUFValueType.ARRAY, [[1]], GGUFValueType.ARRAY)
    with pytest.raises(ValueError, match="are not written"):
        assert nested.packed


def test_a_stored_array_of_strings_is_decoded_when_it_is_looked_at() -> None:
    octets = (
        struct.pack("<Q", 2) + b"ab" + struct.pack("<Q", 0) + struct.pack("<Q", 2) + "é".encode()
    )
    stored = StoredArray(octets, GGUFValueType.STRING, [10, 18, 28])
    assert stored == ["ab", "", "é"]
    assert (len(stored), stored[0], stored[-1], stored[1:]) == (3, "ab", "é", ["", "é"])
    value = GgufValue(GGUFValueType.ARRAY, stored, GGUFValueType.STRING)
    assert value.packed == strings(["ab", "", "é"]).packed


@pytest.mark.parametrize(
    ("element", "values", "octets"),
    [
        (GGUFValueType.INT32, [-1, 7], struct.pack("<ii", -1, 7)),
        (GGUFValueType.FLOAT32, [0.5, -2.0], struct.pack("<ff", 0.5, -2.0)),
        (GGUFValueType.BOOL, [True, False, True], b"\x01\x00\x02"),
    ],
    ids=["int32", "float32", "bool"],
)
def test_a_stored_array_of_numbers_is_decoded_when_it_is_looked_at(
    element: GGUFValueType, values: list[object], octets: bytes
) -> None:
    stored = StoredArray(octets, element, None)
    assert stored == values
    assert [type(value) for value in stored] == [type(value) for value in values]
    assert stored[-1] == values[-1]
    with pytest.raises(IndexError):
        stored[len(values)]
