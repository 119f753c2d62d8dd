"""8-bit quantization of whole rows, as LLM.int8 stores weights.

w ≈ code · scale / 127, where the scale is the row's largest magnitude. Codes and scales equal those
of bitsandbytes, which takes weights in float16.

Source: Dettmers et al., 2022, https://arxiv.org/abs/2208.07339, section 2.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_CODE = 127
ROWS_AT_ONCE = 256


def quantize_rowwise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round every row to 255 steps over its own range.

    weight: (out, in); rounded to float16 first. A row of zeros has scale 0 and codes 0.
    Returns codes (out, in) int8 and scales (out,) float32.
    """
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(weight.shape[0], device=weight.device)
    for start in range(0, weight.shape[0], ROWS_AT_ONCE):
        rows = weight[start : start + ROWS_AT_ONCE].half().float()
        largest = rows.abs().amax(1)
        scales[start : start + ROWS_AT_ONCE] = largest
        steps = torch.where(largest > 0, LARGEST_CODE / largest, 0.0)
        codes[start : start + ROWS_AT_ONCE] = rows.mul_(steps[:, None]).round_().to(torch.int8)
    return codes, scales


def dequantize_rowwise(codes: Tensor, scales: Tensor) -> Tensor:
    """Return code · scale / 127, (out, in) float32."""
    return codes.float().mul_(scales[:, None]).mul_(1 / LARGEST_CODE)
