"""Mapped tensors are those that the safetensors library reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gemquant.errors import CheckpointError
from gemquant.formats.safetensors_reader import SafetensorsFiles


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64],
    ids=str,
)
def test_every_type_is_read_as_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    written = torch.arange(12).reshape(3, 4).to(dtype)
    save_file({"a": written}, tmp_path / "m.safetensors")
    mapped = SafetensorsFiles([tmp_path / "m.safetensors"])
    assert mapped.stored_dtype("a") == dtype
    assert torch.equal(mapped.tensor("a"), written)
    assert torch.equal(mapped.read("a", 1, 3, torch.float32), written[1:3].float())


def test_rows_past_the_end_are_left_out(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3, 4)}, tmp_path / "m.safetensors")
    mapped = SafetensorsFiles([tmp_path / "m.safetensors"])
    assert mapped.read("a", 2, 9, torch.float32).shape == (1, 4)
    assert mapped.read("a", 5, 9, torch.float32).shape == (0, 4)


def test_scalars_and_empty_tensors_are_read(tmp_path: Path) -> None:
    save_file({"s": torch.tensor(2.0), "e": torch.empty(0, 4)}, tmp_path / "m.safetensors")
    mapped = SafetensorsFiles([tmp_path / "m.safetensors"])
    assert mapped.tensor("s").item() == 2.0
    assert mapped.tensor("e").shape == (0, 4)


def test_a_tensor_at_an_odd_position_is_read(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"\7" + torch.tensor([1.5, -2.0]).numpy().tobytes()
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    mapped = SafetensorsFiles([tmp_path / "m.safetensors"])
    assert mapped.tensor("b").tolist() == [1.5, -2.0]
    assert mapped.tensor("b").data_ptr() % 4 == 0


def test_a_type_that_torch_lacks_is_refused_when_read(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(CheckpointError, match="a is stored as F4"):
        SafetensorsFiles([path]).tensor("a")
