"""Shell completion offers commands, flags, files and the values of flags."""

from __future__ import annotations

import pytest

from gemquant.__main__ import main
from gemquant.formats.checkpoint.sample import SAMPLES


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("gemquant ver", {"verify"}),
        ("gemquant awq --group", {"--group-size"}),
        ("gemquant awq --target c", {"cpu", "cuda"}),
        ("gemquant awq --exporter a", {"awq-gemm"}),
        ("gemquant targets cu", {"cuda"}),
        ("gemquant eval --suite c", {"c", "chat", "code"}),
        ("gemquant awq sam", {"sam", "sample:gemma-3-270m"}),
        ("gemquant chat ./my", {"./my"}),
        ("gemquant gguf --type q4_k", {"Q4_K_S", "Q4_K_M"}),
        ("gemquant gguf --type Q8_0,IQ", {"Q8_0,IQ4_NL", "Q8_0,IQ4_XS"}),
        ("gemquant gguf model Q6", {"Q6_K"}),
        ("gemquant awq --calib cod", {"cod", "code"}),
        ("gemquant awq --eval-slices eng", {"english", "english-old"}),
        ("gemquant awq --chat-template sto", {"sto", "stock"}),
        ("gemquant awq --bits 8", {"8"}),
    ],
)
def test_a_word_is_completed(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    offered: set[str],
) -> None:
    monkeypatch.setenv("_GEMQUANT_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit, match="0"):
        main([])
    offers = capsys.readouterr().out.splitlines()
    assert {line.partition(",")[2] for line in offers} == offered


def test_the_only_sample_is_the_one_that_is_offered() -> None:
    assert list(SAMPLES) == ["gemma-3-270m"]
