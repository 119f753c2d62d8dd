"""llama.cpp's own tokenizer gives the ids that ``tokenizers`` and SentencePiece give."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer

from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.gguf.metadata import tokenizer_metadata
from gemquant.formats.gguf.values import string
from gemquant.formats.gguf.vocabulary import tokenizer_parts
from tests.helpers.llama_vocabulary import LlamaVocabulary, why_not, write_vocabulary
from tests.helpers.tiny_sentencepiece import (
    PIECES,
    VOCABULARY,
    Layout,
    tiny_bpe_files,
    tiny_sentencepiece_files,
)
from tests.helpers.tokenizer_texts import every_text

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"llama.cpp: {why_not()}")

CONFIG = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
JSON_ALONE = ("tokenizer.json",)
NOT_FOR_SENTENCEPIECE = ("<bos>", "<eos>", "<pad>", "<unk>", "▁")

texts = cache(every_text)


def loaded(path: Path, files: Mapping[str, bytes], config: Mapping[str, Any]) -> LlamaVocabulary:
    metadata = tokenizer_metadata(tokenizer_parts(files, "test"), {**CONFIG, **config})
    return LlamaVocabulary(
        write_vocabulary(path, {"general.architecture": string("gemma2"), **metadata})
    )


@pytest.fixture(scope="module", params=["gemma", "gemma3"])
def layout(request: pytest.FixtureRequest) -> Layout:
    chosen: Layout = request.param
    return chosen


@pytest.fixture(scope="module", params=["tokenizer.model", "tokenizer.json alone"])
def vocabulary(
    layout: Layout, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LlamaVocabulary]:
    files = dict(tiny_sentencepiece_files(layout))
    if request.param != "tokenizer.model":
        files = {name: files[name] for name in JSON_ALONE}
    path = tmp_path_factory.mktemp("vocabulary") / "tiny.gguf"
    generation = {"gemma": "gemma2", "gemma3": "gemma3_text"}[layout]
    with loaded(path, files, {"model_type": generation, "vocab_size": VOCABULARY}) as opened:
        yield opened


@pytest.fixture(scope="module")
def published(layout: Layout) -> Tokenizer:
    return Tokenizer.from_str(tiny_sentencepiece_files(layout)["tokenizer.json"].decode())


def different(vocabulary: LlamaVocabulary, tokenizer: Tokenizer) -> list[str]:
    return [
        text
        for text in texts()
        if vocabulary.ids(text) != tokenizer.encode(text, add_special_tokens=False).ids
    ]


def test_there_are_over_2000_texts_in_every_category() -> None:
    assert len(texts()) > 4500


def test_ids_are_those_of_tokenizers(vocabulary: LlamaVocabulary, published: Tokenizer) -> None:
    assert different(vocabulary, published) == []


def test_ids_are_those_of_sentencepiece(vocabulary: LlamaVocabulary, layout: Layout) -> None:
    model = tiny_sentencepiece_files(layout)["tokenizer.model"]
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ordinary = [t for t in texts() if not any(token in t for token in NOT_FOR_SENTENCEPIECE)]
    assert len(ordinary) > 4000
    assert [text for text in ordinary if vocabulary.ids(text) != processor.EncodeAsIds(text)] == []


def test_bos_is_added_once_and_nothing_else(
    vocabulary: LlamaVocabulary, published: Tokenizer
) -> None:
    text = "def the 世界"
    assert vocabulary.ids(text, add_special=True) == published.encode(text).ids
    assert vocabulary.ids(text, add_special=True).count(2) == 1


def test_special_tokens_have_their_parts(vocabulary: LlamaVocabulary, layout: Layout) -> None:
    end = {"gemma": 107, "gemma3": 106}[layout]
    assert [vocabulary.token(role) for role in ("bos", "eos", "pad", "eot")] == [2, 1, 0, end]
    assert [index for index in range(vocabulary.size) if vocabulary.ends(index)] == [1, end]


def test_text_comes_back(vocabulary: LlamaVocabulary) -> None:
    ordinary = [text for text in texts() if "▁" not in text]
    assert [t for t in ordinary if vocabulary.text(vocabulary.ids(t)) != t.encode()] == []


PUBLISHED = os.environ.get("GEMQUANT_TOKENIZERS")
"""A folder of folders, each with a tokenizer.model and a tokenizer.json made of it.

PyPI's maxtext 0.2.5 has Gemma 1 and 2's, and Gemma 3's, as assets/tokenizers/tokenizer.gemma and
tokenizer.gemma3; transformers 4.57.6 makes the tokenizer.json that Google published:
``GemmaTokenizerFast.from_pretrained(FOLDER).save_pretrained(FOLDER)``.
"""


@pytest.mark.peer
@pytest.mark.skipif(PUBLISHED is None, reason="GEMQUANT_TOKENIZERS names no folder")
@pytest.mark.parametrize("names", [(*JSON_ALONE, "tokenizer.model"), JSON_ALONE], ids=len)
@pytest.mark.parametrize(
    "folder", sorted(Path(PUBLISHED).iterdir()) if PUBLISHED else [], ids=lambda f: f.name
)
def test_ids_of_published_tokenizers(folder: Path, names: Sequence[str], tmp_path: Path) -> None:
    files = {name: (folder / name).read_bytes() for name in names}
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    config = {"model_type": "gemma2", "vocab_size": processor.vocab_size()}
    ordinary = [t for t in texts() if not any(token in t for token in NOT_FOR_SENTENCEPIECE)]
    with loaded(tmp_path / "v.gguf", files, config) as opened:
        assert different(opened, tokenizer) == []
        assert [t for t in ordinary if opened.ids(t) != processor.EncodeAsIds(t)] == []


@pytest.mark.real
def test_the_samples_ids_are_those_of_its_tokenizer(tmp_path: Path) -> None:
    checkpoint = open_checkpoint("sample:gemma-3-270m")
    with loaded(tmp_path / "v.gguf", checkpoint.tokenizer_files(), checkpoint.config) as opened:
        assert opened.size == 262_144
        assert different(opened, checkpoint.tokenizer()) == []


def test_ids_of_a_vocabulary_with_merges_are_those_of_tokenizers(tmp_path: Path) -> None:
    files = tiny_bpe_files()
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    config = {"model_type": "gemma4_text", "vocab_size": PIECES}
    with loaded(tmp_path / "tiny.gguf", files, config) as opened:
        assert different(opened, tokenizer) == []
