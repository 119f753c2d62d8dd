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
from safetensors import safe_open
from safetensors.torch import save_file

from tests.helpers.tiny_gemma import CHAT_TEMPLATE, GEMMA4, Kind, write_tiny_gemma

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


_TOKENS = {
    "<start_of_turn>": "<|turn>", "<end_of_turn>": "<turn|>", "<unused0>": "<|channel>",
    "<unused1>": "<channel|>", "<unused2>": "<|tool_call>", "<unused3>": "<|tool_response>",
    "<unused4>": "<|image>", "<unused5>": "<|video>", "<unused6>": '<|"|>',
}  # fmt: skip
_ROLES = {
    "sot_token": "<|turn>", "eot_token": "<turn|>", "soc_token": "<|channel>",
    "eoc_token": "<channel|>", "stc_token": "<|tool_call>", "str_token": "<|tool_response>",
    "boi_token": "<|image>", "escape_token": '<|"|>',
}  # fmt: skip


@cache
def tiny_bpe_files() -> dict[str, bytes]:
    """Return the files of a tokenizer as Gemma 4 has it: the same pieces, but BPE throughout.

    There is no tokenizer.model; runs of newlines and of spaces are merged like all else, and only
    what is special is an added token.
    """
    content = json.loads(tiny_sentencepiece_files("gemma3")["tokenizer.json"])
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {_TOKENS.get(piece, piece): n for piece, n in vocab.items()}
    special = {*_NAMED, "<mask>", *_TOKENS.values()}
    for token in content["added_tokens"]:
        token["content"] = _TOKENS.get(token["content"], token["content"])
        token["special"] = True
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in special]
    named = {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    config = {
        "backend": "tokenizers",
        **{f"{role}_token": token for role, token in named.items()},
        **_ROLES,
        "extra_special_tokens": ["<|video>"],
        "padding_side": "left",
        "processor_class": "Gemma4Processor",
        "tokenizer_class": "GemmaTokenizer",
    }
    template = CHAT_TEMPLATE.replace("<start_of_turn>", "<|turn>")
    return {
        "tokenizer.json": json.dumps(content, indent=2, ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(config, indent=2).encode(),
        "chat_template.jinja": template.replace("<end_of_turn>", "<turn|>").encode(),
    }


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
    if kind in {"gemma3_text", "gemma3", "embedding"}:
        overrides["sliding_window_pattern"] = 6
    if kind == "embedding":  # llama.cpp ends where no layer attends to everything
        overrides["num_hidden_layers"] = 6
    if kind in GEMMA4:
        # llama.cpp has rules of its own for eight experts, which no Gemma has.
        overrides |= {"vocab_size": PIECES, "vocab_size_per_layer_input": PIECES}
        moe: dict[str, Any] = {"gemma4_moe": {"num_experts": 4}}
        moe["gemma4_unified"] = {"moe_intermediate_size": None, "num_kv_shared_layers": 0}
        overrides |= moe.get(kind, {})
    folder = write_tiny_gemma(
        root / f"tiny-{kind.replace('_', '-')}-2b-it", kind, overrides=overrides
    )
    layout: Layout = "gemma" if kind in {"gemma", "gemma2"} else "gemma3"
    files = tiny_bpe_files() if kind in GEMMA4 else tiny_sentencepiece_files(layout)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if kind == "embedding":
        _with_ends(folder)
    card, generation = _CARD, {"do_sample": True, "eos_token_id": [1, 106], "top_k": 64}
    if kind in GEMMA4:
        card = _CARD.replace("license: gemma", "license: apache-2.0")
        (folder / "tokenizer.model").unlink(missing_ok=True)
        _without_dead_tensors(folder)
    if kind == "gemma4_unified":
        generation["suppress_tokens"] = [7, 11]
    (folder / "README.md").write_text(card, encoding="utf-8")
    generation["top_p"] = 0.95
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


def _with_ends(folder: Path) -> None:
    """Let an EOS follow each text, as an embedding model reads it, and take the chat template."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        if name == "tokenizer.json":
            (template,) = (
                each
                for each in (
                    content["post_processor"],
                    *content["post_processor"].get("processors", ()),
                )
                if each["type"] == "TemplateProcessing"
            )
            template["single"] += [{"SpecialToken": {"id": "<eos>", "type_id": 0}}]
            template["special_tokens"]["<eos>"] = {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}
        else:
            content["add_eos_token"] = True
            del content["chat_template"]
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def _without_dead_tensors(folder: Path) -> None:
    """Leave out keys and values that no layer reads: llama.cpp's converter would carry them."""
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    dead = ("self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.k_norm.weight")
    kept = {n: t for n, t in tensors.items() if not (n.endswith(dead) and t.shape == (1,))}
    save_file(kept, path, metadata={"format": "pt"})
