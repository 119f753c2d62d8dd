"""Conversions as the command resolves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gemquant.core.targets.target import load_target
from gemquant.core.targets.toolkit import load_toolkit
from gemquant.rockchip.options import Conversion, RkllmOptions, resolved

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
