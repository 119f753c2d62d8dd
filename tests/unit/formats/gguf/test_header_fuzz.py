"""Damaged GGUFs are read or refused: no other exception, no hang, no memory beyond their size."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemquant.errors import GemquantError
from gemquant.formats.checkpoint import open_checkpoint
from tests.helpers.tiny_gguf import write_tiny_gguf

SECONDS = 10
OBJECTS_BYTES = 4_000_000
"""What Python's own objects take, whose number is bounded and not the file's business."""

_COUNTS = st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1, 2**40, 2**60, 2**63, 2**64 - 1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A sound file."""
    return write_tiny_gguf(
        tmp_path_factory.mktemp("gguf") / "tiny.gguf", "gemma3_text"
    ).read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each damaged file is laid down."""
    return tmp_path_factory.mktemp("damaged") / "damaged.gguf"


def open_bounded(place: Path, content: bytes) -> GemquantError | None:
    """Open a file within bounds of time and memory; return what it was refused for."""
    place.write_bytes(content)
    tracemalloc.start()
    began = time.process_time()
    try:
        open_checkpoint(str(place))
        refused = None
    except GemquantError as error:
        refused = error
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert time.process_time() - began < SECONDS
    assert peak <= 4 * len(content) + OBJECTS_BYTES
    return refused


def header_end(content: bytes) -> int:
    return content.index(b"blk.0.attn_k.weight")


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_damage_is_read_or_refused(whole: bytes, place: Path, data: st.DataObject) -> None:
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, header_end(whole) + 4000))
        kind = data.draw(st.sampled_from(["bytes", "count", "type", "cut", "grow", "truncate"]))
        if kind == "bytes":
            octets = data.draw(st.binary(min_size=1, max_size=12))
            content[position : position + len(octets)] = octets
        elif kind == "count":
            content[position : position + 8] = struct.pack("<Q", data.draw(_COUNTS))
        elif kind == "type":
            content[position : position + 4] = struct.pack("<I", data.draw(st.integers(0, 45)))
        elif kind == "cut":
            del content[position : position + data.draw(st.integers(1, 64))]
        elif kind == "grow":
            content[position:position] = bytes(data.draw(st.integers(1, 64)))
        else:
            del content[position:]
    open_bounded(place, bytes(content))


@pytest.mark.parametrize("kept", [0, 1, 4, 8, 23, 24, 25, 1000, 5000])
def test_a_truncated_file_is_refused(whole: bytes, place: Path, kept: int) -> None:
    assert open_bounded(place, whole[:kept]) is not None


def gguf_with(entries: list[bytes], *, size: int) -> bytes:
    """A header of one kind of entry, followed by zeros up to a size."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, len(entries)) + b"".join(entries)
    return head + bytes(max(0, size - len(head)))


def entry(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


@pytest.mark.parametrize("element", [0, 1, 4, 6, 7, 10, 12])
def test_an_array_of_numbers_takes_no_more_than_its_bytes(place: Path, element: int) -> None:
    width = {0: 1, 1: 1, 4: 4, 6: 4, 7: 1, 10: 8, 12: 8}[element]
    count = 4_000_000 // width
    value = struct.pack("<IQ", element, count) + bytes(count * width)
    assert open_bounded(place, gguf_with([entry("a", 9, value)], size=0)) is not None


@pytest.mark.parametrize("text", [b"", b"x", b"ab"], ids=["empty", "one", "two"])
def test_an_array_of_short_strings_takes_no_more_than_four_times_its_bytes(
    place: Path, text: bytes
) -> None:
    count = 400_000
    strings = (struct.pack("<Q", len(text)) + text) * count
    value = struct.pack("<IQ", 8, count) + strings
    assert open_bounded(place, gguf_with([entry("a", 9, value)], size=0)) is not None


def test_many_small_entries_are_refused(place: Path) -> None:
    entries = [entry(f"k{number}", 0, b"\x01") for number in range(100_000)]
    refused = open_bounded(place, gguf_with(entries, size=0))
    assert "claims 100000 metadata entries; at most 8192" in str(refused)


def test_a_token_without_score_and_type_is_refused(whole: bytes, place: Path) -> None:
    key = b"tokenizer.ggml.tokens"
    position = whole.index(key) + len(key) + 8
    (count,) = struct.unpack_from("<Q", whole, position)
    more = struct.pack("<Q", count + 1)
    grown = whole[:position] + more + struct.pack("<Q", 1) + b"x" + whole[position + 8 :]
    # The tensors move by nine bytes: what aligns them is filled up again.
    refused = str(open_bounded(place, grown + bytes(64)))
    assert "must be lists of one length" in refused


def test_a_sound_file_is_opened_within_the_same_bounds(whole: bytes, place: Path) -> None:
    assert open_bounded(place, whole) is None
