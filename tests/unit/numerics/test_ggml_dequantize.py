"""Our decoders give the bits of the gguf package, for any bytes at all."""

import gguf
import numpy as np
import pytest
import torch

from gemquant.numerics import native
from gemquant.numerics.ggml import dequantize_rows, own_decoder
from gemquant.numerics.ggml_types import TYPES
from gemquant.numerics.native import build
from tests.helpers.native_levels import load

BLOCKS = sorted(name for name, kind in TYPES.items() if not kind.is_float)


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


@pytest.mark.parametrize("level", list(build.levels()))
@pytest.mark.parametrize("name", BLOCKS)
def test_random_bytes_decode_to_the_same_bits(level, name):
    library, reason = load(level)
    if library is None:
        pytest.skip(reason)
    kind = TYPES[name]
    blocks = random_blocks(kind, 37, 768)
    out = torch.full((37, 768), -1.0)
    own_decoder(library, kind)(blocks.data_ptr(), out.data_ptr(), 37, 768)
    assert torch.equal(bits(out), gguf_bits(blocks, kind))


@pytest.mark.parametrize("name", sorted(TYPES))
def test_without_our_kernels_rows_decode_alike(name, monkeypatch):
    kind = TYPES[name]
    blocks = random_blocks(kind, 5, 256)
    with_ours = dequantize_rows(blocks, kind, threads=3)
    monkeypatch.setattr(native, "library", lambda: None)
    assert torch.equal(bits(with_ours), bits(dequantize_rows(blocks, kind)))


def test_bytes_that_are_no_blocks_are_refused():
    if native.library() is None:
        pytest.skip(native.status().reason)
    with pytest.raises(ValueError, match="145 bytes are not a row of Q4_K"):
        dequantize_rows(torch.zeros(1, 145, dtype=torch.uint8), TYPES["Q4_K"])
