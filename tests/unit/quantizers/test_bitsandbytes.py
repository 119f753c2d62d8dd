"""int8, nf4 and fp4: what they announce is what they make."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gemquant.core.options import problems_with
from gemquant.core.protocols import Block, QuantizedWeight
from gemquant.formats.bitsandbytes import BitsAndBytes
from gemquant.models.architecture import layer_structure
from gemquant.models.config import text_config
from gemquant.models.structure import EMBEDDING, HEAD
from gemquant.quantizers.bitsandbytes import FP4, NF4, Int8
from tests.helpers.tiny_gemma import tiny_config, tiny_tensors

Quantizer = Int8 | NF4 | FP4


@pytest.fixture
def block() -> Block:
    config = text_config(tiny_config("gemma2"))
    prefix = "model.layers.0."
    weights = {
        name.removeprefix(prefix): tensor.float()
        for name, tensor in tiny_tensors(config).items()
        if name.startswith(prefix)
    }
    return Block(0, prefix, layer_structure(config, 0), weights, {})


def made(quantizer: Quantizer, block: Block) -> dict[str, QuantizedWeight]:
    container = BitsAndBytes().container({})
    weights = quantizer.quantize(block, container)
    return {n: w for n, w in weights.items() if not isinstance(w, torch.Tensor)}


@pytest.mark.parametrize("quantizer", [Int8(), NF4(), FP4()], ids=lambda q: q.name)
def test_every_linear_is_quantized_as_announced(quantizer: Quantizer, block: Block) -> None:
    weights = made(quantizer, block)
    assert list(weights) == [f"{name}.weight" for name in block.structure.linears]
    for name, weight in weights.items():
        assert weight.scheme == quantizer.scheme_for(block.prefix + name, weight.shape)


@pytest.mark.parametrize(
    ("quantizer", "error"),
    [(Int8(), 0.02), (NF4(), 0.15), (FP4(), 0.2)],
    ids=["int8", "nf4", "fp4"],
)
def test_the_relative_error_is_that_of_the_data_type(
    quantizer: Quantizer, error: float, block: Block
) -> None:
    name = "mlp.up_proj.weight"
    weight = block.weights[name]
    lost = (made(quantizer, block)[name].dequantize() - weight).norm() / weight.norm()
    assert error / 5 < lost < error


def test_the_layers_left_out_are_left_out(block: Block) -> None:
    assert "mlp.down_proj.weight" not in made(NF4(skip="*.down_proj"), block)


def test_the_head_stays_in_floating_point() -> None:
    assert NF4().scheme_for(HEAD, (300, 128)) is None
    assert Int8().scheme_for(HEAD, (300, 128)) is None


def test_without_double_quantization_the_scales_are_exact(block: Block) -> None:
    name = "mlp.up_proj.weight"
    weight = made(NF4(double_quantization=False), block)[name].dequantize()
    largest = block.weights[name].view(-1, 64).abs().amax(1)
    assert torch.equal(weight.view(-1, 64).abs().amax(1), largest)


def test_a_block_size_that_bitsandbytes_lacks_is_refused() -> None:
    (problem,) = problems_with(dataclasses.replace(NF4(), block_size=100))
    assert problem.message == (
        "--block-size 100: must be one of 64, 128, 256, 512, 1024, 2048, 4096."
    )


def test_a_pattern_that_names_nothing_is_refused() -> None:
    linears = {"model.layers.0.mlp.up_proj.weight": (8, 8), EMBEDDING: (8, 8)}
    for quantizer in (Int8(skip="nothing"), NF4(skip="nothing")):
        (problem,) = quantizer.problems(linears)
        assert "--skip nothing" in problem.message
