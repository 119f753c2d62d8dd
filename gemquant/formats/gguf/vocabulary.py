"""A Gemma's vocabulary as llama.cpp stores it: text, score and type of every token.

llama.cpp takes user-defined and special tokens out of a text first, the longest before all others,
and then joins the two neighbours whose joint token has the highest score, as SentencePiece does.
``tokenizers`` instead follows a list of merges. Gemma's list is the same thing in other words:
every split of a token into two others, by the token's score.

Source: llama.cpp ``conversion/base.py`` (``_create_vocab_sentencepiece``), ``src/llama-vocab.cpp``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from gguf import TokenType

from gemquant.errors import CheckpointError, UnsupportedError
from gemquant.formats.gguf.tokenizer_parts import TokenizerParts
from gemquant.formats.gguf.tokens import SPACE, looks_special

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
    own = {index for index, _, _ in added}
    if parts.model is None:
        pieces = _from_json(parts, {content for _, content, _ in added})
    else:
        pieces = _from_sentencepiece(parts.model, f"{parts.where}: tokenizer.model")
        _require_agreement(parts, pieces, own)
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


def _added(parts: TokenizerParts) -> Iterable[tuple[int, str, bool]]:
    """Yield id, content, and whether it is special, of every token beside the merged ones.

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
    asked = (
        (TokenType.UNKNOWN, processor.IsUnknown),
        (TokenType.CONTROL, processor.IsControl),
        (TokenType.UNUSED, processor.IsUnused),
        (TokenType.BYTE, processor.IsByte),
    )
    types = [
        int(next((kind for kind, is_kind in asked if is_kind(index)), TokenType.NORMAL))
        for index in ids
    ]
    return Vocabulary(tokens, scores, types)


def _require_agreement(parts: TokenizerParts, pieces: Vocabulary, added: Collection[int]) -> None:
    """Refuse two files that tell of two tokenizers: one is evaluated with, the other is stored."""
    for index, (ours, theirs) in enumerate(zip(parts.pieces, pieces.tokens, strict=False)):
        score = pieces.scores[index]
        if index not in added and (ours != theirs or not isfinite(score)):
            raise CheckpointError(
                f"{parts.where}: token {index} is {theirs!r} with score {score} in "
                f"tokenizer.model, and {ours!r} in tokenizer.json.",
                hint="Remove the file that does not belong to the model, or download both again.",
            )


def _from_json(parts: TokenizerParts, added: Collection[str]) -> Vocabulary:
    """Rebuild what tokenizer.model would have said.

    SentencePiece scores its n-th merged piece −n. In tokenizer.json the merged pieces stand in the
    same order, so only their order is known; no more is used.
    """
    tokens = parts.pieces
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
    ids = {parts.pieces[index]: index for index in normal}
    last, listed = -1, 0
    for left, right in parts.merges:
        index = ids.get(left + right)
        if index is None:
            continue
        if index < last:
            raise UnsupportedError(
                f"{parts.where}: tokenizer.json merges {left!r} and {right!r} after a token of "
                "higher id: llama.cpp would merge by id.",
                hint="Keep tokenizer.model beside it.",
            )
        last, listed = index, listed + 1
    known = set(parts.pieces)
    possible = sum(
        piece[:cut] in known and piece[cut:] in known
        for piece in ids
        for cut in range(1, len(piece))
    )
    if listed != possible:
        raise UnsupportedError(
            f"{parts.where}: tokenizer.json lists {listed} merges, and its tokens allow "
            f"{possible}: llama.cpp would use all of them.",
            hint="Keep tokenizer.model beside it.",
        )


def _require_distinct(tokens: Sequence[str], where: str) -> None:
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        twice = next(token for token in tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        raise CheckpointError(
            f"{where}: token {twice!r} is given twice: llama.cpp stops at that.",
        )
