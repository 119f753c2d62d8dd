"""Smoothing leaves the function as it is, and 8 bits lose less of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gemquant.calibration.trace import Trace
from gemquant.core.protocols import Block, Container
from gemquant.formats.checkpoint import Checkpoint
from gemquant.models.architecture import layer_structure
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import InputGroup
from gemquant.numerics.smoothquant import (
    SmoothingProblem,
    SmoothingScale,
    search_smoothing,
)
from gemquant.quantizers.smoothquant import SmoothQuant
from tests.helpers.tiny_gemma import Kind
from tests.helpers.tiny_windows import tiny_windows
from tests.unit.quantizers.test_folding import logits, open_tiny, original

CALIBRATION = tiny_windows(4, seed=1)
FLOAT32 = Container(torch.float32, torch.float32)
Found = list[tuple[str, InputGroup, SmoothingScale]]


def sampled_blocks(checkpoint: Checkpoint) -> list[Block]:
    skeleton = Skeleton(checkpoint.config)
    return list(Trace(checkpoint, skeleton, CALIBRATION, gram=False, sampled=True).blocks())


def smoothed(
    blocks: list[Block], container: Container = FLOAT32, group_size: int = -1
) -> tuple[dict[str, Tensor], Found]:
    found: Found = []
    quantizer = SmoothQuant(group_size, lambda *each: found.append(each))
    tensors = {}
    for block in blocks:
        for name, tensor in quantizer.quantize(block, container).items():
            tensors[block.prefix + name] = tensor
    return tensors, found


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[[Kind], Checkpoint]:
    return lambda kind: open_tiny(tmp_path / kind, kind)


def test_float32_logits_are_equal_past_the_sliding_window(
    tiny: Callable[[Kind], Checkpoint], generation: Kind
) -> None:
    checkpoint = tiny(generation)
    config, before = dict(checkpoint.config), original(checkpoint)
    changed, found = smoothed(sampled_blocks(checkpoint))
    folded = [each.by_activations > 0 for _, _, each in found]
    assert sum(folded) > len(folded) / 2
    torch.testing.assert_close(
        logits(config, {**before, **changed}), logits(config, before), rtol=0, atol=2e-5
    )


def test_every_fold_moves_what_it_should_and_nothing_else(
    tiny: Callable[[Kind], Checkpoint], generation: Kind
) -> None:
    checkpoint = tiny(generation)
    before = original(checkpoint)
    changed, _ = smoothed(sampled_blocks(checkpoint))
    moved = {
        name.split(".", 3)[3] for name in changed if not torch.equal(changed[name], before[name])
    }
    before_mlp = (
        "post_attention_layernorm" if generation == "gemma" else "pre_feedforward_layernorm"
    )
    assert moved == {
        "input_layernorm.weight",
        f"{before_mlp}.weight",
        *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
        *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    }


def test_a_norm_stored_in_bfloat16_still_agrees_with_its_linears(
    tiny: Callable[[Kind], Checkpoint],
) -> None:
    checkpoint = tiny("gemma")
    config, before = dict(checkpoint.config), original(checkpoint)
    changed, _ = smoothed(sampled_blocks(checkpoint), Container(torch.bfloat16, torch.bfloat16))
    norms = {name for name in changed if "layernorm" in name}
    assert norms
    assert all(torch.equal(changed[name], changed[name].bfloat16().float()) for name in norms)
    torch.testing.assert_close(
        logits(config, {**before, **changed}), logits(config, before), rtol=0, atol=2e-5
    )


def test_heads_that_share_a_key_value_head_share_their_scales(
    tiny: Callable[[Kind], Checkpoint],
) -> None:
    checkpoint = tiny("gemma2")
    _, found = smoothed(sampled_blocks(checkpoint))
    scales = [each.scale.reshape(2, 4, 32) for _, group, each in found if group.name == "o"]
    assert len(scales) == 3
    for scale in scales:
        assert torch.equal(scale, scale[:, :1].expand_as(scale))


def test_every_input_is_told_with_its_exponents(tiny: Callable[[Kind], Checkpoint]) -> None:
    checkpoint = tiny("gemma3_text")
    _, found = smoothed(sampled_blocks(checkpoint), group_size=64)
    groups = [group.name for group in layer_structure(checkpoint.config, 0).groups]
    assert [(prefix, group.name) for prefix, group, _ in found] == [
        (f"model.layers.{index}.", name) for index in range(3) for name in groups
    ]


def _problem(outlier: float) -> SmoothingProblem:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 64, generator=generator)
    inputs[:, 5] *= outlier
    weights = torch.randn(96, 64, generator=generator)
    return SmoothingProblem((weights,), inputs, inputs.abs().amax(0), -1)


def test_an_outlying_channel_gets_the_largest_scale() -> None:
    found = search_smoothing(_problem(100.0))
    assert int(found.scale.argmax()) == 5
    assert float(found.scale[5] / found.scale.median()) > 5


def test_where_nothing_is_better_nothing_is_folded() -> None:
    problem = SmoothingProblem((torch.eye(64),), torch.ones(10, 64), torch.ones(64), -1)
    found = search_smoothing(problem)
    assert (found.by_activations, found.by_weights) == (0.0, 0.0)
    assert torch.equal(found.scale, torch.ones(64))
