"""The emulation of w8a8 against transformers' own model with integer products counted in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from gemquant.core.artifact.evaluation import LevelEvaluation, SliceEvaluation
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.measure.quality.emulated import Emulated, emulate
from tests.helpers.tiny_gemma import Kind, write_tiny_gemma
from tests.helpers.tiny_windows import tiny_windows

WINDOWS = tiny_windows(2, 40, seed=3)


def codes(values: np.ndarray, peaks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers and what one of them stands for, by the definition: absmax / 127, to nearest."""
    return np.rint(values * 127.0 / peaks).astype(np.int64), peaks / 127.0


class Integers(nn.Module):
    """A linear that multiplies integers and nothing else."""

    def __init__(self, weight: Tensor, per_tensor: bool, group_size: int) -> None:
        super().__init__()
        rows = weight.double().numpy()
        grouped = rows.reshape(rows.shape[0], -1, rows.shape[1] if group_size < 0 else group_size)
        self.codes, self.steps = codes(grouped, np.abs(grouped).max(-1, keepdims=True))
        self.per_tensor = per_tensor

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = []
        for window in inputs.double().numpy():
            peaks = np.abs(window).max(None if self.per_tensor else -1, keepdims=True)
            integers, step = codes(window, peaks)
            grouped = integers.reshape(len(window), *self.codes.shape[1:])
            sums = np.einsum("tgk,ogk->tog", grouped, self.codes)
            outputs.append((sums * self.steps[None, :, :, 0]).sum(-1) * step)
        return torch.from_numpy(np.stack(outputs)).to(inputs.dtype)


def oracle(
    checkpoint: Checkpoint, *, per_tensor: bool, int8_head: bool, group_size: int
) -> tuple[Tensor, Tensor]:
    """Logits of the library's model before and after; float64 but where integers are multiplied."""
    tensors = {name: checkpoint.tensor(name, torch.float64) for name in checkpoint.names()}
    logits = []
    for rounded in (False, True):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**checkpoint.config),
            dtype=torch.float64,
            attn_implementation="eager",
        )
        model.load_state_dict(tensors, strict=False)
        model.tie_weights()
        if rounded:
            for name, module in list(model.model.layers.named_modules()):
                if isinstance(module, nn.Linear):
                    model.model.layers.set_submodule(
                        name, Integers(module.weight.detach(), per_tensor, group_size)
                    )
            if int8_head:
                head = model.lm_head.weight.detach()
                model.lm_head = _AllButTheLast(Integers(head, per_tensor, group_size))
            else:
                model.lm_head = _Float16(model.lm_head.weight.detach())
        with torch.no_grad():
            logits.append(model.eval()(WINDOWS.ids).logits[:, :-1])
    return logits[0], logits[1]


class _AllButTheLast(nn.Module):
    """A head that is asked for the positions that predict a token of their window."""

    def __init__(self, head: Integers) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.head(hidden[:, :-1])
        return torch.cat([logits, logits[:, -1:]], 1)


class _Float16(nn.Module):
    """A head whose table and input are rounded to float16."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.table = weight.half().double()

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.half().double() @ self.table.T


def divergence(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Mean KL divergence, and the perplexity after."""
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    targets = WINDOWS.ids[:, 1:, None]
    return (
        float((p.exp() * (p - q)).sum(-1).mean()),
        math.exp(float(-q.gather(-1, targets).mean())),
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Checkpoint]:
    """Open one of a single layer: behind more, codes that turn over would drown what is tested."""
    overrides = {"num_hidden_layers": 1}
    return lambda kind: open_checkpoint(
        str(write_tiny_gemma(tmp_path_factory.mktemp(kind), kind, seed=5, overrides=overrides))
    )


def corner(certificates: list[LevelEvaluation], activations: str, head: str) -> SliceEvaluation:
    (found,) = (
        each.slices[0]
        for each in certificates
        if each.emulation is not None
        and (each.emulation.activations, each.emulation.head) == (activations, head)
    )
    return found


def assert_as_counted_elsewhere(checkpoint: Checkpoint, group_size: int) -> None:
    found = emulate(
        checkpoint,
        [Emulated(checkpoint, smoothing=False)],
        [WINDOWS],
        dtype="w8a8",
        group_size=group_size,
    )
    assert len(found) == 4
    for activations, head in (("per token", "float16"), ("per tensor", "int8")):
        logits = oracle(
            checkpoint,
            per_tensor=activations == "per tensor",
            int8_head=head == "int8",
            group_size=group_size,
        )
        kl, perplexity = divergence(*logits)
        here = corner(found, activations, head)
        # A hair's breadth turns a code over now and then; a wrong axis costs far more.
        assert here.kl_mean.value == pytest.approx(kl, rel=0.01), (activations, head)
        assert here.perplexity_quantized.value == pytest.approx(perplexity, rel=0.003)


def test_corners_are_what_integers_counted_elsewhere_give(
    tiny: Callable[[Kind], Checkpoint], generation: Kind
) -> None:
    assert_as_counted_elsewhere(tiny(generation), -1)


def test_groups_of_weights_are_what_integers_counted_elsewhere_give(
    tiny: Callable[[Kind], Checkpoint],
) -> None:
    assert_as_counted_elsewhere(tiny("gemma3_text"), 64)


def test_several_models_share_one_pass_and_come_out_as_if_alone(
    tiny: Callable[[Kind], Checkpoint],
) -> None:
    checkpoint = tiny("gemma2")
    models = [Emulated(checkpoint, smoothing=False), Emulated(checkpoint, smoothing=True)]
    both = emulate(checkpoint, models, [WINDOWS], dtype="w8a8", group_size=-1)
    alone = emulate(checkpoint, models[:1], [WINDOWS], dtype="w8a8", group_size=-1)
    assert [each.slices for each in both] == [each.slices for each in alone] * 2
    assert [each.emulation.smoothing for each in both if each.emulation] == [False] * 4 + [True] * 4


def test_a_corner_says_that_it_is_an_emulation_and_of_what(
    tiny: Callable[[Kind], Checkpoint],
) -> None:
    checkpoint = tiny("gemma")
    first, *_ = emulate(
        checkpoint,
        [Emulated(checkpoint, smoothing=False)],
        [WINDOWS],
        dtype="w8a8_g128",
        group_size=128,
    )
    assert first.level == "emulated"
    assert first.runtime.startswith(
        "emulation of w8a8_g128: int8 weights per 128 input channels, activations int8 per token, "
        "head float16, without smoothing; not the vendor's arithmetic; torch "
    )


def test_the_skeleton_computes_as_before_once_it_has_emulated(
    tiny: Callable[[Kind], Checkpoint], tmp_path: Path
) -> None:
    from gemquant.models.skeleton import Skeleton

    checkpoint = tiny("gemma2")
    skeleton = Skeleton(checkpoint.config)
    prefix = "model.layers.0."
    weights = {
        name.removeprefix(prefix): checkpoint.tensor(name, torch.float32)
        for name in checkpoint.names()
        if name.startswith(prefix)
    }
    hidden = torch.randn(1, 12, 128, generator=torch.Generator().manual_seed(0))
    before = skeleton.layer(0, weights, hidden)
    with skeleton.replacing(0, {"mlp.down_proj": lambda x: x[..., :128] * 0}):
        assert not torch.equal(skeleton.layer(0, weights, hidden), before)
    assert torch.equal(skeleton.layer(0, weights, hidden), before)
