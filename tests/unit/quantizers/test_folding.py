"""Folding alone changes nothing: transformers' own model, with and without folded scales."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gemquant.core.protocols import Block, Container
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.quantizers.awq import AWQ, scaled_groups
from tests.helpers.tiny_gemma import Kind, write_tiny_gemma
from tests.helpers.tiny_windows import tiny_windows, traced_blocks

CALIBRATION = tiny_windows(4, seed=1)
IDS = tiny_windows(2, 50, seed=2).ids
BF16 = Container(torch.bfloat16, torch.bfloat16)
F16 = Container(torch.float16, torch.float16)


def logits(config: dict[str, object], tensors: dict[str, Tensor]) -> Tensor:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), dtype=torch.float32, attn_implementation="eager"
    )
    assert model.load_state_dict(tensors, strict=False).unexpected_keys == []
    model.tie_weights()
    with torch.no_grad():
        return model.eval()(IDS).logits


def original(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {name: checkpoint.tensor(name, torch.float32) for name in checkpoint.names()}


def folded(options: AWQ, blocks: list[Block], container: Container) -> dict[str, Tensor]:
    """Every tensor that folding changes, in float32."""
    tensors: dict[str, Tensor] = {}
    for block in blocks:
        for group in scaled_groups(options, block, container):
            for norm, weight in group.norms.items():
                tensors[block.prefix + norm] = weight.float()
            for linear, weight in group.weights.items():
                tensors[f"{block.prefix}{linear}.weight"] = weight * group.scale
    return tensors


def open_tiny(folder: Path, kind: Kind, dtype: torch.dtype = torch.bfloat16) -> Checkpoint:
    """A tiny Gemma whose gains are near one wherever nothing folds.

    With the usual ones its own float32 logits are 3e-4 to 2e-3 from float64's: no 1e-4 there.
    """
    write_tiny_gemma(folder, kind, dtype=dtype)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    folding = ("input_layernorm", "pre_feedforward_layernorm")
    if kind == "gemma":
        folding = ("input_layernorm", "post_attention_layernorm")
    for name, tensor in tensors.items():
        if tensor.ndim == 1 and not any(norm in name for norm in folding):
            tensors[name] = (tensor.float().clamp(-1, 1) * 0.3).to(dtype)
    save_file(tensors, file, metadata={"format": "pt"})
    return open_checkpoint(str(folder))


@dataclass(frozen=True)
class Traced:
    """A tiny Gemma with what folding starts from, and its logits before."""

    config: dict[str, object]
    before: dict[str, Tensor]
    blocks: list[Block]
    expected: Tensor


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Traced]:
    """Make each generation's once."""

    @functools.cache
    def make(kind: Kind) -> Traced:
        checkpoint = open_tiny(tmp_path_factory.mktemp(kind), kind)
        config, before = dict(checkpoint.config), original(checkpoint)
        blocks = traced_blocks(checkpoint, CALIBRATION)
        return Traced(config, before, blocks, logits(config, before))

    return make


@pytest.mark.parametrize(
    ("compensate", "container"), [(True, BF16), (False, F16)], ids=["bfloat16", "plain-float16"]
)
def test_folding_alone_leaves_float32_logits_equal(
    traced: Callable[[Kind], Traced], generation: Kind, compensate: bool, container: Container
) -> None:
    model = traced(generation)
    changed = folded(AWQ(group_size=32, gptq=compensate), model.blocks, container)
    found = logits(model.config, {**model.before, **changed})
    torch.testing.assert_close(found, model.expected, rtol=0, atol=1e-4)


def test_every_kind_of_scale_is_really_folded(
    traced: Callable[[Kind], Traced], generation: Kind
) -> None:
    before = traced(generation).before
    changed = folded(AWQ(group_size=32), traced(generation).blocks, BF16)
    moved = {
        name.split(".", 3)[3]
        for name, tensor in changed.items()
        if (tensor - before[name]).abs().max() > 0.01 * before[name].abs().max()
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


def test_a_norm_stored_shorter_than_its_source_loses_nothing_where_it_folds(
    tmp_path: Path,
) -> None:
    checkpoint = open_tiny(tmp_path, "gemma", torch.float32)
    before = original(checkpoint)
    changed = folded(AWQ(group_size=32), traced_blocks(checkpoint, CALIBRATION), BF16)
    # Both of Gemma 1's norms fold, so that all that is stored in bfloat16 was made up for.
    config = dict(checkpoint.config)
    torch.testing.assert_close(
        logits(config, {**before, **changed}), logits(config, before), rtol=0, atol=1e-4
    )


def test_no_scale_means_that_nothing_is_folded(traced: Callable[[Kind], Traced]) -> None:
    block = traced("gemma2").blocks[0]
    for group in scaled_groups(AWQ(group_size=32, scale=False), block, BF16):
        assert (group.scale == 1).all()
        assert not group.norms
        for linear, weight in group.weights.items():
            assert torch.equal(weight, block.weights[f"{linear}.weight"])


@pytest.mark.parametrize(
    ("skip", "untouched"),
    [
        ("*.v_proj", {"qkv", "o"}),
        ("*.k_proj", {"qkv"}),
        ("*.up_proj", {"gate_up", "down"}),
        ("*.o_proj", {"o"}),
        ("*.down_proj", {"down"}),
    ],
)
def test_a_layer_kept_in_floating_point_takes_no_scale(
    traced: Callable[[Kind], Traced], skip: str, untouched: set[str]
) -> None:
    block = traced("gemma2").blocks[0]
    groups = {group.linears: group.name for group in block.structure.groups}
    still = set()
    found = {
        linear: group
        for group in scaled_groups(AWQ(group_size=32, skip=skip), block, BF16)
        for linear in group.weights
    }
    for linears, name in groups.items():
        if all(linear not in found or (found[linear].scale == 1).all() for linear in linears):
            still.add(name)
    assert still == untouched


def test_a_partly_skipped_model_still_computes_the_same(
    traced: Callable[[Kind], Traced], generation: Kind
) -> None:
    model = traced(generation)
    options = AWQ(group_size=32, skip="layers.0.*.v_proj, layers.1.mlp.up_proj, *.1.*.q_proj")
    changed = folded(options, model.blocks, BF16)
    assert "model.layers.0.self_attn.v_proj.weight" not in changed
    found = logits(model.config, {**model.before, **changed})
    torch.testing.assert_close(found, model.expected, rtol=0, atol=1e-4)
