"""Numerics that have a C kernel are tested with it and without it."""

from __future__ import annotations

import pytest

from gemquant.numerics import native


@pytest.fixture(params=["native", "torch"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the C kernels, and once more without them."""
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip(f"native kernels: {native.status().reason}")
    return str(request.param)
