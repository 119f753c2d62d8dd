from __future__ import annotations

from pathlib import Path

import pytest

from gemquant.core.artifact import Artifact
from gemquant.formats.compressed_tensors import CompressedTensors
from tests.helpers.tiny_artifact import write_tiny_artifact


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return write_tiny_artifact(tmp_path / "artifact", CompressedTensors())
