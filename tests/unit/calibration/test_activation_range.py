from __future__ import annotations

import torch

from gemquant.calibration.activation_range import FLOAT16_LIMIT, ActivationRangeScan


def test_the_largest_magnitude_of_all_layers_is_named_by_its_module() -> None:
    scan = ActivationRangeScan()
    first = scan.observer(0, "model.layers.0.")
    first("mlp.down_proj", torch.tensor([1.0, -7.0]))
    first("mlp", torch.tensor([2.0]))
    first.close()
    second = scan.observer(1, "model.layers.1.")
    second("mlp.down_proj", torch.tensor([3.0]))
    second("mlp.down_proj", torch.tensor([-9.0, 1.0]))
    second("mlp.down_proj", torch.tensor([4.0]))
    second.close()
    assert scan.largest == {
        0: (7.0, "model.layers.0.mlp.down_proj"),
        1: (9.0, "model.layers.1.mlp.down_proj"),
    }
    assert scan.worst() == (9.0, "model.layers.1.mlp.down_proj")


def test_a_layers_own_output_bears_the_layers_name() -> None:
    scan = ActivationRangeScan()
    observer = scan.observer(4, "model.layers.4.")
    observer("", torch.tensor([70000.0]))
    observer.close()
    assert scan.worst() == (70000.0, "model.layers.4")
    assert scan.worst()[0] > FLOAT16_LIMIT == 65504.0


def test_without_a_trace_there_is_no_largest() -> None:
    assert ActivationRangeScan().worst() == (0.0, "")
