from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gemquant.core.protocols import PlainSpec, RowChunks
from gemquant.errors import OutputError
from gemquant.formats.safetensors_writer import SafetensorsWriter, file_sizes, shards


def sample() -> dict[str, Tensor]:
    """One tensor of every type, in an order that is not the file's; odd sizes; a quoted name."""
    return {
        "h": torch.tensor([True, False, True]),
        "b": torch.arange(6).view(2, 3).to(torch.bfloat16),
        "a": torch.ones(5, dtype=torch.float16),
        "c": torch.full((3, 1), -7, dtype=torch.int32),
        "shape": torch.tensor([2, 3]),
        "e": torch.arange(3, dtype=torch.uint8),
        "g": torch.arange(-1, 2, dtype=torch.int8),
        "i": torch.ones(2, dtype=torch.float64),
        "z": torch.ones(2, dtype=torch.int16),
        'q"é': torch.tensor(1.5),
        "empty": torch.empty(0, 4),
    }


def specs(tensors: dict[str, Tensor]) -> dict[str, PlainSpec]:
    return {name: PlainSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}


def write(folder: Path, tensors: dict[str, Tensor], max_shard_bytes: int = 10**9) -> None:
    with SafetensorsWriter(folder, specs(tensors), max_shard_bytes=max_shard_bytes) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
        writer.finish()


def test_bytes_equal_those_of_the_safetensors_library(tmp_path: Path) -> None:
    write(tmp_path, sample())
    save_file(sample(), tmp_path / "library", metadata={"format": "pt"})
    written = (tmp_path / "model.safetensors").read_bytes()
    assert written == (tmp_path / "library").read_bytes()


def test_the_order_of_writing_does_not_change_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "a", sample())
    write(tmp_path / "b", dict(reversed(sample().items())))
    name = "model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_sizes_are_known_beforehand(tmp_path: Path) -> None:
    write(tmp_path, sample(), max_shard_bytes=20)
    found = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert found == file_sizes(specs(sample()), max_shard_bytes=20)


def test_shards_are_filled_in_order_and_named_as_transformers_names_them() -> None:
    tensors = {f"t{n}": PlainSpec((10,), torch.uint8) for n in range(5)}
    divided = shards(tensors, max_shard_bytes=25)
    assert {name: list(group) for name, group in divided.items()} == {
        "model-00001-of-00003.safetensors": ["t0", "t1"],
        "model-00002-of-00003.safetensors": ["t2", "t3"],
        "model-00003-of-00003.safetensors": ["t4"],
    }


def test_a_tensor_larger_than_a_shard_stands_alone() -> None:
    sizes = {"small": 5, "large": 100, "last": 5}
    tensors = {name: PlainSpec((size,), torch.uint8) for name, size in sizes.items()}
    divided = shards(tensors, max_shard_bytes=20)
    assert [list(group) for group in divided.values()] == [["small"], ["large"], ["last"]]


def test_an_index_names_the_shard_of_every_tensor(tmp_path: Path) -> None:
    write(tmp_path, {"a": torch.zeros(4), "b": torch.ones(4)}, max_shard_bytes=16)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 32},
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        },
    }


def test_a_matrix_written_in_runs_of_rows_reads_back_whole(tmp_path: Path) -> None:
    matrix = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))

    def runs() -> Iterator[Tensor]:
        yield from matrix.split(3)

    with SafetensorsWriter(tmp_path, {"m": PlainSpec((7, 3), torch.float32)}) as writer:
        writer.write_chunks("m", RowChunks((7, 3), torch.float32, runs))
        writer.finish()
    assert torch.equal(load_file(tmp_path / "model.safetensors")["m"], matrix)


@pytest.mark.parametrize(("rows", "message"), [(2, "ends after 2 of 4"), (6, "do not fit")])
def test_too_few_or_too_many_rows_are_refused(tmp_path: Path, rows: int, message: str) -> None:
    chunks = RowChunks((4, 2), torch.float32, lambda: iter([torch.zeros(rows, 2)]))
    with (
        SafetensorsWriter(tmp_path, {"m": PlainSpec((4, 2), torch.float32)}) as writer,
        pytest.raises(ValueError, match=message),
    ):
        writer.write_chunks("m", chunks)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("other", torch.zeros(4), "other was not announced"),
        ("t", torch.zeros(5), r"shape \(5,\), announced as \(4,\)"),
        ("t", torch.zeros(4, dtype=torch.float16), "float16, announced as torch.float32"),
    ],
    ids=["name", "shape", "type"],
)
def test_a_tensor_that_was_not_announced_is_refused(
    tmp_path: Path, name: str, tensor: Tensor, message: str
) -> None:
    with (
        SafetensorsWriter(tmp_path, {"t": PlainSpec((4,), torch.float32)}) as writer,
        pytest.raises(ValueError, match=message),
    ):
        writer.write(name, tensor)


def test_a_tensor_written_twice_is_refused(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path, {"t": PlainSpec((4,), torch.float32)}) as writer:
        writer.write("t", torch.zeros(4))
        with pytest.raises(ValueError, match="t was written already"):
            writer.write("t", torch.zeros(4))


def test_missing_tensors_are_named_at_the_end(tmp_path: Path) -> None:
    announced = specs({"a": torch.zeros(1), "b": torch.zeros(1)})
    with SafetensorsWriter(tmp_path, announced) as writer:
        writer.write("a", torch.zeros(1))
        with pytest.raises(ValueError, match="1 tensors were never written: b"):
            writer.finish()


def test_a_full_disk_is_an_output_error_before_any_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        SafetensorsWriter(tmp_path, {"t": PlainSpec((4,), torch.float32)})
    assert caught.value.hint == "Free some space, or choose another place with -o."


def test_a_strided_tensor_of_one_element_is_written(tmp_path: Path) -> None:
    write(tmp_path, {"t": torch.arange(10.0)[::5][1:]})
    assert load_file(tmp_path / "model.safetensors")["t"].tolist() == [5.0]
