"""A few damaged files for every parser; ``python -m tests.fuzz.fuzz`` reads many more."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from gemquant.errors import GemquantError
from tests.fuzz.fuzz import fuzz
from tests.fuzz.parsers import PARSERS, STATE

AT_THEIR_LIMIT = {
    *("indent", "lipsum", "nested-loop", "pprint-blow", "set-block-big", "slice-huge"),
    *("sum-filter", "urlize", "while-cycler"),
}
"""Templates that run until they reach the limit of time or memory."""

CORPUS = Path(__file__).parent / "corpus"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="session", autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory) -> None:
    STATE["scratch"] = str(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if parser.slow_to_build else ())
        for name, parser in PARSERS.items()
    ],
)
def test_damaged_files_are_read_or_refused(name: str) -> None:
    outcome = fuzz(name, 100, seconds=0.5)
    assert outcome.cases > 0
    assert outcome.failures == {}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            path, marks=pytest.mark.slow if path.name in AT_THEIR_LIMIT else (), id=path.name
        )
        for path in sorted(CORPUS.glob("*/*"))
    ],
)
def test_what_once_ended_badly_is_read_or_refused(case: Path, tmp_path: Path) -> None:
    parser = PARSERS[case.parent.name]
    parser.build(tmp_path)
    shutil.copytree(case, tmp_path, dirs_exist_ok=True)
    with contextlib.suppress(GemquantError):
        parser.read(tmp_path)
