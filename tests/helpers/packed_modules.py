"""Linears of a runtime that holds packed weights, against the weights that were packed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def compare_packed_linears(
    model: nn.Module, decoded: Mapping[str, Tensor], *, tolerance: float
) -> int:
    """Run every packed linear on random inputs; return how many there were.

    tolerance: as a share of the largest output.
    """
    generator = torch.Generator().manual_seed(0)
    compared = 0
    for name, module in model.named_modules():
        if not hasattr(module, "qweight"):
            continue
        weight = decoded[f"{name}.weight"]
        inputs = torch.randn(5, weight.shape[1], generator=generator)
        expected = inputs @ weight.T
        allowed = tolerance * expected.abs().max().item()
        with torch.inference_mode():
            torch.testing.assert_close(module(inputs).float(), expected, rtol=0, atol=allowed)
        compared += 1
    return compared
