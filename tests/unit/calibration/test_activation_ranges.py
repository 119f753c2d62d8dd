from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemquant.calibration.statistics import ActivationRanges
from gemquant.calibration.trace import Trace
from gemquant.core.protocols import FLOAT16_LIMIT, ActivationRange
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.models.skeleton import Skeleton
from tests.helpers.tiny_gemma import write_tiny_gemma
from tests.helpers.tiny_windows import tiny_windows


def test_the_largest_magnitude_of_all_layers_is_named_by_its_module() -> None:
    ranges = ActivationRanges()
    first = ranges.observer(0, "model.layers.0.")
    first("mlp.down_proj", torch.tensor([1.0, -7.0]))
    first("mlp", torch.tensor([2.0]))
    first.close()
    second = ranges.observer(1, "model.layers.1.")
    second("mlp.down_proj", torch.tensor([3.0]))
    second("mlp.down_proj", torch.tensor([-9.0, 1.0]))
    second("mlp.down_proj", torch.tensor([4.0]))
    second("", torch.tensor([-5.0]))
    second.close()
    assert ranges.layers == {
        0: ActivationRange(0.0, 7.0, "model.layers.0.mlp.down_proj"),
        1: ActivationRange(5.0, 9.0, "model.layers.1.mlp.down_proj"),
    }
    assert ranges.worst() == (9.0, "model.layers.1.mlp.down_proj")


def test_a_layers_own_output_bears_the_layers_name() -> None:
    ranges = ActivationRanges()
    observer = ranges.observer(4, "model.layers.4.")
    observer("", torch.tensor([70000.0]))
    seen = observer.close()
    assert ranges.worst() == (70000.0, "model.layers.4")
    assert not seen.fits_float16


def test_float16_ends_at_65504() -> None:
    assert torch.finfo(torch.float16).max == FLOAT16_LIMIT


def test_without_a_trace_there_is_no_largest() -> None:
    assert ActivationRanges().worst() == (0.0, "")


def test_the_residual_stream_before_a_layers_scalar_is_seen(tmp_path: Path) -> None:
    file = write_tiny_gemma(tmp_path / "model", "gemma4_text") / "model.safetensors"
    tensors = load_file(file)
    for index, scalar in ((0, 1e6), (1, 1e-6)):
        tensors[f"model.layers.{index}.layer_scalar"].fill_(scalar)
    save_file(tensors, file, metadata={"format": "pt"})
    checkpoint = open_checkpoint(str(file.parent))
    trace = Trace(checkpoint, Skeleton(checkpoint.config), tiny_windows(2, seed=1), gram=False)
    first, second, *_ = (block.activation_range for block in trace.blocks())
    assert first is not None
    assert second is not None
    assert second.residual < 100
    assert second.largest == pytest.approx(first.residual, rel=0.01)
    assert second.where == "model.layers.1.layer_scalar (input)"
