"""Choose the format of each tensor in a GGUF as llama-quantize does.

``--tensor-type PATTERN=TYPE`` overrides the choice. The pattern is a regular expression in lower
case, searched for anywhere in a tensor's name; the first override that matches decides. llama.cpp
compiles it as ECMAScript, so only what means the same there and in Python is accepted.

A golden file pins the choices to those that ``llama_model_quantize`` made.

Source: llama.cpp ``src/llama-quant.cpp`` (``llama_tensor_get_type``),
``tools/quantize/quantize.cpp`` (``parse_tensor_type``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemquant.errors import GemquantError, UsageError, refuse
from gemquant.formats.gguf.mixtures import (
    COUNTED,
    FileType,
    Place,
    fitting_type,
    head_type,
    layer_type,
    tensor_type,
)
from gemquant.formats.gguf.names import gguf_shapes
from gemquant.models.architecture import architecture_of, expert_count, layer_structure
from gemquant.models.structure import DENSE
from gemquant.numerics.ggml_types import TYPES, GgmlType

_ESCAPE = r"\\(?:[dws]|[^A-Za-z0-9\s])"
_TOKEN = re.compile(
    rf"(?P<quantifier>(?:[*+?]|\{{\d{{1,3}}(?:,\d{{0,3}})?\}})\??)"
    rf"|(?P<open>\((?:\?[:!])?|\||\^)"
    rf"|(?P<atom>{_ESCAPE}|\\b|\[\^?(?:[^\]\[\\&~|-]|-(?!-)|{_ESCAPE})+\]|[^\\\[\]{{}}()*+?|^])"
    rf"|(?P<close>\))"
)
_UPPER_ESCAPE = re.compile(r"\\[A-Z]")


@dataclass(frozen=True)
class TypeOverride:
    """Tensors whose name holds a match of ``pattern`` get ``type``."""

    pattern: str
    type: GgmlType

    def matches(self, name: str) -> bool:
        """Whether this override applies to a tensor, by its GGUF name."""
        return re.search(self.pattern, name) is not None

    def __str__(self) -> str:
        return f"{self.pattern}={self.type.name}"


def parse_override(text: str) -> TypeOverride:
    """Parse ``PATTERN=TYPE``; the pattern ends at the first ``=``. Raises UsageError.

    >>> override = parse_override("blk.*.attn_v=q6_k")
    >>> override.type.name, override.matches("blk.11.attn_v.weight")
    ('Q6_K', True)
    """
    pattern, separator, type_name = text.partition("=")
    if not separator or not pattern or not type_name:
        raise UsageError(
            f"--tensor-type {text!r}: must be PATTERN=TYPE.",
            hint="For example --tensor-type 'blk.*.attn_v=Q6_K'.",
        )
    if _UPPER_ESCAPE.search(pattern):
        raise UsageError(
            f"--tensor-type {text!r}: llama.cpp puts the pattern in lower case, so that an escape "
            "in upper case would mean its opposite."
        )
    pattern = pattern.lower()
    _check_portable(pattern, text)
    return TypeOverride(pattern, tensor_type(type_name))


def _check_portable(pattern: str, text: str) -> None:
    """Raise UsageError unless ECMAScript and Python read the pattern alike."""
    position, repeatable = 0, False
    while position < len(pattern):
        token = _TOKEN.match(pattern, position)
        if token is None or (token.lastgroup == "quantifier" and not repeatable):
            raise UsageError(
                f"--tensor-type {text!r}: {pattern[position : position + 3]!r} at character "
                f"{position + 1} of the pattern is not understood alike everywhere.",
                hint="It is a regular expression (.* for anything), sought anywhere in a name, of "
                "letters, digits, . * + ? {n,m} | ( ) [ ] ^ $ \\d \\w \\s \\b; "
                "\\ goes before a sign that stands for itself.",
            )
        repeatable = token.lastgroup in ("atom", "close") and token[0] not in ("$", "\\b")
        position = token.end()
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--tensor-type {text!r}: not a regular expression: {error}.") from None


# ---------------------------------------------------------------- choice

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_TABLE = "per_layer_token_embd.weight"
_TABLES = (_EMBEDDING, _HEAD, _TABLE)
_FULL_BITS = 8
_FIT_ANY_ROW = "Q8_0 fits every multiple of 32 columns, F16 any."


@dataclass(frozen=True)
class TypeRequest:
    """Options of llama-quantize under the same names.

    embedding_type, output_type: the embedding's and the head's format; where they are one tensor,
    as in every published Gemma, the embedding's goes first. table_type: of the embedding that has
    an input for every layer; without it Q8_0, or more bits where the file type has them.
    pure: the default format for every tensor, no mixture.
    """

    file_type: FileType
    overrides: tuple[TypeOverride, ...] = ()
    embedding_type: GgmlType | None = None
    output_type: GgmlType | None = None
    table_type: GgmlType | None = None
    pure: bool = False


@dataclass(frozen=True)
class TensorType:
    """One tensor of the file: its GGUF name, its shape (rows first) and its format.

    preferred: the type by the rules, other than ``type`` where rows are not whole blocks.
    needs_importance: llama.cpp refuses to write it without an importance matrix's entry.
    """

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    preferred: GgmlType
    needs_importance: bool = False

    @property
    def weights(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes in the file, without padding."""
        return self.weights // self.shape[-1] * self.type.row_bytes(self.shape[-1])

    @property
    def fallback(self) -> str | None:
        """Why the preferred format does not fit, or None."""
        if self.type == self.preferred:
            return None
        block = f"{self.preferred.name}'s block of {self.preferred.block}"
        return f"{self.shape[-1]} columns are not a multiple of {block}"


@dataclass(frozen=True)
class TypePlan:
    """Every tensor in the order in which llama.cpp writes them.

    without_effect: options that change nothing, each with the reason. asked: names of tensors
    whose format an option names.
    """

    request: TypeRequest
    tensors: tuple[TensorType, ...]
    without_effect: tuple[str, ...]
    asked: frozenset[str] = frozenset()


def choose_types(
    config: Mapping[str, Any], request: TypeRequest, *, has_importance: bool
) -> TypePlan:
    """Return the format of every tensor of a text model.

    has_importance: whether there is an importance matrix, however many tensors it covers.
    Raises UsageError, or Problems, where an explicit type cannot hold a tensor's rows.
    """
    shapes = gguf_shapes(config)
    fixed = _fixed(config, request.file_type)
    taken = _taken_overrides(request, shapes, fixed)
    places = _places(config, shapes, taken, has_importance=has_importance)
    tied = _HEAD not in shapes
    tensors, problems = [], list[GemquantError]()
    for name, shape in shapes.items():
        explicit = _explicit(request, name)
        if len(shape) < 2:
            preferred = fitted = TYPES["F32"]
        elif _kind(name) in fixed:
            preferred = fitted = fixed[_kind(name)]
        elif explicit is not None:
            preferred = fitted = explicit
            problems += _misfit(name, shape[-1], explicit)
        elif request.file_type.default.is_float:
            preferred = fitted = request.file_type.default
        else:
            if name in taken:
                preferred = taken[name].type
            elif request.pure:
                preferred = request.file_type.default
            elif name == _TABLE:
                preferred = _table_type(request)
            elif name == _HEAD or (tied and name == _EMBEDDING):
                preferred = request.output_type or head_type(request.file_type)
            elif name == _EMBEDDING or name in DENSE:
                preferred = request.file_type.default
            else:
                kind = _kind(name).removesuffix("_exps")
                preferred = layer_type(request.file_type, kind, places[name])
            fitted = fitting_type(preferred, shape[-1])
        # llama.cpp refuses 2-bit linears without importance in this one file type.
        needs = request.file_type.name == "Q2_K_S" and fitted.name == "Q2_K"
        needs = needs and name not in _TABLES
        tensors.append(TensorType(name, shape, fitted, preferred, needs))
    refuse(problems)
    without_effect = _without_effect(request, taken, tied=tied, table=_TABLE in shapes)
    return TypePlan(request, tuple(tensors), without_effect, _asked(request, taken, shapes))


def _asked(request: TypeRequest, taken: Collection[str], shapes: Collection[str]) -> frozenset[str]:
    """Tensors whose format an option names; that of the head is a tied embedding's too."""
    asked = {*taken, *(name for name in _TABLES if _explicit(request, name) is not None)}
    if _HEAD in asked and _HEAD not in shapes:
        asked.add(_EMBEDDING)
    return frozenset(asked)


def importance_problems(plan: TypePlan, covered: Collection[str] | None) -> list[GemquantError]:
    """One error if tensors lack an importance matrix's entry that llama.cpp requires.

    covered: GGUF names that the importance matrix has an entry for; None without one.
    """
    known = () if covered is None else covered
    missing = [t.name for t in plan.tensors if t.needs_importance and t.name not in known]
    if not missing:
        return []
    what = "an importance matrix" if covered is None else "entries of the importance matrix"
    return [
        UsageError(
            f"{plan.request.file_type.name} needs {what} for {len(missing)} tensors, "
            f"{missing[0]} first: 2 bits without one are garbage.",
            hint="Make one with `gemquant imatrix MODEL -o FILE`, or use Q2_K.",
        )
    ]


def _kind(name: str) -> str:
    return name.split(".")[-2]


def _fixed(config: Mapping[str, Any], file_type: FileType) -> dict[str, GgmlType]:
    """Matrices that llama.cpp quantizes in no file: in float32, or as its converter stores them."""
    facts = architecture_of(config).gguf
    half = "F16" if config.get("dtype") == "float16" else "BF16"
    kept = file_type.default if file_type.default.is_float else TYPES[half]
    return {
        **dict.fromkeys(facts.in_16_bits, kept),
        **dict.fromkeys(facts.in_float32, TYPES["F32"]),
    }


def _table_type(request: TypeRequest) -> GgmlType:
    """Coarser than Q8_0, what it adds to every layer is far off; llama.cpp takes the head's."""
    default = request.file_type.default
    return default if default.bits >= _FULL_BITS else TYPES["Q8_0"]


def _taken_overrides(
    request: TypeRequest, shapes: Mapping[str, tuple[int, ...]], fixed: Collection[str]
) -> dict[str, TypeOverride]:
    """Each tensor's first matching override; none where llama.cpp ignores overrides."""
    if request.file_type.default.is_float:
        return {}
    taken: dict[str, TypeOverride] = {}
    for name, shape in shapes.items():
        if len(shape) < 2 or _kind(name) in fixed or _explicit(request, name) is not None:
            continue
        matching = [override for override in request.overrides if override.matches(name)]
        if matching:
            taken[name] = matching[0]
    return taken


def _explicit(request: TypeRequest, name: str) -> GgmlType | None:
    """The embedding's or the head's type, which llama.cpp takes as it is."""
    explicit = (request.embedding_type, request.output_type, request.table_type)
    return dict(zip(_TABLES, explicit, strict=True)).get(name)


def _misfit(name: str, columns: int, explicit: GgmlType) -> Sequence[GemquantError]:
    if columns % explicit.block == 0:
        return ()
    rule = f"{explicit.name} needs a multiple of {explicit.block}"
    return [UsageError(f"{name} has {columns} columns; {rule}.", hint=_FIT_ANY_ROW)]


def _places(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    taken: Mapping[str, TypeOverride],
    *,
    has_importance: bool,
) -> dict[str, Place]:
    """Each linear's place. llama.cpp counts only tensors that its rules decide: an override moves
    every later layer up by one.
    """
    first = layer_structure(config, 0).linear_shapes
    heads_per_kv = first["self_attn.q_proj"][0] // first["self_attn.k_proj"][0]
    values, layers = sum(_kind(name) == "attn_v" for name in shapes), config["num_hidden_layers"]
    experts = expert_count(config)
    turns = dict.fromkeys(COUNTED, 0)
    places = {}
    for name in shapes:
        if not name.startswith("blk."):
            continue
        kind = _kind(name)
        turn = turns.get(kind, 0)
        # Experts' tensors stand among the others of their kind: there the layer's number counts.
        if experts and kind.startswith("ffn"):
            turn = int(name.split(".")[1])
        of = values if kind == "attn_v" else layers
        places[name] = Place(turn, of, heads_per_kv, has_importance, experts)
        if kind in turns and name not in taken:
            turns[kind] += 1
    return places


def _without_effect(
    request: TypeRequest, taken: Mapping[str, TypeOverride], *, tied: bool, table: bool
) -> tuple[str, ...]:
    used = set(taken.values())
    file_type = request.file_type
    if file_type.default.is_float:
        reason = f"{file_type.name} files have no mixture to override"
    else:
        reason = "matches no tensor that is left to it"
    notes = [f"--tensor-type {o}: {reason}." for o in request.overrides if o not in used]
    if request.table_type is not None and not table:
        notes.append("--per-layer-embedding-type: this model has no such embedding.")
    if request.output_type is not None and tied:
        if request.embedding_type is not None:
            notes.append("--output-type: the head is the embedding, and --embedding-type is given.")
        elif _EMBEDDING in taken:
            notes.append("--output-type: the head is the embedding, and --tensor-type matches it.")
        elif request.pure or file_type.default.is_float:
            mode = "--pure" if request.pure else file_type.name
            notes.append(f"--output-type: the head is the embedding, in {mode}'s own format.")
    return tuple(notes)


# ---------------------------------------------------------------- fallbacks


@dataclass(frozen=True)
class Fallback:
    """Tensors whose preferred type does not fit, for one reason."""

    preferred: GgmlType
    type: GgmlType
    reason: str
    names: tuple[str, ...]


def fallbacks(tensors: Iterable[TensorType]) -> tuple[Fallback, ...]:
    """Group the tensors whose preferred type does not fit by both types and the reason."""
    names: dict[tuple[GgmlType, GgmlType, str], list[str]] = {}
    for tensor in tensors:
        if tensor.fallback is not None:
            key = (tensor.preferred, tensor.type, tensor.fallback)
            names.setdefault(key, []).append(tensor.name)
    return tuple(Fallback(*key, tuple(each)) for key, each in names.items())
