"""From a checkpoint to another's copy: made, measured, described, uploaded, fetched, verified."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from tests.helpers.hub_stand_in import TOKEN, hub_stand_in
from tests.helpers.tiny_gemma import Kind
from tests.unit.cli.conftest import Run

SHORT = ("--threads", "1", "-q", "--eval-windows", "2", "--seq-len", "24", "--eval-slices", "code")


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
def test_what_is_fetched_is_what_was_made_and_measured(
    run: Run, tiny_folders: dict[Kind, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run("rtn", str(tiny_folders["gemma2"]), "--group-size", "32", *SHORT, "-o", "out")
    assert made.code == 0, made.err
    assert run("card", "out", "--check").code == 0
    measured = run("eval", "out", "--no-native", *SHORT, "--output", "eval.json")
    assert measured.code == 0, measured.err
    described = run("card", "out", "--evaluation", "eval.json")
    assert described.code == 0, described.err

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub_stand_in() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        pushed = run("push", "out", "me/tiny", "-q")
        assert pushed.code == 0, pushed.err
        for name, content in hub.repositories["me/tiny"].files().items():
            place = Path("copy") / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)

    assert run("verify", "copy").out == "copy: valid\n"
    names = {each.metric_name for each in ModelCard.load("copy/README.md").data.eval_results}
    assert "KL divergence from the original, mean, nats (level reference)" in names
    again = run("eval", "copy", "--no-native", *SHORT, "--output", "copy.json")
    assert again.code == 0, again.err
    assert run("card", "copy", "--evaluation", "copy.json", "--check").code == 2
    taken = run("card", "copy", "--evaluation", "eval.json")
    assert taken.out == "copy/README.md: up to date\n"
