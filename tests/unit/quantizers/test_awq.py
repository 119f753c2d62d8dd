from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gemquant.core.options import problems_with
from gemquant.core.protocols import AffineScheme, AffineWeight, Block, Container
from gemquant.errors import UnsupportedError
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.models.structure import head_structure
from gemquant.quantizers.awq import AWQ
from gemquant.quantizers.rtn import RoundToNearest
from tests.helpers.tiny_gemma import Kind
from tests.helpers.tiny_windows import tiny_windows, traced_blocks

CONTAINER = Container(torch.bfloat16, torch.bfloat16)
ROUNDING_ALONE = {"scale": False, "clip": False, "gptq": False}


@pytest.fixture(scope="module")
def block(tiny_folders: dict[Kind, Path]) -> Block:
    """A layer of a tiny Gemma 2 with statistics of more tokens than channels."""
    checkpoint = open_checkpoint(str(tiny_folders["gemma2"]))
    return traced_blocks(checkpoint, tiny_windows(16, seed=1))[1]


def output_loss(block: Block, linear: str, quantized: dict[str, Tensor | AffineWeight]) -> float:
    """tr(E·H·Eᵀ) of one linear whose input nothing was folded into."""
    weight = quantized[f"{linear}.weight"]
    assert isinstance(weight, AffineWeight)
    gram = block.statistics[linear].gram
    assert gram is not None
    error = (weight.dequantize() - block.weights[f"{linear}.weight"]).double()
    return float((error @ gram.double() * error).sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(3, 32), (8, -1)])
def test_every_linear_comes_in_the_scheme_asked_for(
    block: Block, bits: int, group_size: int, symmetric: bool
) -> None:
    quantized = AWQ(bits, group_size, symmetric, gptq=False).quantize(block, CONTAINER)
    for linear in block.structure.linears:
        weight = quantized[f"{linear}.weight"]
        assert isinstance(weight, AffineWeight)
        assert weight.scheme == AffineScheme(bits, group_size, symmetric)
        assert weight.shape == tuple(block.weights[f"{linear}.weight"].shape)
        assert weight.scales.shape == (weight.shape[0], weight.scheme.groups(weight.shape[1]))
        assert (weight.codes.dtype, weight.zero_points.dtype) == (torch.uint8, torch.uint8)
        assert weight.scales.dtype == torch.bfloat16
        assert int(weight.codes.max()) <= 2**bits - 1
        if symmetric:
            assert (weight.zero_points == 2 ** (bits - 1)).all()


def test_only_folding_norms_change_and_in_the_containers_type(block: Block) -> None:
    quantized = AWQ(gptq=False, clip=False).quantize(block, CONTAINER)
    norms = {name: tensor for name, tensor in quantized.items() if "norm" in name}
    assert set(norms) == {"input_layernorm.weight", "pre_feedforward_layernorm.weight"}
    assert all(isinstance(norm, Tensor) and norm.dtype == torch.bfloat16 for norm in norms.values())


def test_with_every_step_off_awq_is_rounding_to_nearest(block: Block) -> None:
    ours = AWQ(**ROUNDING_ALONE).quantize(block, CONTAINER)
    theirs = RoundToNearest().quantize(block, CONTAINER)
    assert set(ours) == set(theirs)
    for name, weight in theirs.items():
        found = ours[name]
        assert isinstance(found, AffineWeight)
        assert isinstance(weight, AffineWeight)
        assert torch.equal(found.codes, weight.codes)
        assert torch.equal(found.scales, weight.scales)
        assert torch.equal(found.zero_points, weight.zero_points)


@pytest.mark.parametrize("linear", ["self_attn.q_proj", "mlp.down_proj"])
def test_each_step_loses_less_than_the_one_before(block: Block, linear: str) -> None:
    steps = [
        AWQ(scale=False, clip=False, gptq=False),
        AWQ(scale=False, clip=True, gptq=False),
        AWQ(scale=False, clip=True, gptq=True, cd_passes=0),
        AWQ(scale=False, clip=True, gptq=True, cd_passes=2),
    ]
    losses = [output_loss(block, linear, dict(s.quantize(block, CONTAINER))) for s in steps]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.6 * losses[0]


def test_skipped_layers_are_left_to_be_copied(block: Block) -> None:
    quantized = AWQ(skip="*.self_attn.*, *.up_proj").quantize(block, CONTAINER)
    assert set(quantized) == {"mlp.gate_proj.weight", "mlp.down_proj.weight"}


def test_a_head_is_rounded_by_its_own_statistics(block: Block) -> None:
    rows = torch.randn(70, 128, generator=torch.Generator().manual_seed(0))
    statistics = block.statistics["self_attn.q_proj"]
    head = Block(3, "", head_structure(), {"lm_head.weight": rows}, {"lm_head": statistics})
    quantized = dict(AWQ(quantize_head=True).quantize(head, CONTAINER))
    assert set(quantized) == {"lm_head.weight"}
    head_loss = output_loss(head, "lm_head", quantized)
    plain = RoundToNearest(quantize_head=True).quantize(head, CONTAINER)
    assert head_loss < output_loss(head, "lm_head", dict(plain))


def test_blocks_without_gram_matrices_are_refused_by_name(block: Block) -> None:
    bare = {
        linear: dataclasses.replace(statistics, gram=None)
        for linear, statistics in block.statistics.items()
    }
    with pytest.raises(UnsupportedError, match=r"model\.layers\.1\.mlp\.down_proj has no Gram"):
        AWQ().quantize(dataclasses.replace(block, statistics=bare), CONTAINER)


def test_rows_read_alone_give_the_same_codes(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemquant.numerics.awq.SAMPLED_ROWS", 16)
    whole = AWQ(group_size=32).quantize(block, CONTAINER)
    monkeypatch.setattr("gemquant.quantizers.awq.FAR_APART", 1)
    alone = AWQ(group_size=32).quantize(block, CONTAINER)
    for name, weight in whole.items():
        found = alone[name]
        if isinstance(weight, AffineWeight) and isinstance(found, AffineWeight):
            assert torch.equal(found.codes, weight.codes)
        else:
            assert torch.equal(found, weight)


def test_the_block_itself_is_not_changed(block: Block) -> None:
    before = {name: weight.clone() for name, weight in block.weights.items()}
    gram = block.statistics["mlp.down_proj"].gram
    assert gram is not None
    kept = gram.clone()
    AWQ().quantize(block, CONTAINER)
    assert all(torch.equal(block.weights[name], weight) for name, weight in before.items())
    assert torch.equal(gram, kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (AWQ(bits=5), "--bits 5: must be one of 2, 3, 4, 6, 8."),
        (AWQ(group_size=100), "--group-size 100: must be one of 32, 64, 128, -1."),
        (AWQ(cd_passes=-1), "--cd-passes -1: must be at least 0."),
    ],
)
def test_values_that_break_a_rule_are_named(options: AWQ, message: str) -> None:
    assert [problem.message for problem in problems_with(options)] == [message]


def test_fewer_tokens_than_channels_are_warned_of_once(
    block: Block, caplog: pytest.LogCaptureFixture
) -> None:
    few = {
        linear: dataclasses.replace(statistics, tokens=1)
        for linear, statistics in block.statistics.items()
    }
    first = dataclasses.replace(block, index=0, statistics=few)
    AWQ().quantize(dataclasses.replace(first, index=1), CONTAINER)
    AWQ(gptq=False).quantize(first, CONTAINER)
    assert caplog.messages == []
    AWQ().quantize(first, CONTAINER)
    (message,) = caplog.messages
    assert "mlp.down_proj has" in message
    assert "but only 1 calibration tokens: give more with --samples" in message
