from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gemquant.calibration.documents import Plain
from gemquant.calibration.suites import SuiteText, read_suites
from gemquant.calibration.text import Library
from gemquant.calibration.windows import Packer, TokenWindows
from gemquant.errors import CalibrationError, UsageError
from gemquant.models.chat import ChatTemplate
from gemquant.models.chat_templates import VARIANTS
from tests.helpers.tiny_gemma import tiny_tokenizer

BOS = 2


def tokens(suite: SuiteText, *, seed: int = 0) -> list[TokenWindows]:
    template = ChatTemplate(VARIANTS["stock"])
    return suite.token_windows(Packer(tiny_tokenizer(), suite.seq_len, BOS, template, seed))


@pytest.mark.parametrize("name", ["default", "long", "multilingual", "chat", "code"])
def test_a_suite_names_slices_once_and_files_of_the_evaluation_text_alone(name: str) -> None:
    suite = read_suites()[name]
    names = [each.name for each in suite.slices]
    assert len(set(names)) == len(names)
    evaluation = {file.name for file in Library.open().files if file.split == "evaluation"}
    files = [file for each in suite.slices for file in each.files]
    assert set(files) <= evaluation
    assert all(each.files or each.name in Library.open().slices() for each in suite.slices)


def test_long_windows_reach_past_gemma_2s_sliding_window() -> None:
    assert read_suites()["long"].seq_len > 4096


def test_a_suite_gives_its_windows_of_its_length() -> None:
    found = tokens(SuiteText.named("chat"))
    assert [windows.name for windows in found] == ["questions", "small-talk"]
    assert all(windows.ids.shape == (16, 256) for windows in found)
    assert all((windows.ids[:, 0] == BOS).all() for windows in found)
    assert all((windows.ids[:, 1:] != BOS).all() for windows in found)


def test_a_stored_order_takes_each_window_from_one_file_from_its_beginning() -> None:
    suite = SuiteText.named("long").reduced(slices=["code"], windows=6, seq_len=40)
    (found,) = tokens(suite)
    library = Library.open()
    files = {file.name: file for file in library.files if file.split == "evaluation"}
    first, second = (library.read(files[name])[0] for name in ("flask", "cobra"))
    assert isinstance(first, Plain)
    assert isinstance(second, Plain)
    encoded = [
        tiny_tokenizer().encode(d.text, add_special_tokens=False).ids for d in (first, second)
    ]
    # Six windows of four files: two each of the first and second file, one of the others.
    assert found.ids[0, 1:].tolist() == encoded[0][:39]
    assert found.ids[1, 1:].tolist() == encoded[0][39:78]
    assert found.ids[2, 1:].tolist() == encoded[1][:39]


def test_a_reduced_suite_is_the_beginning_of_the_whole() -> None:
    suite = SuiteText.named("chat")
    (whole, _), (some,) = (
        tokens(suite),
        tokens(suite.reduced(slices=["questions"], windows=3, seq_len=None)),
    )
    assert torch.equal(some.ids, whole.ids[:3])
    assert some.digest != whole.digest


def test_the_seed_decides_the_order_of_shuffled_text() -> None:
    suite = SuiteText.named("chat").reduced(slices=["questions"], windows=2, seq_len=None)
    first, other = (tokens(suite, seed=seed)[0] for seed in (0, 1))
    assert first.digest != other.digest


def test_a_file_of_the_users_own_is_read_in_its_order_as_far_as_it_goes(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"text": "the fox"}\n{"text": "and the dog over it"}\n')
    suite = SuiteText.named(str(file)).reduced(slices=None, windows=None, seq_len=4)
    (found,) = tokens(suite)
    text = "the fox\n\nand the dog over it\n\n"
    ids = [
        token
        for part in ("the fox\n\n", "and the dog over it\n\n")
        for token in tiny_tokenizer().encode(part, add_special_tokens=False).ids
    ]
    assert len(text) > len(ids)
    assert found.ids[:, 1:].flatten().tolist() == ids[: len(ids) // 3 * 3]
    assert (found.name, suite.name, suite.version) == ("mine", "mine.jsonl", 1)


def test_windows_that_were_asked_for_must_be_there(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("the quick brown fox")
    suite = SuiteText.named(str(file)).reduced(slices=None, windows=50, seq_len=16)
    with pytest.raises(CalibrationError, match="but 50 windows of 16 need 750"):
        tokens(suite)


@pytest.mark.parametrize(
    ("slices", "windows", "seq_len", "message"),
    [
        (["cobol"], None, None, "--eval-slices cobol: suite code has python, go"),
        ([], None, None, "0 slices of 12 windows are nothing to measure on"),
        (None, 0, None, "6 slices of 0 windows are nothing to measure on"),
        (None, None, 1, "--seq-len 1: must be at least 2"),
    ],
)
def test_nothing_to_measure_on_is_an_error(
    slices: list[str] | None, windows: int | None, seq_len: int | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        SuiteText.named("code").reduced(slices=slices, windows=windows, seq_len=seq_len)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version = 2\n", "version: Input should be 1"),
        ("version = 1\n", "suites: Field required"),
        (
            "version = 1\n[suites.a]\nversion = 1\nseq_len = 9\nwindows = 1\n",
            "order: Field required",
        ),
        ("version = ", "not TOML"),
    ],
)
def test_a_damaged_file_of_suites_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "suites.toml").write_text(content)
    with pytest.raises(CalibrationError, match=message):
        read_suites(tmp_path)
