"""The part of a PEFT adapter_config.json that a merge depends on."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from gemquant.errors import CheckpointError, GemquantError, UnsupportedError, refuse

MAX_RANK = 1 << 16

T = TypeVar("T")

_log = logging.getLogger(__name__)

# Each makes the adapter more than W + s · B · A of linears.
_REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA rescales the merged weight",
    "modules_to_save": "whole modules were trained beside the adapter",
    "lora_bias": "biases were trained, and Gemma's linears have none",
    "layer_replication": "layers are repeated",
    "trainable_token_indices": "embeddings were trained beside the adapter",
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
    given = raw.get(key) or {}
    if not isinstance(given, dict):
        problems.append(CheckpointError(f"{where}: {key}: must be an object."))
        return {}
    patterns = {}
    for pattern, value in given.items():
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
