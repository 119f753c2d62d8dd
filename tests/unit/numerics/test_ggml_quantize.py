import pytest
import torch

from gemquant.numerics.ggml import dequantize_rows, quantize_rows
from gemquant.numerics.ggml_types import TYPES
from tests.helpers.native_levels import LEVELS, at_level


@pytest.mark.parametrize("name", sorted(TYPES))
def test_types_are_those_of_the_gguf_package(name):
    import gguf

    number = gguf.GGMLQuantizationType[name]
    kind = TYPES[name]
    assert (kind.number, (kind.block, kind.block_bytes)) == (
        int(number),
        gguf.GGML_QUANT_SIZES[number],
    )


ERROR = {
    "F32": 0.0, "BF16": 0.002, "F16": 0.0003, "Q8_0": 0.006, "Q6_K": 0.02, "Q5_K": 0.04,
    "Q5_1": 0.04, "Q5_0": 0.05, "Q4_K": 0.08, "Q4_1": 0.09, "Q4_0": 0.1, "IQ4_NL": 0.09,
    "IQ4_XS": 0.09, "Q3_K": 0.17, "Q2_K": 0.33,
}  # fmt: skip
"""Root mean square error that normally distributed weights stay below, as measured with ggml."""


@pytest.mark.parametrize("name", sorted(TYPES))
def test_decoded_rows_are_near_the_weights(name):
    kind = TYPES[name]
    weight = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    blocks = quantize_rows(weight, kind)
    assert blocks.shape == (3, kind.row_bytes(512))
    error = (dequantize_rows(blocks, kind) - weight).square().mean().sqrt().item()
    assert error <= ERROR[name]


@pytest.mark.parametrize("level", LEVELS)
def test_bytes_do_not_depend_on_the_number_of_threads(level):
    weight = torch.randn(7, 256, generator=torch.Generator().manual_seed(1))
    with at_level(level):
        alone, together = (quantize_rows(weight, TYPES["Q4_K"], threads=n) for n in (1, 3))
    assert torch.equal(alone, together)
