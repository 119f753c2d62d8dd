from __future__ import annotations

import pytest
import torch

from gemquant.numerics import native
from gemquant.numerics.bitsandbytes import quantize_blockwise
from gemquant.numerics.native import build
from tests.helpers.native_levels import LEVELS, at_level

pytestmark = pytest.mark.skipif(native.library() is None, reason=str(native.status().reason))


@pytest.mark.parametrize("level", list(build.levels()))
@pytest.mark.parametrize("codes", ["nf4", "fp4"])
def test_every_processor_level_gives_the_bytes_of_plain_torch(level: str, codes: str) -> None:
    weight = torch.randn(33, 300, generator=torch.Generator().manual_seed(0))  # a short last block
    weight[::5] *= 1e-38
    with at_level(level):
        found = quantize_blockwise(weight, codes=codes, block_size=64)
    with at_level(LEVELS[-1]):
        expected = quantize_blockwise(weight, codes=codes, block_size=64)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
