from __future__ import annotations

from pathlib import Path

import pytest

from gemquant.artifact import Artifact
from gemquant.exporters.compressed_tensors import CompressedTensors
from tests.tiny_artifact import write_tiny_artifact


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return write_tiny_artifact(tmp_path / "artifact", CompressedTensors())
