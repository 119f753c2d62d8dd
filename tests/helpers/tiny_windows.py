"""Token windows of random ids for tiny Gemmas, and the blocks that a trace of them yields."""

from __future__ import annotations

import torch

from gemquant.calibration.trace import Trace
from gemquant.calibration.windows import TokenWindows, stream_digest
from gemquant.core.protocols import Block, Weights
from gemquant.models.skeleton import Skeleton

BOS = 2


def tiny_windows(
    count: int, tokens: int = 40, *, seed: int = 0, name: str = "tiny"
) -> TokenWindows:
    """Windows of seeded ids, each opened by one BOS: longer than the tiny sliding window of 8."""
    ids = torch.randint(3, 400, (count, tokens), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = BOS
    return TokenWindows(ids, name, stream_digest([ids]))


def traced_blocks(weights: Weights, calibration: TokenWindows) -> list[Block]:
    """Every decoder layer with its statistics."""
    return list(Trace(weights, Skeleton(weights.config), calibration, gram=True).blocks())
