from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from gemquant.numerics.packing import (
    pack_awq_gemm,
    pack_bits,
    packed_width,
    unpack_awq_gemm,
    unpack_bits,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "packing.safetensors"
CASES = {"w3": 3, "w4": 4, "w4sym": 4, "w8": 8}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


def test_awq_codes_are_packed_as_autoawq_packs_them(golden: dict[str, Tensor]) -> None:
    assert torch.equal(pack_awq_gemm(golden["awq.codes"]), golden["awq.qweight"])


def test_awq_zero_points_are_packed_as_autoawq_packs_them(golden: dict[str, Tensor]) -> None:
    assert torch.equal(pack_awq_gemm(golden["awq.zero_points"]), golden["awq.qzeros"])


def test_awq_words_of_autoawq_are_unpacked(golden: dict[str, Tensor]) -> None:
    assert torch.equal(unpack_awq_gemm(golden["awq.qweight"]), golden["awq.codes"])
    assert torch.equal(unpack_awq_gemm(golden["awq.qzeros"]), golden["awq.zero_points"])


@pytest.mark.parametrize("case", CASES)
def test_codes_are_packed_as_compressed_tensors_packs_them(
    golden: dict[str, Tensor], case: str
) -> None:
    packed = pack_bits(golden[f"{case}.codes"], CASES[case])
    assert torch.equal(packed, golden[f"{case}.weight_packed"])


@pytest.mark.parametrize("case", ["w3", "w4", "w8"])
def test_zero_points_are_packed_down_the_rows(golden: dict[str, Tensor], case: str) -> None:
    packed = pack_bits(golden[f"{case}.zero_points"].t(), CASES[case]).t()
    assert torch.equal(packed, golden[f"{case}.weight_zero_point"])


def test_the_first_value_takes_the_lowest_bits() -> None:
    row = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]], dtype=torch.uint8)
    assert pack_bits(row, 4).tolist() == [[0x87654321 - 2**32]]


def test_three_bits_straddle_words() -> None:
    row = torch.zeros(1, 32, dtype=torch.uint8)
    row[0, 10] = 0b111  # bits 30, 31 of the first word and bit 0 of the second
    assert pack_bits(row, 3).tolist() == [[-(2**30), 1, 0]]


def test_awq_interleaves_the_columns_of_a_word() -> None:
    # Output channel n holds the code n: the nibbles read 0, 2, 4, 6, 1, 3, 5, 7 from the lowest.
    codes = torch.arange(8, dtype=torch.uint8).view(8, 1)
    assert pack_awq_gemm(codes).tolist() == [[0x75316420]]


@given(
    bits=st.integers(1, 8),
    rows=st.integers(1, 9),
    columns=st.integers(1, 70),
    transposed=st.booleans(),
    seed=st.integers(0, 9),
)
def test_unpacking_undoes_packing(
    bits: int, rows: int, columns: int, transposed: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (columns, rows) if transposed else (rows, columns)
    values = torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)
    if transposed:
        values = values.t()
    words = pack_bits(values, bits)
    assert words.shape == (rows, packed_width(columns, bits))
    assert torch.equal(unpack_bits(words, bits, columns), values)


@given(out=st.integers(1, 6), count=st.integers(1, 20), seed=st.integers(0, 9))
def test_unpacking_undoes_awq_packing(out: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (8 * out, count), generator=generator, dtype=torch.uint8)
    assert torch.equal(unpack_awq_gemm(pack_awq_gemm(codes)), codes)


def test_a_view_that_starts_off_a_word_boundary_is_packed() -> None:
    values = torch.arange(9, dtype=torch.uint8)[1:].view(1, 8)
    assert unpack_bits(pack_bits(values, 8), 8, 8).tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
