from __future__ import annotations

import pytest
import torch

from gemquant.numerics import native
from gemquant.numerics.bitsandbytes import quantize_blockwise
from gemquant.numerics.native import build, codebook
from tests.helpers.native_levels import load

pytestmark = pytest.mark.skipif(native.library() is None, reason=str(native.status().reason))


@pytest.mark.parametrize("level", list(build.levels()))
@pytest.mark.parametrize("codes", ["nf4", "fp4"])
def test_every_processor_level_gives_the_bytes_of_plain_torch(
    level: str, codes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, missing = load(level)
    if loaded is None:
        pytest.skip(missing)
    weight = torch.randn(33, 300, generator=torch.Generator().manual_seed(0))  # a short last block
    weight[::5] *= 1e-38
    monkeypatch.setattr(codebook, "library", lambda: loaded)
    found = quantize_blockwise(weight, codes=codes, block_size=64)
    monkeypatch.setattr(codebook, "is_usable", lambda flat, block_size: False)
    expected = quantize_blockwise(weight, codes=codes, block_size=64)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
