"""The tokenizer inside a GGUF, rebuilt as Gemma's own tokenizer.json.

A GGUF keeps SentencePiece's pieces, scores and types. The merges of the equivalent BPE are all
splits of a piece into two other pieces; the piece with the higher score is merged first (in a
published Gemma the one with the lower id), and of one piece the split with the longest left part.
Before all others come the splits of user-defined pieces, such as runs of spaces, by falling length
of the left part, so that a run is filled up from its left.

Where a file has merges of its own, these are taken as they are.

The result has the vocabulary, the merges and the added tokens, in their order and with their flags,
of the tokenizer.json that was published with the model.

Source: the tokenizer.json files of the published Gemmas.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from gemquant.errors import CheckpointError, UnsupportedError, listed
from gemquant.formats.gguf.vocabulary import SPACE, TAB, as_in_tokenizer_json, looks_special
from gemquant.models.architecture import gguf_architectures
from gemquant.models.chat import SpecialTokens

TEMPLATE = "tokenizer.chat_template"
MAX_NAMED_TEMPLATES = 32

_log = logging.getLogger(__name__)

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_ENDS = ("eos", "eot")
_NAMED = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
_USUAL = {"padding": "<pad>", "unknown": "<unk>"}
_UNMARKED = {
    _NORMAL: "ordinary tokens, not control tokens: chat will not work with it",
    _USER_DEFINED: "user-defined tokens, not control tokens: chat will not work with it as it "
    "should, since any text can begin or end a turn",
}
_TOKEN_IN_TEMPLATE = re.compile(r"<[^<>\s'\"{}%]{1,40}>")


class GgufTokenizer:
    """The tokenizer of a GGUF; its parts are checked at once, the merges computed on demand.

    Raises UnsupportedError where the vocabulary is not SentencePiece's, CheckpointError where its
    parts do not fit together.
    """

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        kind, known = metadata.get("tokenizer.ggml.model"), gguf_architectures()
        architecture = known.get(str(metadata.get("general.architecture")))
        self._own = architecture if architecture is not None and architecture.gguf.merges else None
        expected = "llama" if self._own is None else self._own.gguf.architecture
        if kind != expected:
            described = "SentencePiece" if self._own is None else "BPE"
            raise UnsupportedError(
                f"{where}: tokenizer.ggml.model {kind!r}: only {expected!r}, Gemma's {described} "
                "vocabulary, can be rebuilt.",
                hint="Open the original folder of safetensors instead.",
            )
        self._metadata = metadata
        self._pieces, self._scores, self._types = _vocabulary(metadata, where)
        self._named = _named_tokens(metadata, self._pieces, where)
        self._listed = [] if self._own is None else _listed_merges(metadata, where)
        if (note := unmarked_turns(metadata)) is not None:
            _log.warning("%s: %s", where, note)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; takes about two seconds for Gemma's vocabulary."""
        bos = self._metadata["tokenizer.ggml.bos_token_id"]
        control = {p for p, kind in zip(self._pieces, self._types, strict=True) if kind == _CONTROL}
        if self._own is not None:
            special = control | self._own.gguf.visible_tokens
            return _tokenizer(
                self._pieces, self._types, self._named, self._listed, special=special, bos=bos
            )
        pieces = as_in_tokenizer_json(self._pieces)
        ordinary = {piece for piece in pieces if looks_special(piece)} - {*self._named.values()}
        merges, special = _merges(pieces, self._scores, self._types), control - ordinary
        return _tokenizer(pieces, self._types, self._named, merges, special=special, bos=bos)

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the default template that the GGUF carries, if any."""
        template = self._metadata.get(TEMPLATE)
        return template if isinstance(template, str) else None

    @property
    def named_templates(self) -> Mapping[str, str]:
        """Sources of the other templates, by name."""
        named = {key.removeprefix(f"{TEMPLATE}."): value for key, value in self._metadata.items()
                 if key.startswith(f"{TEMPLATE}.") and isinstance(value, str)}  # fmt: skip
        return dict(list(named.items())[:MAX_NAMED_TEMPLATES])

    @property
    def end_tokens(self) -> frozenset[int]:
        """Ids of the end of a text and of a turn."""
        return frozenset(self._ends())

    @property
    def suppressed_tokens(self) -> frozenset[int]:
        """Ids of tokens that are never sampled."""
        listed = self._metadata.get("tokenizer.ggml.suppress_tokens")
        tokens = listed if isinstance(listed, Sequence) and not isinstance(listed, str) else ()
        return frozenset(token for token in tokens if type(token) is int and token >= 0)

    def _ends(self) -> list[int]:
        eos, turn = (self._metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _ENDS)
        # llama.cpp knows the turn's end of such a vocabulary by its text.
        if self._own is not None and self._own.chat.end in self._pieces:
            turn = self._pieces.index(self._own.chat.end)
        return list(dict.fromkeys(index for index in (eos, turn) if type(index) is int))

    def _generation(self) -> dict[str, Any]:
        ends, suppressed = self._ends(), sorted(self.suppressed_tokens)
        pad = self._metadata.get("tokenizer.ggml.padding_token_id")
        return {
            "bos_token_id": self._metadata["tokenizer.ggml.bos_token_id"],
            "eos_token_id": ends if len(ends) > 1 else ends[0],
            **({"pad_token_id": pad} if type(pad) is int else {}),
            **({"suppress_tokens": suppressed} if suppressed else {}),
        }

    def special_tokens(self, _config: Mapping[str, Any]) -> SpecialTokens:
        """Special tokens as variables of a chat template; the GGUF names its own."""
        return self._named

    @cached_property
    def files(self) -> Mapping[str, bytes]:
        """tokenizer.json, tokenizer_config.json and generation_config.json."""
        config: dict[str, Any] = {
            "tokenizer_class": "GemmaTokenizer",
            "add_bos_token": bool(self._metadata.get("tokenizer.ggml.add_bos_token", True)),
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            **self._named,
        }
        if self._own is not None:
            special = {self._pieces[n] for n, kind in enumerate(self._types) if kind == _CONTROL}
            special |= self._own.gguf.visible_tokens & set(self._pieces)
            config["extra_special_tokens"] = sorted(special - set(self._named.values()))
        default = {} if self.chat_template is None else {"default": self.chat_template}
        if named := self.named_templates:
            templates = {**default, **named}.items()
            config["chat_template"] = [{"name": n, "template": text} for n, text in templates]
        elif default:
            config["chat_template"] = self.chat_template
        return {
            "tokenizer.json": self.tokenizer.to_str(pretty=False).encode(),
            "tokenizer_config.json": _json(config),
            "generation_config.json": _json(self._generation()),
        }


def unmarked_turns(metadata: Mapping[str, Any]) -> str | None:
    """Say which tokens of the chat format llama.cpp would not find in a text, or not end."""
    known = gguf_architectures().get(str(metadata.get("general.architecture")))
    template = metadata.get(TEMPLATE)
    literals = set(_TOKEN_IN_TEMPLATE.findall(template)) if isinstance(template, str) else set()
    literals |= {known.chat.start, known.chat.end} if known else set()
    tokens, types = (metadata.get(f"tokenizer.ggml.{key}", ()) for key in ("tokens", "token_type"))
    found = {t: kind for t, kind in zip(tokens, types, strict=False) if t in literals}
    for kind, words in _UNMARKED.items():
        if wrong := [token for token, its in found.items() if its == kind]:
            return f"{listed(wrong, 4)} of the chat format are {words}."
    return None


def _vocabulary(
    metadata: Mapping[str, Any], where: str
) -> tuple[list[str], list[float], list[int]]:
    pieces = metadata.get("tokenizer.ggml.tokens")
    scores = metadata.get("tokenizer.ggml.scores")
    types = metadata.get("tokenizer.ggml.token_type")
    parts = (pieces, scores, types)
    lists = [part for part in parts if isinstance(part, Sequence) and not isinstance(part, str)]
    if len(lists) != 3 or len({len(part) for part in lists}) != 1 or not lists[0]:
        raise CheckpointError(
            f"{where}: tokenizer.ggml.tokens, scores and token_type must be lists of one length."
        )
    pieces, scores, types = map(list, lists)
    if not (
        isinstance(pieces[0], str)
        and isinstance(scores[0], (int, float))
        and isinstance(types[0], int)
    ):
        raise CheckpointError(
            f"{where}: tokenizer.ggml.tokens, scores and token_type must be texts, numbers and "
            "whole numbers."
        )
    # llama.cpp spells the runs of spaces among the user-defined pieces with real spaces.
    spelled = [
        piece.replace(" ", SPACE) if kind == _USER_DEFINED and not piece.strip(" ") else piece
        for piece, kind in zip(pieces, types, strict=True)
    ]
    if len(set(spelled)) != len(spelled):
        twice, _ = Counter(spelled).most_common(1)[0]
        raise CheckpointError(f"{where}: token {twice!r} appears twice.")
    return spelled, [-math.inf if math.isnan(score) else score for score in scores], types


def _named_tokens(metadata: Mapping[str, Any], pieces: Sequence[str], where: str) -> dict[str, str]:
    named = {}
    for role, ours in _NAMED.items():
        key = f"tokenizer.ggml.{role}_token_id"
        index = metadata.get(key)
        if index is None and role in _USUAL:
            if _USUAL[role] in pieces:
                named[ours] = _USUAL[role]
            continue
        if type(index) is not int or not 0 <= index < len(pieces):
            raise CheckpointError(f"{where}: {key} {index!r}: must be a token id.")
        named[ours] = pieces[index]
    return named


def _listed_merges(metadata: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    listed = metadata.get("tokenizer.ggml.merges")
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise CheckpointError(f"{where}: tokenizer.ggml.merges must be a list.")
    pairs = [merge.replace(" ", "\0", 1).split("\0") for merge in listed]
    if not all(len(pair) == 2 for pair in pairs):
        raise CheckpointError(f"{where}: tokenizer.ggml.merges: each must be two tokens.")
    raised = chr(ord(" ") + 256)
    return [(left.replace(raised, " "), right.replace(raised, " ")) for left, right in pairs]


def _tokenizer(
    pieces: Sequence[str],
    types: Sequence[int],
    named: Mapping[str, str],
    merges: Sequence[tuple[str, str]],
    *,
    special: Collection[str],
    bos: int,
) -> Tokenizer:
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=list(merges),
            unk_token=named.get("unk_token"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    name = named["bos_token"]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{name} $A", pair=f"{name} $A {name}:1 $B:1", special_tokens=[(name, bos)]
    )
    added = [
        AddedToken(piece, normalized=False, special=piece in special)
        for piece, kind in zip(pieces, types, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    return tokenizer


def _merges(
    pieces: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """Return every split of a piece into two others, in the order of their scores."""
    normal = [score for score, kind in zip(scores, types, strict=True) if kind == _NORMAL]
    # SentencePiece scores user-defined pieces as the first normal one: zero.
    best = max(normal, default=0.0)
    scored = [
        (score if kind == _NORMAL else best, piece)
        for piece, score, kind in zip(pieces, scores, types, strict=True)
        if kind in (_NORMAL, _USER_DEFINED)
    ]
    parts = {*(piece for _, piece in scored), TAB}
    # Stable, and so by id where the scores are the same.
    scored.sort(key=lambda each: -each[0])
    merges: list[tuple[str, str]] = []
    for _, alike in groupby(scored, key=lambda each: each[0]):
        splits = list(_splits([piece for _, piece in alike], parts))
        merges += sorted(splits, key=lambda split: (-len(split[0]), -len(split[1])))
    return merges


def _splits(pieces: Sequence[str], parts: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield every split of the pieces, in their order, the longest left part first."""
    for piece in pieces:
        for cut in range(len(piece) - 1, 0, -1):
            left, right = piece[:cut], piece[cut:]
            if left in parts and right in parts:
                yield left, right


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
