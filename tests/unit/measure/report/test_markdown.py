"""Markdown: the verdict first, levels apart, hostile names harmless, never above the limit."""

from __future__ import annotations

import re

import pytest
from hypothesis import given as generated
from hypothesis import strategies
from markdown_it import MarkdownIt

from gemquant.core.artifact.evaluation import LevelEvaluation
from gemquant.measure.report.markdown import escaped, to_markdown
from tests.helpers.tiny_evaluation import artifact, document, measured_slice
from tests.helpers.tiny_report import check, report

RENDERER = MarkdownIt("commonmark", {"html": True}).enable("table")


def test_the_verdict_comes_first() -> None:
    first = to_markdown(report(check("regression"))).splitlines()[0]
    assert first == "## ❌ gemquant: regression"


def test_without_a_verdict_nothing_is_called_passed() -> None:
    text = to_markdown(report())
    assert text.startswith("## gemquant: measured, not gated")
    assert "✅" not in text


def test_what_failed_names_slice_metric_and_layer() -> None:
    text = to_markdown(report(check("regression")))
    assert "| english | KL mean, nats/token | regression | 0.1000 | 0.1500 |" in text
    assert "the error rises at layer 2 on english" in text


def test_what_passed_is_not_listed_as_failed() -> None:
    text = to_markdown(report(check("regression"), check("pass", slice="code")))
    assert "| code | KL mean, nats/token |" not in text


def test_levels_stand_in_tables_of_their_own() -> None:
    native = LevelEvaluation(
        level="native", runtime="llama.cpp", slices=(measured_slice("english", kl=[0.77]),)
    )
    one = artifact("a", kl={"english": [0.1]})
    one = one.model_copy(update={"levels": (*one.levels, native)})
    parts = re.split(r"\*\*Level (\w+)\.\*\*", to_markdown(report(of=document(one))))
    assert parts[1::2] == ["reference", "native", "reference", "native"]
    assert ["| 0.770 " in part for part in parts[2::2]] == [False, True] * 2


def test_a_level_that_was_not_run_says_why() -> None:
    absent = LevelEvaluation(level="native", runtime="mlx-lm", not_run="mlx is not installed")
    one = artifact("a", kl={"english": [0.1]})
    one = one.model_copy(update={"levels": (*one.levels, absent)})
    assert "- a, level native: not run, mlx is not installed" in to_markdown(
        report(of=document(one))
    )


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        "a | b | c",
        "[click](https://example.com)",
        "`code` **bold** ~~gone~~",
        "one\ntwo\n# three",
        "https://example.com",
        "&lt;script&gt;",
        "\\<b>",
    ],
)
def test_a_hostile_name_is_shown_as_it_is(name: str) -> None:
    shown = RENDERER.renderInline(escaped(name))
    assert re.findall(r"<[^>]*>", shown) == []


def test_a_hostile_name_stays_in_its_cell() -> None:
    text = to_markdown(report(of=document(artifact("a|b\n|c", kl={"english": [0.1]}))))
    rows = re.findall(r"<tr>.*?</tr>", RENDERER.render(text), flags=re.DOTALL)
    named = [row for row in rows if "a|b |c" in row]
    assert [row.count("<td") for row in named[:2]] == [6, 9]


def test_a_name_mentions_nobody() -> None:
    assert escaped("@everyone") == "@\u200beveryone"


def test_writing_that_turns_round_is_shown_as_its_code_point() -> None:
    assert "\u202e" not in escaped("a\u202etxt.exe")


@pytest.mark.parametrize("limit", [4_096, 20_000, 65_536])
def test_the_limit_holds_and_what_is_missing_is_counted(limit: int) -> None:
    many = [artifact(f"artifact-{number}", kl={"english": [0.1]}) for number in range(600)]
    text = to_markdown(report(check("regression"), of=document(*many)), limit_bytes=limit)
    assert len(text.encode()) <= limit
    assert re.search(r"Left out to stay within the size allowed: [\d,]+ rows", text)
    assert text.startswith("## ❌ gemquant: regression")
    assert text.count("<details>") == text.count("</details>")


def test_two_hundred_artifacts_fit_a_step_summary_whole() -> None:
    many = [artifact(f"a{number}", kl={"english": [0.1]}) for number in range(200)]
    text = to_markdown(report(of=document(*many)))
    assert "Left out" not in text
    assert len(text.encode()) < 1_048_576


@generated(strategies.text(max_size=40))
def test_no_name_makes_markup(name: str) -> None:
    shown = RENDERER.renderInline("x" + escaped(name) + "x")
    assert re.findall(r"<[^>]*>", shown) == []


def test_the_comparison_comes_before_the_slices_and_has_the_size() -> None:
    text = to_markdown(report(of=document(artifact("a", kl={"english": [0.1], "code": [0.3]}))))
    whole, slices = text.index("| artifact | size | bits | KL mean |"), text.index("### Each slice")
    assert whole < slices
    assert "| a | 1.00 MB | 4.50 | 0.200 | 4.50 | 80.0 % |" in text[whole:slices]
