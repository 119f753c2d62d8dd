"""A PEFT LoRA adapter, merged into the weights tensor by tensor while they are read.

The merged weight is W + s · B · A with s = alpha / r, or alpha / √r for rsLoRA, in float32.

Source: Hu et al., 2021, https://arxiv.org/abs/2106.09685; Kalajdzievski, 2023,
https://arxiv.org/abs/2312.03732; peft ``tuners/lora``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemquant.errors import CheckpointError, GemquantError, UnsupportedError, refuse
from gemquant.formats.checkpoint.bounded_json import read_json_object
from gemquant.formats.checkpoint.contained import contained
from gemquant.formats.checkpoint.lora_config import LoraConfig, read_lora_config
from gemquant.formats.checkpoint.names import text_name
from gemquant.formats.checkpoint.source import require_finite
from gemquant.formats.safetensors.reader import MappedSafetensors
from gemquant.models.architecture import linear_shapes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."
_PART = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_LISTED = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LowRank:
    """One linear's update: scale · b @ a. a: (r, in), b: (out, r), float32."""

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True)
class LoraAdapter:
    """Updates by the full name of the weight that they change."""

    files: Sequence[Path]
    updates: Mapping[str, LowRank]

    def changes(self, name: str) -> bool:
        """Whether the adapter has an update for this tensor."""
        return name in self.updates

    def merged_rows(self, name: str, base: Tensor, start: int) -> Tensor:
        """Add the update to rows of a weight. base: (rows, in) float32, its first row ``start``."""
        update = self.updates[name]
        rows = update.b[start : start + base.shape[0]]
        return torch.addmm(base, rows, update.a, alpha=update.scale)


def open_lora(folder: Path, config: Mapping[str, Any], *, base_model: str) -> LoraAdapter:
    """Read an adapter for the model of this text configuration.

    Raises UnsupportedError for kinds of adapter that are more than a low-rank update of linears,
    CheckpointError for one of another model; each problem with its tensors.
    """
    _require_adapter(folder)
    lora = read_lora_config(read_json_object(contained(folder, CONFIG)), str(folder))
    if lora.base_model not in (None, base_model):
        _log.warning("The adapter names %s as its base, not %s.", lora.base_model, base_model)
    weights = MappedSafetensors([contained(folder, WEIGHTS)])
    pairs, problems = _pairs(weights, folder)
    shapes = linear_shapes(config)
    strangers = [name for name in pairs if name not in shapes]
    if strangers:
        problems.append(
            CheckpointError(
                f"{folder}: {len(strangers)} modules are not in this model: {_some(strangers)}.",
                hint=f"The adapter was made for {lora.base_model or 'another model'}.",
            )
        )
    updates = {}
    for name, parts in pairs.items():
        if name not in shapes:
            continue
        try:
            updates[name] = _low_rank(name, parts, shapes[name], lora, weights)
        except CheckpointError as error:
            problems.append(CheckpointError(f"{folder}: {error.message}", hint=error.hint))
    refuse(problems)
    if not updates:
        raise CheckpointError(f"{folder}: {WEIGHTS} holds no LoRA weights.")
    return LoraAdapter((folder / CONFIG, folder / WEIGHTS), updates)


def _require_adapter(folder: Path) -> None:
    if not (folder / CONFIG).exists():
        raise CheckpointError(
            f"{folder}: {CONFIG} is missing; this is not a PEFT adapter.",
            hint="Give the folder or Hub id of an adapter saved by peft's save_pretrained.",
        )
    if (folder / WEIGHTS).exists():
        return
    if (folder / "adapter_model.bin").exists():
        raise UnsupportedError(
            f"{folder}: only pickled weights (adapter_model.bin); loading a pickle can run any "
            "code, so only safetensors are read.",
            hint="Load the adapter with peft once and save it again.",
        )
    raise CheckpointError(f"{folder}: {WEIGHTS} is missing.")


def _pairs(
    weights: MappedSafetensors, folder: Path
) -> tuple[dict[str, dict[str, str]], list[GemquantError]]:
    """Group the stored tensors: weight's full name → {"A": stored name, "B": stored name}."""
    pairs: dict[str, dict[str, str]] = {}
    unknown = []
    for stored in weights.shapes:
        match = _PART.fullmatch(stored)
        if match is None or not stored.startswith(_PREFIX):
            unknown.append(stored)
            continue
        module = match.group(1).removeprefix(_PREFIX)
        name = text_name(f"{module}.weight") or f"{module}.weight"
        pairs.setdefault(name, {})[match.group(2)] = stored
    problems: list[GemquantError] = []
    if unknown:
        problems.append(
            UnsupportedError(
                f"{folder}: {len(unknown)} tensors are not LoRA weights of linears: "
                f"{_some(unknown)}."
            )
        )
    return pairs, problems


def _low_rank(
    name: str,
    parts: Mapping[str, str],
    shape: tuple[int, int],
    lora: LoraConfig,
    weights: MappedSafetensors,
) -> LowRank:
    if set(parts) != {"A", "B"}:
        missing = "lora_A" if "A" not in parts else "lora_B"
        raise CheckpointError(f"{name}: {missing} is missing.")
    module = name.removesuffix(".weight")
    rank = lora.rank(module)
    for part, expected in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
        found = weights.shapes[parts[part]]
        if found != expected:
            raise CheckpointError(
                f"{name}: lora_{part} has shape {found}; rank {rank} and this model need "
                f"{expected}.",
                hint=f"The adapter was made for {lora.base_model or 'another model'}.",
            )
    a, b = (weights.tensor(parts[part]).to(torch.float32) for part in "AB")
    require_finite(a, parts["A"])
    require_finite(b, parts["B"])
    return LowRank(a, b, lora.scale(module))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
