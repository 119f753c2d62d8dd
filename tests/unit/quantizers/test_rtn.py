from __future__ import annotations

import pytest
import torch

from gemquant.core.protocols import AffineScheme, AffineWeight, Block, Container
from gemquant.models.architecture import layer_structure
from gemquant.numerics.affine import AffineRounding, quantize_affine
from gemquant.quantizers.rtn import RoundToNearest
from tests.helpers.tiny_gemma import tiny_config, tiny_tensors

CONTAINER = Container(torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def block() -> Block:
    """The first layer of a tiny Gemma 2, without statistics."""
    config = tiny_config("gemma2")
    prefix = "model.layers.0."
    weights = {
        name.removeprefix(prefix): tensor.float()
        for name, tensor in tiny_tensors(config | {"tie_word_embeddings": True}).items()
        if name.startswith(prefix)
    }
    return Block(0, prefix, layer_structure(config, 0), weights, {})


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 128), (3, 32), (8, -1), (4, 64)])
def test_every_linear_is_rounded_to_nearest_in_the_scheme_asked_for(
    block: Block, bits: int, group_size: int, symmetric: bool
) -> None:
    quantizer = RoundToNearest(bits, group_size, symmetric)
    quantized = quantizer.quantize(block, CONTAINER)
    assert set(quantized) == {f"{linear}.weight" for linear in block.structure.linears}
    rounding = AffineRounding(bits, symmetric, torch.float16)
    for name, weight in quantized.items():
        assert isinstance(weight, AffineWeight)
        assert weight.scheme == AffineScheme(bits, group_size, symmetric)
        assert (weight.codes.dtype, weight.scales.dtype) == (torch.uint8, torch.float16)
        codes, scales, zeros = quantize_affine(
            block.weights[name], rounding=rounding, group_size=group_size
        )
        assert torch.equal(weight.codes, codes)
        assert torch.equal(weight.scales.float(), scales)
        assert torch.equal(weight.zero_points.float(), zeros)


def test_norms_are_left_to_be_copied(block: Block) -> None:
    quantized = RoundToNearest().quantize(block, CONTAINER)
    assert not any("norm" in name for name in quantized)


def test_skipped_layers_are_left_to_be_copied(block: Block) -> None:
    quantized = RoundToNearest(skip="*.self_attn.*, layers.0.mlp.up_proj").quantize(
        block, CONTAINER
    )
    assert set(quantized) == {"mlp.gate_proj.weight", "mlp.down_proj.weight"}


@pytest.mark.parametrize(("quantize_head", "skip"), [(False, ""), (True, "lm_head")])
def test_the_head_is_quantized_only_when_asked(quantize_head: bool, skip: str) -> None:
    quantizer = RoundToNearest(quantize_head=quantize_head, skip=skip)
    assert quantizer.scheme_for("lm_head.weight", (551, 128)) is None
    asked = RoundToNearest(quantize_head=True)
    assert asked.scheme_for("lm_head.weight", (551, 128)) == AffineScheme(4, 128, False)
