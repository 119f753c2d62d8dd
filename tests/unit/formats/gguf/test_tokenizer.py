"""The tokenizer rebuilt from a GGUF is the one that the model was published with."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gemquant.errors import CheckpointError, GemquantError, UnsupportedError
from gemquant.formats.gguf.tokenizer import GgufTokenizer
from gemquant.formats.gguf.values import boolean, float32s, int32s, string, strings, uint32
from tests.helpers.llama_vocabulary import LlamaVocabulary, why_not, write_vocabulary
from tests.helpers.tiny_gemma import CHAT_TEMPLATE, tiny_tokenizer
from tests.helpers.tiny_gguf import tiny_token_metadata


def rebuilt() -> Tokenizer:
    return GgufTokenizer(tiny_token_metadata(), "tiny.gguf").tokenizer


@pytest.fixture(scope="module")
def pair() -> tuple[Tokenizer, Tokenizer]:
    return tiny_tokenizer(), rebuilt()


@pytest.mark.parametrize(
    "part", ["normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens"]
)
def test_every_part_around_the_model_is_the_same(part: str) -> None:
    ours, theirs = (json.loads(t.to_str()) for t in (rebuilt(), tiny_tokenizer()))
    assert ours[part] == theirs[part]


def test_the_vocabulary_is_the_same_with_a_tab_in_the_place_of_its_byte_as_published() -> None:
    expected = tiny_tokenizer().get_vocab()
    expected["\t"] = expected.pop("<0x09>")
    assert rebuilt().get_vocab() == expected


@given(st.text(alphabet="the of<>_ \n\t\u00e9\u4e16\U0001f600wordlinguistf<bos>", max_size=60))
def test_any_text_gets_the_same_ids(pair: tuple[Tokenizer, Tokenizer], text: str) -> None:
    published, ours = pair
    assert ours.encode(text).ids == published.encode(text).ids


def test_a_run_of_spaces_is_one_token() -> None:
    metadata = tiny_token_metadata(extra=["  ", "   "])
    ids = GgufTokenizer(metadata, "x").tokenizer.encode("a   Z", add_special_tokens=False).ids
    vocab = len(metadata["tokenizer.ggml.tokens"])
    assert ids[1] == vocab - 1
    assert len(ids) == 3


def test_a_run_of_spaces_is_an_added_token_under_its_spelling_as_published() -> None:
    tokenizer = GgufTokenizer(tiny_token_metadata(extra=["  "]), "x").tokenizer
    last = max(tokenizer.get_added_tokens_decoder().items())
    assert (last[1].content, last[1].special) == ("▁▁", False)


def test_a_run_longer_than_any_token_is_filled_up_from_its_left() -> None:
    runs = [" " * count for count in (2, 3, 4, 5)]
    tokenizer = GgufTokenizer(tiny_token_metadata(extra=runs), "x").tokenizer
    assert tokenizer.encode(" " * 8, add_special_tokens=False).tokens == ["▁▁▁▁▁", "▁▁▁"]


def test_splits_of_user_defined_pieces_are_merged_first_longest_left_part_first() -> None:
    metadata = tiny_token_metadata(extra=["<<", "<<<"])
    model = json.loads(GgufTokenizer(metadata, "x").tokenizer.to_str())["model"]
    assert model["merges"][:4] == [["<<", "<"], ["<", "<<"], ["▁", "t"], ["<", "<"]]


def test_unused_tokens_are_control_in_a_gguf_and_ordinary_added_tokens_as_published() -> None:
    metadata = tiny_token_metadata(extra=["<unused0>"])
    metadata["tokenizer.ggml.token_type"][-1] = 3
    tokenizer = GgufTokenizer(metadata, "x").tokenizer
    last = max(tokenizer.get_added_tokens_decoder().items())
    assert (last[1].content, last[1].special) == ("<unused0>", False)


def test_the_chat_template_is_kept() -> None:
    metadata = {**tiny_token_metadata(), "tokenizer.chat_template": CHAT_TEMPLATE}
    tokenizer = GgufTokenizer(metadata, "x")
    assert tokenizer.chat_template == CHAT_TEMPLATE
    config = json.loads(tokenizer.files["tokenizer_config.json"])
    assert config["chat_template"] == CHAT_TEMPLATE


def test_files_name_the_special_tokens() -> None:
    config = json.loads(GgufTokenizer(tiny_token_metadata(), "x").files["tokenizer_config.json"])
    assert {k: v for k, v in config.items() if k.endswith("_token")} == {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }


def test_transformers_reads_the_files_as_the_same_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    metadata = {**tiny_token_metadata(), "tokenizer.chat_template": CHAT_TEMPLATE}
    for name, content in GgufTokenizer(metadata, "x").files.items():
        (tmp_path / name).write_bytes(content)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "the quick\nbrown <start_of_turn>fox \u00e9"
    assert loaded(text).input_ids == tiny_tokenizer().encode(text).ids
    assert loaded.chat_template == CHAT_TEMPLATE
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (2, 1, 0)


def test_the_end_of_a_turn_ends_a_generation_too() -> None:
    metadata = {**tiny_token_metadata(), "tokenizer.ggml.eot_token_id": 5}
    generation = json.loads(GgufTokenizer(metadata, "x").files["generation_config.json"])
    assert generation == {"bos_token_id": 2, "eos_token_id": [1, 5], "pad_token_id": 0}


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda metadata: metadata.pop(key)


def with_(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda metadata: metadata.update({key: value})


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        pytest.param(
            with_("tokenizer.ggml.model", "gpt2"), UnsupportedError, "'gpt2': only", id="gpt2"
        ),
        pytest.param(
            without("tokenizer.ggml.scores"), CheckpointError, "lists of one length", id="no-scores"
        ),
        pytest.param(
            with_("tokenizer.ggml.token_type", [1]), CheckpointError, "one length", id="lengths"
        ),
        pytest.param(
            with_("tokenizer.ggml.bos_token_id", 10**6), CheckpointError, "bos_token_id", id="bos"
        ),
        pytest.param(
            without("tokenizer.ggml.eos_token_id"), CheckpointError, "eos_token_id None", id="eos"
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Any]], None], kind: type[GemquantError], words: str
) -> None:
    metadata = tiny_token_metadata()
    change(metadata)
    with pytest.raises(kind, match=words):
        GgufTokenizer(metadata, "tiny.gguf")


def test_a_token_given_twice_is_named() -> None:
    metadata = tiny_token_metadata(extra=["the"])
    metadata["tokenizer.ggml.tokens"][-2] = "the"
    with pytest.raises(CheckpointError, match="token 'the' appears twice"):
        GgufTokenizer(metadata, "x")


def test_the_piece_with_the_higher_score_is_merged_first() -> None:
    metadata = tiny_token_metadata(extra=["ab", "bc"])
    metadata["tokenizer.ggml.token_type"][-2:] = [1, 1]
    metadata["tokenizer.ggml.scores"][-2:] = [-7000.0, -6000.0]
    tokenizer = GgufTokenizer(metadata, "x").tokenizer
    assert tokenizer.encode("abc", add_special_tokens=False).tokens == ["a", "bc"]


def test_a_score_that_is_no_number_comes_last() -> None:
    metadata = tiny_token_metadata(extra=["ab", "bc"])
    metadata["tokenizer.ggml.token_type"][-2:] = [1, 1]
    metadata["tokenizer.ggml.scores"][-2:] = [float("nan"), -6000.0]
    tokenizer = GgufTokenizer(metadata, "x").tokenizer
    assert tokenizer.encode("abc", add_special_tokens=False).tokens == ["a", "bc"]


@pytest.mark.peer
@pytest.mark.parametrize("seed", range(4))
def test_scores_in_any_order_give_llamacpps_tokens(tmp_path: Path, seed: int) -> None:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    metadata = tiny_token_metadata()
    kinds, scores = metadata["tokenizer.ggml.token_type"], metadata["tokenizer.ggml.scores"]
    normal = [index for index, kind in enumerate(kinds) if kind == 1]
    shuffled = random.Random(seed).sample(range(len(normal)), len(normal))
    for index, rank in zip(normal, shuffled, strict=True):
        scores[index] = float(rank)
    stored = {
        "general.architecture": string("gemma"),
        **{key: string(value) for key, value in metadata.items() if isinstance(value, str)},
        **{key: uint32(value) for key, value in metadata.items() if isinstance(value, int)},
        "tokenizer.ggml.tokens": strings(metadata["tokenizer.ggml.tokens"]),
        "tokenizer.ggml.scores": float32s(scores),
        "tokenizer.ggml.token_type": int32s(kinds),
        "tokenizer.ggml.add_space_prefix": boolean(False),
    }
    tokenizer = GgufTokenizer(metadata, "x").tokenizer
    with LlamaVocabulary(write_vocabulary(tmp_path / "v.gguf", stored)) as llama:
        for text in ("the quick brown fox jumps over lazy dogs", "thethe returnimport  ofof"):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            assert llama.ids(text) == ids


def test_several_templates_are_read_by_name(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    metadata = {
        **tiny_token_metadata(),
        "tokenizer.chat_template": CHAT_TEMPLATE,
        "tokenizer.chat_templates": ["rag", "tool_use"],
        "tokenizer.chat_template.rag": "rag {{ bos_token }}",
        "tokenizer.chat_template.tool_use": "tools {{ bos_token }}",
    }
    tokenizer = GgufTokenizer(metadata, "x")
    assert tokenizer.chat_template == CHAT_TEMPLATE
    for name, content in tokenizer.files.items():
        (tmp_path / name).write_bytes(content)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == {
        "default": CHAT_TEMPLATE,
        "rag": "rag {{ bos_token }}",
        "tool_use": "tools {{ bos_token }}",
    }


def test_a_gguf_with_named_templates_alone_has_no_default() -> None:
    metadata = {**tiny_token_metadata(), "tokenizer.chat_template.rag": "rag"}
    tokenizer = GgufTokenizer(metadata, "x")
    assert tokenizer.chat_template is None
    config = json.loads(tokenizer.files["tokenizer_config.json"])
    assert config["chat_template"] == [{"name": "rag", "template": "rag"}]


@pytest.mark.parametrize("key", ["padding", "unknown"])
def test_a_missing_padding_or_unknown_id_is_that_of_the_usual_token(key: str) -> None:
    metadata = tiny_token_metadata()
    del metadata[f"tokenizer.ggml.{key}_token_id"]
    config = json.loads(GgufTokenizer(metadata, "x").files["tokenizer_config.json"])
    assert (config["pad_token"], config["unk_token"]) == ("<pad>", "<unk>")


def test_a_vocabulary_without_padding_or_unknown_token_is_read() -> None:
    metadata = tiny_token_metadata()
    for key, index in (("padding", 0), ("unknown", 3)):
        del metadata[f"tokenizer.ggml.{key}_token_id"]
        metadata["tokenizer.ggml.tokens"][index] = f"other{index}"
    tokenizer = GgufTokenizer(metadata, "x")
    config = json.loads(tokenizer.files["tokenizer_config.json"])
    assert {"pad_token", "unk_token"} & config.keys() == set()
    assert json.loads(tokenizer.files["generation_config.json"]) == {
        "bos_token_id": 2, "eos_token_id": 1,
    }  # fmt: skip
    assert tokenizer.tokenizer.encode("the").ids == tiny_tokenizer().encode("the").ids


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (1, "are ordinary tokens, not control tokens: chat will not work with it"),
        (4, "are user-defined tokens, not control tokens: chat will not work with it as it should"),
    ],
)
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, None])
def test_turn_tokens_that_are_no_control_tokens_are_noted(
    caplog: pytest.LogCaptureFixture, template: str | None, kind: int, words: str
) -> None:
    metadata = {**tiny_token_metadata(), "general.architecture": "gemma2"}
    if template is not None:
        metadata["tokenizer.chat_template"] = template
    for index in (4, 5):
        metadata["tokenizer.ggml.token_type"][index] = kind
    with caplog.at_level(logging.WARNING):
        GgufTokenizer(metadata, "tiny.gguf").files  # noqa: B018
    assert f"tiny.gguf: <start_of_turn>, <end_of_turn> of the chat format {words}" in caplog.text


def test_turn_tokens_that_are_control_tokens_are_not_noted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        GgufTokenizer({**tiny_token_metadata(), "general.architecture": "gemma2"}, "tiny.gguf")
    assert caplog.text == ""


def test_tokens_that_are_numbers_are_refused() -> None:
    metadata = tiny_token_metadata()
    metadata["tokenizer.ggml.scores"] = ["0"] * len(metadata["tokenizer.ggml.scores"])
    with pytest.raises(CheckpointError, match="must be texts, numbers and whole numbers"):
        GgufTokenizer(metadata, "x")
