"""Fixtures shared by all tests: tiny random Gemmas of every generation."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from gemquant.core.resources import yield_idle_processors

yield_idle_processors()
# The same examples every time: a failure names the change, not the day. `--hypothesis-profile
# default` looks for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

from tests.helpers.tiny_gemma import GENERATIONS, KINDS, Kind, write_tiny_gemma  # noqa: E402 (torch)


@pytest.fixture(autouse=True)
def log() -> Iterator[None]:
    """Give each test a logger as on import: a command sends its records to stderr alone.

    Before the test too, since a fixture of a module or the session may have run a command.
    """

    def reset() -> None:
        logger = logging.getLogger("gemquant")
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)

    reset()
    yield
    reset()


@pytest.fixture(params=GENERATIONS)
def generation(request: pytest.FixtureRequest) -> Kind:
    """Each text generation in turn: gemma, gemma2, gemma3_text."""
    kind: Kind = request.param
    return kind


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    """One tiny checkpoint folder of each kind, written once; treat them as read-only."""
    root = tmp_path_factory.mktemp("tiny")
    return {kind: write_tiny_gemma(root / kind, kind) for kind in KINDS}


@pytest.fixture
def tiny_folder(generation: Kind, tiny_folders: dict[Kind, Path]) -> Path:
    """The tiny checkpoint folder of the generation under test; treat it as read-only."""
    return tiny_folders[generation]
