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
from typing import Any, TypeVar

import torch
from torch import Tensor

from gemquant.errors import CheckpointError, GemquantError, UnsupportedError, listed, refuse
from gemquant.formats.checkpoint.files import contained, read_json_object
from gemquant.formats.checkpoint.source import require_finite, text_name
from gemquant.formats.safetensors.reader import MappedSafetensors
from gemquant.models.architecture import linear_shapes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."
_PART = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")

T = TypeVar("T")

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
                f"{folder}: {len(strangers)} modules are not in this model: "
                f"{listed(strangers, 8)}.",
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
                f"{listed(unknown, 8)}."
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
        actual = weights.shapes[parts[part]]
        if actual != expected:
            raise CheckpointError(
                f"{name}: lora_{part} has shape {actual}; rank {rank} and this model need "
                f"{expected}.",
                hint=f"The adapter was made for {lora.base_model or 'another model'}.",
            )
    a, b = (weights.tensor(parts[part]).to(torch.float32) for part in "AB")
    require_finite(a, parts["A"])
    require_finite(b, parts["B"])
    return LowRank(a, b, lora.scale(module))


MAX_RANK = 1 << 16

# Each makes the adapter more than W + s · B · A of linears.
_REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA rescales the merged weight",
    "modules_to_save": "whole modules were trained too",
    "lora_bias": "biases were trained, and Gemma's linears have none",
    "layer_replication": "layers are repeated",
    "trainable_token_indices": "embeddings were trained too",
    "target_parameters": "bare parameters are adapted, not linears",
    "use_qalora": "QA-LoRA pools the input",
    "use_bdlora": "its factors are block-diagonal",
    "kasa_config": "KaSA changes the base weights",
    "monteclora_config": "MonteCLoRA samples its weights",
    "alora_invocation_tokens": "an activated LoRA applies to part of the text only",
}
_CHANGES_THE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")


@dataclass(frozen=True)
class LoraConfig:
    """base_model: as the adapter names it. Patterns: (module pattern, value), first match wins."""

    base_model: str | None
    r: int
    alpha: float
    rslora: bool
    ranks: tuple[tuple[str, int], ...]
    alphas: tuple[tuple[str, float], ...]

    def rank(self, module: str) -> int:
        """Rank of a module's update, by its full name without ``.weight``."""
        return _first(self.ranks, module, self.r)

    def scale(self, module: str) -> float:
        """The factor before B · A: alpha / r, or alpha / √r for rsLoRA."""
        rank = self.rank(module)
        divisor: float = rank**0.5 if self.rslora else rank
        return _first(self.alphas, module, self.alpha) / divisor


def read_lora_config(raw: Mapping[str, Any], where: str) -> LoraConfig:
    """Check an adapter's configuration. Raises everything in it that cannot be merged, at once."""
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise UnsupportedError(f"{where}: peft_type {kind!r}: only LORA can be merged.")
    problems: list[GemquantError] = [
        UnsupportedError(f"{where}: {key} {raw[key]!r} is not supported: {reason}.")
        for key, reason in _REFUSED.items()
        if raw.get(key)
    ]
    if raw.get("bias", "none") != "none":
        problems.append(
            UnsupportedError(f"{where}: bias {raw['bias']!r}: only 'none' can be merged.")
        )
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_THE_BASE):
        problems.append(
            UnsupportedError(
                f"{where}: init_lora_weights {start!r} also changes the base weights.",
                hint="Save it as a plain LoRA: peft's save_pretrained with "
                "path_initial_model_for_weight_conversion.",
            )
        )
    if raw.get("fan_in_fan_out"):
        _log.warning("fan_in_fan_out is ignored, as in peft: Gemma's linears are not transposed.")
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if not _is_rank(rank):
        problems.append(CheckpointError(f"{where}: r {rank!r}: must be from 1 to {MAX_RANK}."))
    if not _is_number(alpha):
        problems.append(CheckpointError(f"{where}: lora_alpha {alpha!r}: must be a number."))
    ranks = _patterns(raw, "rank_pattern", _is_rank, where, problems)
    alphas = _patterns(raw, "alpha_pattern", _is_number, where, problems)
    refuse(problems)
    base = raw.get("base_model_name_or_path")
    return LoraConfig(
        base_model=base if isinstance(base, str) and base else None,
        r=raw["r"],
        alpha=float(raw["lora_alpha"]),
        rslora=bool(raw.get("use_rslora")),
        ranks=tuple(ranks.items()),
        alphas=tuple(alphas.items()),
    )


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < float("inf")


def _patterns(
    raw: Mapping[str, Any],
    key: str,
    valid: Any,
    where: str,
    problems: list[GemquantError],
) -> dict[str, Any]:
    """Module patterns with their values. peft allows any regular expression; names are read here.

    An expression from a downloaded file could take unbounded time, so one that is more than a
    module's name (with an anchor or escaped dots) is refused.
    """
    declared = raw.get(key) or {}
    if not isinstance(declared, dict):
        problems.append(CheckpointError(f"{where}: {key}: must be an object."))
        return {}
    patterns = {}
    for pattern, value in declared.items():
        name = pattern.replace(r"\.", ".").removesuffix("$")
        if not re.fullmatch(r"\^?[\w.]+", name):
            problems.append(
                UnsupportedError(f"{where}: {key} {pattern!r}: only module names are supported.")
            )
        elif not valid(value):
            problems.append(CheckpointError(f"{where}: {key} {pattern}: {value!r} is not valid."))
        else:
            patterns[name] = value
    return patterns


def _first(patterns: tuple[tuple[str, T], ...], module: str, default: T) -> T:
    """Match as peft does: the whole name, or a whole suffix of its parts unless anchored by ^."""
    for pattern, value in patterns:
        name = pattern.removeprefix("^")
        anchored = pattern.startswith("^")
        if module == name or (not anchored and module.endswith(f".{name}")):
            return value
    return default
