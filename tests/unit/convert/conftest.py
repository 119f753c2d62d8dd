"""Configurations of published Gemmas, as far as sizes and caches need them."""

from __future__ import annotations

from typing import Any

import pytest

from gemquant.models.config import text_config
from tests.helpers.published_gemma import PUBLISHED


@pytest.fixture
def gemma2_2b() -> dict[str, Any]:
    """google/gemma-2-2b."""
    return dict(text_config(PUBLISHED["gemma-2-2b"]))


@pytest.fixture
def gemma4(request: pytest.FixtureRequest) -> dict[str, Any]:
    """google/gemma-4-…, by its size."""
    return dict(text_config(PUBLISHED[f"gemma-4-{request.param.lower()}"]))


@pytest.fixture
def gemma3_1b() -> dict[str, Any]:
    """google/gemma-3-1b-it."""
    return dict(text_config(PUBLISHED["gemma-3-1b"]))
