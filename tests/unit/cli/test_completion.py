"""Shell completion offers commands, flags and the names of targets and exporters."""

from __future__ import annotations

import pytest

from gemquant.__main__ import main


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("gemquant ver", {"verify"}),
        ("gemquant awq --group", {"--group-size"}),
        ("gemquant awq --target c", {"cpu", "cuda"}),
        ("gemquant awq --exporter a", {"awq-gemm"}),
        ("gemquant targets cu", {"cuda"}),
        ("gemquant eval --suite c", {"c", "chat", "code"}),
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
