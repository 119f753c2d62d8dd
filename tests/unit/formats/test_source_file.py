"""Weight files that change while they are read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from gemquant.errors import SourceLostError
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.source_file import SourceFile
from gemquant.models.structure import EMBEDDING
from tests.helpers.tiny_gemma import Kind
from tests.helpers.tiny_gguf import write_tiny_gguf


@pytest.mark.parametrize("form", ["safetensors", "gguf"])
def test_a_file_that_was_truncated_is_an_error_that_names_it(
    tiny_folders: dict[Kind, Path], tmp_path: Path, form: str
) -> None:
    model = tmp_path / "m.gguf"
    if form == "gguf":
        write_tiny_gguf(model)
    else:
        shutil.copytree(tiny_folders["gemma2"], model)
    checkpoint = open_checkpoint(str(model))
    (file,) = checkpoint.source.files
    os.truncate(file, 4096)
    with pytest.raises(SourceLostError, match=f"{file}: was .* bytes long when it was opened"):
        checkpoint.tensor(EMBEDDING)
    assert SourceLostError("").exit_code == 3


def test_parts_of_a_conversion_are_all_values_in_order(tmp_path: Path) -> None:
    written = torch.arange(10_000_000, dtype=torch.int32)
    (tmp_path / "f").write_bytes(b"\7" + written.numpy().tobytes())
    read = SourceFile(tmp_path / "f").converted(1, (2, 5_000_000), torch.int32, torch.float64)
    assert torch.equal(read, written.double().reshape(2, 5_000_000))


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"1")
    before = len(list(Path("/proc/self/fd").iterdir()))
    files = [SourceFile(tmp_path / "f") for _ in range(8)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 8
    del files
    assert len(list(Path("/proc/self/fd").iterdir())) == before
