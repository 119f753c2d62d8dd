"""Gemma 4: what folds leaves the library's logits equal, what would not is left alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gemquant.calibration.trace import Trace
from gemquant.core.protocols import AffineWeight, Block, Container
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.measure.quality.tensors import Unfolded
from gemquant.models.experts import expert_number
from gemquant.models.skeleton import Skeleton
from gemquant.quantizers.awq import AWQ, scaled_groups
from gemquant.quantizers.smoothquant import SmoothQuant
from tests.helpers.tiny_gemma import GEMMA4, Kind, stacked, write_tiny_gemma
from tests.helpers.tiny_windows import tiny_windows

CALIBRATION = tiny_windows(6, 45, seed=1)
IDS = tiny_windows(2, 50, seed=2).ids
BF16 = Container(torch.bfloat16, torch.bfloat16)
FOLDING = ("input_layernorm", "pre_feedforward_layernorm")


@dataclass(frozen=True)
class Traced:
    """A tiny Gemma 4 with what folding starts from, and its logits before."""

    config: Mapping[str, object]
    before: Mapping[str, Tensor]
    blocks: list[Block]
    trace: Trace
    expected: Tensor


def logits(config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Tensor:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), dtype=torch.float32, attn_implementation="eager"
    )
    model.set_experts_implementation("eager")
    report = model.load_state_dict(stacked(config, tensors), strict=False)
    assert report.unexpected_keys == []
    model.tie_weights()
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Traced]:
    """Make each kind's once, with gains near one wherever nothing folds; no weight is held."""

    @functools.cache
    def make(kind: Kind) -> Traced:
        folder = write_tiny_gemma(tmp_path_factory.mktemp(kind), kind)
        file = folder / "model.safetensors"
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if "norm" in name and not any(norm in name for norm in FOLDING):
                tensors[name] = tensor.clamp(0.9, 1.1) * (0.2 if "q_norm" in name else 1)
        save_file(tensors, file, metadata={"format": "pt"})
        checkpoint = open_checkpoint(str(folder))
        config = dict(checkpoint.config)
        before = {name: checkpoint.tensor(name, torch.float32) for name in checkpoint.names()}
        trace = Trace(checkpoint, Skeleton(config), CALIBRATION, gram=True, sampled=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gemquant.calibration.trace.HELD_BYTES", 0)
            blocks = list(trace.blocks())
        return Traced(config, before, blocks, trace, logits(config, before))

    return make


def folded(blocks: list[Block]) -> dict[str, Tensor]:
    """Every tensor that folding changes, in float32."""
    tensors: dict[str, Tensor] = {}
    for block in blocks:
        for group in scaled_groups(AWQ(group_size=32), block, BF16):
            for norm, weight in group.norms.items():
                tensors[block.prefix + norm] = weight.float()
            for linear, weight in group.weights.items():
                tensors[f"{block.prefix}{linear}.weight"] = weight * group.scale
    return tensors


@pytest.mark.parametrize("kind", GEMMA4)
def test_folding_alone_leaves_float32_logits_equal(
    traced: Callable[[Kind], Traced], kind: Kind
) -> None:
    model = traced(kind)
    changed = folded(model.blocks)
    moved = {
        name.split(".", 3)[3]
        for name, tensor in changed.items()
        if (tensor - model.before[name]).abs().max() > 0.01 * model.before[name].abs().max()
    }
    assert {"input_layernorm.weight", "pre_feedforward_layernorm.weight"} <= moved
    assert {"self_attn.q_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"} <= moved
    assert "self_attn.o_proj.weight" not in moved
    if kind == "gemma4_moe":
        assert "pre_feedforward_layernorm_2.weight" in moved
        assert {f"experts.{n}.gate_proj.weight" for n in range(8)} <= moved
        assert {f"experts.{n}.down_proj.weight" for n in range(8)} <= moved
    found = logits(model.config, {**model.before, **changed})
    torch.testing.assert_close(found, model.expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", GEMMA4)
def test_a_scale_between_values_and_output_would_change_the_logits(
    traced: Callable[[Kind], Traced], kind: Kind
) -> None:
    model = traced(kind)
    # Layer 0 slides and has values of its own in every kind.
    value, output = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "vo")
    head = torch.linspace(0.5, 2, 32)
    scale = head.repeat(model.before[value].shape[0] // 32)
    inputs = head.repeat(model.before[output].shape[1] // 32)
    changed = {
        value: model.before[value] / scale[:, None],
        output: model.before[output] * inputs,
    }
    found = logits(model.config, {**model.before, **changed})
    assert (found - model.expected).abs().max() > 0.01


@pytest.mark.parametrize("kind", GEMMA4)
def test_values_alone_have_a_gram_matrix_of_their_own(
    traced: Callable[[Kind], Traced], kind: Kind
) -> None:
    for block in traced(kind).blocks:
        makers = [n for n in ("v", "k", "q") if f"self_attn.{n}_proj" in block.statistics]
        query, *others = (block.statistics[f"self_attn.{n}_proj"] for n in reversed(makers))
        apart = [each for each in others if each.gram is not query.gram]
        assert len(apart) == min(1, len(others))
        assert apart == others[-1:]
        for each in apart:
            assert each.mean_abs is query.mean_abs
            assert each.sum_squares is query.sum_squares


def test_values_are_rounded_for_errors_relative_to_their_size(
    traced: Callable[[Kind], Traced],
) -> None:
    block, name = traced("gemma4_e").blocks[0], "self_attn.v_proj"
    gram = block.statistics[name].gram
    shared = {**block.statistics, name: block.statistics["self_attn.q_proj"]}
    assert gram is not None

    def loss(block: Block) -> float:
        weight = AWQ(group_size=32, scale=False).quantize(block, BF16)[f"{name}.weight"]
        assert isinstance(weight, AffineWeight)
        error = (weight.dequantize() - block.weights[f"{name}.weight"]).double()
        return float((error @ gram.double() * error).sum())

    assert loss(block) < 0.95 * loss(replace(block, statistics=shared))


@pytest.mark.parametrize("kind", GEMMA4)
def test_smoothing_leaves_float32_logits_equal(
    traced: Callable[[Kind], Traced], kind: Kind
) -> None:
    model = traced(kind)
    groups: dict[str, float] = {}
    quantizer = SmoothQuant(
        -1, lambda _, group, found: groups.update({group.name: found.by_activations})
    )
    container = Container(torch.float32, torch.float32)
    changed = {
        block.prefix + name: tensor
        for block in model.blocks
        for name, tensor in quantizer.quantize(block, container).items()
    }
    experts = {"experts", *(f"experts.{n}.down" for n in range(8))}
    assert set(groups) == {"qkv", "gate_up", "down", *(experts if "moe" in kind else ())}
    assert any(groups.values())
    found = logits(model.config, {**model.before, **changed})
    torch.testing.assert_close(found, model.expected, rtol=0, atol=1e-5)


def test_smoothing_reads_the_inputs_of_all_experts_for_their_common_scale(
    traced: Callable[[Kind], Traced],
) -> None:
    block = traced("gemma4_moe").blocks[0]
    (group,) = (each for each in block.structure.groups if each.name == "experts")
    tokens = SmoothQuant(-1, lambda *_: None)._problem(block, group).inputs.shape[0]
    sample = block.statistics["experts"].sample
    assert sample is not None
    assert tokens == sample.shape[0]


@pytest.mark.parametrize("kind", GEMMA4)
def test_what_was_folded_is_taken_back_before_tensors_are_compared(
    traced: Callable[[Kind], Traced], kind: Kind
) -> None:
    model = traced(kind)
    artifact = {**model.before, **folded(model.blocks)}
    for block in model.blocks:
        layer = {name: artifact[block.prefix + name] for name in block.structure.shapes}
        unfolded = Unfolded(block.structure, block.weights, layer)
        for part in unfolded.parts:
            for name, weight in unfolded.weights(part).items():
                torch.testing.assert_close(weight, block.weights[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", GEMMA4)
def test_small_decisive_matrices_get_no_scale(traced: Callable[[Kind], Traced], kind: Kind) -> None:
    changed = folded(traced(kind).blocks)
    assert [name for name in changed if "router" in name or "per_layer" in name] == []


def test_each_expert_has_statistics_of_its_own_tokens(traced: Callable[[Kind], Traced]) -> None:
    model = traced("gemma4_moe")
    routed = model.trace.routed[1]
    block = model.blocks[1]
    assert (sum(routed.tokens), routed.least) == (6 * 45 * 2, 32)
    assert routed.few == tuple(n for n, tokens in enumerate(routed.tokens) if tokens < 32)
    layer = block.statistics["experts"]
    assert layer.tokens == 6 * 45
    for expert, tokens in enumerate(routed.tokens):
        gate, up, down = (
            block.statistics[f"experts.{expert}.{part}_proj"] for part in ("gate", "up", "down")
        )
        assert gate is up
        assert gate.gram is layer.gram
        if expert in routed.few:
            assert (gate.tokens, down.tokens) == (6 * 45, 6 * 45 * 2)
        else:
            assert (gate.tokens, down.tokens) == (tokens, tokens)
            assert not torch.equal(gate.mean_abs, layer.mean_abs)


def test_experts_are_read_one_at_a_time(traced: Callable[[Kind], Traced]) -> None:
    block = traced("gemma4_moe").blocks[0]
    names = [name for name in block.weights if expert_number(name) is not None]
    assert len(names) == 24
    first, again = block.weights[names[0]], block.weights[names[0]]
    assert first.data_ptr() != again.data_ptr()
