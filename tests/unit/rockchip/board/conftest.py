from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.stand_in_board import StandInBoard, make_board


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandInBoard:
    """A stand-in for a board, whose ssh and adb come first on PATH."""
    made = make_board(tmp_path / "board")
    monkeypatch.setenv("PATH", f"{made.programs}{os.pathsep}{os.environ['PATH']}")
    return made
