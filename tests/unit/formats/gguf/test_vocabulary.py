"""Tokens, scores and types; what is damaged or of another kind is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from gemquant.errors import CheckpointError, GemquantError, UnsupportedError
from gemquant.formats.gguf.vocabulary import Vocabulary, tokenizer_parts, vocabulary
from tests.helpers.tiny_gemma import tiny_tokenizer
from tests.helpers.tiny_sentencepiece import PIECES, tiny_sentencepiece_files

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
JSON, CONFIG, MODEL = "tokenizer.json", "tokenizer_config.json", "tokenizer.model"


def of(files: dict[str, bytes], size: int = PIECES) -> Vocabulary:
    return vocabulary(tokenizer_parts(files, "folder"), size)


def files(*names: str) -> dict[str, bytes]:
    return {name: tiny_sentencepiece_files()[name] for name in names}


def changed_json(change: Callable[[dict[str, Any]], object], **others: bytes) -> dict[str, bytes]:
    content = json.loads(tiny_sentencepiece_files()[JSON])
    change(content)
    return {JSON: json.dumps(content).encode(), **others}


@pytest.fixture(scope="module", params=["all", "json"])
def words(request: pytest.FixtureRequest) -> Vocabulary:
    return of(files(JSON) if request.param == "json" else dict(tiny_sentencepiece_files()), 1203)


@pytest.mark.parametrize(
    ("index", "token", "score", "kind"),
    [
        pytest.param(0, "<pad>", -1000.0, CONTROL, id="pad"),
        pytest.param(3, "<unk>", -1000.0, CONTROL, id="unk"),
        pytest.param(4, "<mask>", -1000.0, CONTROL, id="an-added-token-that-looks-special"),
        pytest.param(5, "[multimodal]", -1000.0, USER_DEFINED, id="an-added-token"),
        pytest.param(6, "<unused0>", -1000.0, CONTROL, id="unused"),
        pytest.param(107, "\n", -1000.0, USER_DEFINED, id="newline"),
        pytest.param(139, "   ", -1000.0, USER_DEFINED, id="spaces-as-in-a-text"),
        pytest.param(185, "<0x0A>", 0.0, BYTE, id="byte"),
        pytest.param(1200, "[PAD1200]", -10000.0, UNUSED, id="a-row-without-a-token"),
    ],
)
def test_a_token_has_text_score_and_type(
    words: Vocabulary, index: int, token: str, score: float, kind: int
) -> None:
    assert (words.tokens[index], words.scores[index], words.types[index]) == (token, score, kind)


def test_merged_pieces_are_scored_by_their_number(words: Vocabulary) -> None:
    normal = [index for index in range(PIECES) if words.types[index] == NORMAL]
    assert [words.scores[index] for index in normal] == [-float(n) for n in range(len(normal))]


def test_tokens_beyond_the_embedding_are_left_out() -> None:
    words = of(dict(tiny_sentencepiece_files()), 500)
    assert (len(words.tokens), len(words.scores), len(words.types)) == (500, 500, 500)


def test_added_tokens_are_found_where_only_tokenizer_json_lists_them() -> None:
    found = of({**files(JSON, MODEL), CONFIG: b"{}"})
    assert found == of(dict(tiny_sentencepiece_files()))


def test_an_unknown_token_that_nobody_lists_is_still_unknown() -> None:
    def forget(content: dict[str, Any]) -> None:
        content["added_tokens"] = [t for t in content["added_tokens"] if t["id"] != 3]

    assert of(changed_json(forget)).types[3] == UNKNOWN


def test_gemma_1_and_2_have_a_tab_in_the_place_of_its_byte() -> None:
    published = tiny_sentencepiece_files("gemma")
    index = json.loads(published[JSON])["model"]["vocab"]["\t"]
    for given in (dict(published), {JSON: published[JSON]}):
        words = of(given)
        assert (words.tokens[index], words.types[index]) == ("<0x09>", BYTE)


def test_an_older_file_spells_merges_as_text() -> None:
    def older(content: dict[str, Any]) -> None:
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]

    assert of(changed_json(older)) == of(files(JSON))


def test_the_tiny_tokenizer_of_other_tests_is_of_this_kind() -> None:
    words = of({JSON: tiny_tokenizer().to_str().encode()})
    assert words.types[:7] == [CONTROL] * 6 + [USER_DEFINED]


def reversed_merges(content: dict[str, Any]) -> None:
    content["model"]["merges"].reverse()


def one_merge_less(content: dict[str, Any]) -> None:
    del content["model"]["merges"][-1]


def gap(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["<pad>"] = 10**6


def two_of_an_id(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["<pad>"] = 1


def second_bos(content: dict[str, Any]) -> None:
    content["added_tokens"].append({"id": 5, "content": "<bos>"})


def at(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "kind", "expected"),
    [
        pytest.param(reversed_merges, UnsupportedError, "would merge by id", id="order"),
        pytest.param(one_merge_less, UnsupportedError, "would use all of them", id="missing-merge"),
        pytest.param(gap, CheckpointError, "ids must count from 0 to 1199", id="gap"),
        pytest.param(two_of_an_id, CheckpointError, "ids must count", id="twice"),
        pytest.param(at("model", "type", to="Unigram"), UnsupportedError, "Gemma's is", id="type"),
        pytest.param(
            at("model", "byte_fallback", to=False), UnsupportedError, "byte_fallback", id="bytes"
        ),
        pytest.param(at("normalizer", to=None), UnsupportedError, "normalizer None", id="spaces"),
        pytest.param(at("model", to=[]), CheckpointError, "no model with a vocab", id="model"),
        pytest.param(at("model", "merges", to=[1]), CheckpointError, "must be two", id="merge"),
        pytest.param(at("added_tokens", to=[7]), CheckpointError, "must be an object", id="added"),
        pytest.param(
            at("added_tokens", to=[{"id": "x"}]), CheckpointError, "an id and a content", id="id"
        ),
        pytest.param(second_bos, CheckpointError, "'<bos>' appears twice", id="twice-the-same"),
    ],
)
def test_another_kind_of_tokenizer_is_refused(
    change: Callable[[dict[str, Any]], None], kind: type[GemquantError], expected: str
) -> None:
    with pytest.raises(kind, match=expected):
        of(changed_json(change))


@pytest.mark.parametrize("content", [b"", b"\xff", b"not a model", b"\x0a\xff\xff\xff\xff\x0f"])
def test_a_damaged_tokenizer_model_is_named(content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        of({**tiny_sentencepiece_files(), MODEL: content})


def test_a_truncated_tokenizer_model_is_named() -> None:
    whole = tiny_sentencepiece_files()[MODEL]
    with pytest.raises(CheckpointError, match=r"folder: tokenizer\.model"):
        of({**tiny_sentencepiece_files(), MODEL: whole[: len(whole) // 2]})


def test_files_of_two_tokenizers_are_refused() -> None:
    def rename(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        piece = next(piece for piece, index in vocab.items() if index == 900)
        vocab["another"] = vocab.pop(piece)

    with pytest.raises(CheckpointError, match=r"token 900 is .* and 'another' in tokenizer\.json"):
        of(changed_json(rename, **files(MODEL, CONFIG)))


@pytest.mark.parametrize("name", [JSON, CONFIG, "generation_config.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_damaged_json_is_named(name: str, content: bytes) -> None:
    with pytest.raises(CheckpointError, match=rf"folder: {name}: not"):
        of({**tiny_sentencepiece_files(), name: content})
