"""Our decoders give the bits of the gguf package, for any bytes at all."""

import gguf
import numpy as np
import pytest
import torch

from gemquant.numerics import native
from gemquant.numerics.ggml import dequantize_rows
from gemquant.numerics.ggml_types import TYPES
from tests.helpers.native_levels import LEVELS, at_level


def random_blocks(kind, rows, columns):
    generator = torch.Generator().manual_seed(kind.number)
    shape = (rows, kind.row_bytes(columns))
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def gguf_bits(blocks, kind):
    """What the package decodes, as bits; the many NaNs as one."""
    with np.errstate(all="ignore"):
        decoded = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType(kind.number))
    return bits(torch.from_numpy(decoded))


def bits(values):
    return torch.where(values.isnan(), torch.nan, values).view(torch.int32)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", sorted(TYPES))
def test_random_bytes_decode_to_the_same_bits(level, name):
    blocks = random_blocks(TYPES[name], 37, 768)
    with at_level(level):
        decoded = dequantize_rows(blocks, TYPES[name], threads=3)
    assert torch.equal(bits(decoded), gguf_bits(blocks, TYPES[name]))


def test_bytes_that_are_no_blocks_are_refused():
    if native.library() is None:
        pytest.skip(native.status().reason)
    with pytest.raises(ValueError, match="145 bytes are not a row of Q4_K"):
        dequantize_rows(torch.zeros(1, 145, dtype=torch.uint8), TYPES["Q4_K"])
