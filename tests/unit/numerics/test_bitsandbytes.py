"""Codebook and row-wise numerics against bitsandbytes: recorded, and live where it is installed."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gemquant.numerics.bitsandbytes import (
    codebook,
    dequantize_blockwise,
    dequantize_dynamic,
    dequantize_rowwise,
    dynamic_codebook,
    quantize_blockwise,
    quantize_dynamic,
    quantize_rowwise,
)

pytestmark = pytest.mark.usefixtures("either_way")

CODES = ("nf4", "fp4")


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(Path(__file__).parents[2] / "golden" / "bitsandbytes.safetensors")


@pytest.fixture
def bnb() -> ModuleType:
    return pytest.importorskip(
        "bitsandbytes.functional", reason="bitsandbytes is not installed", exc_type=ImportError
    )


@pytest.mark.parametrize("block_size", [64, 128, 256, 1024])
@pytest.mark.parametrize("codes", CODES)
def test_codes_and_scales_are_those_of_bitsandbytes(
    golden: dict[str, Tensor], codes: str, block_size: int
) -> None:
    packed, scales = quantize_blockwise(golden["weight"], codes=codes, block_size=block_size)
    assert torch.equal(packed, golden[f"{codes}.{block_size}.packed"])
    assert torch.equal(scales, golden[f"{codes}.{block_size}.scales"])


def test_scales_of_scales_are_those_of_bitsandbytes(golden: dict[str, Tensor]) -> None:
    codes, scales = quantize_dynamic(golden["scales"])
    assert torch.equal(codes, golden["scales.codes"])
    assert torch.equal(scales, golden["scales.scales"])


def test_rows_are_those_of_bitsandbytes(golden: dict[str, Tensor]) -> None:
    codes, scales = quantize_rowwise(golden["rows"])
    assert torch.equal(codes, golden["rows.codes"])
    assert torch.equal(scales, golden["rows.scales"])


@pytest.mark.parametrize("codes", CODES)
def test_every_value_of_a_codebook_survives(codes: str) -> None:
    weight = 3 * codebook(codes).repeat(4)[None]
    packed, scales = quantize_blockwise(weight, codes=codes, block_size=64)
    assert scales.tolist() == [3.0]
    decoded = dequantize_blockwise(packed, scales, codes=codes, block_size=64)
    assert torch.equal(decoded, weight.flatten())


def test_a_value_halfway_takes_the_lower_code() -> None:
    weight = torch.tensor([[1.0, -0.8480963706970215]]).repeat(1, 32)
    packed, _ = quantize_blockwise(weight, codes="nf4", block_size=64)
    assert set(packed.tolist()) == {0xF0}


def test_work_in_pieces_gives_the_codes_of_the_whole() -> None:
    weight = torch.randn(300, 512, generator=torch.Generator().manual_seed(0))
    packed, scales = quantize_blockwise(weight, codes="nf4", block_size=64)
    for row in (0, 127, 128, 299):
        alone, scale = quantize_blockwise(weight[row], codes="nf4", block_size=64)
        assert torch.equal(packed.view(300, -1)[row], alone)
        assert torch.equal(scales.view(300, -1)[row], scale)


def test_decoding_may_begin_inside_a_block() -> None:
    weight = torch.randn(4, 96, generator=torch.Generator().manual_seed(0))
    packed, scales = quantize_blockwise(weight, codes="nf4", block_size=64)
    whole = dequantize_blockwise(packed, scales, codes="nf4", block_size=64).view(4, 96)
    second = dequantize_blockwise(packed[48:96], scales[1:3], codes="nf4", block_size=64, skip=32)
    assert torch.equal(second, whole[1])


def test_a_row_of_zeros_decodes_to_zeros() -> None:
    codes, scales = quantize_rowwise(torch.zeros(2, 8))
    assert torch.equal(dequantize_rowwise(codes, scales), torch.zeros(2, 8))


# ---------------------------------------------------------------- live


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("block_size", [64, 512, 4096])
@pytest.mark.parametrize("codes", CODES)
def test_double_quantization_equals_that_of_bitsandbytes(
    bnb: ModuleType, codes: str, block_size: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(257, 640, generator=generator) * torch.rand(257, 1, generator=generator)
    weight[3, ::64] = 50
    weight[4] = 0
    weight = weight.to(dtype)
    packed, scales = quantize_blockwise(weight, codes=codes, block_size=block_size)
    offset = scales.mean()
    nested, outer = quantize_dynamic(scales - offset)
    theirs, state = bnb.quantize_4bit(
        weight, blocksize=block_size, quant_type=codes, compress_statistics=True
    )
    assert torch.equal(packed, theirs.flatten())
    assert torch.equal(nested, state.absmax)
    assert torch.equal(outer, state.state2.absmax)
    assert float(offset) == float(state.offset)
    expected = bnb.dequantize_blockwise(state.absmax, state.state2)
    assert torch.equal(dequantize_dynamic(nested, outer), expected)


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
def test_the_data_types_are_those_of_bitsandbytes(bnb: ModuleType) -> None:
    assert torch.equal(dynamic_codebook(), bnb.create_dynamic_map())
    for codes in CODES:
        assert torch.equal(codebook(codes), bnb.get_4bit_type(codes, device="cpu"))


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
def test_rows_equal_those_of_bitsandbytes_and_decode_alike(bnb: ModuleType) -> None:
    weight = torch.randn(257, 640, generator=torch.Generator().manual_seed(0)).bfloat16()
    codes, scales = quantize_rowwise(weight)
    theirs, largest, _ = bnb.int8_vectorwise_quant(weight.half())
    assert torch.equal(codes, theirs)
    assert torch.equal(scales, largest)
    expected = bnb.int8_vectorwise_dequant(theirs, largest)
    assert torch.equal(dequantize_rowwise(codes, scales), expected)
