"""The command line as a user runs it, with the documented plug-in installed beside it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gemquant.__main__ import main
from gemquant.convert.plugins import plugins
from tests.helpers.stand_in_board import StandInBoard, make_board
from tests.helpers.stand_in_rkllmrt import stand_in_runtime

DOCS = Path(__file__).parents[3] / "docs"


def code_blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of one language of a page in docs/."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@dataclass(frozen=True)
class Result:
    """What one run of the program left on its streams."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``gemquant`` with arguments in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("GEMQUANT_MODEL", "GEMQUANT_DEBUG", "GEMQUANT_TARGETS"):
        monkeypatch.delenv(name, raising=False)

    def invoke(*args: str) -> Result:
        code = main(args)
        streams = capsys.readouterr()
        return Result(code, streams.out, streams.err)

    return invoke


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandInBoard:
    """A stand-in for a board whose runtime is a stand-in as well, its ssh first on PATH."""
    made = make_board(tmp_path / "board")
    shutil.copy(stand_in_runtime("1.3.0"), made.root / "usr/lib/librkllmrt.so")
    monkeypatch.setenv("PATH", f"{made.programs}{os.pathsep}{os.environ['PATH']}")
    return made


@pytest.fixture
def clipped(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Install the quantizer of docs/new-quantizer.md, as pip would lay it down."""
    site = tmp_path_factory.mktemp("site")
    (site / "gemquant_clipped.py").write_text(code_blocks("new-quantizer.md", "python")[0])
    info = site / "gemquant_clipped-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gemquant-clipped\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[gemquant.quantizers]\nclipped = gemquant_clipped:Clipped\n"
    )
    monkeypatch.syspath_prepend(site)
    plugins.cache_clear()
    yield
    plugins.cache_clear()
    sys.modules.pop("gemquant_clipped", None)
