"""What GGUF needs of a tokenizer's files, parsed and checked once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemquant.errors import CheckpointError, UnsupportedError
from gemquant.formats.gguf.tokens import as_in_tokenizer_model

_REPLACED_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


@dataclass(frozen=True)
class TokenizerParts:
    """Of tokenizer.json: pieces by id, spelled as in tokenizer.model; merges; added tokens; the
    unknown token; the post-processor. config: tokenizer_config.json, empty where there is none.
    generation: generation_config.json, likewise. model: tokenizer.model, if there is one. jinja:
    the content of chat_template.jinja, if there is one. where: names the origin in errors.
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
    content = _parsed(files, "tokenizer.json", where)
    model = content.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise CheckpointError(f"{where}: tokenizer.json: it holds no model with a vocab.")
    for key, value, wanted in (
        ("model.type", model.get("type"), "BPE"),
        ("model.byte_fallback", model.get("byte_fallback"), True),
        ("normalizer", content.get("normalizer"), _REPLACED_SPACE),
    ):
        if value != wanted:
            raise UnsupportedError(
                f"{where}: tokenizer.json: {key} {str(value)[:100]}: Gemma's is {wanted}."
            )
    processor = content.get("post_processor")
    added = content.get("added_tokens")
    unknown = model.get("unk_token")
    jinja = files.get("chat_template.jinja")
    return TokenizerParts(
        where=where,
        pieces=as_in_tokenizer_model(_pieces(model["vocab"], where)),
        merges=_merges(model.get("merges"), where),
        added_tokens=added if isinstance(added, list) else [],
        unknown=unknown if isinstance(unknown, str) else None,
        post_processor=processor if isinstance(processor, dict) else {},
        config=_parsed(files, "tokenizer_config.json", where),
        generation=_parsed(files, "generation_config.json", where),
        model=files.get("tokenizer.model"),
        jinja=None if jinja is None else jinja.decode(errors="replace"),
    )


def _parsed(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
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


def _merges(given: Any, where: str) -> list[tuple[str, str]]:
    """Merges as pairs; older files write a pair as one text with a space between."""
    merges = []
    for merge in given if isinstance(given, list) else []:
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
