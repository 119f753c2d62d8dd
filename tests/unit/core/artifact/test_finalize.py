from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemquant.core.artifact import Artifact, finalize, read_manifest
from gemquant.errors import ArtifactError, Problems
from gemquant.formats.compressed_tensors import CompressedTensors
from tests.helpers.tiny_artifact import tiny_header, tiny_manifest, write_tiny_artifact


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return write_tiny_artifact(tmp_path / "artifact", CompressedTensors())


def edit_manifest(artifact: Artifact, **changes: object) -> None:
    path = artifact.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_sealed_artifact_describes_every_file(artifact: Artifact) -> None:
    assert list(artifact.manifest.files) == [
        "NOTICE",
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_the_gemma_notice_is_the_one_the_terms_prescribe(artifact: Artifact) -> None:
    assert (artifact.path / "NOTICE").read_text() == (
        "Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms\n"
    )


def test_the_same_content_gives_the_same_bytes(artifact: Artifact, tmp_path: Path) -> None:
    other = write_tiny_artifact(tmp_path / "other", CompressedTensors())
    first = (artifact.path / "manifest.json").read_bytes()
    assert first == (other.path / "manifest.json").read_bytes()


def test_a_changed_byte_is_found(artifact: Artifact) -> None:
    path = artifact.path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    message = "model.safetensors is not the file the manifest describes: sha256"
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(artifact.path)


def test_every_difference_is_listed(artifact: Artifact) -> None:
    (artifact.path / "NOTICE").unlink()
    (artifact.path / "config.json").write_text("{}")
    (artifact.path / "added.txt").write_text("?")
    with pytest.raises(Problems) as caught:
        Artifact.open(artifact.path)
    messages = sorted(problem.message for problem in caught.value.problems)
    assert messages[0].startswith("NOTICE is missing from")
    assert messages[1].startswith("added.txt is in")
    assert messages[2].startswith("config.json is not the file the manifest describes: 2 bytes")


def test_a_link_in_place_of_a_file_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "moved").write_bytes((artifact.path / "NOTICE").read_bytes())
    (artifact.path / "NOTICE").unlink()
    (artifact.path / "NOTICE").symlink_to(tmp_path / "moved")
    with pytest.raises(ArtifactError, match="NOTICE is not a regular file"):
        Artifact.open(artifact.path)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a\\b", "C:x", "sub/../../x", ""])
def test_a_name_outside_the_folder_is_refused(artifact: Artifact, name: str) -> None:
    edit_manifest(artifact, files={name: {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(ArtifactError, match="not a file inside the artifact"):
        Artifact.open(artifact.path)


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is not an artifact: manifest\.json: cannot be read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "content", ["not json", "[]", '{"schema_version": 2}'], ids=["text", "list", "newer"]
)
def test_what_is_not_a_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match="not a manifest that this version reads"):
        read_manifest(tmp_path)


def test_an_unknown_key_is_refused(artifact: Artifact) -> None:
    edit_manifest(artifact, colour="blue")
    with pytest.raises(ArtifactError, match="colour: Extra inputs are not permitted"):
        read_manifest(artifact.path)


def test_a_manifest_reads_back_as_it_was(tmp_path: Path) -> None:
    manifest = tiny_manifest(tiny_header(CompressedTensors()), "compressed-tensors")
    sealed = finalize(tmp_path, manifest)
    assert read_manifest(tmp_path) == sealed
