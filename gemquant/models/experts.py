"""Mixtures of experts: three matrices an expert, and their computation one expert at a time.

A library stores the experts of a layer as two tensors of three dimensions. Here every matrix has a
name of its own, ``experts.7.gate_proj``, so that whatever handles linears handles experts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from gemquant.models.structure import InputGroup, NormFold, RowFold, Stack

if TYPE_CHECKING:
    from torch import Tensor

EXPERTS = "+experts"
"""Ends the name of a kind whose experts are quantized."""

_EXPERT = re.compile(r"(?:.*\.)?experts\.(\d+)\.\w+?_proj(?:\.\w+)?")


def expert_number(name: str) -> int | None:
    """The expert that a module or weight belongs to; None for all others.

    >>> expert_number("model.layers.3.experts.12.up_proj.weight"), expert_number("mlp.up_proj")
    (12, None)
    """
    match = _EXPERT.fullmatch(name)
    return None if match is None else int(match[1])


def has_experts(names: Iterable[str]) -> bool:
    """Whether some of these modules or weights are an expert's."""
    return any(expert_number(name) is not None for name in names)


def expert_shapes(experts: int, hidden: int, inner: int) -> dict[str, tuple[int, int]]:
    """Every expert's linears with their shapes, (out, in)."""
    shapes = {
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }
    return {f"experts.{e}.{part}": s for e in range(experts) for part, s in shapes.items()}


def expert_stacks(experts: int, hidden: int, inner: int) -> dict[str, Stack]:
    """The two tensors that the library stores: gate above up, and down."""

    def parts(*kinds: str) -> tuple[str, ...]:
        return tuple(f"experts.{e}.{kind}.weight" for e in range(experts) for kind in kinds)

    return {
        "experts.gate_up_proj": Stack((experts, 2 * inner, hidden), parts("gate_proj", "up_proj")),
        "experts.down_proj": Stack((experts, hidden, inner), parts("down_proj")),
    }


def separate_stacks(name: str, stack: Stack) -> dict[str, Stack]:
    """A stack's matrices with a tensor of their own for each kind, as some files store them."""
    kinds: dict[str, list[str]] = {}
    for part in stack.parts:
        kinds.setdefault(part.removesuffix(".weight").rpartition(".")[2], []).append(part)
    experts, rows, columns = stack.shape
    shape = (experts, rows // len(kinds), columns)
    inside = name.rpartition(".")[0]
    return {f"{inside}.{kind}": Stack(shape, tuple(parts)) for kind, parts in kinds.items()}


def expert_groups(experts: int, norm: NormFold) -> tuple[InputGroup, ...]:
    """All gates and ups, whose common scale folds into ``norm``; then each expert's down."""
    read = tuple(f"experts.{e}.{part}" for e in range(experts) for part in ("gate_proj", "up_proj"))
    return (
        InputGroup("experts", read, norm, observed="experts"),
        *(
            InputGroup(
                f"experts.{e}.down", (f"experts.{e}.down_proj",), RowFold(f"experts.{e}.up_proj")
            )
            for e in range(experts)
        ),
    )


def run_experts(
    hidden: Tensor,
    chosen: Tensor,
    shares: Tensor,
    *,
    weights: Callable[[str], Tensor],
    activation: Callable[[Tensor], Tensor],
    observers: Mapping[str, Callable[[Tensor], None]],
) -> Tensor:
    """What the library computes, one expert's weights at a time.

    hidden: (tokens, hidden). chosen, shares: each token's experts and their weights, (tokens, k).
    weights: gives a weight by its short name. observers: of inputs, by linear; up's are gate's.
    """
    import torch  # here, since every command lists the architectures, and they name experts
    from torch.nn.functional import linear

    total = torch.zeros_like(hidden)
    for expert in chosen.unique().tolist():
        # In the library's order: of equal tokens by their place among the chosen.
        place, token = torch.where((chosen == expert).T)
        name = f"experts.{expert}."
        inputs = hidden[token]
        fused = torch.cat([weights(f"{name}gate_proj.weight"), weights(f"{name}up_proj.weight")])
        gate, up = linear(inputs, fused).chunk(2, dim=-1)
        inner = activation(gate) * up
        for part, seen in (("gate_proj", inputs), ("down_proj", inner)):
            if name + part in observers:
                observers[name + part](seen)
        output = linear(inner, weights(f"{name}down_proj.weight")) * shares[token, place, None]
        total.index_add_(0, token, output.to(total.dtype))
    return total
