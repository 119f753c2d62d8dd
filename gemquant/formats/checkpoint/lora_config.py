"""What an adapter's configuration says: ranks, scales, and what cannot be merged.

Source: peft ``tuners/lora/config.py``, ``utils/other.py``; mlx-lm ``tuner/utils.py``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from gemquant.errors import CheckpointError, GemquantError, UnsupportedError, refuse
from gemquant.formats.checkpoint.source import text_name

T = TypeVar("T")

MAX_RANK = 1 << 16

_log = logging.getLogger(__name__)

# Each makes the adapter more than W + s · B · A of linears.
_REFUSED: Mapping[str, str] = {
    "lora_bias": "biases were trained, and Gemma's linears have none",
    "layer_replication": "layers are repeated",
    "use_qalora": "QA-LoRA pools the input",
    "use_bdlora": "its factors are block-diagonal",
    "kasa_config": "KaSA changes the base weights",
    "monteclora_config": "MonteCLoRA samples its weights",
    "alora_invocation_tokens": "an activated LoRA applies to part of the text only",
}
_NO_BIAS = "peft cannot merge it into Gemma either: train with lora_bias=False."
_CHANGES_THE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
_REPEATABLE = ("pissa", "olora")
_WHILE_TRAINED = (
    "Loading would start from other factors. Merge it in the program that trained it: "
    'model.merge_and_unload().save_pretrained("FOLDER"); copy the tokenizer files too.'
)
_TOKENS_ALONE = "TRAINABLE_TOKENS"
_NO_WEIGHTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING",
               "ADAPTION_PROMPT", "CARTRIDGE", "CPT", "POLY", "XLORA")  # fmt: skip


def merge_with_peft(base: str | None, adapter: str, *, rows: int | None = None) -> str:
    """How to merge an adapter with peft; rows: to resize the base's vocabulary to first."""
    resize = f"base.resize_token_embeddings({rows}); " if rows else ""
    return (
        "Merge it with peft in Python, and give that folder: from peft import PeftModel; "
        "from transformers import AutoModelForCausalLM; "
        f'base = AutoModelForCausalLM.from_pretrained("{base or "BASE"}"); {resize}'
        f'PeftModel.from_pretrained(base, "{adapter}").merge_and_unload()'
        '.save_pretrained("FOLDER"); copy the tokenizer files too.'
    )


@dataclass(frozen=True)
class LoraConfig:
    """base_model: as the adapter names it. Patterns: (module pattern, value), first match wins.

    tokens: rows that were trained alone: (end of the module's name, ids). tied: whether peft tied
    head and embedding while it trained (``ensure_weight_tying``). parameters: how the
    names of adapted parameters end, from a dot. fixed_scale: mlx-lm's, for every module; its
    factors are stored transposed.
    """

    base_model: str | None
    r: int = 1
    alpha: float = 1.0
    rslora: bool = False
    ranks: tuple[tuple[str, int], ...] = ()
    alphas: tuple[tuple[str, float], ...] = ()
    dora: bool = False
    tied: bool = False
    tokens: tuple[tuple[str, tuple[int, ...]], ...] = ()
    parameters: tuple[str, ...] = ()
    fixed_scale: float | None = None

    def rank(self, module: str) -> int:
        """Rank of a module's update, by the module's name in the adapter."""
        return _first(self.ranks, module, self.r)

    def scale(self, module: str) -> float:
        """The factor before B · A: alpha / r, or alpha / √r for rsLoRA."""
        if self.fixed_scale is not None:
            return self.fixed_scale
        rank = self.rank(module)
        divisor: float = rank**0.5 if self.rslora else rank
        return _first(self.alphas, module, self.alpha) / divisor

    def adapts(self, parameter: str) -> bool:
        """Whether ``target_parameters`` name this parameter of the text model."""
        return f".{parameter}".endswith(self.parameters)

    def token_ids(self, module: str) -> tuple[int, ...]:
        """Ids of the rows of a module that were trained alone."""
        return next((ids for end, ids in self.tokens if module.endswith(end)), ())


def read_lora_config(raw: Mapping[str, Any], where: str) -> LoraConfig:
    """Check peft's configuration. Raises everything in it that cannot be merged, at once.

    where: the adapter's folder.
    """
    base = raw.get("base_model_name_or_path")
    base = base if isinstance(base, str) and base else None
    hint = merge_with_peft(base, where)
    kind = raw.get("peft_type")
    if kind in _NO_WEIGHTS:
        raise UnsupportedError(
            f"{where}: peft_type {kind}: no change of weights can replace it.",
            hint="Train a LoRA instead, or run it with peft: from peft import "
            f'AutoPeftModelForCausalLM; AutoPeftModelForCausalLM.from_pretrained("{where}")',
        )
    if kind not in ("LORA", _TOKENS_ALONE):
        raise UnsupportedError(
            f"{where}: peft_type {kind!r}: only LORA and {_TOKENS_ALONE} are merged here.",
            hint=hint if isinstance(kind, str) else None,
        )
    problems: list[GemquantError] = [
        UnsupportedError(
            f"{where}: {key} {raw[key]!r} is not supported: {reason}.",
            hint=_NO_BIAS if key == "lora_bias" else hint,
        )
        for key, reason in _REFUSED.items()
        if raw.get(key)
    ]
    if kind == _TOKENS_ALONE:
        tokens = _token_ids(raw.get("token_indices"), f"{where}: token_indices", problems)
        refuse(problems)
        return LoraConfig(base, tokens=tokens)
    if raw.get("bias", "none") not in ("none", "all", "lora_only"):
        problems.append(CheckpointError(f"{where}: bias {raw['bias']!r} is not one of peft's."))
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_THE_BASE):
        problems.append(
            UnsupportedError(
                f"{where}: init_lora_weights {start!r} also changes the base weights.",
                hint=hint if start.lower() in _REPEATABLE else _WHILE_TRAINED,
            )
        )
    if raw.get("fan_in_fan_out"):
        _log.warning("fan_in_fan_out is ignored, as in peft: Gemma's linears are not transposed.")
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if not _is_rank(rank):
        problems.append(CheckpointError(f"{where}: r {rank!r}: must be from 1 to {MAX_RANK}."))
    if not _is_number(alpha):
        problems.append(CheckpointError(f"{where}: lora_alpha {alpha!r}: must be a number."))
    ranks = _patterns(raw, "rank_pattern", _is_rank, where, hint, problems)
    alphas = _patterns(raw, "alpha_pattern", _is_number, where, hint, problems)
    parameters = raw.get("target_parameters") or []
    if not isinstance(parameters, list) or not all(isinstance(p, str) for p in parameters):
        problems.append(CheckpointError(f"{where}: target_parameters: must be a list of names."))
    indices = raw.get("trainable_token_indices")
    tokens = _token_ids(indices, f"{where}: trainable_token_indices", problems)
    refuse(problems)
    return LoraConfig(
        base_model=base,
        r=raw["r"],
        alpha=float(raw["lora_alpha"]),
        rslora=bool(raw.get("use_rslora")),
        ranks=tuple(ranks.items()),
        alphas=tuple(alphas.items()),
        dora=bool(raw.get("use_dora")),
        tied=bool(raw.get("ensure_weight_tying")),
        tokens=tokens,
        parameters=tuple(f".{text_name(name)}" for name in parameters),
    )


def read_mlx_config(raw: Mapping[str, Any], where: str) -> LoraConfig:
    """Check mlx-lm's configuration; all its modules have one rank and one scale.

    An ``alpha`` next to the scale is ignored, as mlx-lm ignores it.
    """
    kind, base = raw.get("fine_tune_type", "lora"), raw.get("model")
    base = base if isinstance(base, str) and base else None
    parameters = raw.get("lora_parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    rank: Any = parameters.get("rank")
    scale: Any = parameters.get("scale")
    fuse = (
        f"Fuse it with mlx-lm: mlx_lm.fuse --model {base or 'BASE'} --adapter-path {where} "
        "--save-path FOLDER"
    )
    if kind not in ("lora", "dora", "full"):
        raise UnsupportedError(f"{where}: fine_tune_type {kind!r} is not read.", hint=fuse)
    if kind == "full":
        return LoraConfig(base, fixed_scale=1.0)
    if not _is_rank(rank) or not _is_number(scale):
        raise CheckpointError(
            f"{where}: lora_parameters: rank {rank!r} and scale {scale!r}: must be numbers.",
            hint=fuse,
        )
    return LoraConfig(base, r=rank, dora=kind == "dora", fixed_scale=float(scale))


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= torch.finfo(torch.float32).max


def _token_ids(
    listed: Any, where: str, problems: list[GemquantError]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Token ids: a list, for all modules, or an object of one list by module."""
    by_module = listed if isinstance(listed, dict) else {"": listed or []}
    for ids in by_module.values():
        if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
            problems.append(CheckpointError(f"{where}: must be token ids of the embedding."))
            return ()
    return tuple((module, tuple(ids)) for module, ids in by_module.items())


# A downloaded expression must not take unbounded time: no repeated groups, few repetitions.
_LONGEST_PATTERN, _MOST_REPEATS, _MOST_EXPRESSIONS = 500, 3, 32
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_REPEAT = re.compile(r"(?<!\\)[*+{]")


def _patterns(
    raw: Mapping[str, Any],
    key: str,
    valid: Any,
    where: str,
    hint: str,
    problems: list[GemquantError],
) -> dict[str, Any]:
    """Module patterns with their values: regular expressions, as in peft, that end in time."""
    declared = raw.get(key) or {}
    if not isinstance(declared, dict):
        problems.append(CheckpointError(f"{where}: {key}: must be an object."))
        return {}
    patterns, expressions = {}, 0
    for pattern, value in declared.items():
        repeats = len(_REPEAT.findall(pattern))
        expressions += repeats > 0
        if not _is_harmless(pattern, repeats) or expressions > _MOST_EXPRESSIONS:
            problems.append(
                UnsupportedError(
                    f"{where}: {key} {pattern!r}: read are expressions that are valid, with at "
                    f"most {_MOST_REPEATS} repetitions and no repeated group.",
                    hint=hint,
                )
            )
        elif not valid(value):
            problems.append(CheckpointError(f"{where}: {key} {pattern}: {value!r} is not valid."))
        else:
            patterns[pattern] = value
    return patterns


def _is_harmless(pattern: str, repeats: int) -> bool:
    if len(pattern) > _LONGEST_PATTERN or repeats > _MOST_REPEATS:
        return False
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError, OverflowError):
        return False
    return _REPEATED_GROUP.search(pattern) is None


def _first(patterns: tuple[tuple[str, T], ...], module: str, default: T) -> T:
    """Match as peft's ``get_pattern_key``: the whole name, or all after one of its dots."""
    for pattern, value in patterns:
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
