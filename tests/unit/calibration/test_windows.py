from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gemquant.calibration.windows import (
    Packer,
    TokenWindows,
    calibration_windows,
    evaluation_windows,
    token_windows,
)
from gemquant.errors import CalibrationError, Problems, UsageError
from gemquant.models.chat import ChatTemplate
from gemquant.models.chat_templates import VARIANTS
from tests.helpers.tiny_gemma import tiny_tokenizer

BOS = 2


class WordTokenizer:
    """One token a word, numbered from 10 in the order of appearance; <bos> is 2."""

    def __init__(self) -> None:
        self.words: dict[str, int] = {"<bos>": BOS}
        self.encoded = 0

    def encode(self, sequence: str, *, add_special_tokens: bool) -> SimpleNamespace:
        assert not add_special_tokens
        self.encoded += 1
        ids = [self.words.setdefault(w, 9 + len(self.words)) for w in sequence.split()]
        return SimpleNamespace(ids=ids)

    def decode(self, row: torch.Tensor) -> list[str]:
        names = {number: word for word, number in self.words.items()}
        return [names[int(number)] for number in row]


def _calibrate(
    source: str = "general", *, tokenizer=None, template=None, **changes
) -> TokenWindows:
    settings = {"samples": 4, "seq_len": 6, "seed": 0} | changes
    template = template or ChatTemplate(VARIANTS["stock"])
    packer = Packer(
        tokenizer or WordTokenizer(), settings["seq_len"], BOS, template, settings["seed"]
    )
    return calibration_windows(packer, source, settings["samples"])


def _file(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_every_window_starts_with_its_only_bos(small_library):
    ids = _calibrate().ids
    assert ids.shape == (4, 6)
    assert ids.dtype == torch.int64
    assert (ids == BOS).nonzero().tolist() == [[0, 0], [1, 0], [2, 0], [3, 0]]


def test_documents_are_packed_without_gap_or_padding(tmp_path: Path):
    source = _file(tmp_path, "a.txt", "a b c d e f g h")
    words = WordTokenizer()
    rows = _calibrate(source, tokenizer=words, samples=2, seq_len=4).ids
    assert [words.decode(row) for row in rows] == [
        ["<bos>", "a", "b", "c"],
        ["<bos>", "d", "e", "f"],
    ]


def test_a_bos_within_the_text_is_dropped(tmp_path: Path):
    source = _file(tmp_path, "a.txt", "<bos> a <bos> b c")
    words = WordTokenizer()
    (row,) = _calibrate(source, tokenizer=words, samples=1, seq_len=4).ids
    assert words.decode(row) == ["<bos>", "a", "b", "c"]


def test_a_template_that_spells_bos_adds_no_second_one(tmp_path: Path):
    source = _file(tmp_path, "a.jsonl", '{"messages": [{"role": "user", "content": "a b"}]}')
    words = WordTokenizer()
    template = ChatTemplate("<bos> {{ bos_token }} {{ messages[0]['content'] }} end")
    (row,) = _calibrate(source, tokenizer=words, template=template, samples=1, seq_len=4).ids
    assert words.decode(row) == ["<bos>", "a", "b", "end"]


def test_conversations_go_through_gemmas_turns(tmp_path: Path):
    source = _file(
        tmp_path,
        "a.jsonl",
        '{"messages": [{"role": "user", "content": "the"}, {"role": "model", "content": "of"}]}',
    )
    tokenizer = tiny_tokenizer()
    (row,) = _calibrate(source, tokenizer=tokenizer, samples=1, seq_len=19).ids
    assert tokenizer.decode(row.tolist(), skip_special_tokens=False) == (
        "<bos><start_of_turn>user\nthe<end_of_turn>\n<start_of_turn>model\n"
    )


def test_a_mixture_keeps_its_shares(small_library):
    words = WordTokenizer()
    rows = _calibrate(tokenizer=words, samples=4).ids
    kinds = sorted(words.decode(row)[1][0] for row in rows)
    assert kinds == ["<", "e", "e", "e"]


def test_the_files_of_a_kind_take_turns(small_library):
    words = WordTokenizer()
    calibration_windows(Packer(words, 6, BOS, ChatTemplate(VARIANTS["stock"])), "general", 4)
    seen = [word[:2] for word in words.words if word.startswith("e")]
    assert sorted(seen[:2]) == ["ea", "eb"]


def test_the_same_seed_gives_the_same_windows(small_library):
    assert _calibrate(seed=7).digest == _calibrate(seed=7).digest


def test_another_seed_gives_other_windows(small_library):
    tokenizer = tiny_tokenizer()
    one, other = (_calibrate(tokenizer=tokenizer, seed=seed).ids for seed in (7, 8))
    assert not torch.equal(one, other)


def test_calibration_holds_no_evaluation_text(small_library):
    words = WordTokenizer()
    _calibrate(tokenizer=words, samples=16)
    assert not any(word[:2] in ("ec", "oa") for word in words.words)


def test_the_digest_is_that_of_the_little_endian_int32_stream(tmp_path: Path):
    source = _file(tmp_path, "a.txt", "a b c d")
    windows = _calibrate(source, samples=2, seq_len=3)
    stream = struct.pack("<6i", 2, 10, 11, 2, 12, 13)
    assert windows.digest == f"sha256:{hashlib.sha256(stream).hexdigest()}"
    assert windows.digest == (
        "sha256:17d197b04eb8e27b43e9e0b91763da158dbe567b4d4b7b70850956d93c9b60e3"
    )


def test_text_is_tokenized_only_as_far_as_needed(small_library):
    words = WordTokenizer()
    _calibrate(tokenizer=words, samples=1, seq_len=6)
    assert words.encoded == 1


def test_too_little_text_says_how_much_there_is_and_what_fits(tmp_path: Path):
    source = _file(tmp_path, "a.txt", "a b c d e f g h")
    with pytest.raises(CalibrationError) as raised:
        _calibrate(source, samples=3, seq_len=4)
    assert raised.value.message == f"--calib {source}: 8 tokens, but 3 windows of 4 need 9."
    assert raised.value.hint == "Give more text, or at most 2 windows of this length."


@pytest.mark.parametrize(
    ("words", "samples", "hint"),
    [
        (13, 16, "Give more text: 8176 tokens, about 35.2 kB."),
        (20, 1, "Give more text: 511 tokens, about 2.20 kB; or one window of 21."),
    ],
)
def test_text_for_no_window_at_all_says_how_much_is_needed(
    tmp_path: Path, words: int, samples: int, hint: str
):
    source = _file(tmp_path, "a.txt", "a " * words)
    with pytest.raises(CalibrationError) as raised:
        _calibrate(source, samples=samples, seq_len=512)
    assert raised.value.hint == hint


def test_an_unknown_mixture_lists_the_mixtures(small_library):
    with pytest.raises(UsageError, match="--calib genral: neither a file nor one of general"):
        _calibrate("genral")


def test_bad_counts_are_reported_together(small_library):
    with pytest.raises(Problems, match=r"(?s)--samples 0: .*--seq-len 1: ") as raised:
        _calibrate(samples=0, seq_len=1)
    assert raised.value.exit_code == 2


def _evaluate(slices, *, tokenizer=None, windows=2, seed=0) -> list[TokenWindows]:
    packer = Packer(tokenizer or WordTokenizer(), 4, BOS, ChatTemplate(VARIANTS["stock"]), seed)
    return evaluation_windows(packer, slices, windows)


def test_all_slices_are_evaluated_by_default(small_library):
    evaluated = _evaluate(None)
    assert [(windows.name, tuple(windows.ids.shape)) for windows in evaluated] == [
        ("english", (2, 4)),
        ("code", (2, 4)),
    ]


def test_slices_are_evaluated_in_the_order_asked_for(small_library):
    assert [windows.name for windows in _evaluate(["code", "english"])] == ["code", "english"]


def test_a_slice_does_not_depend_on_the_others(small_library):
    tokenizer = tiny_tokenizer()
    (alone,) = _evaluate(["code"], tokenizer=tokenizer)
    assert _evaluate(None, tokenizer=tokenizer)[1].digest == alone.digest


def test_unknown_slices_are_all_named(small_library):
    with pytest.raises(Problems, match=r"(?s)slice latin: not one of english, code.*slice maths:"):
        _evaluate(["latin", "maths", "code"])


def test_the_shipped_text_fills_the_default_windows_of_a_real_run():
    windows = _calibrate(tokenizer=tiny_tokenizer(), samples=16, seq_len=512)
    assert windows.ids.shape == (16, 512)
    assert int((windows.ids == BOS).sum()) == 16


def _plain_windows(count: int = 3, tokens: int = 41) -> TokenWindows:
    return token_windows(torch.arange(count * tokens).view(count, tokens).tolist(), "english")


def test_every_position_is_measured_unless_a_number_is_given():
    windows = _plain_windows()
    everything = torch.arange(40).expand(3, -1)
    for measured in (windows, windows.sampled(7).sampled(0), windows.sampled(40)):
        assert torch.equal(measured.positions, everything)


def test_sampled_positions_lie_at_equal_distances_after_a_start_of_each_windows_own():
    windows = _plain_windows()
    sampled = windows.sampled(7)
    assert sampled.positions.tolist() == windows.sampled(7).positions.tolist()
    assert len({tuple(row) for row in sampled.positions.tolist()}) == 3
    for row in sampled.positions:
        assert row[0] >= 0
        assert row[-1] < 40
        assert set(row.diff().tolist()) <= {5, 6}  # 40 / 7
    assert sampled.digest == windows.digest


def test_every_position_has_the_same_chance_to_be_sampled():
    windows, draws = _plain_windows(), 2000
    counts = torch.zeros(3, 40)
    for draw in range(draws):
        counts.scatter_add_(1, windows.sampled(7, draw=draw).positions, torch.ones(3, 7))
    expected = draws * 7 / 40
    # Five standard deviations of a binomial: the chance of one beyond them is below 1e-4.
    assert (counts - expected).abs().max() < 5 * (expected * (1 - 7 / 40)) ** 0.5
