"""A PEFT LoRA adapter, merged into the weights tensor by tensor while they are read.

The merged weight is W + s · B · A with s = alpha / r, or alpha / √r for rsLoRA, in float32. DoRA
scales its rows to trained lengths. Where head and embedding were one matrix and only one of them is
adapted, they part, as the trained model computes.

Source: Hu et al., 2021, https://arxiv.org/abs/2106.09685; Kalajdzievski, 2023,
https://arxiv.org/abs/2312.03732; Liu et al., 2024,
https://arxiv.org/abs/2402.09353; peft ``tuners/lora``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from gemquant.errors import (
    CheckpointError,
    GemquantError,
    ProblemCollector,
    UnsupportedError,
    listed,
    refuse,
)
from gemquant.formats.checkpoint.files import contained, read_json_object
from gemquant.formats.checkpoint.source import require_finite, text_name
from gemquant.formats.safetensors.reader import MappedSafetensors
from gemquant.models.architecture import tensor_shapes
from gemquant.models.structure import EMBEDDING, HEAD

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+)\.lora_"
    r"(?P<part>[AB](?=(?:\.default)?\.weight)|embedding_[AB]|magnitude_vector)"
    r"(?:\.default)?(?:\.weight)?"
)
_SAVED = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.weight$)")
_TOKENS = ".token_adapter.trainable_tokens_delta"
MERGE_WITH_PEFT = (
    "Merge it with peft and give that folder: "
    'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("BASE"), "ADAPTER")'
    '.merge_and_unload().save_pretrained("FOLDER"); copy the tokenizer files too.'
)

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LowRank:
    """A matrix' update: scale · b @ a. a: (r, in), b: (out, r), float32.

    magnitude: of DoRA, (out,): the length to which each merged row is scaled.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class LoraAdapter:
    """Updates by the full name of the weight that they change.

    whole: weights that the adapter holds themselves, by stored name: ``modules_to_save``, and the
    base of an adapted head or embedding. tokens: rows of the embedding that were trained, by id.
    unties: whether the head differs from the embedding through this adapter alone.
    """

    files: Sequence[Path]
    updates: Mapping[str, LowRank]
    weights: MappedSafetensors
    whole: Mapping[str, str]
    tokens: Mapping[int, Tensor]
    unties: bool

    def changes(self, name: str) -> bool:
        """Whether the adapter has an update for this tensor."""
        rows = name == EMBEDDING and bool(self.tokens)
        return name in self.updates or name in self.whole or rows

    def merged_rows(
        self, name: str, start: int, stop: int, read: Callable[[int, int], Tensor]
    ) -> Tensor:
        """Rows ``start`` to ``stop`` of a changed tensor. read: those rows of the base, float32."""
        if name in self.whole:
            base = self.weights.read(self.whole[name], start, stop, torch.float32)
        else:
            base = read(start, stop)
        update = self.updates.get(name)
        if update is not None:
            end = start + base.shape[0]
            base = torch.addmm(base, update.b[start:end], update.a, alpha=update.scale)
            if update.magnitude is not None:
                lengths = torch.linalg.norm(base, dim=1)
                base = base * (update.magnitude[start:end] / lengths)[:, None]
        trained = [row for row in self.tokens if start <= row < start + base.shape[0]]
        if name == EMBEDDING and trained:
            base = base.clone()
            for row in trained:
                base[row - start] = self.tokens[row]
        return base


def open_lora(folder: Path, config: Mapping[str, Any], *, base_model: str) -> LoraAdapter:
    """Read an adapter for the model of this text configuration.

    Raises UnsupportedError for kinds of adapter that cannot be merged into Gemma's tensors,
    CheckpointError for one of another model; each problem with its tensors.
    """
    _require_adapter(folder)
    lora = read_lora_config(read_json_object(contained(folder, CONFIG)), str(folder))
    if lora.base_model not in (None, base_model):
        _log.warning("The adapter names %s as its base, not %s.", lora.base_model, base_model)
    weights = MappedSafetensors([contained(folder, WEIGHTS)])
    parts = _sorted_parts(weights, folder)
    problems = parts.problems
    shapes = tensor_shapes({**config, "tie_word_embeddings": False})
    strangers = [name for name in (*parts.pairs, *parts.whole) if name not in shapes]
    if strangers:
        problems.append(
            CheckpointError(
                f"{folder}: {len(strangers)} modules are not in this model: "
                f"{listed(strangers, 8)}.",
                hint=f"The adapter was made for {lora.base_model or 'another model'}.",
            )
        )
    collector = ProblemCollector()
    updates, tokens = {}, collector.attempt(lambda: _tokens(parts, shapes, lora, weights))
    for name, pair in parts.pairs.items():
        if name in shapes:
            update = collector.attempt(partial(_low_rank, name, pair, shapes[name], lora, weights))
            if update.succeeded:
                updates[name] = update.value
    for name, stored in parts.whole.items():
        if name in shapes:
            collector.attempt(partial(_check_whole, stored, shapes[name], weights))
    for error in collector:
        problems.append(type(error)(f"{folder}: {error.message}", hint=error.hint))
    refuse(problems)
    if not (updates or parts.whole or tokens.value):
        raise CheckpointError(f"{folder}: {WEIGHTS} holds no LoRA weights.")
    whole = dict(parts.whole)
    unties = False
    if config["tie_word_embeddings"]:
        tied = lora.tied and (EMBEDDING in updates or EMBEDDING in whole)
        adapted = HEAD in updates or EMBEDDING in updates or _one_of_two(whole, weights)
        unties = adapted and not tied
        if not unties:
            updates.pop(HEAD, None)
            whole.pop(HEAD, None)
    files = (folder / CONFIG, folder / WEIGHTS)
    return LoraAdapter(files, updates, weights, whole, tokens.value, unties)


def _one_of_two(whole: Mapping[str, str], weights: MappedSafetensors) -> bool:
    """Whether whole matrices in the adapter make head and embedding differ."""
    head, embedding = whole.get(HEAD), whole.get(EMBEDDING)
    if head is None or embedding is None:
        return head is not embedding
    return not torch.equal(weights.tensor(head), weights.tensor(embedding))


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


@dataclass(frozen=True)
class _Parts:
    """The stored tensors, sorted.

    pairs: a weight's full name → the stored name of each part, "A", "B" and "magnitude". whole:
    full name → stored name. tokens: stored names of token rows.
    """

    pairs: dict[str, dict[str, str]]
    whole: dict[str, str]
    tokens: list[str]
    problems: list[GemquantError]


def _sorted_parts(weights: MappedSafetensors, folder: Path) -> _Parts:
    parts = _Parts({}, {}, [], [])
    unknown, vision = [], []
    for stored in weights.shapes:
        if not stored.startswith(_PREFIX):
            unknown.append(stored)
            continue
        match = _PART.fullmatch(stored.removeprefix(_PREFIX))
        if match is None:
            saved = _SAVED.sub("", stored.removeprefix(_PREFIX))
            name = text_name(saved)
            if name is None:
                vision.append(stored)
            elif name.endswith(_TOKENS):
                parts.tokens.append(stored)
            elif ".lora_" in name or not name.endswith(".weight"):
                unknown.append(stored)
            else:
                parts.whole[name] = stored
            continue
        name = text_name(f"{match['module']}.weight")
        if name is None:
            vision.append(stored)
            continue
        part = match["part"].removeprefix("embedding_").removesuffix("_vector")
        parts.pairs.setdefault(name, {})[part] = stored
    if vision:
        _log.warning(
            "%d tensors of the adapter belong to vision modules, which are left out: %s.",
            len(vision),
            listed(vision, 2),
        )
    if unknown:
        parts.problems.append(
            UnsupportedError(
                f"{folder}: {len(unknown)} tensors are not LoRA weights of linears: "
                f"{listed(unknown, 8)}.",
                hint=MERGE_WITH_PEFT,
            )
        )
    return parts


def _low_rank(
    name: str,
    pair: Mapping[str, str],
    shape: tuple[int, ...],
    lora: LoraConfig,
    weights: MappedSafetensors,
) -> LowRank:
    for part in "AB":
        if part not in pair:
            raise CheckpointError(f"{name}: lora_{part} is missing.")
    match = _PART.fullmatch(pair["A"].removeprefix(_PREFIX))
    module = match["module"] if match else name
    rank = lora.rank(module)
    transposed = ".lora_embedding_" in pair["A"]
    wanted = {"A": (rank, shape[-1]), "B": (shape[0], rank), "magnitude": shape[:1]}
    if transposed:
        wanted = {"A": (rank, shape[0]), "B": (shape[-1], rank), "magnitude": shape[-1:]}
    for part, stored in pair.items():
        actual = weights.shapes[stored]
        if actual != wanted[part]:
            raise CheckpointError(
                f"{name}: lora_{part} has shape {actual}; rank {rank} and this model need "
                f"{wanted[part]}.",
                hint=f"The adapter was made for {lora.base_model or 'another model'}.",
            )
    if transposed and "magnitude" in pair:
        raise UnsupportedError(f"{name}: DoRA of an embedding is not read.", hint=MERGE_WITH_PEFT)
    if lora.dora and not transposed and "magnitude" not in pair:
        raise CheckpointError(f"{name}: lora_magnitude_vector is missing.")
    tensors = {}
    for part, stored in pair.items():
        tensors[part] = weights.tensor(stored).to(torch.float32)
        require_finite(tensors[part], stored)
    a, b = tensors["A"], tensors["B"]
    if transposed:
        a, b = b.T, a.T
    return LowRank(a, b, lora.scale(module), tensors.get("magnitude"))


def _check_whole(stored: str, shape: tuple[int, ...], weights: MappedSafetensors) -> None:
    if weights.shapes[stored] != shape:
        raise UnsupportedError(
            f"{stored} has shape {weights.shapes[stored]}, and this model's {shape}: the "
            "vocabulary was resized.",
            hint="Resize the base and merge with peft: base.resize_token_embeddings(ROWS); "
            'PeftModel.from_pretrained(base, "ADAPTER").merge_and_unload()'
            '.save_pretrained("FOLDER").',
        )
    if weights.format_dtype(stored) not in ("F32", "F16", "BF16"):
        raise UnsupportedError(f"{stored}: stored as {weights.format_dtype(stored)}.")


def _tokens(
    parts: _Parts,
    shapes: Mapping[str, tuple[int, ...]],
    lora: LoraConfig,
    weights: MappedSafetensors,
) -> dict[int, Tensor]:
    """Return rows of the embedding that peft trained alone, by token id."""
    if not parts.tokens:
        return {}
    stored, *more = parts.tokens
    rows, hidden = shapes[EMBEDDING]
    values = weights.tensor(stored).to(torch.float32)
    ids = lora.tokens
    if more or ".embed_tokens." not in stored or not all(0 <= i < rows for i in ids):
        raise UnsupportedError(
            f"trainable_token_indices: {listed(parts.tokens, 2)}: only tokens of the embedding "
            "are read.",
            hint=MERGE_WITH_PEFT,
        )
    if tuple(values.shape) != (len(ids), hidden):
        raise CheckpointError(
            f"{stored} has shape {tuple(values.shape)}; {len(ids)} tokens of this model need "
            f"{(len(ids), hidden)}."
        )
    require_finite(values, stored)
    return dict(zip(ids, values, strict=True))


MAX_RANK = 1 << 16

# Each makes the adapter more than W + s · B · A of linears.
_REFUSED: Mapping[str, str] = {
    "lora_bias": "biases were trained, and Gemma's linears have none",
    "layer_replication": "layers are repeated",
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
    """base_model: as the adapter names it. Patterns: (module pattern, value), first match wins.

    tokens: ids of embedding rows that were trained alone. tied: whether peft tied head and
    embedding while it trained (``ensure_weight_tying``).
    """

    base_model: str | None
    r: int
    alpha: float
    rslora: bool
    ranks: tuple[tuple[str, int], ...]
    alphas: tuple[tuple[str, float], ...]
    dora: bool = False
    tied: bool = False
    tokens: tuple[int, ...] = ()

    def rank(self, module: str) -> int:
        """Rank of a module's update, by the module's name in the adapter."""
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
        UnsupportedError(
            f"{where}: {key} {raw[key]!r} is not supported: {reason}.", hint=MERGE_WITH_PEFT
        )
        for key, reason in _REFUSED.items()
        if raw.get(key)
    ]
    if raw.get("bias", "none") not in ("none", "all", "lora_only"):
        problems.append(CheckpointError(f"{where}: bias {raw['bias']!r} is not one of peft's."))
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
    tokens = _token_ids(raw.get("trainable_token_indices"), where, problems)
    refuse(problems)
    base = raw.get("base_model_name_or_path")
    return LoraConfig(
        base_model=base if isinstance(base, str) and base else None,
        r=raw["r"],
        alpha=float(raw["lora_alpha"]),
        rslora=bool(raw.get("use_rslora")),
        ranks=tuple(ranks.items()),
        alphas=tuple(alphas.items()),
        dora=bool(raw.get("use_dora")),
        tied=bool(raw.get("ensure_weight_tying")),
        tokens=tokens,
    )


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= torch.finfo(torch.float32).max


def _token_ids(listed_ids: Any, where: str, problems: list[GemquantError]) -> tuple[int, ...]:
    """Ids of ``trainable_token_indices``: a list, or an object of one list by module."""
    if isinstance(listed_ids, dict):
        listed_ids = next(iter(listed_ids.values()), []) if len(listed_ids) == 1 else listed_ids
    ids = listed_ids or []
    if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
        problems.append(
            UnsupportedError(
                f"{where}: trainable_token_indices: must be token ids of the embedding.",
                hint=MERGE_WITH_PEFT,
            )
        )
        return ()
    return tuple(ids)


# A downloaded expression must not take unbounded time: no repeated groups, few repetitions.
_LONGEST_PATTERN, _MOST_REPEATS, _MOST_EXPRESSIONS = 500, 3, 32
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_REPEAT = re.compile(r"(?<!\\)[*+{]")


def _patterns(
    raw: Mapping[str, Any],
    key: str,
    valid: Any,
    where: str,
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
                    hint=MERGE_WITH_PEFT,
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
