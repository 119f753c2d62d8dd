"""LoRA adapters of peft and mlx-lm, merged into the weights tensor by tensor while they are read.

The merged weight is W + s · B · A with s = alpha / r, or alpha / √r for rsLoRA, in float32. DoRA
scales its rows to trained lengths. Experts that are one parameter have an update each, read when
its matrix is. Where head and embedding were one matrix and only one of them is adapted, they part,
as the trained model computes. Several adapters are merged one after the other, as merging, saving
and loading in turn would; a weight multiplies an adapter's s.

Source: Hu et al., 2021, https://arxiv.org/abs/2106.09685; Kalajdzievski, 2023,
https://arxiv.org/abs/2312.03732; Liu et al., 2024,
https://arxiv.org/abs/2402.09353; peft ``tuners/lora``; mlx-lm ``tuner/lora.py``, ``dora.py``.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemquant.errors import (
    CheckpointError,
    GemquantError,
    ProblemCollector,
    UnsupportedError,
    UsageError,
    listed,
    refuse,
)
from gemquant.formats.checkpoint.files import contained, read_json_object
from gemquant.formats.checkpoint.lora_config import (
    LoraConfig,
    merge_with_peft,
    read_lora_config,
    read_mlx_config,
)
from gemquant.formats.checkpoint.recognition import not_an_adapter
from gemquant.formats.checkpoint.source import require_finite, text_name
from gemquant.formats.safetensors_reader import SafetensorsFiles
from gemquant.models.architecture import places_in_stacks, stacked_tensors, tensor_shapes
from gemquant.models.structure import EMBEDDING, HEAD

CONFIG, WEIGHTS, MLX_WEIGHTS = (
    "adapter_config.json", "adapter_model.safetensors", "adapters.safetensors",
)  # fmt: skip

_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+)\.(?:lora_"
    r"(?P<part>[AB](?=(?:\.default)?\.weight)|embedding_[AB]|magnitude_vector)"
    r"(?:\.default)?(?:\.weight)?|(?P<mlx>lora_a|lora_b|m))"
)
_MLX_PARTS = {"lora_a": "A", "lora_b": "B", "m": "magnitude"}
_SAVED = re.compile(
    r"\.(?:modules_to_save(?:\.default)?|(?:token_adapter\.)?base_layer)(?=\.weight$)"
)
_UNTRAINED, _SHARED = ".original_module.", ".base_layer."
_TOKENS = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta(?:\.default)?")
_ROWS_AT_ONCE = 4096

_log = logging.getLogger(__name__)


def weighted(ref: str) -> tuple[str, float]:
    """Split ``ADAPTER=WEIGHT``; the weight is 1 where none is given, or a path is called so.

    >>> weighted("me/my-adapter=0.5"), weighted("./my-adapter")
    (('me/my-adapter', 0.5), ('./my-adapter', 1.0))
    """
    name, equals, number = ref.rpartition("=")
    try:
        weight = float(number) if equals and not os.path.exists(ref) else math.nan  # noqa: PTH110 - False for a name that is too long
    except ValueError:
        return ref, 1.0
    if math.isinf(weight):
        raise UsageError(f"--lora {ref}: the weight must be finite.")
    return (ref, 1.0) if math.isnan(weight) else (name, weight)


@dataclass(frozen=True)
class LowRank:
    """A matrix' update: scale · b @ a. a: (r, in), b: (out, r), float32.

    magnitude: of DoRA, (out,): the length to which each merged row is scaled; of an embedding,
    (in,): the length of each column.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None
    columns: bool = False

    def added(self, base: Tensor, start: int) -> Tensor:
        """Rows from ``start`` with the update added."""
        return torch.addmm(base, self.b[start : start + base.shape[0]], self.a, alpha=self.scale)


@dataclass(frozen=True)
class LoraAdapter:
    """Updates by the full name of the weight that they change.

    whole: weights that the adapter holds themselves, by stored name: ``modules_to_save``, and the
    base of an adapted head or embedding. tokens: rows that were trained alone, by id. config: of
    the model with this adapter, whose head may have parted and whose vocabulary may have grown.
    """

    folder: Path
    files: Sequence[Path]
    updates: Mapping[str, Callable[[], LowRank]]
    weights: SafetensorsFiles
    whole: Mapping[str, str]
    tokens: Mapping[str, Mapping[int, Tensor]]
    config: Mapping[str, Any]
    _lengths: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def changes(self, name: str) -> bool:
        """Whether the adapter has an update for this tensor."""
        name = self._own(name)
        return name in self.updates or name in self.whole or name in self.tokens

    def merged_rows(
        self, name: str, start: int, stop: int, *, read: Callable[[int, int], Tensor]
    ) -> Tensor:
        """Rows ``start`` to ``stop`` with the adapter. read: rows without it, in float32."""
        name = self._own(name)
        if name in self.whole:
            read = partial(self.weights.read, self.whole[name], dtype=torch.float32)
        base = read(start, stop)
        if (stored := self.updates.get(name)) is not None:
            update = stored()
            base = update.added(base, start)
            if update.magnitude is not None and update.columns:
                base = base * (update.magnitude / self._column_lengths(name, update, read))
            elif update.magnitude is not None:
                lengths = torch.linalg.norm(base, dim=1)
                base = base * (update.magnitude[start : start + len(base)] / lengths)[:, None]
        rows = self.tokens.get(name, {})
        trained = [row for row in rows if start <= row < start + base.shape[0]]
        if trained:
            base = base.clone()
            for row in trained:
                base[row - start] = rows[row]
        return base

    def _own(self, name: str) -> str:
        """A head that has not parted yet is the embedding."""
        return EMBEDDING if name == HEAD and self.config["tie_word_embeddings"] else name

    def _column_lengths(
        self, name: str, update: LowRank, read: Callable[[int, int], Tensor]
    ) -> Tensor:
        if name not in self._lengths:
            rows = update.b.shape[0]
            squares = torch.zeros(update.a.shape[1], dtype=torch.float64)
            for start in range(0, rows, _ROWS_AT_ONCE):
                merged = update.added(read(start, min(start + _ROWS_AT_ONCE, rows)), start)
                squares += merged.to(torch.float64).square().sum(0)
            self._lengths[name] = squares.sqrt().to(torch.float32)
        return self._lengths[name]


@dataclass(frozen=True)
class Adapters:
    """Adapters in the order in which they are merged."""

    merged: Sequence[LoraAdapter]

    def changes(self, name: str) -> bool:
        """Whether one has an update for this tensor."""
        return any(adapter.changes(name) for adapter in self.merged)

    def merged_rows(
        self, name: str, start: int, stop: int, read: Callable[[int, int], Tensor]
    ) -> Tensor:
        """Rows ``start`` to ``stop`` with all of them. read: rows of the base, in float32."""
        for adapter in self.merged:
            if adapter.changes(name):
                read = partial(adapter.merged_rows, name, read=read)
        return read(start, stop)

    @property
    def files(self) -> Mapping[str, Path]:
        """Their files, by name; numbered where there are several adapters."""
        several = len(self.merged) > 1
        return {
            f"lora/{number}/{path.name}" if several else f"lora/{path.name}": path
            for number, adapter in enumerate(self.merged, 1)
            for path in adapter.files
        }


def open_lora(
    folder: Path,
    config: Mapping[str, Any],
    *,
    is_base: Callable[[str], bool],
    weight: float = 1.0,
) -> LoraAdapter:
    """Read an adapter for the model of this text configuration.

    is_base: whether a name is the model's. weight: multiplies the scale of every update.
    Raises UnsupportedError for kinds of adapter that cannot be merged into Gemma's tensors,
    CheckpointError for one of another model; each problem with its tensors.
    """
    file = _weights_file(folder)
    raw = read_json_object(contained(folder, CONFIG))
    lora = (read_mlx_config if file == MLX_WEIGHTS else read_lora_config)(raw, str(folder))
    if lora.base_model is not None and not is_base(lora.base_model):
        _log.warning("The adapter names %s as its base, not this model.", lora.base_model)
    weights = SafetensorsFiles([contained(folder, file)])
    parts = _sorted_parts(weights, lora, folder)
    if config["tie_word_embeddings"]:
        for one, other in ((EMBEDDING, HEAD), (HEAD, EMBEDDING)):
            if _SHARED in parts.whole.get(one, ""):
                parts.whole.setdefault(other, parts.whole[one])
    config = _resized(parts, config, lora, weights, folder)
    changes = _changes(parts, config, lora, weights, weight)
    problems = parts.problems
    made_for = f"The adapter was made for {lora.base_model or 'another model'}."
    for error in changes.problems:
        problems.append(type(error)(f"{folder}: {error.message}", hint=error.hint or made_for))
    refuse(problems)
    if not (changes.updates or parts.whole or changes.tokens):
        raise CheckpointError(f"{folder}: {file} changes nothing in the text model.")
    if config["tie_word_embeddings"]:
        config = {**config, "tie_word_embeddings": not _part(changes, parts.whole, lora, weights)}
    files = (folder / CONFIG, folder / file)
    return LoraAdapter(folder, files, changes.updates, weights, parts.whole, changes.tokens, config)


@dataclass(frozen=True)
class _Changes:
    updates: dict[str, Callable[[], LowRank]] = field(default_factory=dict)
    tokens: dict[str, Mapping[int, Tensor]] = field(default_factory=dict)
    problems: ProblemCollector = field(default_factory=ProblemCollector)


def _changes(
    parts: _Parts,
    config: Mapping[str, Any],
    lora: LoraConfig,
    weights: SafetensorsFiles,
    weight: float,
) -> _Changes:
    """Read every update, with all problems."""
    changes, shapes = _Changes(), tensor_shapes({**config, "tie_word_embeddings": False})
    problems = changes.problems
    _stack_updates(parts, config, lora, weights, weight, changes)
    strangers = [name for name in (*parts.pairs, *parts.whole) if name not in shapes]
    if strangers:
        message = f"{len(strangers)} modules are not in this model: {listed(strangers, 8)}."
        problems.append(CheckpointError(message))
    for name, pair in parts.pairs.items():
        if name in shapes:
            read = cache(partial(_low_rank, name, pair, shapes[name], lora, weights, weight))
            if problems.attempt(read).succeeded:
                changes.updates[name] = read
    for name, stored in parts.tokens.items():
        rows = problems.attempt(partial(_rows, name, stored, shapes, lora, weights))
        if rows.succeeded:
            changes.tokens[name] = rows.value
    for name, stored in parts.whole.items():
        if name in shapes:
            problems.attempt(partial(_check_whole, stored, shapes[name], weights))
    others = [*(n for n, s in parts.whole.items() if _SHARED not in s), *parts.tokens]
    if weight != 1 and others:
        problems.append(
            UsageError(
                f"weight {weight:g}: the adapter holds whole weights, which have none: "
                f"{listed(others, 4)}.",
                hint="Give --lora the adapter alone, without =WEIGHT.",
            )
        )
    return changes


def _part(
    changes: _Changes, whole: dict[str, str], lora: LoraConfig, weights: SafetensorsFiles
) -> bool:
    """Whether the adapter parts a head from its embedding; if not, leave the head's changes out."""
    updates, tokens = changes.updates, changes.tokens
    # mlx-lm computes a tied head with the adapted embedding; peft does so on request.
    kept = lora.tied or lora.fixed_scale is not None
    rows = tokens.get(EMBEDDING, {})
    parted = (
        HEAD in updates
        or EMBEDDING in updates
        or _one_of_two(whole, weights)
        or not _same_rows(tokens.get(HEAD, rows), rows)
    )
    if parted and not (kept and (EMBEDDING in updates or EMBEDDING in whole)):
        tokens.setdefault(HEAD, rows)
        return True
    updates.pop(HEAD, None)
    whole.pop(HEAD, None)
    tokens.pop(HEAD, None)
    return False


def _one_of_two(whole: Mapping[str, str], weights: SafetensorsFiles) -> bool:
    """Whether whole matrices in the adapter make head and embedding differ."""
    head, embedding = whole.get(HEAD), whole.get(EMBEDDING)
    if head is None or embedding is None:
        return head is not embedding
    return not torch.equal(weights.tensor(head), weights.tensor(embedding))


def _same_rows(first: Mapping[int, Tensor], second: Mapping[int, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[i], second[i]) for i in first)


def _weights_file(folder: Path) -> str:
    """The name of an adapter's weights; the error for a folder that is none, or pickled."""
    if not (folder / CONFIG).exists():
        if (other := not_an_adapter(folder)) is not None:
            raise other
        raise CheckpointError(
            f"{folder}: {CONFIG} is missing; this is not a PEFT adapter.",
            hint="Give the folder or Hub id of an adapter saved by peft's save_pretrained.",
        )
    for name in (WEIGHTS, MLX_WEIGHTS):
        if (folder / name).exists():
            return name
    if (folder / "adapter_model.bin").exists():
        raise UnsupportedError(
            f"{folder}: only pickled weights (adapter_model.bin); loading a pickle can run any "
            "code, so only safetensors are read.",
            hint="Save it again with peft: from peft import AutoPeftModelForCausalLM; "
            f'AutoPeftModelForCausalLM.from_pretrained("{folder}").save_pretrained("FOLDER")',
        )
    if (folder / "adapters.npz").exists():
        raise UnsupportedError(
            f"{folder}: adapters.npz is from an early mlx-lm.",
            hint=f"mlx_lm.fuse --model BASE --adapter-path {folder} --save-path FOLDER",
        )
    raise CheckpointError(f"{folder}: {WEIGHTS} is missing.")


@dataclass(frozen=True)
class _Parts:
    """The stored tensors, sorted.

    pairs: a weight's full name → the stored name of each part, "A", "B" and "magnitude". whole,
    tokens: full name → stored name.
    """

    pairs: dict[str, dict[str, str]] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    problems: list[GemquantError] = field(default_factory=list)


def _sorted_parts(weights: SafetensorsFiles, lora: LoraConfig, folder: Path) -> _Parts:
    parts = _Parts()
    unknown, vision = [], []
    for stored in weights.shapes:
        own = stored.removeprefix(_PREFIX)
        if _UNTRAINED in own:
            continue
        match, rows = _PART.fullmatch(own), _TOKENS.fullmatch(own)
        named = match or rows
        module = f"{named['module']}.weight" if named else _SAVED.sub("", own)
        name = text_name(module)
        if name is None:
            vision.append(stored)
        elif match is not None:
            part = _MLX_PARTS.get(match["mlx"]) or match["part"]
            part = part.removeprefix("embedding_").removesuffix("_vector")
            parts.pairs.setdefault(name, {})[part] = stored
        elif rows is not None:
            parts.tokens[name] = stored
        elif ".lora_" in name or not name.endswith(".weight"):
            unknown.append(stored)
        else:
            parts.whole[name] = stored
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
                hint=merge_with_peft(lora.base_model, str(folder)),
            )
        )
    return parts


def _resized(
    parts: _Parts,
    config: Mapping[str, Any],
    lora: LoraConfig,
    weights: SafetensorsFiles,
    folder: Path,
) -> Mapping[str, Any]:
    """The configuration with the vocabulary of the head and embedding in the adapter, if any.

    Both must be there, or the one that a tied model has: the rows of the other are nowhere.
    """
    shapes = {n: weights.shapes[parts.whole[n]] for n in (EMBEDDING, HEAD) if n in parts.whole}
    rows = {shape[0] for shape in shapes.values() if shape[1:] == (config["hidden_size"],)}
    if len(rows) != 1 or rows == {config["vocab_size"]}:
        return config
    (size,) = rows
    kept = lora.tied or lora.fixed_scale is not None
    if len(shapes) < 2 and not (config["tie_word_embeddings"] and kept and EMBEDDING in shapes):
        absent = "lm_head" if EMBEDDING in shapes else "embed_tokens"
        parts.problems.append(
            UnsupportedError(
                f"{folder}: the vocabulary was resized from {config['vocab_size']} to {size} "
                f"rows, and the adapter does not hold those of {absent}.",
                hint=merge_with_peft(lora.base_model, str(folder), rows=size),
            )
        )
    _log.warning(
        "The adapter %s resizes the vocabulary from %d to %d rows.",
        folder,
        config["vocab_size"],
        size,
    )
    return {**config, "vocab_size": size}


def _module(stored: str) -> str:
    """The module of a part, as the adapter names it."""
    match = _PART.fullmatch(stored.removeprefix(_PREFIX))
    return match["module"] if match else ""


def _check_parts(
    name: str,
    pair: Mapping[str, str],
    wanted: Mapping[str, tuple[int, ...]],
    rank: int,
    weights: SafetensorsFiles,
) -> None:
    for part in "AB":
        if part not in pair:
            raise CheckpointError(f"{name}: lora_{part} is missing.")
    for part, stored in pair.items():
        if weights.shapes[stored] != wanted.get(part):
            raise CheckpointError(
                f"{name}: lora_{part} has shape {weights.shapes[stored]}; rank {rank} and this "
                f"model need {wanted.get(part)}."
            )


def _low_rank(
    name: str,
    pair: Mapping[str, str],
    shape: tuple[int, ...],
    lora: LoraConfig,
    weights: SafetensorsFiles,
    weight: float,
) -> LowRank:
    stored_a = pair.get("A", "")
    rank, mlx = lora.rank(module := _module(stored_a)), stored_a.endswith(".lora_a")
    embedding = ".lora_embedding_" in stored_a or (mlx and ".embed_tokens" in name)
    rows, columns = shape[0], shape[-1]
    # peft adapts the embedding as the linear that it is transposed.
    a, b = ((rank, rows), (columns, rank)) if embedding else ((rank, columns), (rows, rank))
    wanted = {"A": a, "B": b, "magnitude": (columns if embedding else rows,)}
    if mlx:
        wanted |= {"A": a[::-1], "B": b[::-1], "magnitude": (rows,)}
    _check_parts(name, pair, wanted, rank, weights)
    if lora.dora and "magnitude" not in pair:
        raise CheckpointError(f"{name}: lora_magnitude_vector is missing.")
    tensors = {}
    for part, stored in pair.items():
        tensors[part] = weights.tensor(stored).to(torch.float32)
        require_finite(tensors[part], stored)
    down, up = tensors["A"], tensors["B"]
    if mlx:
        down, up = down.T, up.T
    if embedding:
        down, up = up.T, down.T
    scale = lora.scale(module) * weight
    return LowRank(down, up, scale, tensors.get("magnitude"), columns=embedding and not mlx)


def _stack_updates(
    parts: _Parts,
    config: Mapping[str, Any],
    lora: LoraConfig,
    weights: SafetensorsFiles,
    weight: float,
    changes: _Changes,
) -> None:
    """Take the updates of stacks of experts out of ``parts.pairs``, into one for each matrix.

    peft wraps a module once for every parameter that is adapted: the last has the module's name,
    each before it one ``.base_layer`` more.
    """
    shapes, stacks = tensor_shapes(config), stacked_tensors(config)
    if others := [name for name in shapes if lora.adapts(name)]:
        message = f"target_parameters: read are stacks of experts, and not {listed(others, 4)}."
        hint = merge_with_peft(lora.base_model, str(weights.files[0].parent))
        changes.problems.append(UnsupportedError(message, hint=hint))
    whole = lru_cache(maxsize=2)(weights.tensor)  # B of a layer's two stacks
    depths: Counter[str] = Counter()
    for name, stack in reversed(stacks.items()):
        if not lora.adapts(name):
            continue
        module = name.rpartition(".")[0]
        pair = parts.pairs.pop(f"{module}{_SHARED[:-1] * depths[module]}.weight", {})
        depths[module] += 1
        opened = changes.problems.attempt(
            partial(_stack_update, name, pair, stack.shape, lora, weights, weight, whole)
        )
        if opened.succeeded:
            for part, (_, first) in places_in_stacks({name: stack}, shapes).items():
                changes.updates[part] = partial(opened.value, first, shapes[part][0])


def _stack_update(
    name: str,
    pair: Mapping[str, str],
    shape: tuple[int, int, int],
    lora: LoraConfig,
    weights: SafetensorsFiles,
    weight: float,
    whole: Callable[[str], Tensor],
) -> Callable[[int, int], LowRank]:
    """Reader of the update of some rows, counted through all experts: (first, count) → update.

    A: (experts · r, in), expert after expert. B: (out, r · experts), each expert's columns
    ``experts`` apart. Before peft 0.19, A had the outputs and B the inputs.
    """
    experts, rows, columns = shape
    module = _module(pair.get("A", "")).replace(_SHARED[:-1], "")
    module = f"{module}.{name.rpartition('.')[2]}"
    ranks = experts * (rank := lora.rank(module))
    older = weights.shapes.get(pair.get("A", "")) == (ranks, rows) != (ranks, columns)
    wanted = {"A": (ranks, rows if older else columns), "B": (columns if older else rows, ranks)}
    _check_parts(name, pair, wanted, rank, weights)
    for stored in pair.values():
        require_finite(whole(stored).to(torch.float32), stored)

    def read(first: int, count: int) -> LowRank:
        expert, start = divmod(first, rows)
        a = weights.read(pair["A"], expert * rank, (expert + 1) * rank, torch.float32)
        b = whole(pair["B"])[:, expert::experts].to(torch.float32)
        if older:
            a, b = b.T, a.T
        return LowRank(a, b[start : start + count], lora.scale(module) * weight)

    return read


def _check_whole(stored: str, shape: tuple[int, ...], weights: SafetensorsFiles) -> None:
    if weights.shapes[stored] != shape:
        raise CheckpointError(
            f"{stored} has shape {weights.shapes[stored]}, and this model's {shape}."
        )
    if weights.format_dtype(stored) not in ("F32", "F16", "BF16"):
        raise UnsupportedError(f"{stored}: stored as {weights.format_dtype(stored)}.")


def _rows(
    name: str,
    stored: str,
    shapes: Mapping[str, tuple[int, ...]],
    lora: LoraConfig,
    weights: SafetensorsFiles,
) -> dict[int, Tensor]:
    """Return rows of the embedding or head that peft trained alone, by token id."""
    if name not in (EMBEDDING, HEAD):
        raise UnsupportedError(f"{stored}: only rows of embedding and head are read.")
    rows, hidden = shapes[name]
    match = _TOKENS.fullmatch(stored.removeprefix(_PREFIX))
    ids = lora.token_ids(match["module"] if match else name)
    if beyond := [index for index in ids if index >= rows]:
        raise CheckpointError(
            f"{stored}: trained are tokens {listed(beyond, 4)}, and this model has {rows} rows.",
            hint="The vocabulary was resized, and the adapter does not hold the embedding: save "
            "it again with save_pretrained(…, save_embedding_layers=True).",
        )
    values = weights.tensor(stored).to(torch.float32)
    if tuple(values.shape) != (len(ids), hidden):
        raise CheckpointError(
            f"{stored} has shape {tuple(values.shape)}; {len(ids)} tokens of this model need "
            f"{(len(ids), hidden)}."
        )
    require_finite(values, stored)
    return dict(zip(ids, values, strict=True))
