"""Conversions as the command resolves them, and a stand-in for a board."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemquant.core.targets import load_target, load_toolkit
from gemquant.rockchip.options import Conversion, RkllmOptions, resolved
from tests.helpers.stand_in_board import StandInBoard, make_board

Converting = Callable[..., Conversion]


@pytest.fixture
def converting() -> Converting:
    """Make a conversion by a release, for a target, with options."""

    def make(version: str, target: str = "rk3588", **options: Any) -> Conversion:
        npu = load_target(target).npu
        toolkit = load_toolkit("rkllm-toolkit")
        release = toolkit.version(version)
        asked = resolved(RkllmOptions(**options), npu) if npu else RkllmOptions()
        dtype = npu.dtype(asked.quantized_dtype) if npu else None
        assert npu is not None
        assert release is not None
        assert dtype is not None
        return Conversion(npu, toolkit, release, dtype, asked)

    return make


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandInBoard:
    """A stand-in for a board, whose ssh and adb come first on PATH."""
    made = make_board(tmp_path / "board")
    monkeypatch.setenv("PATH", f"{made.programs}{os.pathsep}{os.environ['PATH']}")
    return made
