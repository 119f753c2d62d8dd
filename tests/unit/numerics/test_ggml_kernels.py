import ctypes

import pytest
import torch

from gemquant.numerics import ggml as kernels
from gemquant.numerics import native
from gemquant.numerics.ggml import quantize_rows
from gemquant.numerics.ggml_library import ggml
from gemquant.numerics.ggml_types import TYPES


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "IQ4_XS"])
def test_without_our_kernels_the_bytes_are_ggmls(name, monkeypatch):
    if ggml() is None:
        pytest.skip("xllamacpp is not installed")
    kind = TYPES[name]
    weight = torch.randn(3, 512, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(native, "library", lambda: None)
    from_ggml = torch.zeros(3, kind.row_bytes(512), dtype=torch.uint8)
    ggml().ggml_quantize_chunk(
        kind.number, weight.data_ptr(), from_ggml.data_ptr(), 0, 3, 512, None
    )
    assert torch.equal(quantize_rows(weight, kind), from_ggml)


def test_a_library_without_a_kernel_for_a_type_has_none():
    assert kernels.own_kernel(ctypes.CDLL(None), TYPES["Q4_K"]) is None
