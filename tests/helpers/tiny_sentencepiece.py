"""Small SentencePiece models laid out like Gemma's, and folders that llama.cpp's converter takes.

First pad, eos, bos, unk; then mask and others, unused tokens, the turns' marks, runs of newlines
and of spaces, tags, tabs; then bytes, merged pieces with the most frequent first, and characters.
Gemma 1 and 2 have <2mass> and [@BOS@] where Gemma 3 has [multimodal], so that a turn ends with 107
and not 106; and they have no piece for a single tab.
"""

from __future__ import annotations

import io
import json
import random
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import sentencepiece

from tests.helpers.tiny_gemma import CHAT_TEMPLATE, Kind, write_tiny_gemma

PIECES = 1200
VOCABULARY = 1208
"""More than the tokenizer has, as in every multimodal Gemma 3."""

_SYLLABLES = (
    "the of and to in is that for with as on it was by this are from not have be at which",
    "def return import self print None True lambda class () [] {} := == != -> ... 0 1 42 3.14",
    "über für straße naïve café garçon niño ação łódź žluť",
    "пере вод язык мир слово не что как это дом",
    "我 们 的 世 界 语 言 模 型 学 习",
    "日本 語 カタ カナ ひら がな です ます",
    "한국 어 말 모델 우리 는 입니다",
    "مرحبا عالم لغة כן שלום עולם",
    "हिन्दी भाषा नमस्ते ไทย ภาษา",
    "😀 🎉 👍🏽 👩‍💻 🇺🇦 ❤️ ∑ √ ≤ → €",
)
Layout = Literal["gemma", "gemma3"]
"""Of Gemma 1 and 2, or of Gemma 3."""

_FIRST: Mapping[Layout, tuple[str, ...]] = {
    "gemma": ("<mask>", "<2mass>", "[@BOS@]"),
    "gemma3": ("<mask>", "[multimodal]"),
}
_LAST: Mapping[Layout, tuple[str, ...]] = {
    "gemma": ("[toxicity=0]", "\t\t", "\t\t\t"),
    "gemma3": ("\t", "\t\t", "\t\t\t"),
}
_BETWEEN = (
    *(f"<unused{index}>" for index in range(99)),
    "<start_of_turn>",
    "<end_of_turn>",
    *("\n" * run for run in range(1, 32)),
    *("▁" * run for run in range(2, 32)),
    *("<table>", "</table>", "<code>", "</code>"),
)
_NAMED = ("<pad>", "<eos>", "<bos>", "<unk>")
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")


def _user_defined(layout: Layout) -> tuple[str, ...]:
    return (*_FIRST[layout], *_BETWEEN, *_LAST[layout])


def sentences(count: int, *, seed: int) -> list[str]:
    """Return made-up lines of syllables in many scripts, some joined and some apart."""
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        syllables = draw.choice(_SYLLABLES).split()
        line = ""
        for _ in range(draw.randint(1, 30)):
            line += draw.choice(syllables) + draw.choice(("", "", " ", " ", "  ", "\t"))
        lines.append(line)
    return lines


@cache
def tiny_sentencepiece(layout: Layout = "gemma3") -> bytes:
    """Return a tokenizer.model with Gemma's settings; the same bytes for the same version."""
    model = io.BytesIO()
    lines = sentences(1500, seed=0)
    if layout == "gemma":
        lines = [line.replace("\t", " ") for line in lines]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=0.999,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>",
        user_defined_symbols=list(_user_defined(layout)),
        num_threads=1,
        minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def tiny_tokenizer_config(layout: Layout = "gemma3") -> dict[str, Any]:
    """Return a tokenizer_config.json as published Gemmas have it, with every added token."""
    added = (*_NAMED, *_user_defined(layout))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(index): {"content": content, **flags, "special": content in _SPECIAL}
            for index, content in enumerate(added)
        },
        "bos_token": "<bos>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
    }


@cache
def tiny_sentencepiece_files(layout: Layout = "gemma3") -> dict[str, bytes]:
    """Return tokenizer.model, tokenizer.json and tokenizer_config.json.

    tokenizer.json is transformers' conversion, with the merges of user-defined pieces in the order
    in which the published files have them: transformers 5 would join pairs of spaces first, and so
    cut a run of 32 in halves, where SentencePiece and the published files cut it after 31. As
    published, Gemma 1 and 2 have a tab in the place of its byte, and so merges of tabs.
    """
    from transformers import AutoTokenizer

    config = json.dumps(tiny_tokenizer_config(layout), indent=2).encode()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer.model").write_bytes(tiny_sentencepiece(layout))
        (folder / "tokenizer_config.json").write_bytes(config)
        converted = json.loads(AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str())
    model = converted["model"]
    if "\t" not in model["vocab"]:
        model["vocab"]["\t"] = model["vocab"].pop("<0x09>")
        model["merges"] += [["\t", "\t"], ["\t", "\t\t"], ["\t\t", "\t"]]
    model["merges"] = sorted(model["merges"], key=_published_place)
    return {
        "tokenizer.model": tiny_sentencepiece(layout),
        "tokenizer.json": json.dumps(converted, indent=2, ensure_ascii=False).encode(),
        "tokenizer_config.json": config,
    }


def _published_place(merge: list[str]) -> tuple[int, int, int]:
    left, right = merge
    if left + right in (*_user_defined("gemma"), *_user_defined("gemma3")):
        return (0, -len(left), -len(right))
    return (1, 0, 0)


_CARD = """\
---
license: gemma
library_name: transformers
pipeline_tag: text-generation
base_model: google/gemma-2-2b
datasets:
- someone/some-data
tags:
- conversational
language:
- en
- no
---
# A tiny Gemma
"""


def write_convertible_gemma(
    root: Path, kind: Kind, changes: Mapping[str, Any] = MappingProxyType({})
) -> Path:
    """Write a tiny Gemma that llama.cpp can hold, with tokenizer.model, card and sampling.

    The folder's name is part of what is converted. changes: to the text configuration.
    """
    overrides: dict[str, Any] = {"vocab_size": VOCABULARY, "query_pre_attn_scalar": 32, **changes}
    if kind in {"gemma3_text", "gemma3"}:
        overrides["sliding_window_pattern"] = 6
    folder = write_tiny_gemma(
        root / f"tiny-{kind.replace('_', '-')}-2b-it", kind, overrides=overrides
    )
    layout: Layout = "gemma" if kind in {"gemma", "gemma2"} else "gemma3"
    for name, content in tiny_sentencepiece_files(layout).items():
        (folder / name).write_bytes(content)
    (folder / "README.md").write_text(_CARD, encoding="utf-8")
    generation = {"do_sample": True, "eos_token_id": [1, 106], "top_k": 64, "top_p": 0.95}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder
