"""Every way in which a safetensors header can lie is an error that says which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from gemquant.errors import CheckpointError, Problems
from gemquant.formats.safetensors_reader import TensorEntry, read_header


def written(folder: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, *, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> Any:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_positions_count_from_the_start_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(save({"a": torch.zeros(2, 3, dtype=torch.bfloat16)}))
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert read_header(path) == {"a": TensorEntry("BF16", (2, 3), 8 + length, 8 + length + 12)}


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        pytest.param(b"not json", b"", "not JSON", id="not-json"),
        pytest.param(b"[1]", b"", "not a JSON object", id="a-list"),
        pytest.param(b"[" * 100_000, b"", "not JSON", id="nested-without-end"),
        pytest.param(
            b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
            b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
            b"",
            "'a' is given twice",
            id="duplicate-name",
        ),
        pytest.param({"a": 3}, b"", "a: its description is not an object", id="no-object"),
        pytest.param({"a": entry(0, 8, dtype="X9")}, b"0" * 8, "a: dtype 'X9'", id="dtype"),
        pytest.param({"a": entry(0, 8, shape=(-2,))}, b"0" * 8, r"shape \[-2\]", id="negative"),
        pytest.param({"a": entry(0, 8, shape=(2**63,))}, b"0" * 8, "is not a list", id="2^63"),
        pytest.param(
            {"a": entry(0, 8, shape=(2**62, 2**62))}, b"0" * 8, "needs 8.5", id="overflow"
        ),
        pytest.param({"a": entry(0, 8, shape=(3,))}, b"0" * 8, "needs 12 bytes", id="range"),
        pytest.param({"a": entry(8, 0)}, b"0" * 8, "give -8", id="backwards"),
        pytest.param(
            {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
            b"0" * 8,
            "are not two positions",
            id="one-offset",
        ),
        pytest.param(
            {"a": entry(0, 8), "b": entry(12, 20)}, b"0" * 20, "b leaves a gap after a", id="gap"
        ),
        pytest.param(
            {"a": entry(0, 8), "b": entry(4, 12)}, b"0" * 12, "b overlaps a", id="overlap"
        ),
        pytest.param({"a": entry(0, 8)}, b"0" * 9, "1 bytes after the last tensor", id="tail"),
        pytest.param({"a": entry(0, 8)}, b"0" * 7, "truncated", id="truncated"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, header: Any, data: bytes, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_header(written(tmp_path, header, data))


def test_a_header_longer_than_the_file_is_truncated(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="truncated: 10 bytes"):
        read_header(written(tmp_path, {}, length=2**63))


def test_a_header_above_the_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemquant.formats.safetensors_reader.MAX_HEADER_BYTES", 1)
    with pytest.raises(CheckpointError, match="the header claims 2 bytes; at most 1"):
        read_header(written(tmp_path, {}))


def test_all_wrong_tensors_are_named_at_once(tmp_path: Path) -> None:
    header = {"a": entry(0, 8, dtype="X9"), "b": entry(8, 16, shape=(3,))}
    with pytest.raises(Problems, match="2 problems") as caught:
        read_header(written(tmp_path, header, b"0" * 16))
    assert [p.message.split(": ")[1] for p in caught.value.problems] == ["a", "b"]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    path.write_bytes(text)
    try:
        read_header(path)
    except (CheckpointError, Problems):
        return
    assert len(text) >= 8
