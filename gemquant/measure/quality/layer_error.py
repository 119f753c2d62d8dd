"""How far two models' hidden states lie apart behind a decoder layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gemquant.calibration.stream import TOKENS_AT_ONCE


@dataclass(frozen=True)
class LayerError:
    """One layer on one slice.

    relative: norm of the difference over the norm of the original's, all tokens together.
    cosine: mean over tokens. finite: whether all values are numbers.
    """

    relative: float
    cosine: float
    finite: bool


@torch.no_grad()
def layer_error(original: Tensor, other: Tensor) -> LayerError:
    """Compare hidden states (windows, tokens, hidden), the first token of each window left out.

    What opens a window is the same BOS everywhere, and its state is so much larger than all others
    that it would hide them.
    """
    at_once = max(1, TOKENS_AT_ONCE // original.shape[1])
    parts = [
        _squares(original[start : start + at_once, 1:], other[start : start + at_once, 1:])
        for start in range(0, original.shape[0], at_once)
    ]
    ours, theirs, product, difference = torch.cat(parts, 1)
    norms = (ours * theirs).sqrt()
    # A state of nothing but zeros points nowhere; two of them do not differ. Float32 squares may
    # make a cosine a little larger than 1.
    cosine = torch.where(norms > 0, product / norms, (ours == theirs).double()).clamp(-1, 1)
    return LayerError(
        relative=float((difference.sum() / ours.sum()).sqrt()),
        cosine=float(cosine.mean()),
        finite=bool(torch.isfinite(ours + theirs).all()),
    )


def _squares(original: Tensor, other: Tensor) -> Tensor:
    """|o|², |q|², o · q and |q − o|² of every token: (4, tokens) float64 on the CPU."""
    original, other = (states.reshape(-1, states.shape[-1]).float() for states in (original, other))
    difference = other - original
    pairs = ((original, original), (other, other), (original, other), (difference, difference))
    return torch.stack([torch.linalg.vecdot(*pair) for pair in pairs]).cpu().double()
