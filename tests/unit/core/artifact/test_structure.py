from __future__ import annotations

from pathlib import Path

import pytest

from gemquant.core.artifact import finalize, structure_problems
from gemquant.core.protocols import Exporter
from gemquant.errors import ArtifactError
from gemquant.formats.awq_gemm import AwqGemm
from gemquant.formats.compressed_tensors import CompressedTensors
from tests.helpers.tiny_artifact import (
    W4_SYMMETRIC,
    tiny_header,
    tiny_manifest,
    write_tiny_artifact,
    write_tiny_weights,
)

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("exporter", [AwqGemm(), CompressedTensors()], ids=lambda e: e.name)
def test_a_container_is_what_its_manifest_says(tmp_path: Path, exporter: Exporter) -> None:
    artifact = write_tiny_artifact(tmp_path / "a", exporter)
    exporter.open(artifact.path)


def test_a_symmetric_awq_artifact_is_what_its_manifest_says(tmp_path: Path) -> None:
    header = tiny_header(AwqGemm(), scheme=W4_SYMMETRIC)
    write_tiny_weights(tmp_path, AwqGemm(), header)
    finalize(tmp_path, tiny_manifest(header, "awq-gemm"))
    AwqGemm().open(tmp_path)


def test_a_layer_stored_otherwise_is_named() -> None:
    described = tiny_manifest(tiny_header(CompressedTensors()), "compressed-tensors")
    stored = tiny_header(CompressedTensors(), schemes={Q_PROJ: None})
    (problem,) = structure_problems(described, stored.layout)
    assert problem.message == (
        "These are not stored as the manifest describes: model.layers.0.self_attn.q_proj "
        "(unquantized, not 4 bits, group size 128)."
    )


def test_opening_a_container_compares_it_with_its_manifest(tmp_path: Path) -> None:
    exporter = CompressedTensors()
    write_tiny_weights(tmp_path, exporter, tiny_header(exporter))
    other = tiny_header(exporter, scheme=W4_SYMMETRIC)
    finalize(tmp_path, tiny_manifest(other, exporter.name))
    with pytest.raises(ArtifactError, match="not stored as the manifest describes"):
        exporter.open(tmp_path)
