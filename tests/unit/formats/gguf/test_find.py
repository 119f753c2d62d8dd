from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import pytest

from gemquant.core.artifact import finalize
from gemquant.errors import CheckpointError, UnsupportedError, UsageError
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.formats.gguf.find import GgufFile, find_gguf
from gemquant.models.licences import GEMMA_TERMS
from tests.helpers.tiny_artifact import tiny_header, tiny_manifest, write_tiny_artifact
from tests.helpers.tiny_gguf import write_tiny_gguf


def test_a_file_is_itself(tmp_path: Path):
    path = write_tiny_gguf(tmp_path / "a.gguf")
    found = find_gguf(str(path))
    assert (found.path, found.parts, found.sha256) == (path, 1, None)


def test_an_artifact_without_a_gguf_names_the_command_that_makes_one(tmp_path: Path):
    artifact = write_tiny_artifact(tmp_path / "artifact", CompressedTensors())
    with pytest.raises(UnsupportedError, match="no GGUF runtime reads") as refusal:
        find_gguf(str(artifact.path))
    assert refusal.value.hint is not None
    assert refusal.value.hint.startswith("Make a GGUF with: gemquant gguf ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.gguf", b"", "not a GGUF"),
        ("a.gguf", b"GG", "not a GGUF"),
        ("a.gguf", b"PK" * 20, "not a GGUF"),
        ("a.bin", b"GGUF", "does not end in .gguf"),
    ],
)
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        find_gguf(str(tmp_path / name))


def test_what_is_not_there_is_said_not_to_be():
    with pytest.raises(CheckpointError, match="no such file or folder"):
        find_gguf("nowhere.gguf")


def test_a_gguf_of_something_else_than_a_model_is_refused(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "i.gguf", "gemma2")
    writer.add_string("general.type", "imatrix")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match=r"general\.type is 'imatrix'"):
        find_gguf(str(tmp_path / "i.gguf"))


def gguf_artifact(path: Path, *names: str) -> Path:
    """An artifact whose weights are GGUF files."""
    path.mkdir()
    for name in names:
        write_tiny_gguf(path / name)
    finalize(path, tiny_manifest(tiny_header(CompressedTensors()), "gguf"))
    return path


def test_an_artifact_with_one_gguf_is_opened_with_its_recorded_hash(tmp_path: Path):
    folder = gguf_artifact(tmp_path / "artifact", "a.gguf")
    digest = hashlib.sha256((folder / "a.gguf").read_bytes()).hexdigest()
    assert find_gguf(str(folder)).sha256 == digest
    assert find_gguf(str(folder / "a.gguf")).sha256 == digest


def test_of_several_one_must_be_named(tmp_path: Path):
    folder = gguf_artifact(tmp_path / "artifact", "a.gguf", "b.gguf")
    with pytest.raises(UsageError, match=r"holds 2 GGUF files: a\.gguf, b\.gguf"):
        find_gguf(str(folder))


def test_of_a_folder_of_artifacts_one_must_be_named(tmp_path: Path):
    for name in ("Q4_0", "Q8_0"):
        gguf_artifact(tmp_path / name, "a.gguf")
    with pytest.raises(UsageError, match=r"holds 2 artifacts: Q4_0, Q8_0") as refusal:
        find_gguf(str(tmp_path))
    assert refusal.value.hint == f"Name one: {tmp_path / 'Q4_0'}"


def test_a_folder_with_nothing_but_a_gguf_is_opened(tmp_path: Path):
    path = write_tiny_gguf(tmp_path / "a.gguf")
    found = find_gguf(str(tmp_path))
    assert (found.path, found.sha256) == (path, None)


def test_of_a_model_in_parts_the_first_is_opened(tmp_path: Path):
    folder = gguf_artifact(tmp_path / "a", "a-00001-of-00002.gguf", "a-00002-of-00002.gguf")
    assert find_gguf(str(folder)).path.name == "a-00001-of-00002.gguf"


@pytest.mark.parametrize(
    ("metadata", "notice"),
    [
        ({"general.architecture": "gemma2"}, GEMMA_TERMS.notice),
        ({"general.architecture": "gemma3n", "general.license": "gemma"}, GEMMA_TERMS.notice),
        ({"general.architecture": "gemma9"}, ""),
        ({"general.architecture": "llama", "general.license": "mit"}, ""),
    ],
)
def test_the_notice_is_that_of_the_generation_and_never_a_guess(
    metadata: dict[str, str], notice: str
):
    assert GgufFile(Path("a.gguf"), metadata, None).notice == notice
