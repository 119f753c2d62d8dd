"""A Gemma's vocabulary as llama.cpp stores it: text, score and type of every token.

It is stored in one of two ways: with SentencePiece's scores, or with the merges of BPE, all scores
alike.

llama.cpp takes user-defined and special tokens out of a text first, the longest before all others,
and then joins the two neighbours whose joint token has the highest score, as SentencePiece does.
``tokenizers`` instead follows a list of merges. Gemma's list is equivalent: every split of a token
into two others, by the token's score.

Gemma lists <mask>, the unused tokens and the like as ordinary added tokens; llama.cpp's converter
stores them as control tokens, so that nobody types them by accident. The only piece that Gemma 1
and 2 have for a tab is its byte's, <0x09>; their tokenizer.json has the tab itself in that place.

Source: llama.cpp ``conversion/base.py`` (``_create_vocab_sentencepiece``,
``does_token_look_special``), ``src/llama-vocab.cpp``; transformers 4 ``convert_slow_tokenizer.py``
(``GemmaConverter``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any

from gguf import TokenType

from gemquant.errors import CheckpointError, UnsupportedError

SPACE = "▁"
"""How SentencePiece spells a space."""

_LOOKS_SPECIAL = re.compile(
    r"<pad>|<mask>|<2mass>|\[@BOS@\]|<\|.*\|>|<｜.*｜>|<unused.*>", re.DOTALL
)


def looks_special(token: str) -> bool:
    """Whether llama.cpp's converter takes an ordinary added token for a control token.

    >>> looks_special("<unused7>"), looks_special("<table>")
    (True, False)
    """
    return _LOOKS_SPECIAL.fullmatch(token) is not None


TAB, _BYTE_9, _BYTE_8 = "\t", "<0x09>", "<0x08>"


def as_in_tokenizer_json(pieces: Sequence[str]) -> list[str]:
    r"""Spell byte 9 as a tab where no other piece is one.

    >>> as_in_tokenizer_json(["<0x08>", "<0x09>"])
    ['<0x08>', '\t']
    >>> as_in_tokenizer_json(["<0x08>", "<0x09>", "\t"])
    ['<0x08>', '<0x09>', '\t']
    """
    spelled = list(pieces)
    if TAB not in spelled and _BYTE_9 in spelled:
        spelled[spelled.index(_BYTE_9)] = TAB
    return spelled


def as_in_tokenizer_model(pieces: Sequence[str]) -> list[str]:
    r"""Undo ``as_in_tokenizer_json``: a tab after byte 8 is byte 9.

    >>> as_in_tokenizer_model(["<0x08>", "\t"])
    ['<0x08>', '<0x09>']
    """
    spelled = list(pieces)
    if TAB in spelled:
        index = spelled.index(TAB)
        if index and spelled[index - 1] == _BYTE_8:
            spelled[index] = _BYTE_9
    return spelled


# ---------------------------------------------------------------- the tokenizer's files

_REPLACED_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


@dataclass(frozen=True)
class TokenizerParts:
    """Of tokenizer.json: pieces by id; merges; added tokens; the unknown token; the post-processor.

    config: tokenizer_config.json, empty where there is none. generation: generation_config.json,
    likewise. model: tokenizer.model, if there is one. jinja: the content of chat_template.jinja, if
    there is one. where: names the origin in errors.
    """

    where: str
    pieces: Sequence[str]
    merges: Sequence[tuple[str, str]]
    added_tokens: Sequence[Any]
    unknown: str | None
    post_processor: Mapping[str, Any]
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    model: bytes | None
    jinja: str | None

    @cached_property
    def in_model(self) -> Sequence[str]:
        """The pieces, spelled as in tokenizer.model."""
        return as_in_tokenizer_model(self.pieces)

    def id_of(self, content: str) -> int | None:
        """Id of an added token."""
        for token in self.added_tokens:
            if isinstance(token, dict) and token.get("content") == content:
                index = token.get("id")
                return index if type(index) is int else None
        return None


def tokenizer_parts(files: Mapping[str, bytes], where: str) -> TokenizerParts:
    """Parse a tokenizer's files, by name.

    Raises CheckpointError where one is damaged, UnsupportedError where tokenizer.json is not the
    kind of tokenizer that every Gemma has: BPE over characters with bytes for what is unknown.
    """
    content = parsed_json(files, "tokenizer.json", where)
    model = content.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise CheckpointError(f"{where}: tokenizer.json: it holds no model with a vocab.")
    for key, value, expected in (
        ("model.type", model.get("type"), "BPE"),
        ("model.byte_fallback", model.get("byte_fallback"), True),
        ("normalizer", content.get("normalizer"), _REPLACED_SPACE),
    ):
        if value != expected:
            raise UnsupportedError(
                f"{where}: tokenizer.json: {key} {str(value)[:100]}: Gemma's is {expected}."
            )
    processor = content.get("post_processor")
    added = content.get("added_tokens")
    unknown = model.get("unk_token")
    jinja = files.get("chat_template.jinja")
    return TokenizerParts(
        where=where,
        pieces=_pieces(model["vocab"], where),
        merges=_merges(model.get("merges"), where),
        added_tokens=added if isinstance(added, list) else [],
        unknown=unknown if isinstance(unknown, str) else None,
        post_processor=processor if isinstance(processor, dict) else {},
        config=parsed_json(files, "tokenizer_config.json", where),
        generation=parsed_json(files, "generation_config.json", where),
        model=files.get("tokenizer.model"),
        jinja=None if jinja is None else jinja.decode(errors="replace"),
    )


def parsed_json(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    """A file's JSON object, empty where there is no file; CheckpointError for anything else."""
    try:
        content = json.loads(files.get(name, b"{}").decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: {name}: not JSON: {str(error)[:200]}.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{where}: {name}: not a JSON object.")
    return content


def _pieces(vocab: Mapping[str, Any], where: str) -> list[str]:
    pieces: list[str | None] = [None] * len(vocab)
    for piece, index in vocab.items():
        if type(index) is not int or not 0 <= index < len(pieces) or pieces[index] is not None:
            raise CheckpointError(
                f"{where}: tokenizer.json: token {piece[:50]!r} has id {index!r}: ids must count "
                f"from 0 to {len(pieces) - 1}."
            )
        pieces[index] = piece
    return [piece for piece in pieces if piece is not None]


def _merges(entries: Any, where: str) -> list[tuple[str, str]]:
    """Merges as pairs; older files write a pair as one text, separated by a space."""
    merges = []
    for merge in entries if isinstance(entries, list) else []:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(p, str) for p in pair)
        ):
            raise CheckpointError(
                f"{where}: tokenizer.json: merge {str(merge)[:50]}: must be two tokens."
            )
        merges.append((pair[0], pair[1]))
    return merges


# ---------------------------------------------------------------- vocabulary

ADDED_SCORE = -1000.0
PADDING_SCORE = -10_000.0
MAX_MODEL_BYTES = 64 << 20
"""Of a tokenizer.model; Gemma's have under 5 MB."""

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id: what llama.cpp compares with the text, how early it joins them, what they are.

    types: as gguf.TokenType numbers them.
    """

    tokens: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]


def vocabulary(parts: TokenizerParts, size: int) -> Vocabulary:
    """Return the vocabulary of a model whose embedding has ``size`` rows.

    Ids beyond ``size`` are left out; ids without a token are named [PAD<id>] and unused.
    Raises CheckpointError or UnsupportedError for a tokenizer that is damaged or not Gemma's kind.
    """
    added = list(_added(parts))
    added_ids = {index for index, _, _ in added}
    if parts.model is None:
        pieces = _from_json(parts, {content for _, content, _ in added})
    else:
        pieces = _from_sentencepiece(parts.model, f"{parts.where}: tokenizer.model")
        _require_agreement(parts, pieces, added_ids)
    tokens = [f"[PAD{index}]" for index in range(size)]
    scores, types = [PADDING_SCORE] * size, [int(TokenType.UNUSED)] * size
    for index, piece in enumerate(pieces.tokens[:size]):
        tokens[index], scores[index] = piece, pieces.scores[index]
        types[index] = pieces.types[index]
    for index, content, special in added:
        if not 0 <= index < size:
            continue
        control = special or looks_special(content)
        types[index] = int(TokenType.CONTROL if control else TokenType.USER_DEFINED)
        # Texts are searched for added tokens before their spaces are replaced.
        tokens[index] = content if control else content.replace(SPACE, " ")
        scores[index] = ADDED_SCORE
    _require_distinct(tokens, parts.where)
    return Vocabulary(tokens, scores, types)


# What transformers takes for special where tokenizer_config.json names nothing else.
_NAMED = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad", "mask")}


def bpe_vocabulary(parts: TokenizerParts, size: int, visible: Collection[str]) -> Vocabulary:
    """Return the vocabulary of a model whose tokenizer llama.cpp runs with ``parts.merges``.

    visible: special tokens that it renders all the same. Ids are left out and added as in
    ``vocabulary``. Upstream's converter asks transformers which tokens are special: those that
    tokenizer_config.json names, whatever tokenizer.json says of them.
    """
    special = _named_special(parts)
    tokens = [*parts.pieces[:size], *(f"[PAD{n}]" for n in range(len(parts.pieces), size))]
    types = [int(_bpe_type(token, special, visible)) for token in parts.pieces[:size]]
    types += [int(TokenType.UNUSED)] * (size - len(types))
    for index, content, _ in _added(parts):
        if len(parts.pieces) <= index < size:
            tokens[index] = content
            control = content in special and content not in visible
            types[index] = int(TokenType.CONTROL if control else TokenType.USER_DEFINED)
    _require_distinct(tokens, parts.where)
    return Vocabulary(tokens, [ADDED_SCORE] * size, types)


def _bpe_type(token: str, special: Collection[str], visible: Collection[str]) -> TokenType:
    if token in visible:
        return TokenType.USER_DEFINED
    if _BYTE.fullmatch(token):
        return TokenType.BYTE
    return TokenType.CONTROL if token in special else TokenType.NORMAL


def _named_special(parts: TokenizerParts) -> set[str]:
    config = {**_NAMED, **parts.config}
    values = [value for key, value in config.items() if key.endswith("_token")]
    for key in ("model_specific_special_tokens", "extra_special_tokens"):
        listed = config.get(key) or ()
        values += listed.values() if isinstance(listed, dict) else listed
    values += config.get("additional_special_tokens") or ()
    contents = [value.get("content") if isinstance(value, dict) else value for value in values]
    return {content for content in contents if isinstance(content, str)}


def _added(parts: TokenizerParts) -> Iterable[tuple[int, str, bool]]:
    """Yield id, content, and whether it is special, of every token except the merged ones.

    Upstream reads tokenizer_config.json only, and so takes runs of spaces and newlines for ordinary
    tokens where that file lists none, as newer versions of transformers write it; tokenizer.json
    lists the same tokens.
    """
    listed = parts.config.get("added_tokens_decoder")
    if isinstance(listed, dict) and listed:
        entries = [{**_object(parts, value), "id": key} for key, value in listed.items()]
    else:
        entries = [dict(_object(parts, value)) for value in parts.added_tokens]
    for entry in entries:
        index, content = entry.get("id"), entry.get("content")
        if isinstance(index, str) and index.isdecimal() and len(index) < 10:
            index = int(index)
        if type(index) is not int or not isinstance(content, str):
            raise CheckpointError(
                f"{parts.where}: added token {str(entry)[:100]}: must have an id and a content."
            )
        yield index, content, entry.get("special") is True


def _object(parts: TokenizerParts, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{parts.where}: added token {str(value)[:100]}: must be an object.")
    return value


def _from_sentencepiece(model: bytes, where: str) -> Vocabulary:
    from sentencepiece import SentencePieceProcessor

    if len(model) > MAX_MODEL_BYTES:
        raise CheckpointError(f"{where}: {len(model)} bytes; at most {MAX_MODEL_BYTES} are read.")
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
        ids = range(processor.vocab_size())
        tokens, scores = processor.IdToPiece(list(ids)), processor.GetScore(list(ids))
    except (RuntimeError, ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{where}: not a SentencePiece model: {str(error)[:200]}.",
            hint="Download it again, or remove it: tokenizer.json says the same.",
        ) from None
    # Upstream does not ask which pieces are user-defined: the list of added tokens says it.
    predicates = (
        (TokenType.UNKNOWN, processor.IsUnknown),
        (TokenType.CONTROL, processor.IsControl),
        (TokenType.UNUSED, processor.IsUnused),
        (TokenType.BYTE, processor.IsByte),
    )
    types = [
        int(next((kind for kind, is_kind in predicates if is_kind(index)), TokenType.NORMAL))
        for index in ids
    ]
    return Vocabulary(tokens, scores, types)


def _require_agreement(parts: TokenizerParts, pieces: Vocabulary, added: Collection[int]) -> None:
    """Refuse tokenizer.json and tokenizer.model that differ: one is evaluated, the other stored."""
    for index, (ours, theirs) in enumerate(zip(parts.in_model, pieces.tokens, strict=False)):
        score = pieces.scores[index]
        if index not in added and (ours != theirs or not isfinite(score)):
            raise CheckpointError(
                f"{parts.where}: token {index} is {theirs!r} with score {score} in "
                f"tokenizer.model, and {ours!r} in tokenizer.json.",
                hint="Remove the file that does not belong to the model, or download both again.",
            )


def _from_json(parts: TokenizerParts, added: Collection[str]) -> Vocabulary:
    """Rebuild the contents of tokenizer.model.

    SentencePiece scores its n-th merged piece −n. In tokenizer.json the merged pieces stand in the
    same order, so only their order is known; no more is used.
    """
    tokens = parts.in_model
    types = [_type(parts, token, added) for token in tokens]
    normal = [index for index, kind in enumerate(types) if kind == TokenType.NORMAL]
    _require_merges_by_id(parts, normal)
    first = normal[0] if normal else 0
    scores = [0.0] * len(tokens)
    for index in normal:
        scores[index] = -float(index - first)  # −0.0 for the first, as SentencePiece has it
    return Vocabulary(tokens, scores, types)


def _type(parts: TokenizerParts, token: str, added: Collection[str]) -> int:
    if _BYTE.fullmatch(token):
        return int(TokenType.BYTE)
    if token == parts.unknown:
        return int(TokenType.UNKNOWN)
    return int(TokenType.USER_DEFINED if token in added else TokenType.NORMAL)


def _require_merges_by_id(parts: TokenizerParts, normal: Sequence[int]) -> None:
    """Refuse merges that joining by score, here by id, would not reproduce.

    A merge into an added token is none of these: llama.cpp finds that token in the text first.
    """
    ids = {parts.in_model[index]: index for index in normal}
    last, listed = -1, 0
    for left, right in parts.merges:
        index = ids.get(left + right)
        if index is None:
            continue
        if index < last:
            raise UnsupportedError(
                f"{parts.where}: tokenizer.json merges {left!r} and {right!r} after a token of "
                "higher id: llama.cpp would merge by id.",
                hint="Keep tokenizer.model next to it.",
            )
        last, listed = index, listed + 1
    known = set(parts.in_model)
    possible = sum(
        piece[:cut] in known and piece[cut:] in known
        for piece in ids
        for cut in range(1, len(piece))
    )
    if listed != possible:
        raise UnsupportedError(
            f"{parts.where}: tokenizer.json lists {listed} merges, and its tokens allow "
            f"{possible}: llama.cpp would use all of them.",
            hint="Keep tokenizer.model next to it.",
        )


def _require_distinct(tokens: Sequence[str], where: str) -> None:
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        twice = next(token for token in tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        raise CheckpointError(
            f"{where}: token {twice!r} appears twice: llama.cpp stops at that.",
        )
