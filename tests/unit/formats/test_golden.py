"""Each linear's stored tensors against those of the programs that define the formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gemquant.core.protocols import PER_CHANNEL, AffineScheme, AffineWeight, QuantizedSpec
from gemquant.formats.awq_gemm import AwqGemmLinear
from gemquant.formats.compressed_tensors import PackQuantizedLinear

SCHEMES = {
    "w3": AffineScheme(3, 32, symmetric=False),
    "w4": AffineScheme(4, 32, symmetric=False),
    "w4sym": AffineScheme(4, 32, symmetric=True),
    "w8": AffineScheme(8, PER_CHANNEL, symmetric=False),
}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(Path(__file__).parents[2] / "golden" / "packing.safetensors")


def test_a_linear_is_stored_as_autoawq_stores_it(golden: dict[str, Tensor]) -> None:
    weight = AffineWeight(
        SCHEMES["w4"], golden["awq.codes"], golden["awq.scales"], golden["awq.zero_points"]
    )
    stored = AwqGemmLinear().pack(weight)
    assert torch.equal(stored["qweight"], golden["awq.qweight"])
    assert torch.equal(stored["qzeros"], golden["awq.qzeros"])
    assert torch.equal(stored["scales"], golden["awq.stored_scales"])


def test_autoawq_decodes_the_same_weight(golden: dict[str, Tensor]) -> None:
    stored = {
        "qweight": golden["awq.qweight"],
        "qzeros": golden["awq.qzeros"],
        "scales": golden["awq.stored_scales"],
    }
    weight = AwqGemmLinear().unpack(stored, QuantizedSpec((32, 64), SCHEMES["w4"]), 0, 32)
    assert torch.equal(weight.dequantize(), golden["awq.decoded"].float())


@pytest.mark.parametrize("case", SCHEMES)
def test_a_linear_is_stored_as_compressed_tensors_stores_it(
    golden: dict[str, Tensor], case: str
) -> None:
    weight = AffineWeight(
        SCHEMES[case],
        golden[f"{case}.codes"],
        golden[f"{case}.weight_scale"],
        golden[f"{case}.zero_points"],
    )
    stored = PackQuantizedLinear().pack(weight)
    expected = {
        name.removeprefix(f"{case}."): tensor
        for name, tensor in golden.items()
        if name.startswith(f"{case}.weight_")
    }
    assert stored.keys() == expected.keys()
    for suffix, tensor in expected.items():
        assert torch.equal(stored[suffix], tensor), suffix


@pytest.mark.parametrize("case", SCHEMES)
def test_compressed_tensors_decodes_the_same_weight(golden: dict[str, Tensor], case: str) -> None:
    stored = {
        name.removeprefix(f"{case}."): tensor
        for name, tensor in golden.items()
        if name.startswith(f"{case}.weight_")
    }
    weight = PackQuantizedLinear().unpack(stored, QuantizedSpec((32, 64), SCHEMES[case]), 0, 32)
    assert torch.equal(weight.dequantize(), golden[f"{case}.decoded"].float())
