"""An artifact is the same under another card."""

from __future__ import annotations

from gemquant.core.artifact import Manifest
from gemquant.core.artifact.finalize import content_digest, content_files
from gemquant.core.artifact.manifest import FileRecord
from gemquant.formats.compressed_tensors import CompressedTensors
from tests.helpers.tiny_artifact import tiny_header, tiny_manifest

EXPECTED = "sha256:032ed9970a4d7373131c71442efe59432b1e14a87dfccc8c13ad9d375d76f96c"


def with_files(**files: str) -> Manifest:
    records = {name: FileRecord(sha256=char * 64, bytes=7) for name, char in files.items()}
    manifest = tiny_manifest(tiny_header(CompressedTensors()), "compressed-tensors")
    return manifest.model_copy(update={"files": records})


def test_another_card_or_evaluation_is_the_same_artifact() -> None:
    bare = with_files(weights="1")
    told = with_files(weights="1", **{"README.md": "2", "evaluation.json": "3"})
    assert content_digest(told) == content_digest(bare)
    assert list(content_files(told)) == ["weights"]


def test_other_weights_are_another_artifact() -> None:
    assert content_digest(with_files(weights="1")) != content_digest(with_files(weights="2"))


def test_a_renamed_file_is_another_artifact() -> None:
    assert content_digest(with_files(a="1")) != content_digest(with_files(b="1"))


def test_the_digest_is_that_of_sorted_lines() -> None:
    # printf 'a 111…1\nb 222…2\n' | sha256sum
    assert content_digest(with_files(b="2", a="1")) == EXPECTED
