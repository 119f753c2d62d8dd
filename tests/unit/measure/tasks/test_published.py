from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gemquant.errors import UsageError
from gemquant.measure.tasks.published import (
    Figure,
    TaskRun,
    compared,
    figure_for,
    read_figures,
    shipped_figures,
)

MODEL = "google/gemma-3-270m"
TEN_SHOT = TaskRun(
    task="hellaswag",
    metric="acc_norm",
    filter="none",
    num_fewshot=10,
    limit=None,
    chat_template=False,
)


def run(**changes: Any) -> TaskRun:
    return TEN_SHOT.model_copy(update=changes)


def published(**changes: Any) -> Figure:
    figure = figure_for(MODEL, TEN_SHOT, shipped_figures())
    assert figure is not None
    return figure.model_copy(update=changes)


def test_every_shipped_figure_is_a_share_with_a_source() -> None:
    figures = shipped_figures()
    assert len(figures) > 60
    for figure in figures:
        assert 0 < figure.value < 1
        assert "https://" in figure.source
        # The wording ends in the card's own percentage.
        assert float(figure.wording.rpartition(": ")[2]) == pytest.approx(100 * figure.value)


def test_the_figure_of_a_model_card_is_found() -> None:
    figure = figure_for(MODEL, TEN_SHOT, shipped_figures())
    assert figure is not None
    assert (figure.value, figure.num_fewshot) == (0.409, 10)


@pytest.mark.parametrize(
    ("model", "changes"),
    [(None, {}), ("google/gemma-9", {}), (MODEL, {"metric": "acc"}), (MODEL, {"task": "mmlu"})],
)
def test_what_nobody_published_has_no_figure(model: str | None, changes: dict[str, Any]) -> None:
    assert figure_for(model, run(**changes), shipped_figures()) is None


def test_like_is_compared_with_like() -> None:
    found = compared(published(), TEN_SHOT, 0.389, higher_is_better=True)
    assert found.drop == pytest.approx(0.02)
    assert found.not_compared is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_fewshot": 0}, "published 10-shot, here 0-shot"),
        ({"num_fewshot": None}, "published 10-shot, here mixed"),
        ({"limit": 50}, "here only the first 50 samples"),
        ({"chat_template": True}, "published for a pretrained model, here in the chat template"),
    ],
)
def test_unlike_things_are_shown_and_not_compared(changes: dict[str, Any], told: str) -> None:
    found = compared(published(), run(**changes), 0.389, higher_is_better=True)
    assert (found.value, found.drop, found.not_compared) == (0.409, None, told)


def test_a_figure_without_shots_is_never_compared() -> None:
    found = compared(published(num_fewshot=None), TEN_SHOT, 0.4, higher_is_better=True)
    assert found.not_compared == "the source does not give the number of examples"


FILES = {
    "own.toml": """
[[figure]]
model = "me/gemma"
task = "hellaswag"
metric = "acc_norm"
num_fewshot = 10
value = 0.5
wording = "HellaSwag: 50.0"
source = "card"

[sources]
card = "my card"
""",
    "own.json": """{"figure": [{"model": "me/gemma", "task": "hellaswag", "metric": "acc_norm",
"num_fewshot": 10, "value": 0.5, "wording": "HellaSwag: 50.0", "source": "my card"}]}""",
}


@pytest.mark.parametrize("name", FILES)
def test_a_users_file_is_read_and_wins(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    (figure,) = read_figures(tmp_path / name)
    assert (figure.value, figure.source) == (0.5, "my card")
    mine = figure.model_copy(update={"model": MODEL})
    assert figure_for(MODEL, TEN_SHOT, (*shipped_figures(), mine)) == mine


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("figure = 3", "figure"),
        ("figure = [{model = 'a'}]", r"figure\.0\.task"),
        ("figure = [", "Invalid value|unclosed|Unclosed|Expected"),
        ("figures = []", "figure"),
    ],
)
def test_a_broken_file_is_a_usage_error(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=told) as caught:
        read_figures(path)
    assert str(path) in caught.value.message


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_figures(tmp_path / "none.toml")
