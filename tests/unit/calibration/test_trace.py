"""The trace against activations that plain transformers hooks capture."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from gemquant.calibration.trace import Trace
from gemquant.core.protocols import Statistics
from gemquant.errors import CalibrationError, CheckpointError
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.models.skeleton import Skeleton
from tests.helpers.tiny_gemma import Kind, tiny_config, tiny_tensors, write_shards, write_tiny_gemma
from tests.helpers.tiny_windows import tiny_windows

CALIBRATION = tiny_windows(3, 45, seed=3)


def captured(
    checkpoint: Checkpoint, generation: Kind
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Inputs of every linear (tokens, in), and the largest output of every module of a layer."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**checkpoint.config),
        dtype=torch.float32,
        attn_implementation="eager" if generation == "gemma2" else "sdpa",
    )
    state = {name: checkpoint.tensor(name, torch.float32) for name in checkpoint.names()}
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    inputs: dict[str, list[Tensor]] = defaultdict(list)
    largest: dict[str, float] = defaultdict(float)
    for name, module in model.eval().named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, args, name=name: inputs[name].append(args[0].flatten(0, 1))
            )
        if name.startswith("model.layers."):
            module.register_forward_hook(
                lambda _, __, out, name=name: largest.__setitem__(
                    name,
                    max(
                        largest[name],
                        float((out[0] if isinstance(out, tuple) else out).abs().max()),
                    ),
                )
            )
    with torch.no_grad():
        model(CALIBRATION.ids)
    return {name: torch.cat(parts) for name, parts in inputs.items()}, largest


def assert_describes(found: Statistics, x: Tensor) -> None:
    wide = x.double()
    assert found.tokens == len(x)
    torch.testing.assert_close(found.sum_squares, wide.square().sum(0), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found.mean_abs.double(), wide.abs().mean(0), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found.max_abs.double(), wide.abs().amax(0), rtol=1e-4, atol=1e-9)
    expected = wide.T @ wide
    assert found.gram is not None
    tolerance = 1e-5 * expected.diagonal().max().item()
    torch.testing.assert_close(found.gram.double(), expected, rtol=1e-4, atol=tolerance)


def test_statistics_are_those_of_every_linears_input(generation: Kind, tiny_folder: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    inputs, _ = captured(checkpoint, generation)
    trace = Trace(checkpoint, Skeleton(checkpoint.config), CALIBRATION, gram=True)
    for block in trace.blocks():
        assert set(block.statistics) == set(block.structure.linears)
        for linear, statistics in block.statistics.items():
            assert_describes(statistics, inputs[block.prefix + linear])
    assert_describes(trace.head_statistics()["lm_head"], inputs["lm_head"])


def test_linears_that_read_one_input_share_its_statistics(tiny_folder: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    block = next(Trace(checkpoint, Skeleton(checkpoint.config), CALIBRATION, gram=True).blocks())
    statistics = block.statistics
    assert statistics["self_attn.q_proj"] is statistics["self_attn.v_proj"]
    assert statistics["mlp.gate_proj"] is statistics["mlp.up_proj"]
    assert statistics["self_attn.o_proj"] is not statistics["mlp.up_proj"]


def test_the_scan_finds_the_largest_activation_of_every_layer(
    generation: Kind, tiny_folder: Path
) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    _, largest = captured(checkpoint, generation)
    trace = Trace(checkpoint, Skeleton(checkpoint.config), CALIBRATION, gram=False)
    for block in trace.blocks():
        of_layer = {n: v for n, v in largest.items() if f"{n}.".startswith(block.prefix)}
        where = max(of_layer, key=of_layer.__getitem__)
        assert block.activation_range is not None
        assert trace.activation_ranges.layers[block.index] == block.activation_range
        inputs = max(float(s.max_abs.max()) for s in block.statistics.values())
        assert block.activation_range.largest == pytest.approx(
            max(of_layer[where], inputs), rel=1e-5
        )
        residual = of_layer[block.prefix.rstrip(".")]
        assert block.activation_range.residual == pytest.approx(residual, rel=1e-5)


def test_blocks_carry_the_layers_weights_in_float32_whatever_is_computed_in(
    tiny_folders: dict[Kind, Path],
) -> None:
    checkpoint = open_checkpoint(str(tiny_folders["gemma3_text"]))
    skeleton = Skeleton(checkpoint.config, dtype=torch.bfloat16)
    for block in Trace(checkpoint, skeleton, CALIBRATION, gram=True).blocks():
        for name, weight in block.weights.items():
            assert weight.dtype == torch.float32
            assert torch.equal(weight, checkpoint.tensor(block.prefix + name, torch.float32))


def test_without_calibration_blocks_carry_no_statistics(tiny_folders: dict[Kind, Path]) -> None:
    checkpoint = open_checkpoint(str(tiny_folders["gemma2"]))
    trace = Trace(checkpoint, Skeleton(checkpoint.config), None, gram=True)
    blocks = list(trace.blocks())
    assert [block.index for block in blocks] == [0, 1, 2]
    assert all(not block.statistics for block in blocks)
    assert not trace.head_statistics()
    assert trace.activation_ranges.worst() == (0.0, "")


def test_activations_that_overflow_are_an_error_that_names_the_layer(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path, "gemma2", dtype=torch.float32)
    tensors = tiny_tensors(
        {**tiny_config("gemma2"), "tie_word_embeddings": True}, dtype=torch.float32
    )
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1e30
    tensors["model.layers.1.mlp.gate_proj.weight"] *= 1e30
    write_shards(folder, tensors)
    checkpoint = open_checkpoint(str(folder))
    with pytest.raises(CalibrationError, match=r"model\.layers\.1: the activations are not finite"):
        list(Trace(checkpoint, Skeleton(checkpoint.config), CALIBRATION, gram=True).blocks())


def test_weights_that_are_no_numbers_are_an_error_that_names_the_tensor(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path, "gemma2")
    tensors = tiny_tensors({**tiny_config("gemma2"), "tie_word_embeddings": True})
    tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = float("nan")
    write_shards(folder, tensors)
    checkpoint = open_checkpoint(str(folder))
    trace = Trace(checkpoint, Skeleton(checkpoint.config), None, gram=True)
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\.mlp\.up_proj\.weight"):
        [dict(block.weights) for block in trace.blocks()]


@pytest.mark.parametrize(("held_bytes", "times"), [(1 << 29, 1), (0, 3)])
def test_a_calibrated_layer_that_is_small_is_read_once(
    tiny_folders: dict[Kind, Path], monkeypatch: pytest.MonkeyPatch, held_bytes: int, times: int
) -> None:
    checkpoint = open_checkpoint(str(tiny_folders["gemma2"]))
    monkeypatch.setattr("gemquant.calibration.trace.HELD_BYTES", held_bytes)
    reads: list[str] = []
    read = Checkpoint.rows

    def noted(self: Checkpoint, name: str, *args: Any) -> Tensor:
        reads.append(name)
        return read(self, name, *args)

    monkeypatch.setattr(Checkpoint, "rows", noted)
    for block in Trace(checkpoint, Skeleton(checkpoint.config), CALIBRATION, gram=True).blocks():
        assert dict(block.weights).keys() == dict(block.weights).keys()
    assert reads.count("model.layers.1.mlp.up_proj.weight") == times
